"""Judges a reading of the destination against a witness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from krzem.witness.floor import SPREAD, Group, far_rates, group_of, pooled
from krzem.witness.quantity import BACKWARD, STATE_KINDS, Kind, Quantity, Reading, errors, place
from krzem.witness.tolerance import Tolerance, explained, rare, rounded_parameter
from krzem.witness.verdict import Finding
from krzem.witness.witness import Witness

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
