"""Reads ``run.toml``: the whole file first, then one error that lists everything wrong with it."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krzem.errors import KrzemError, RunError, nearest, shorten
from krzem.files import read_toml
from krzem.hardware import CPU, load_device
from krzem.keys import Key, listed, read_keys, read_table, text
from krzem.model import load_model
from krzem.plan.goal import Goal
from krzem.run.clock import DAY
from krzem.run.gate_settings import Gates, read_gates
from krzem.run.launch.known import check_launcher, known
from krzem.run.launch.words import PATHS, check_words
from krzem.run.pool_settings import (
    LOCAL,
    SITE,
    SLURM,
    Environment,
    Limits,
    Pool,
    Scheduler,
    Site,
    Slurm,
)
from krzem.run.settings import (
    GoalKeys,
    Hook,
    Monitor,
    Qualify,
    Recovery,
    RunSettings,
    Trainer,
    WitnessKeys,
)
from krzem.run.untrusted import plain_name

OWN = ("run", "model", "goal", "pool", "gates", "qualify", "witness", "recovery", "trainer",
       "hook", "monitor")  # fmt: skip
PASSED_ON = ("phase", "data", "train", "layout", "optimizer", "schedule", "checkpoint",
             "evaluation", "metrics")  # fmt: skip
"""Tables that are the trainer's; it reads the same file."""
RUN = {
    "name": Key(plain_name, '"my-run"', "how it is called; else the file's name"),
    "folder": Key(text, '"runs/my-run"', "where everything of it is kept"),
}
_PARTS = {"limits": Limits, "environment": Environment, "slurm": Slurm, "scheduler": Scheduler,
          "site": Site}  # fmt: skip


