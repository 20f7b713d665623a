"""The same question over a range of one quantity: devices, batch, tokens, links, price, …"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from krzem.errors import KrzemError, QuantityError, nearest, shorten
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import read_cluster
from krzem.plan.answer import Progress, plan_of
from krzem.plan.plan import Plan
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.quantity import parse_count, parse_devices, parse_length, parse_money, parse_rate

MOST = 64
"""Points of a sweep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What can be swept, and how its values are read and put into a question."""

    label: str
    unit: str
    read: Callable[[str], float]
    put: Callable[[Question, Cluster, float], Question]
    scale: float = 1.0
    """What a value is divided by to be shown in ``unit``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of a sweep: its plan, or why there is none."""

    value: float
    asked: Asked | None
    plan: Plan | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A quantity over its values."""

    name: str
    quantity: Quantity
    points: tuple[Point, ...]


def _field(name: str) -> Callable[[Question, Cluster, float], Question]:
    def put(question: Question, cluster: Cluster, value: float) -> Question:
        changes: dict[str, Any] = {name: round(value)}
        if name == "global_batch":
            changes["batch_tokens"] = None
        return replace(question, on=cluster, **changes)

    return put


def _cluster(name: str) -> Callable[[Question, Cluster, float], Question]:
    def put(question: Question, cluster: Cluster, value: float) -> Question:
        facts = {key: fact for key, fact in cluster.facts.items() if key != name}
        assumed = {key: bounds for key, bounds in cluster.assumed.items() if key != name}
        changed: dict[str, Any] = {name: value}
        if name == "devices":
            own, count = f":{cluster.devices}", round(value)
            counted = cluster.name.endswith(own)
            called = f"{cluster.name.removesuffix(own)}:{count}" if counted else cluster.name
            changed = {name: count, "name": called}
        return replace(question, on=replace(cluster, facts=facts, assumed=assumed, **changed))

    return put


QUANTITIES = {
    "devices": Quantity(
        label="devices", unit="devices", read=parse_devices, put=_cluster("devices")
    ),
    "batch": Quantity(
        label="global batch", unit="sequences", read=parse_count, put=_field("global_batch")
    ),
    "seq": Quantity(label="sequence", unit="tokens", read=parse_length, put=_field("sequence")),
    "tokens": Quantity(label="tokens", unit="tokens", read=parse_count, put=_field("tokens")),
    "scale-up": Quantity(
        label="scale-up bandwidth", unit="GB/s", read=parse_rate,
        put=_cluster("scale_up_bytes_per_s"), scale=1e9,
    ),
    "scale-out": Quantity(
        label="scale-out bandwidth", unit="GB/s", read=parse_rate,
        put=_cluster("scale_out_bytes_per_s"), scale=1e9,
    ),
    "price": Quantity(
        label="price of a device-hour", unit="$", read=parse_money,
        put=_cluster("usd_per_device_hour"),
    ),
}  # fmt: skip
"""By the name that ``--sweep`` is written with."""


def parse_sweep(text: str) -> tuple[str, tuple[float, ...]]:
    """``devices=64..4096`` (doubling), ``batch=512..2048..512`` (in steps), ``devices=64|96``.

    Raises QuantityError with the forms and names that there are.
    """
    name, equals, values = (piece.strip() for piece in text.partition("="))
    name = name.lower().replace("_", "-")
    if name not in QUANTITIES or not equals:
        near = nearest(name, QUANTITIES)
        offer = f" Did you mean {near[0]}?" if near else ""
        raise QuantityError(
            f"--sweep {shorten(text)!r}: write NAME=LOW..HIGH, such as devices=64..4096.{offer}"
            f" Names: {', '.join(QUANTITIES)}"
        )
    try:
        found = _values(values, QUANTITIES[name].read)
    except QuantityError as error:
        raise QuantityError(f"--sweep {shorten(text)!r}: {error}") from None
    if not 1 <= len(found) <= MOST:
        raise QuantityError(
            f"--sweep {shorten(text)!r}: {len(found):,} points; 1 to {MOST} are shown"
        )
    return name, found


def _values(text: str, read: Callable[[str], float]) -> tuple[float, ...]:
    if ".." not in text:
        return tuple(float(read(value.strip())) for value in text.split("|"))
    low, high, *step = (float(read(value.strip())) for value in text.split(".."))
    if not 0 < low <= high or len(step) > 1 or (step and step[0] <= 0):
        raise QuantityError("a range goes up: LOW..HIGH (doubling) or LOW..HIGH..STEP")
    found = [low]
    while len(found) <= MOST:
        following = found[-1] + step[0] if step else 2.0 * found[-1]
        if following > high * (1 + 1e-9):
            break
        found.append(following)
    return tuple(found)


def sweep(question: Question, text: str, progress: Progress | None = None) -> Sweep:
    """A plan for each value; a value without a plan keeps the reason.

    Raises QuantityError for a sweep that cannot be read, and the first error where no value has
    a plan.
    """
    name, values = parse_sweep(text)
    quantity = QUANTITIES[name]
    cluster = question.on if isinstance(question.on, Cluster) else read_cluster(question.on)
    points: list[Point] = []
    errors: list[KrzemError] = []
    done = 0

    def counted(priced: int) -> None:
        if progress is not None:
            progress(done + priced)

    for value in values:
        try:
            points.append(point_at(question, name, cluster, value, counted))
            done += points[-1].plan.layouts_evaluated if points[-1].plan else 0
        except KrzemError as error:
            errors.append(error)
            points.append(Point(value=value, asked=None, plan=None, error=str(error)))
    if len(errors) == len(points):
        raise errors[0]
    return Sweep(name=name, quantity=quantity, points=tuple(points))


def point_at(
    question: Question, name: str, cluster: Cluster, value: float, progress: Progress | None = None
) -> Point:
    """The plan at one value of a quantity; raises what a plan raises."""
    asked = settle(QUANTITIES[name].put(question, cluster, value))
    return Point(value=value, asked=asked, plan=plan_of(asked, progress=progress), error=None)
