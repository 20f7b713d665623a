"""What a run is to reach: tokens, batch, sequence, precision, optimizer, date and money.

With what published recipes say of it, and what can hardly be meant.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

from krzem.errors import GoalError
from krzem.facts.table import read_table
from krzem.layout.layout import Optimizer, Precision, StateBytes
from krzem.model.architecture import Architecture
from krzem.model.catalogue import model_fact, model_ids
from krzem.model.config_file import load_config, parse_config

SURE = 0.9
"""Chance of fitting that a recommended layout has at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of a batch ramp: ``tokens`` trained with ``global_batch`` sequences a step."""

    tokens: float
    global_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Whether a run trains all weights from the start, or tunes those that there are, and how."""

    kind: str = "none"
    """``none`` (pre-training), ``full``, ``lora`` or ``qlora``."""
    rank: int = 0
    """Of adapters (lora, qlora); 0 without them."""
    targets: tuple[str, ...] = ()
    """Matrices that have adapters: ``attention``, ``mlp`` or names such as ``q_proj``."""

    @property
    def adapters(self) -> bool:
        """Whether adapters beside frozen weights are all that is trained."""
        return self.kind in ("lora", "qlora")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The run that is asked for."""

    tokens: float
    sequence: int
    global_batch: int
    """Sequences per optimizer step (the largest of a ramp)."""
    precision: Precision = Precision.BF16
    optimizer: Optimizer = Optimizer.ADAMW
    states: StateBytes = field(default_factory=StateBytes)
    ramp: tuple[Stage, ...] = ()
    """What is trained first, with smaller batches; its tokens count towards ``tokens``."""
    deadline_days: float | None = None
    budget_usd: float | None = None
    tuning: Tuning = Tuning()

    def __post_init__(self) -> None:
        for name in ("sequence", "global_batch"):
            value = getattr(self, name)
            if not 1 <= value <= 10**9:
                raise GoalError(f"{name}={value}: between 1 and 1,000,000,000 is needed")
        if not 0 < self.tokens <= 1e18:
            raise GoalError(f"tokens={self.tokens}: between 1 and 1e18 is needed")
        if self.tokens < self.tokens_per_step:
            raise GoalError(
                f"{self.tokens:,.0f} tokens are less than one batch: {self.global_batch:,}"
                f" sequences x {self.sequence:,} tokens = {self.tokens_per_step:,} tokens;"
                " lower --batch or raise --tokens"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer step."""
        return self.global_batch * self.sequence


# Published pre-training recipes: what a plan takes when the user does not say
# ----------------------------------------------------------------------------

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


# Where a model's architecture came from, and its raw config again
# ----------------------------------------------------------------


def is_built_in(architecture: Architecture) -> bool:
    """Whether it is a built-in model; a config in a folder may bear the name of one."""
    name = architecture.name
    return name in model_ids() and model_fact(name).source == architecture.source


def config_of(model: str | Path | Architecture, architecture: Architecture) -> Mapping[str, object]:
    """The ``config.json`` that ``architecture`` was read from; empty where nobody knows it."""
    if is_built_in(architecture):
        file = files("krzem.facts").joinpath("models", f"{architecture.name}.json")
        return parse_config(file.read_bytes(), architecture.name)
    return {} if isinstance(model, Architecture) else load_config(model)[0]


# Numbers that can be read and can hardly be meant: refused, or said
# ------------------------------------------------------------------

AHEAD = datetime.timedelta(days=183)
"""How far ahead software is planned for: releases of half a year are announced, later ones not."""
MANY_TOKENS = 200_000_000
"""Tokens of a step above which it is said: twice the largest published batch (94.4M, DeepSeek)."""
MOST_TOKENS = 1_000_000_000
"""Tokens of a step above which a number of sequences is taken for a number of tokens."""


def check_software_date(date: datetime.date, today: datetime.date) -> datetime.date:
    """``date`` where software of that day can be known; raises GoalError."""
    if date > today + AHEAD:
        raise GoalError(
            f"--date {date}: nobody knows the software of that day. --date is the age of the"
            f" software stack, from 2017 to {today + AHEAD}; --start is the first day of the run"
        )
    return date


def check_batch(batch: int, sequence: int, in_tokens: bool) -> str | None:
    """A note where a step is larger than any that was published; raises GoalError beyond reason.

    ``in_tokens`` says that the batch was given in tokens, where nothing can be mistaken.
    """
    tokens = batch * sequence
    sums = f"{batch:,} sequences x {sequence:,} tokens = {tokens:,} tokens a step"
    if tokens > MOST_TOKENS and not in_tokens:
        raise GoalError(
            f"--batch {batch:,} is a number of sequences: {sums}, ten times as much as any"
            f" published run. If {batch:,} tokens are meant, write --batch-tokens {batch}"
            f" ({batch // sequence:,} sequences); if it is meant as it is, write --batch-tokens"
            f" {tokens}"
        )
    if tokens > MANY_TOKENS:
        return f"the batch is larger than that of any published run: {sums}"
    return None