def read_run(path: Path) -> RunSettings:
    """The run that the file at ``path`` describes.

    Raises DataError where it is not TOML and RunError with every fault in it.
    """
    raw = _toml(path)
    faults = [_unknown(name, raw[name]) for name in raw if name not in OWN + PASSED_ON]
    goal, date = _goal(raw.get("goal", {}), faults)
    pools = _pools(raw.get("pool"), path.parent, faults)
    gates = read_gates(raw.get("gates", {}), faults)
    trainer = read_table(Trainer, raw.get("trainer", {}), "trainer", faults)
    qualify = read_table(Qualify, raw.get("qualify", {}), "qualify", faults)
    witness = read_table(WitnessKeys, raw.get("witness", {}), "witness", faults)
    recovery = read_table(Recovery, raw.get("recovery", {}), "recovery", faults)
    hooks = _hooks(raw.get("hook", []), faults)
    monitor = read_table(Monitor, raw.get("monitor", {}), "monitor", faults)
    name, folder = _run(raw.get("run", {}), path, faults)
    model = _model(raw.get("model"), path.parent, faults)
    _check_commands(trainer, pools, witness, faults)
    if faults or goal is None or None in (trainer, qualify, witness, recovery, gates):
        raise RunError(listed(path.name, faults))
    return RunSettings(
        name=name,
        path=path.absolute(),
        folder=folder,
        model=model,
        goal=goal,
        deadline=date,
        trainer=trainer or Trainer(),
        pools=pools,
        gates=gates or Gates(),
        qualify=qualify or Qualify(),
        witness=witness or WitnessKeys(),
        recovery=recovery or Recovery(),
        hooks=hooks,
        monitor=monitor or Monitor(),
        raw=raw,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _check_commands(
    trainer: Trainer | None, pools: tuple[Pool, ...], witness: WitnessKeys | None, faults: list[str]
) -> None:
    """Commands are filled in when a pool is begun, which may be days later."""
    w = witness or WitnessKeys()
    given = {"trainer.command": (trainer or Trainer()).command}
    given |= {f"pool {pool.name}: command": pool.command or () for pool in pools}
    given |= {"witness.export": w.export or (), "witness.record": w.record or (),
              "witness.check": w.check or ()}  # fmt: skip
    for where, command in given.items():
        try:
            check_words(command, also=PATHS if where.startswith("witness") else ())
        except RunError as error:
            faults.append(f"{where}: {error}")


def identity(settings: RunSettings) -> dict[str, Any]:
    """What makes this run this run: a change of it needs a new folder, all else may change."""
    goal = settings.goal
    stated: dict[str, Any] = {
        "model": settings.model,
        "data": settings.raw.get("data"),
        "tokens": goal.tokens,
        "sequence": goal.sequence,
        "global_batch": goal.global_batch,
    }
    return json.loads(json.dumps(stated, default=str))  # type: ignore[no-any-return]


def _toml(path: Path) -> dict[str, Any]:
    return read_toml(path, hint="give a run file; `krzem run --help` shows one")


def _unknown(name: str, value: object) -> str:
    near = nearest(name, OWN + PASSED_ON, 2)
    if isinstance(value, dict | list):
        offer = f"did you mean [{'] or ['.join(near)}]?" if near else f"known are {', '.join(OWN)}"
        return f"[{shorten(name, 40)}]: unknown table; {offer}"
    offer = "model and layout alone stand outside of tables"
    if near:
        offer = f"did you mean {' or '.join(near)}?"
    elif name in ("name", "folder"):
        offer += f"; {name} belongs to [run]"
    return f"{shorten(name, 40)}: unknown key; {offer}"


def _run(table: object, path: Path, faults: list[str]) -> tuple[str, Path]:
    """Name and folder: by default the file's own name, and runs/NAME beside it."""
    found = read_keys(table, RUN, "run", faults)
    name = found.get("name", path.stem)
    return name, (path.parent / found.get("folder", f"runs/{name}")).absolute()


def _model(given: object, base: Path, faults: list[str]) -> str:
    """``model = "deepseek-v3"`` or ``[model] config = "folder"``; read to see that it can be."""
    if isinstance(given, Mapping):
        given = given.get("config", given.get("name"))
    if not isinstance(given, str) or not given.strip():
        faults.append('model is missing: write model = "deepseek-v3", or the path of a config.json')
        return ""
    local = base / given
    found = str(local.absolute()) if local.exists() else given
    try:
        load_model(found)
    except KrzemError as error:
        faults.append(f"model: {error}")
    return found


def _goal(table: object, faults: list[str]) -> tuple[Goal | None, datetime.date | None]:
    keys = read_table(GoalKeys, table, "goal", faults)
    if keys is None:
        return None, None
    date = keys.deadline if isinstance(keys.deadline, datetime.date) else None
    seconds = keys.deadline if isinstance(keys.deadline, float) else None
    try:
        goal = Goal(
            tokens=float(keys.tokens),
            sequence=keys.sequence,
            global_batch=keys.global_batch,
            precision=keys.precision,
            optimizer=keys.optimizer,
            deadline_days=None if seconds is None else seconds / DAY,
            budget_usd=keys.budget_usd,
        )
    except KrzemError as error:
        faults.append(f"goal: {error}")
        return None, None
    return goal, date


def _hooks(tables: object, faults: list[str]) -> tuple[Hook, ...]:
    if not isinstance(tables, list):
        faults.append("hook: write [[hook]], one for each")
        return ()
    read = [read_table(Hook, table, f"hook {n}", faults) for n, table in enumerate(tables, 1)]
    return tuple(hook for hook in read if hook)


def _pools(tables: object, base: Path, faults: list[str]) -> tuple[Pool, ...]:
    if not isinstance(tables, list) or not tables:
        faults.append("pool: there is none; write [[pool]] with name, accelerator and count")
        return ()
    pools = [_pool(table, number, base, faults) for number, table in enumerate(tables, 1)]
    names = Counter(pool.name for pool in pools if pool)
    faults.extend(f"pool: {n} of them are called {name!r}" for name, n in names.items() if n > 1)
    return tuple(pool for pool in pools if pool)


def _pool(table: object, number: int, base: Path, faults: list[str]) -> Pool | None:
    where = f"pool {number}"
    if not isinstance(table, Mapping):
        faults.append(f"{where}: it must be a table, written [[pool]]")
        return None
    before = len(faults)
    parts = {
        name: read_table(kind, table.get(name, {}), f"{where}.{name}", faults)
        for name, kind in _PARTS.items()
    }
    plain = {key: value for key, value in table.items() if key not in _PARTS}
    for key in ("cluster", "profile"):
        if isinstance(plain.get(key), str):
            plain[key] = str((base / plain[key]).absolute())
    launcher = plain.get("launcher", LOCAL)
    if isinstance(launcher, str) and launcher not in known():
        faults.append(
            f"{where}.launcher: {shorten(launcher, 40)!r} is none of {', '.join(known())}"
        )
    given = {name: part for name, part in parts.items() if part is not None}
    pool = read_table(Pool, plain, where, faults, **given)
    if pool is not None and len(faults) == before:
        _check_pool(pool, f"{where} ({pool.name})", set(table), faults)
    return pool


def _check_pool(pool: Pool, where: str, given: set[str], faults: list[str]) -> None:
    if (pool.cluster is None) == (pool.accelerator is None):
        faults.append(f"{where}: give either accelerator and count, or cluster")
    if pool.rented and pool.acquired:
        faults.append(f"{where}: rented devices are not owned: keep one of rented and acquired")
    if pool.country is None and (pool.parent or pool.rented or pool.acquired):
        faults.append(
            f'{where}: parent, rented and acquired are for trade rules: add country = "CN", where'
            " the devices stand"
        )
    if pool.accelerator is not None and pool.count is None:
        faults.append(f"{where}: count is missing: write count = 8 (devices as software sees them)")
    if pool.accelerator not in (None, CPU):
        try:
            load_device(pool.accelerator or "")
        except KrzemError as error:
            faults.append(f"{where}: {error} Processors without accelerator are {CPU!r}.")
    if pool.cluster is not None and not Path(pool.cluster).is_file():
        faults.append(f"{where}: the cluster file {pool.cluster} does not exist")
    try:
        check_launcher(pool)
    except KrzemError as error:
        faults.append(f"{where}: {error}")
    if pool.launcher == SITE and not pool.site.run_file:
        faults.append(f'{where}: launcher = "site" needs [pool.site] run_file, the run file there')
    for table, used in (("slurm", pool.launcher == SLURM), ("site", pool.launcher == SITE),
                        ("scheduler", pool.launcher not in (LOCAL, SLURM, SITE))):  # fmt: skip
        if table in given and not used:
            faults.append(f"{where}: [pool.{table}] is not for launcher = {pool.launcher!r}")
    if pool.ranks % pool.nodes:
        faults.append(
            f"{where}: {pool.ranks} processes over {pool.nodes} nodes leave "
            f"{pool.ranks % pool.nodes} over; choose processes that the nodes divide"
        )
