"""Judges a reading against a witness: declared tolerances, the noise floor, what lies beyond."""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from krzem.errors import InputError
from krzem.witness import quantity as measured
from krzem.witness.quantity import (
    BACKWARD,
    EXACT,
    RULE,
    STATE_KINDS,
    Kind,
    Quantity,
    Reading,
    errors,
    place,
)
from krzem.witness.verdict import Finding
from krzem.witness.witness import Floors, Witness


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far a destination may be from the source."""

    loss: float = 0.005
    """Relative, at most; in float32 some roundings are enough."""
    gradient_norm: float = 0.10
    """Relative, at most."""
    floors: float = 10.0
    """Multiple of the floor that any other quantity may reach."""
    allow: Mapping[str, float] = field(default_factory=dict)
    """Declared differences: a pattern such as ``layers.3.*`` -> the least tolerance there."""

    def __post_init__(self) -> None:
        for name in ("loss", "gradient_norm", "floors"):
            if getattr(self, name) <= 0:
                raise InputError(f"tolerance {name} = {getattr(self, name)} has to be above 0")

    def of(self, quantity: Quantity, signal: str, floor: float, dtype: str) -> float:
        """The largest error of ``signal`` that passes."""
        if signal in ("nonfinite", "checksum") or quantity.kind in (Kind.LOADED, Kind.RATE):
            return 0.0 if signal in ("nonfinite", "checksum") else _EQUAL
        base = max(self.floors * floor, least(quantity, signal, dtype))
        declared = {Kind.GRADIENT_NORM: self.gradient_norm, Kind.LOSS: self.loss}
        if quantity.kind in declared:
            base = max(_OWN * floor, min(base, declared[quantity.kind]))
        return max([base, *(v for p, v in self.allow.items() if _matches(quantity, p))])


_EQUAL = 1e-9
"""Numbers that are computed from settings alone agree to the last digits of float64."""


_OWN = 3.0
"""Multiple of the floor of loss and gradient norm: where the source differs from itself by more
than is declared, nobody else can do better."""


_SCALAR = 20.0
"""Roundings of a loss or gradient norm over those of a mean, before what is declared counts."""


_RULE = 1e-4
"""Rules are applied to equal numbers in float32; near-zero gradients amplify the last digit."""


_FINE = {"float64": 1e-7, "float32": 2e-5, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 4e-3}
"""Of sampled values: some tens of roundings in float32, one in bfloat16."""


_EXTREME = {"float64": 1e-6, "float32": 1e-4, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 4e-2}
"""Of the largest value, which is a single element: five roundings in bfloat16."""


_MEAN = {"float64": 5e-8, "float32": 5e-6, "tf32": 5e-4, "float16": 5e-4, "bfloat16": 2e-3}
"""Of means and norms, in which roundings cancel."""


_BACKWARD = 5.0
"""Errors grow through backward."""


_NORMAL = 5.0
"""Sigmas of a sum of independent errors."""


_CHANCE = 1e-6
"""That a count of far samples is exceeded by an honest machine: a check judges some thousands."""


_MANY, _SIGMAS = 500.0, 4.8
"""From so many expected on, the Poisson law is the normal one; so many sigmas are 1e-6."""


def least(quantity: Quantity, signal: str, dtype: str) -> float:
    """Errors below this are never held against anyone: vendors' libraries round differently."""
    if quantity.kind in RULE:
        return _RULE
    if quantity.kind in EXACT:
        return 1e-5 if signal == "norm" else 0.0
    if quantity.kind is Kind.LOAD:
        return _FINE.get(dtype, 4e-3) + 2.0 / max(float(quantity.samples.sum()), 1.0)
    if signal == "far":
        return 0.0  # counted: see rare
    if signal == "value":
        scale = _SCALAR if quantity.kind is Kind.LOSS else _SCALAR * _BACKWARD
        return scale * _MEAN.get(dtype, _MEAN["bfloat16"])
    table = {"samples": _FINE, "absmax": _EXTREME, "ranks": _EXTREME}.get(signal, _MEAN)
    scale = 1.0 if quantity.kind is Kind.ACTIVATION else _BACKWARD
    return scale * table.get(dtype, table["bfloat16"])


def explained(quantity: Quantity, signal: str, spread: float) -> float:
    """What noise of single elements explains in a statistic over all of them.

    ``spread`` is the relative root mean square of that noise.  It changes a norm by its component
    along the tensor, a 1/sqrt(n)-th of it where n elements err independently and never more than
    all of it, and by its own square (a token that goes to another expert).  A change may be stored
    no finer than the numbers are that it is added to.  Elements next to zero are rounded either
    way: their number follows a Poisson law.
    """
    if signal == "zero":
        count = max(quantity.stats.get("count", 1.0), 1.0)
        return rare(int(count), 1.0 / count)
    grain = quantity.stats.get("grain", 0.0) if signal in ("norm", "samples") else 0.0
    if signal not in ("norm", "rms"):
        return grain
    along = min(1.0, _NORMAL / math.sqrt(max(quantity.samples.size, 1)))
    return grain + along * spread + 2 * spread * spread


