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
from krzem.layout.layout import Optimizer, Precision
from krzem.plan.goal import Goal
from krzem.quantity import (
    parse_bytes,
    parse_count,
    parse_date,
    parse_devices,
    parse_duration,
    parse_length,
    parse_money,
    parse_price,
    parse_rate,
    parse_ratio,
)
from krzem.rules import find_country
from krzem.run.clock import DAY
from krzem.run.fields import (
    REQUIRED,
    choice,
    flag,
    line,
    lines,
    number,
    plain_name,
    setting,
    text,
    texts,
    variables,
    whole,
)
from krzem.run.gate_settings import Gates

LOCAL, SLURM, SITE = "local", "slurm", "site"
"""Launchers that need no commands; the last is another site's controller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an attempt on a pool may use."""

    threads: int | None = setting(None, whole(1, 4096), "1", "compute threads of each process")
    memory_bytes: float | None = setting(
        None, parse_bytes, '"4 GiB"', "of all processes on a host; above it they are ended",
        key="memory",
    )  # fmt: skip
    time_seconds: float | None = setting(
        None, parse_duration, '"24h"', "of one attempt; then it saves and is started anew",
        key="time",
    )  # fmt: skip
    queue_seconds: float | None = setting(
        None, parse_duration, '"12h"', "in the scheduler's queue; then the next pool takes over",
        key="queue",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What surrounds the trainer's command on a pool; texts may hold ``{placeholders}``."""

    modules: tuple[str, ...] = setting((), texts, '["cann/8.2"]', "loaded with `module load`")
    setup: tuple[str, ...] = setting((), texts, '["source env.sh"]', "shell lines run before")
    container: str | None = setting(
        None, text, '"apptainer exec train.sif {command}"', "wraps the command"
    )
    variables: Mapping[str, str] = setting(
        {}, variables, '{ HCCL_EXEC_TIMEOUT = "600" }', "environment variables"
    )


def allocation(value: object) -> str:
    """``auto``, ``new``, or the number of a job."""
    found = str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value)
    if found not in ("auto", "new") and not found.isdigit():
        raise QuantityError(f"{found!r} is none of auto, new and a job's number.")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """How a pool is asked for from Slurm."""

    partition: str | None = setting(None, line, '"train"', "--partition")
    account: str | None = setting(None, line, '"project7"', "--account")
    qos: str | None = setting(None, line, '"long"', "--qos")
    nodes: int = setting(1, whole(1, 10**6), "128", "--nodes")
    cpus: int | None = setting(None, whole(1, 4096), "64", "--cpus-per-task; one task a node")
    gpus: str | None = setting(None, line, '"8"', "--gpus-per-node")
    notice_seconds: float = setting(
        120.0, parse_duration, '"2 min"', "before the end at which Slurm sends SIGUSR1",
        key="notice",
    )  # fmt: skip
    requeue: bool = setting(True, flag, "true", "whether a preempted job is queued again")
    options: tuple[str, ...] = setting((), lines, '["--constraint=ib"]', "further sbatch options")
    allocation: str = setting(
        "auto", allocation, '"4711"',
        "job number of an allocation that runs already, in which steps are started; auto: the one "
        "that krzem is started in, if any; new: always a job of its own",
    )  # fmt: skip


def read_country(value: object) -> str:
    """A country's code, from its code or English name."""
    return find_country(text(value))


