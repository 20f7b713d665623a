"""What is asked: a goal, what a search is held to, and what a published recipe adds."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krzem.errors import GoalError, InputError, LayoutError, QuantityError, nearest, shorten
from krzem.hardware.cluster import Cluster
from krzem.layout.layout import ContextParallel, Recompute, Schedule
from krzem.model.architecture import Architecture
from krzem.plan.goal import SURE, Recipe, Stage
from krzem.quantity import Written, parse_count, parse_date, parse_duration, parse_money

DAY = 86_400.0
FIRST_YEAR, LAST_YEAR = 2017, 2100
"""Of software and starts: from the first transformer on, and within what dates can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, as written: numbers or text such as ``14.8T``, ``4k``, ``60d``, ``$5M``."""

    model: str | Path | Architecture
    on: str | Path | Cluster
    tokens: Written | None = None
    sequence: Written | None = None
    """Tokens; 4k is 4,096."""
    global_batch: Written | None = None
    """Sequences per optimizer step."""
    batch_tokens: Written | None = None
    """The same in tokens."""
    precision: str | None = None
    optimizer: str | None = None
    finetune: str | None = None
    """``full``, ``lora`` or ``qlora``; None: pre-training."""
    lora_rank: Written | None = None
    lora_targets: str | None = None
    """``all``, or names separated by commas (:data:`krzem.plan.tuning.TARGETS`)."""
    state_bytes: str | None = None
    """``weight=2,gradient=4,master=4,moments=8``; bytes per parameter."""
    engine: str | None = None
    switched: str | None = None
    """Switches stated on: ``deepep,cuda-graphs=full`` (``--with``)."""
    switched_off: str | None = None
    """Switches stated off (``--without``)."""
    limits: str | None = None
    """What a search keeps to: ``tp<=8,cp=1,pp=4..16``."""
    schedules: str | None = None
    """Names separated by commas, or ``all``; None: what the engine can run."""
    deadline: str | None = None
    """A duration, or a date."""
    budget: Written | None = None
    """US dollars."""
    sure: float = SURE
    """Chance of fitting into memory that a recommended layout has at least."""
    offload: bool = False
    """Also try optimizer states in host memory."""
    grid: str | None = None
    """Whose electricity: a country, or grams of CO2 per kilowatt-hour."""
    start: str | None = None
    date: str | None = None
    """Age of the software stack; None: today."""
    step_alone: bool = False
    """Whether a step without a number of tokens is an answer."""
    emits: str | None = None
    """The engine whose files are to be written; it is the one that is planned for."""
    calibration: str | Path | None = None
    """A file of local factors that ``krzem check --calibrate`` wrote."""


class Picker:
    """Picks each part of the goal from the question or the recipe, and keeps account of it."""

    def __init__(self, question: Question, name: str, recipe: Recipe | None) -> None:
        self.question = question
        self.name = name
        self.recipe = recipe
        self.taken: list[str] = []
        self.notes: list[str] = []
        self.wanting: list[str] = []
        self.lacking: list[str] = []

    def published(self, field: str) -> Any:
        """The recipe's value, noted as taken; None where it is not published."""
        value = None if self.recipe is None else getattr(self.recipe, field)
        if value is not None:
            self.taken.append(field)
        return value

    def number(self, field: str, written: Written | None, reader: Any, option: str) -> int:
        """The number given, else published; 1 stands in for what will be asked for."""
        if written is not None:
            return int(read(option, reader, written))
        value = self.published(field)
        if value is None:
            self.wanting.append(option)
            return 1
        return int(value)

    def ask_for_the_rest(self) -> None:
        """Raise GoalError that names every option that is wanting."""
        if self.wanting:
            whose = f"the training recipe of {shorten(self.name, 60)} is not published"
            if self.question.finetune:
                whose = f"fine-tuning {shorten(self.name, 60)} has no published recipe"
            elif self.recipe is not None:
                whose = f"not all of {self.name}'s training recipe is published"
            raise GoalError(f"{whose}: give {' and '.join(self.wanting)}")

    def sentences(self) -> list[str]:
        """The notes, first what the recipe supplied."""
        if not self.taken or self.recipe is None:
            return self.notes
        names = ", ".join(name.replace("_", " ") for name in self.taken)
        first = f"{names}: as published for {self.name} ({self.recipe.source})"
        return [first, *self.notes]


def read(option: str, reader: Callable[[Any], Any], written: Any) -> Any:
    """``reader(written)``; where it cannot be read, the message starts with the option."""
    try:
        return reader(written)
    except QuantityError as error:
        raise QuantityError(f"{option.partition(' ')[0]}: {error}") from None


