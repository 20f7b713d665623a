"""Published pre-training recipes: what a plan takes when the user does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from krzem.facts.table import read_table
from krzem.plan.goal import Stage

TABLE = "recipes.csv"
STEPS = 4
"""Stages that a steady growth of the batch is cut into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a built-in model was trained, as far as that is published; None where it is not."""

    id: str
    tokens: int | None
    sequence: int | None
    """Tokens per sequence in the longest phase."""
    global_batch: int | None
    """Sequences per optimizer step, the largest of a ramp."""
    ramp: tuple[Stage, ...]
    """Smaller batches before it, in their order; empty where none is published."""
    precision: str | None
    optimizer: str | None
    state_bytes: Mapping[str, float]
    """Bytes per parameter by field of StateBytes, where published."""
    source: str
    date: str
    """Year-month."""
    confidence: str
    """high, medium or low."""
    notes: str


@cache
def recipes() -> Mapping[str, Recipe]:
    """All recipes by model id."""
    return {row["id"]: _recipe(row) for row in read_table(TABLE)}


def recipe_of(model_id: str) -> Recipe | None:
    """The recipe of a built-in model; None for a model that was read from a file."""
    return recipes().get(model_id)


def _recipe(row: Mapping[str, str]) -> Recipe:
    states = {
        "weight": "weight_bytes",
        "gradient": "gradient_bytes",
        "master": "master_bytes",
        "moments": "moment_bytes",
    }
    return Recipe(
        id=row["id"],
        tokens=_whole(row["tokens"]),
        sequence=_whole(row["sequence"]),
        global_batch=_whole(row["global_batch"]),
        ramp=tuple(stage for part in row["ramp"].split() for stage in _stages(part)),
        precision=row["precision"] or None,
        optimizer=row["optimizer"] or None,
        state_bytes={name: float(row[cell]) for name, cell in states.items() if row[cell]},
        source=row["source"],
        date=row["date"],
        confidence=row["confidence"],
        notes=row["notes"],
    )


def _whole(cell: str) -> int | None:
    return round(float(cell)) if cell else None


def _stages(part: str) -> list[Stage]:
    """``512/252e6`` is one stage; ``2304-9216/225e9`` grows in :data:`STEPS` of equal tokens."""
    sizes, _, tokens = part.partition("/")
    low, _, high = sizes.partition("-")
    if not high:
        return [Stage(tokens=float(tokens), global_batch=int(low))]
    return grown(int(low), int(high), float(tokens))


def grown(low: int, high: int, tokens: float) -> list[Stage]:
    """A batch that grows steadily from ``low`` to ``high`` sequences over ``tokens``."""
    each = (high - low) / STEPS
    return [
        Stage(tokens=tokens / STEPS, global_batch=round(low + (i + 0.5) * each))
        for i in range(STEPS)
    ]