def rare(samples: int, rate: float) -> float:
    """The share of ``samples`` that are far off which an honest machine all but never exceeds.

    Each sample is far off with the probability ``rate``, as the source's own repeats show; their
    number then follows a Poisson law, of which the quantile at ``1 - 1e-6`` is taken.
    """
    expected = samples * rate
    if expected > _MANY:
        return min(1.0, (expected + _SIGMAS * math.sqrt(expected)) / samples)
    term = below = math.exp(-expected)
    count = 0
    while 1.0 - below > _CHANCE and count < samples:
        count += 1
        term *= expected / count
        below += term
    return count / max(samples, 1)


def rounded_parameter(signal: str, dtype: str) -> float:
    """What storing parameters in another type may change: a rounding of the largest of them."""
    if signal == "checksum":
        return math.inf
    return (1.0 if signal == "norm" else 5.0) * _FINE.get(dtype, 4e-3)


def _matches(quantity: Quantity, pattern: str) -> bool:
    """Whether a pattern names the quantity, or its kind and name."""
    names = (quantity.name, f"{quantity.kind} {quantity.name}".strip())
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


SPREAD = "spread"
"""Of samples, as :func:`krzem.witness.quantity.spread` has it: it explains the noise of norms."""


_FLOORLESS = frozenset({"nonfinite", "checksum"})


Group = tuple[Kind, str]
"""Quantities of one kind in one layer: they lean on each other."""


def spread(base: Reading, repeats: Iterable[Reading], dtype: str) -> Floors:
    """The largest difference of any repeat from ``base``, by quantity and signal."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for reading in repeats:
        for key, quantity in base.items():
            if key not in reading or quantity.kind in STATE_KINDS:
                continue
            apart = errors(quantity, reading[key], dtype)
            apart[SPREAD] = measured.spread(quantity, reading[key])
            for signal, error in apart.items():
                if signal not in _FLOORLESS:
                    found[key][signal] = max(found[key].get(signal, 0.0), error)
    return dict(found)


def group_of(quantity: Quantity) -> Group:
    """The kind and layer of a quantity."""
    return quantity.kind, quantity.layer


def pooled(reading: Reading, floors: Mapping[str, Mapping[str, float]]) -> Floors:
    """Floors that lean on each other: none below the median of its kind and signal in its layer.

    A few repeats can agree by chance where the next would not.
    """
    groups: dict[tuple[Group, str], list[float]] = defaultdict(list)
    for key, spreads in floors.items():
        for signal, value in spreads.items():
            groups[group_of(reading[key]), signal].append(value)
    middle = {group: float(np.median(values)) for group, values in groups.items()}
    return {
        key: {
            signal: max(value, middle[group_of(reading[key]), signal])
            for signal, value in spreads.items()
        }
        for key, spreads in floors.items()
    }


def far_rates(reading: Reading, floors: Mapping[str, Mapping[str, float]]) -> dict[Group, float]:
    """How often a sample is far off in the worst repeat, by kind and layer.

    One more than was counted is taken: where none was met, the next may be (rule of succession).
    """
    counted: dict[Group, list[float]] = defaultdict(lambda: [1.0, 1.0])
    for key, quantity in reading.items():
        if quantity.samples.size and quantity.kind not in STATE_KINDS:
            pair = counted[group_of(quantity)]
            pair[0] += floors.get(key, {}).get("far", 0.0) * quantity.samples.size
            pair[1] += quantity.samples.size
    return {group: min(1.0, found / of) for group, (found, of) in counted.items()}


_FLIP = 10.0
"""Error of a statistic per share of choices that were routed otherwise: a moved token changes the
outputs and gradients of two experts entirely."""
_SPARED = frozenset({"mean", "rms", "absmax", "zero", "norm", "far"})
"""Signals that a few tokens sent elsewhere change: not the median of the samples."""
_HELD = frozenset({Kind.PARAMETER, Kind.MOMENT, Kind.GRADIENT, Kind.STEP})
"""Tensors of the model and of its optimizer: a run has all of them, or is another."""

Flips = list[tuple[tuple[int, int, int], int | None, float]]
"""Place, batch and share of moved choices of each router."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is tolerated in one arithmetic: the floors, and what routers may move."""

    tolerance: Tolerance
    dtype: str
    floors: Mapping[str, Mapping[str, float]]
    rates: Mapping[Group, float]
    flips: Flips

    def of(self, quantity: Quantity, signal: str) -> tuple[float, float]:
        """Floor and tolerance of one signal."""
        own = self.floors.get(quantity.key, {})
        floor = own.get(signal, 0.0)
        limit = self.tolerance.of(quantity, signal, floor, self.dtype)
        limit = max(limit, explained(quantity, signal, own.get(SPREAD, 0.0)))
        if signal == "far":
            limit = max(limit, rare(quantity.samples.size, self.rates.get(group_of(quantity), 0.0)))
        if signal == "absmax" and own.get("far"):
            limit += 1.0  # some sample was another: so may be the largest element
        if signal in _SPARED and limit:
            limit += _FLIP * self._moved_before(quantity)
        return floor, limit

    def _moved_before(self, quantity: Quantity) -> float:
        """Share of choices moved in routers that a quantity is computed after."""
        if quantity.kind in STATE_KINDS or quantity.kind in (
            Kind.LOSS, Kind.GRADIENT_NORM, Kind.LOAD, Kind.STEP,
        ):  # fmt: skip
            return 0.0
        here, everywhere = place(quantity), quantity.kind in BACKWARD
        return sum(
            share
            for at, batch, share in self.flips
            if batch == quantity.batch and (everywhere or at <= here)
        )