def tokens_of(picker: Picker, of_a_step: int) -> int:
    """Tokens of the run; those of one step where a step alone is asked for and none are known."""
    question, option = picker.question, "--tokens (such as 15T)"
    known = question.tokens is not None or (picker.recipe is not None and picker.recipe.tokens)
    if question.step_alone and not known:
        picker.lacking.append("tokens")
        picker.notes.append(f"no {option} is given: a step is priced, and no whole run")
        return of_a_step
    found = picker.number("tokens", question.tokens, parse_count, option)
    if option in picker.wanting:
        picker.wanting.insert(0, picker.wanting.pop())
    return found


def check_positions(picker: Picker, architecture: Architecture, sequence: int) -> None:
    """A sequence beyond a learned table of positions is refused, beyond the config's it is said."""
    learned, most = architecture.learned_positions, architecture.max_positions
    if learned and sequence > learned:
        raise GoalError(
            f"{picker.name} has {learned:,} learned positions and cannot read sequences of"
            f" {sequence:,} tokens: give --seq {learned} or less"
        )
    if most and sequence > most:
        picker.notes.append(
            f"sequences of {sequence:,} tokens are longer than the {most:,} positions of the config"
        )


def batch_of(picker: Picker, sequence: int) -> int:
    """Sequences per step, from sequences, from tokens, or from the recipe at this length."""
    given, tokens = picker.question.global_batch, picker.question.batch_tokens
    if given is not None and tokens is not None:
        raise GoalError("--batch (sequences) and --batch-tokens say the same: keep one of them")
    if tokens is not None:
        return _sequences(read("--batch-tokens", parse_count, tokens), sequence, picker.notes)
    recipe = picker.recipe
    other = recipe is not None and recipe.sequence not in (None, sequence)
    if given is None and other and recipe is not None and recipe.global_batch:
        picker.taken.append("global_batch")
        same = recipe.global_batch * (recipe.sequence or sequence)
        return _sequences(same, sequence, picker.notes)
    return picker.number(
        "global_batch", given, parse_count, "--batch (sequences) or --batch-tokens"
    )


