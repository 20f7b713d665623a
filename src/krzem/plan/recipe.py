"""Published pre-training recipes: what a plan takes when the user does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from krzem.facts.table import read_table

TABLE = "recipes.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a built-in model was trained, as far as that is published; None where it is not."""

    id: str
    tokens: int | None
    sequence: int | None
    """Tokens per sequence in the longest phase."""
    global_batch: int | None
    """Sequences per optimiser step, the largest of a ramp."""
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
