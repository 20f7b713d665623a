"""A pool of a run: what it is, how it is asked for, what surrounds a trainer there."""

# ruff: noqa: RUF009 - setting() is a dataclass field
from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from krzem.errors import QuantityError
from krzem.keys import (
    REQUIRED,
    Number,
    Whole,
    choice,
    flag,
    line,
    lines,
    setting,
    text,
    texts,
    variables,
)
from krzem.layout.layout import Precision
from krzem.quantity import (
    parse_bytes,
    parse_date,
    parse_devices,
    parse_duration,
    parse_price,
    parse_rate,
)
from krzem.rules import find_country
from krzem.run.untrusted import plain_name

LOCAL, SLURM, SITE = "local", "slurm", "site"
"""Launchers that need no commands; the last is another site's controller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an attempt on a pool may use."""

    threads: int | None = setting(None, Whole(1, 4096), "1", "compute threads of each process")
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
    nodes: int = setting(1, Whole(1, 10**6), "128", "--nodes")
    cpus: int | None = setting(None, Whole(1, 4096), "64", "--cpus-per-task; one task a node")
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
    nodes: int = setting(1, Whole(1, 10**6), "128", "hosts")
    cpus: int | None = setting(None, Whole(1, 4096), "64", "CPUs of a host")
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
    processes: int | None = setting(None, Whole(1, 10**7), "8", "ranks; by default one per device")
    layout: str = setting("auto", text, '"tp=8,pp=4"', "auto: the planner's best")
    precision: Precision | None = setting(
        None, choice(Precision), '"bf16"', "instead of the goal's"
    )
    tokens_per_s: float | None = setting(
        None, Number(1e-9), "1.2e6", "expected speed of the whole pool, instead of the plan's"
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
