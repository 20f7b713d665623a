"""Judges a reading of the destination against a witness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from krzem.witness.floor import pooled
from krzem.witness.quantity import BACKWARD, Kind, Quantity, Reading, errors, place
from krzem.witness.tolerance import Tolerance, rounded_parameter
from krzem.witness.verdict import Finding
from krzem.witness.witness import Witness

_FLIP = 10.0
"""Error of a statistic per share of choices that were routed otherwise: a moved token changes the
outputs and gradients of two experts entirely."""


def judge(
    witness: Witness, reading: Reading, tolerance: Tolerance, dtype: str
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Every signal judged, and the names of quantities that only one side has."""
    floors = pooled(witness.reading, witness.floors.get(dtype, {}))
    flips = _flips(witness.reading, reading)
    # krzem keeps float32 parameters whatever it computes in; a folder is loaded in one type.
    stored = dtype if witness.kind == "transformers" and dtype != witness.dtype else None
    found: list[Finding] = []
    for key, base in witness.reading.items():
        if key in reading:
            spare = _FLIP * _moved_before(base, flips)
            judged = _judged(base, reading[key], floors.get(key, {}), tolerance, dtype, spare)
            found += [_as_stored(f, stored) for f in judged] if stored else judged
    either = witness.reading.keys() ^ reading.keys()
    everything = {**reading, **witness.reading}
    names = [f"{everything[k].kind} {everything[k].name}".strip() for k in either]
    return tuple(found), tuple(sorted(set(names)))


def _judged(
    base: Quantity,
    other: Quantity,
    floors: Mapping[str, float],
    tolerance: Tolerance,
    dtype: str,
    spare: float,
) -> Iterator[Finding]:
    for signal, error in errors(base, other, dtype).items():
        floor = floors.get(signal, 0.0)
        limit = tolerance.of(base, signal, floor, dtype)
        if signal in ("mean", "rms", "absmax", "zero", "norm", "far") and limit:
            limit += spare
        yield Finding(quantity=base, signal=signal, error=error, floor=floor, tolerance=limit)


def _as_stored(finding: Finding, dtype: str) -> Finding:
    """A parameter judged as one that was rounded to ``dtype``."""
    if finding.quantity.kind is not Kind.PARAMETER or finding.signal == "nonfinite":
        return finding
    return replace(finding, tolerance=rounded_parameter(finding.signal, dtype))


def _flips(base: Reading, other: Reading) -> list[tuple[tuple[int, int, int], int | None, float]]:
    """Place, batch and share of moved choices of each router whose load is within reason.

    Where choices move by more than rounding explains, nothing is excused by it.
    """
    found = []
    for key, q in base.items():
        if q.kind is Kind.LOAD and key in other:
            moved = errors(q, other[key], "float32")["moved"]
            found.append((place(q), q.batch, moved if moved <= 0.02 else 0.0))
    return found


def _moved_before(
    quantity: Quantity, flips: list[tuple[tuple[int, int, int], int | None, float]]
) -> float:
    """Share of choices moved in routers that a quantity depends on."""
    if quantity.kind in (Kind.PARAMETER, Kind.LOSS, Kind.GRADIENT_NORM, Kind.LOAD):
        return 0.0
    here, everywhere = place(quantity), quantity.kind in BACKWARD
    return sum(
        share
        for at, batch, share in flips
        if batch == quantity.batch and (everywhere or at[:2] <= here[:2])
    )


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
