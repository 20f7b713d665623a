"""A run as ``run.toml`` describes it, in values whose fields are its keys."""

# ruff: noqa: RUF009 - setting() is a dataclass field
from __future__ import annotations

import datetime
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krzem.errors import QuantityError, RunError
from krzem.keys import (
    REQUIRED,
    Whole,
    choice,
    flag,
    line,
    lines,
    setting,
    texts,
)
from krzem.layout.layout import Optimizer, Precision
from krzem.plan.goal import Goal
from krzem.quantity import (
    parse_count,
    parse_date,
    parse_duration,
    parse_length,
    parse_money,
    parse_ratio,
)
from krzem.run.clock import DAY
from krzem.run.gate_settings import Gates
from krzem.run.pool_settings import Pool
from krzem.run.untrusted import plain_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """What is started; ``{run_toml}``, ``{run_dir}``, ``{pool}``, ``{ranks}`` … are filled in."""

    command: tuple[str, ...] = setting(
        ("{torchrun}", "-m", "krzem.train", "{run_toml}"), texts,
        '["{torchrun}", "-m", "krzem.train", "{run_toml}"]', "the trainer and its arguments",
    )  # fmt: skip
    engine: str = setting(
        "command", plain_name, '"torchtitan"',
        "whose log and checkpoints it has: torchtitan, megatron-lm, or command for one that keeps "
        "to the contract",
    )  # fmt: skip
    checkpoints: str = setting(
        "{run_dir}/trainer/checkpoint", line, '"{run_dir}/outputs/checkpoint"',
        "folder of such an engine's own checkpoints",
    )  # fmt: skip
    stop_seconds: float = setting(
        300.0, parse_duration, '"5 min"', "to save and exit after a stop request"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Qualify:
    """What a pool must show before it is trusted."""

    enabled: bool = setting(True, flag, "true", "false trusts every pool unseen")
    seconds: float = setting(45.0, parse_duration, '"5 min"', "length of the measurement")
    matmul: float = setting(
        0.5, parse_ratio, '"50%"', "measured matrix rate over the data sheet's, at least"
    )
    memory: float = setting(
        0.5, parse_ratio, '"50%"', "measured memory bandwidth over the data sheet's, at least"
    )
    spread: float = setting(0.15, parse_ratio, '"15%"', "slowest device below the median, at most")
    numerics: bool = setting(True, flag, "true", "operators must agree with float64")
    steps: int = setting(8, Whole(0, 1000), "8", "of krzem's trainer that are tried; 0: none")


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessKeys:
    """How a checkpoint is compared when the run moves; the gate of that name says what follows."""

    enabled: bool = setting(True, flag, "true", "false moves without a comparison")
    sequences: int = setting(4, Whole(1, 4096), "4", "of a batch")
    batches: int = setting(2, Whole(1, 64), "2", "recorded, from the samples that come next")
    overlap: int = setting(
        20, Whole(0, 10**6), "100", "steps trained again on a pool of the same arithmetic; 0: none"
    )
    limit_seconds: float = setting(
        1800.0, parse_duration, '"30 min"', "to record, and to check", key="limit"
    )
    export: tuple[str, ...] | None = setting(
        None, texts, '["{python}", "export.py", "{checkpoint}", "{export}"]',
        "of another house's trainer: turns a checkpoint into a Hugging Face folder",
    )  # fmt: skip
    tokens: str | None = setting(
        None, line, '"ids.npy"', "token ids for the exported model, a text or .npy file"
    )
    record: tuple[str, ...] | None = setting(
        None, texts, '["./record.sh", "{checkpoint}", "{witness}"]',
        "of another house's trainer: your own way to record",
    )  # fmt: skip
    check: tuple[str, ...] | None = setting(
        None, texts, '["./check.sh", "{checkpoint}", "{witness}"]',
        "and to check: exit code 0 agrees, 1 departs; its last line is the reason",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if (self.record is None) != (self.check is None):
            raise RunError("witness: record and check go together, give both or neither")
        if self.export is not None and self.record is not None:
            raise RunError("witness: give either export, or record and check")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Who is told of an event."""

    on: tuple[str, ...] = setting(
        ("*",), lines, '["fault", "gate *", "state *"]', "kinds of events, * for any"
    )
    command: tuple[str, ...] | None = setting(
        None, texts, '["./told.sh"]', "run with the event as JSON on standard input"
    )
    url: str | None = setting(
        None, line, '"slack://…"', "an address that apprise knows; json://host/path is a webhook"
    )

    def __post_init__(self) -> None:
        if (self.command is None) == (self.url is None):
            raise RunError("give either command or url")


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """Prometheus metrics of the run."""

    textfile: str | None = setting(
        None, line, '"/var/lib/node_exporter/krzem.prom"', "written every few seconds"
    )
    port: int | None = setting(None, Whole(1, 65535), "9095", "served by HTTP")
    address: str = setting("127.0.0.1", line, '"0.0.0.0"', "that the port listens on")


class Verify(enum.StrEnum):
    """How a checkpoint is checked by the controller before a trainer is started from it."""

    CONTENTS = "contents"
    """Every byte, against its checksum."""
    SIZES = "sizes"
    """Files and sizes; the trainer checks the bytes as it loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How faults are met."""

    wait_first: float = setting(5.0, parse_duration, '"5s"', "before the first restart")
    wait_most: float = setting(600.0, parse_duration, '"10 min"', "it doubles up to this")
    wait_limit: float = setting(
        86_400.0, parse_duration, '"24h"', "for a disk or a scheduler; then the run fails"
    )
    look_every: float = setting(1.0, parse_duration, '"1s"', "between two looks at the run")
    verify: Verify = setting(Verify.CONTENTS, choice(Verify), '"sizes"', "contents or sizes")
    certainty: float = setting(
        0.5, parse_ratio, '"50%"', "chance of meeting the deadline below which krzem warns"
    )
    refuse_late: bool = setting(False, flag, "false", "whether such a pool is refused")


def read_deadline(value: Any) -> float | datetime.date:
    """Seconds from the start of the run, or a date."""
    if isinstance(value, datetime.date):
        return parse_date(value)
    try:
        return parse_duration(value)
    except QuantityError:
        return parse_date(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalKeys:
    """The ``[goal]`` table before it becomes a :class:`~krzem.plan.goal.Goal`."""

    tokens: int = setting(REQUIRED, parse_count, '"15T"', "tokens of the whole run")
    sequence: int = setting(REQUIRED, parse_length, '"4k"', "tokens of a sequence")
    global_batch: int = setting(REQUIRED, parse_count, "4096", "sequences per optimizer step")
    precision: Precision = setting(Precision.BF16, choice(Precision), '"bf16"', "of products")
    optimizer: Optimizer = setting(Optimizer.ADAMW, choice(Optimizer), '"muon"', "adamw or muon")
    deadline: float | datetime.date | None = setting(
        None, read_deadline, '"60d"', "a duration from the start, or a date"
    )
    budget_usd: float | None = setting(
        None, parse_money, '"$4M"', "money for device-hours", key="budget"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """All of a run file."""

    name: str
    path: Path
    """The run file."""
    folder: Path
    """Where ledger, metrics and checkpoints are kept."""
    model: str
    """Built-in name, or path of a config.json (relative paths are the run file's)."""
    goal: Goal
    deadline: datetime.date | None
    """Where the deadline was given as a date."""
    trainer: Trainer
    pools: tuple[Pool, ...]
    gates: Gates
    qualify: Qualify
    witness: WitnessKeys
    recovery: Recovery
    raw: Mapping[str, Any]
    sha256: str
    hooks: tuple[Hook, ...] = ()
    monitor: Monitor = field(default_factory=Monitor)

    def pool(self, name: str) -> Pool:
        """The pool called ``name``."""
        return next(p for p in self.pools if p.name == name)

    def after(self, name: str) -> tuple[Pool, ...]:
        """The pools that come after ``name`` in order of preference."""
        names = [p.name for p in self.pools]
        return self.pools[names.index(name) + 1 :]

    def seconds_left(self, run_seconds: float) -> float | None:
        """To the deadline, ``run_seconds`` after the run began; None without a deadline."""
        if self.deadline is not None:
            end = datetime.datetime.combine(self.deadline, datetime.time())
            return (end - datetime.datetime.now()).total_seconds()
        days = self.goal.deadline_days
        return None if days is None else days * DAY - run_seconds

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return -(-int(self.goal.tokens) // self.goal.tokens_per_step)