def commands(value: object) -> Mapping[str, Any]:
    """Commands of a scheduler by their names; which there are is checked by the launcher."""
    if not isinstance(value, Mapping):
        raise QuantityError("it must be a table of commands.")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """How a pool is asked for from another scheduler than Slurm."""

    queue: str | None = setting(None, line, '"train"', "queue, partition or local queue")
    account: str | None = setting(None, line, '"project7"', "who pays")
    nodes: int = setting(1, whole(1, 10**6), "128", "hosts")
    cpus: int | None = setting(None, whole(1, 4096), "64", "CPUs of a host")
    gpus: str | None = setting(None, line, '"8"', "accelerators of a host")
    notice_seconds: float = setting(
        120.0, parse_duration, '"2 min"', "before the end at which the job is told", key="notice"
    )
    options: tuple[str, ...] = setting((), lines, '["-l", "place=scatter"]', "of the command")
    image: str | None = setting(None, line, '"registry/train:1"', "container image (kubernetes)")
    volume: str | None = setting(None, line, '"run-claim"', "that holds the run's folder")
    gpu_resource: str = setting("nvidia.com/gpu", line, '"amd.com/gpu"', "as kubernetes calls it")
    commands: Mapping[str, Any] = setting(
        {}, commands, '{ submit = "qsub {options} {script}" }', "instead of the ready ones"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a pool lies behind another login, with no file system in common."""

    login: tuple[str, ...] = setting((), texts, '["ssh", "jupiter"]', "before a command there")
    python: str = setting("python3", line, '"~/krzem/bin/python"', "that has krzem there")
    run_file: str = setting("", line, '"/p/scratch/run.toml"', "the run there: its own pools")
    place: str = setting("", line, '"jupiter:"', "before a path there, as the copying tool has it")
    send: tuple[str, ...] = setting(
        ("rsync", "-a", "--partial", "--inplace", "{source}/", "{place}{target}/"), texts,
        '["rsync", "-a", "--partial", "{source}/", "{place}{target}/"]',
        "copies a folder there; run again until it succeeds",
    )  # fmt: skip
    fetch: tuple[str, ...] = setting(
        ("rsync", "-a", "--partial", "--inplace", "{place}{source}/", "{target}/"), texts,
        '["rsync", "-a", "--partial", "{place}{source}/", "{target}/"]', "copies a folder here",
    )  # fmt: skip
    bytes_per_s: float | None = setting(
        None, parse_rate, '"1 GB/s"', "between the sites, instead of what the last copy reached"
    )
    look_every: float = setting(30.0, parse_duration, '"30s"', "between two looks at the run there")
    limit_seconds: float = setting(
        86_400.0, parse_duration, '"24h"', "to stop there and come back", key="limit"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One pool of accelerators; the order in the file is the order of preference."""

    name: str = setting(REQUIRED, plain_name, '"ascend"', "how reports call it")
    accelerator: str | None = setting(
        None, text, '"ascend-910c"', "catalogue id, or cpu; or give cluster"
    )
    count: int | None = setting(None, parse_devices, "2048", "devices as software sees them")
    cluster: str | None = setting(None, text, '"cluster.toml"', "a cluster file, for more detail")
    profile: str | None = setting(None, text, '"profile.toml"', "written by krzem probe")
    launcher: str = setting(LOCAL, plain_name, '"slurm"', "local, slurm, pbs, grid-engine …")
    processes: int | None = setting(None, whole(1, 10**7), "8", "ranks; by default one per device")
    layout: str = setting("auto", text, '"tp=8,pp=4"', "auto: the planner's best")
    precision: Precision | None = setting(
        None, choice(Precision), '"bf16"', "instead of the goal's"
    )
    tokens_per_s: float | None = setting(
        None, number(1e-9), "1.2e6", "expected speed of the whole pool, instead of the plan's"
    )
    price: float | None = setting(
        None, parse_price, '"$2/h"', "of one device and hour, instead of the catalogue's"
    )
    command: tuple[str, ...] | None = setting(
        None, texts, '["python", "-m", "mytrainer"]', "instead of trainer.command"
    )
    country: str | None = setting(
        None, read_country, '"CN"', "where it stands: krzem rules then says what it may be used for"
    )
    parent: str | None = setting(
        None, read_country, '"CN"', "country of the user's ultimate parent"
    )
    rented: bool = setting(False, flag, "true", "time on devices that others own, for the rules")
    acquired: datetime.date | None = setting(
        None, parse_date, "2023-06-01", "day on which owned devices were obtained, for the rules"
    )
    limits: Limits = field(default_factory=Limits)
    environment: Environment = field(default_factory=Environment)
    slurm: Slurm = field(default_factory=Slurm)
    scheduler: Scheduler = field(default_factory=Scheduler)
    site: Site = field(default_factory=Site)

    @property
    def nodes(self) -> int:
        """Hosts that a job of it runs on."""
        by_launcher = {LOCAL: 1, SLURM: self.slurm.nodes}
        return by_launcher.get(self.launcher, self.scheduler.nodes)

    @property
    def ranks(self) -> int:
        """Processes that train."""
        return self.processes or self.count or 1


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
    steps: int = setting(8, whole(0, 1000), "8", "of krzem's trainer that are tried; 0: none")


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessKeys:
    """How a checkpoint is compared when the run moves; the gate of that name says what follows."""

    enabled: bool = setting(True, flag, "true", "false moves without a comparison")
    sequences: int = setting(4, whole(1, 4096), "4", "of a batch")
    batches: int = setting(2, whole(1, 64), "2", "recorded, from the samples that come next")
    overlap: int = setting(
        20, whole(0, 10**6), "100", "steps trained again on a pool of the same arithmetic; 0: none"
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
    port: int | None = setting(None, whole(1, 65535), "9095", "served by HTTP")
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
