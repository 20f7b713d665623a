"""Published totals of whole runs as questions: rows of ``facts/whole_runs.csv``.

A row becomes the question that a user would ask: model, tokens, batch, devices, engine and date,
with the layout held to what is published of it.  What the row leaves open is the best layout
found, or a stated guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from krzem.accuracy.case import Row, UnusableRowError, date_of, device_of, number, text, whole
from krzem.accuracy.shapes import read_architecture
from krzem.accuracy.spellings import (
    completed,
    engine_of,
    organisation_of,
    precision_of,
    sharding_of,
    switches_of,
)
from krzem.errors import KrzemError
from krzem.facts.table import read_table
from krzem.model.architecture import Architecture
from krzem.model.parameters import flops_per_token
from krzem.plan.question import Question

TABLE = "whole_runs.csv"
USUAL_BATCH = 2**22
"""Tokens per step where a row does not say: what most published runs of its years took."""
USUAL_DAYS = 40.0
"""Length of a run at two fifths of the peak, for rows without a number of devices."""
DEGREES = ("tp", "pp", "vpp", "cp", "ep", "etp", "dp")
FROM_STEPS = frozenset({"throughput", "steps", "estimate"})
"""Kinds of totals that were computed from the speed of the steps: nothing else is in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A published total and the question that it answers."""

    id: str
    model: str
    organisation: str
    kind: str
    """What the total was drawn from: ``hours``, ``days``, ``throughput``, ``steps``, …"""
    device_hours: float
    question: Question
    held: tuple[tuple[str, str], ...]
    """Conditions of the published layout by what they hold: ``("tp", "tp == 8")``."""
    guesses: tuple[str, ...]


def read_total(row: Row) -> Total:
    """One row; raises UnusableRowError with the reason, KrzemError for what the catalogue lacks."""
    if text(row, "quality").startswith("exclude"):
        raise UnusableRowError("marked exclude by its table")
    row = completed(row)
    hours, tokens = number(row, "published_device_hours"), number(row, "train_tokens")
    if hours is None or tokens is None:
        raise UnusableRowError("no total or no number of tokens published")
    device = device_of(row)
    year, dated = date_of(row, device)
    arch, sequence, shaped = read_architecture(row)
    precision = precision_of(text(row, "precision"))
    kind = "bf16" if precision is None else precision.arithmetic
    devices = whole(row, "devices")
    counted = devices or _usual_devices(arch, sequence, tokens, device.peak_flops.get(kind, 1e14))
    batch = whole(row, "global_batch")
    name = row.get("model_name") or arch.name
    question = Question(
        model=replace(arch, name=name),
        on=f"{device.id}:{counted}",
        tokens=tokens,
        sequence=sequence,
        global_batch=batch or _usual_batch(sequence, counted),
        precision=None if precision is None else precision.value,
        optimizer="muon" if text(row, "optimizer") == "muon" else "adamw",
        engine=_engine(row),
        switched=",".join(f"{name}={choice}" for name, choice in switches_of(row).items()) or None,
        date=f"{int(year)}-{min(12, int(year % 1 * 12) + 1):02d}-15",
    )
    open_ = (("devices", devices), ("batch", batch))
    return Total(
        id=row["id"],
        model=name,
        organisation=organisation_of(row),
        kind=text(row, "kind").rpartition(":")[2].strip(),
        device_hours=hours,
        question=question,
        held=_held(row, arch.layers),
        guesses=(*dated, *shaped, *(word for word, said in open_ if said is None)),
    )


def _engine(row: Row) -> str | None:
    """The engine named; FSDP for states that are cut and nothing else; None: the usual one."""
    stage, _ = sharding_of(text(row, "zero_or_fsdp_stage"), text(row, "shard"))
    cut = any((whole(row, name) or 1) > 1 for name in ("tp", "pp", "ep"))
    return engine_of(row) or ("fsdp" if stage == 3 and not cut else None)


def _usual_devices(arch: Architecture, sequence: int, tokens: float, peak: float) -> int:
    """A power of two of devices that trains for about :data:`USUAL_DAYS`."""
    seconds = flops_per_token(arch, sequence) * tokens / (0.4 * peak)
    wanted = math.log2(seconds / (USUAL_DAYS * 86_400.0))
    return 1 << min(max(round(wanted), 6), 14)


def _usual_batch(sequence: int, devices: int) -> int:
    """About :data:`USUAL_BATCH` tokens in sequences, with the odd factors of the devices."""
    odd = devices
    while odd % 2 == 0:
        odd //= 2
    return odd << math.floor(math.log2(max(1.0, USUAL_BATCH / sequence / odd)))


def _held(row: Row, layers: int) -> tuple[tuple[str, str], ...]:
    """What is published of the layout, as conditions on those that are searched."""
    degrees = ((name, whole(row, name)) for name in DEGREES)
    found = [(name, f"{name} == {value}") for name, value in degrees if value is not None]
    if (size := whole(row, "micro_batch")) is not None:
        found.append(("mbs", f"mbs == {size}"))
    stage, _ = sharding_of(text(row, "zero_or_fsdp_stage"), text(row, "shard"))
    if text(row, "zero_or_fsdp_stage") and stage is not None:
        found.append(("zero", f"zero == {stage}"))
    if text(row, "recompute") == "full":
        found.append(("recompute", f"recompute == 'full' and rlayers * pp >= {layers}"))
    return tuple(found)


def totals(rows: Iterable[Row] | None = None) -> Iterator[Total]:
    """The rows that can be asked."""
    for row in read_table(TABLE) if rows is None else rows:
        try:
            yield read_total(row)
        except (UnusableRowError, KrzemError):
            continue