def _sequences(tokens: int, sequence: int, notes: list[str]) -> int:
    """The batch in sequences: exact, else the roundest number within half a per cent.

    Published batches are rounded (94.4M tokens are 23,040 sequences of 4,096), and a number
    without factors of two fits no layout.
    """
    exact = tokens / sequence
    if exact < 1:
        raise GoalError(
            f"a batch of {tokens:,} tokens is less than one sequence of {sequence:,}: raise"
            " --batch-tokens or lower --seq"
        )
    if tokens % sequence == 0:
        return tokens // sequence
    low, high = int(exact * 0.995) + 1, int(exact * 1.005)
    step = 1
    while high // (2 * step) * 2 * step >= low:
        step *= 2
    chosen = min(
        range(-(-low // step) * step, high + 1, step),
        key=lambda n: abs(n - exact),
        default=round(exact),
    )
    notes.append(
        f"{tokens:,} tokens are {exact:,.1f} sequences of {sequence:,}: a batch of {chosen:,} is"
        " taken (--batch sets it exactly)"
    )
    return chosen


def ramp_of(picker: Picker, sequence: int, tokens: int) -> tuple[Stage, ...]:
    """The recipe's ramp, where its batch is planned at its length and the run goes beyond it."""
    recipe = picker.recipe
    if recipe is None or "global_batch" not in picker.taken or recipe.sequence != sequence:
        return ()
    if not recipe.ramp or sum(stage.tokens for stage in recipe.ramp) >= tokens:
        return ()
    picker.taken.append("ramp")
    return recipe.ramp


def schedules_of(text: str | None) -> dict[str, Any]:
    """The schedules that are to be searched, where they are stated."""
    return {} if text is None else {"schedules": parse_schedules(text)}


def parse_schedules(text: str) -> tuple[Schedule, ...]:
    """``all``, or names separated by commas (``1f1b,interleaved``).

    Raises InputError with the known names.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return tuple(Schedule)
    known = [schedule.value for schedule in Schedule]
    wrong = next((name for name in names if name not in known), None)
    if wrong is not None or not names:
        near = nearest(wrong or "", known)
        offer = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"unknown schedule {shorten(wrong or text)!r}.{offer} Known: {', '.join(known)},"
            " or all."
        )
    return tuple(dict.fromkeys(Schedule(name) for name in names))


def budget_of(written: Written | None) -> float | None:
    """US dollars, above zero."""
    if written is None:
        return None
    usd: float = read("--budget", parse_money, written)
    if usd <= 0:
        raise GoalError("--budget must be above zero: write $5M")
    return usd


def deadline_of(text: str | None, start: datetime.date) -> float | None:
    """Days from the start: a duration, or a date that lies after it."""
    if text is None:
        return None
    if text.strip()[:4].isdigit() and "-" in text:
        days = float((day_of("--deadline", text) - start).days)
        if days <= 0:
            raise GoalError(f"the deadline {text.strip()} is not after the start {start}")
        return days
    days = float(read("--deadline", parse_duration, text)) / DAY
    if days <= 0:
        raise GoalError("--deadline must be later than the start: write 60d, or a date")
    return days


def share_of(sure: float) -> float:
    if not 0 < sure < 1:
        raise GoalError(f"--sure {sure:g}: a chance between 0 and 1 is needed, such as 0.9")
    return sure


def day_of(option: str, written: str) -> datetime.date:
    """A day in the years that accelerators train in; raises QuantityError, GoalError."""
    day: datetime.date = read(option, parse_date, written)
    if not FIRST_YEAR <= day.year <= LAST_YEAR:
        raise GoalError(
            f"{option} {day}: a day from {FIRST_YEAR} to {LAST_YEAR} is needed, such as 2026-11-23"
        )
    return day


# What a user holds a search to: ``tp<=8,cp=1,zero=1|3,pp=4..16``
# ---------------------------------------------------------------

NUMBERS = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "mbs", "zero", "shard", "rlayers", "offload")
WORDS = {
    "schedule": tuple(s.value for s in Schedule),
    "recompute": tuple(r.value for r in Recompute),
    "cpkind": tuple(c.value for c in ContextParallel),
}
_PART = re.compile(r"([a-z_-]+)\s*(<=|>=|!=|=|<|>)\s*(.+)")
_RANGE = re.compile(r"(\d{1,8})\.\.(\d{1,8})")


def parse_constraints(text: str) -> tuple[str, ...]:
    """Conditions in the language of :mod:`krzem.engine.conditions`, one a part of ``text``.

    A part is a name, ``=``, ``!=``, ``<``, ``<=``, ``>`` or ``>=`` and a value; ``=`` also takes
    several values (``zero=1|3``) and ranges (``pp=4..16``).

    Raises LayoutError with the names and forms that there are.
    """
    return tuple(_condition(part.strip()) for part in text.split(",") if part.strip())


def _condition(part: str) -> str:
    found = _PART.fullmatch(part.lower())
    if found is None:
        raise LayoutError(
            f"--layout {shorten(part)!r}: write name=value, name<=value or name=low..high, such as"
            " tp<=8,cp=1,pp=4..16"
        )
    name, sign, raw = found.group(1), found.group(2), found.group(3).strip()
    name = {"micro-batch": "mbs", "micro_batch": "mbs"}.get(name, name)
    if name in WORDS:
        return _word(name, sign, raw, part)
    if name not in NUMBERS:
        near = nearest(name, (*NUMBERS, *WORDS))
        offer = f" Did you mean {near[0]}?" if near else ""
        raise LayoutError(
            f"--layout {shorten(part)!r}: no degree is called {name!r}.{offer} Names:"
            f" {', '.join((*NUMBERS, *WORDS))}"
        )
    return _number(name, sign, raw, part)


def _word(name: str, sign: str, raw: str, part: str) -> str:
    values = [value.strip() for value in raw.split("|")]
    wrong = [value for value in values if value not in WORDS[name]]
    if wrong or sign not in ("=", "!="):
        raise LayoutError(f"--layout {shorten(part)!r}: {name} is one of {', '.join(WORDS[name])}")
    joined = " or ".join(f"{name} == '{value}'" for value in values)
    return f"({joined})" if sign == "=" else f"not ({joined})"


def _number(name: str, sign: str, raw: str, part: str) -> str:
    parts = []
    for value in (piece.strip() for piece in raw.split("|")):
        between = _RANGE.fullmatch(value)
        if between and sign == "=":
            low, high = int(between.group(1)), int(between.group(2))
            if low > high:
                raise LayoutError(f"--layout {shorten(part)!r}: {low} is above {high}")
            parts.append(f"({name} >= {low} and {name} <= {high})")
        elif value.isascii() and value.isdigit() and len(value) <= 8:
            parts.append(f"{name} {'==' if sign == '=' else sign} {int(value)}")
        else:
            raise LayoutError(
                f"--layout {shorten(part)!r}: {value!r} is no whole number and no range low..high"
            )
    return f"({' or '.join(parts)})"