def judge(
    witness: Witness, reading: Reading, tolerance: Tolerance, dtype: str
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Every signal of a step judged, and the names of quantities that only one side has."""
    recorded = witness.reading_for(dtype)
    own = witness.floors.get(dtype, {})
    floors = pooled(recorded, own)
    plain = Limits(
        tolerance=tolerance, dtype=dtype, floors=floors, rates=far_rates(recorded, own), flips=[]
    )
    limits = replace(plain, flips=_flips(recorded, reading, plain))
    return _all(recorded, reading, limits)


def judge_state(
    witness: Witness, state: Reading, tolerance: Tolerance, dtype: str
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """What was loaded, judged; the floor of it is nought."""
    limits = Limits(tolerance=tolerance, dtype=dtype, floors={}, rates={}, flips=[])
    # krzem keeps float32 parameters whatever it computes in; a folder is loaded in one type.
    stored = dtype if witness.kind == "transformers" and dtype != witness.dtype else None
    found, apart = _all(witness.state, state, limits)
    return tuple(_as_stored(f, stored) for f in found) if stored else found, apart


def _all(
    recorded: Reading, reading: Reading, limits: Limits
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    found: list[Finding] = []
    kinds = {q.kind for q in reading.values()}
    for key, q in recorded.items():
        if key in reading:
            found += _judged(q, reading[key], limits)
        elif q.kind in _HELD & kinds:
            found.append(_missing(q, limits.dtype))
    everything = {**reading, **recorded}
    either = recorded.keys() ^ reading.keys()
    names = {f"{everything[k].kind} {everything[k].name}".strip() for k in either}
    return tuple(found), tuple(sorted(names))


def _missing(quantity: Quantity, dtype: str) -> Finding:
    """A tensor that others of its kind were found beside: it is not there, has no gradient, or the
    optimizer was not given it."""
    return Finding(
        quantity=quantity, signal="missing", error=1.0, floor=0.0, tolerance=0.0, dtype=dtype
    )


def _judged(base: Quantity, other: Quantity, limits: Limits) -> Iterator[Finding]:
    noise = limits.floors.get(base.key, {}).get("samples", 0.0)
    for signal, error in errors(base, other, limits.dtype, noise).items():
        floor, limit = limits.of(base, signal)
        yield Finding(
            quantity=base, signal=signal, error=error, floor=floor, tolerance=limit,
            dtype=limits.dtype,
        )  # fmt: skip


def _as_stored(finding: Finding, dtype: str) -> Finding:
    """A parameter judged as one that was rounded to ``dtype``."""
    if finding.quantity.kind is not Kind.PARAMETER or finding.signal == "nonfinite":
        return finding
    return replace(finding, tolerance=rounded_parameter(finding.signal, dtype))


def _flips(base: Reading, other: Reading, limits: Limits) -> Flips:
    """What each router moved, as far as the source's own floor explains it.

    More than that is excused nowhere: a fault before a router moves choices too, and must not
    widen its own tolerance.
    """
    found = []
    for key, q in base.items():
        if q.kind is Kind.LOAD and key in other:
            moved = errors(q, other[key], limits.dtype)["moved"]
            explained = limits.of(q, "moved")[1]
            found.append((place(q), q.batch, moved if moved <= explained else 0.0))
    return found


def permuted_experts(base: Quantity, other: Quantity, experts: int) -> str:
    """A note where the rows of ``other`` are those of ``base`` in another order."""
    if base.samples.shape != other.samples.shape or base.samples.size % experts:
        return ""
    a, b = base.samples.reshape(experts, -1), other.samples.reshape(experts, -1)
    places = {row.tobytes(): i for i, row in enumerate(a)}
    order = [places.get(row.tobytes(), -1) for row in b]
    moved = [i for i, j in enumerate(order) if i != j]
    if not moved or -1 in order or len(set(order)) != experts:
        return ""
    shown = ", ".join(f"{i} holds {order[i]}" for i in moved[:4])
    more = f" and {len(moved) - 4} more" if len(moved) > 4 else ""
    return f"{base.name}: the experts are all there, in another order ({shown}{more})"
