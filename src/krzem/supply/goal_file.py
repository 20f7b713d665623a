"""Reads ``goal.toml``: the run, the date, the limits and the pools of a fleet.

All keys with examples: ``GOAL``, ``MOVE``, ``CHANCE`` and ``POOL`` below; described in
``docs/fleet.md``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from krzem.errors import GoalError, QuantityError, shorten
from krzem.files import read_toml
from krzem.keys import Key, anything, flag, read_keys, stop_at
from krzem.quantity import parse_date, parse_duration, parse_ratio
from krzem.supply.goal import Correlation, FleetGoal, Moves
from krzem.supply.pool_file import CONTEXT, read_pool
from krzem.supply.readers import budget, days, place, rate, share, text, written

HINT = "give the TOML file of a goal"
MOST_POOLS = 100
DAY = 86_400.0

RUN = {
    "tokens": Key(written, '"33T"', "tokens to train"),
    "sequence": Key(written, '"4k"', "tokens per sequence"),
    "global_batch": Key(written, "15360", "sequences per step"),
    "batch_tokens": Key(written, '"94M"', "the same in tokens"),
    "precision": Key(text, '"fp8-block"', "arithmetic"),
    "optimizer": Key(text, '"muon"', "adamw or muon"),
    "state_bytes": Key(text, '"weight=2,moments=4"', "bytes per parameter"),
    "engine": Key(text, '"megatron-core"', "training engine that is priced"),
    "date": Key(parse_date, "2026-11-23", "age of the software"),
}
"""Handed to the planner as they are."""

GOAL = RUN | {
    "name": Key(text, '"my run"', "how reports call it"),
    "model": Key(text, '"deepseek-v3"', "built-in model, or the path of a config.json"),
    "start": Key(parse_date, "2027-01-01", "first day"),
    "deadline": Key(anything, '2027-12-31 or "300d"', "the run must be done by then"),
    "budget": Key(budget, '"$50M"', "for everything"),
    "month_budgets": Key(anything, '{"2027-03" = "$5M"}', "by month"),
    "domestic_share": Key(share, '"50%"', "of the tokens on domestic devices"),
    "domestic": Key(place, '"CN"', "whose devices count as domestic"),
    "lawful_only": Key(flag, "true", "leave out what the buyer may not have"),
    "to": Key(place, '"CN"', "where the devices stand"),
    "parent": Key(place, '"CN"', "seat of the buyer's parent"),
    "sure": Key(share, '"80%"', "required chance of meeting the date"),
    "move": Key(anything, "a table", "what a move costs"),
    "chance": Key(anything, "a table", "what errors have in common"),
    "pool": Key(anything, "[[pool]]", "what is available"),
}
MOVE = {
    "start": Key(days, '"2d"', "before the first pool trains"),
    "same_stack": Key(days, '"2d"', "to another pool of the same software"),
    "other_stack": Key(days, '"10d"', "to another vendor's software"),
    "resize": Key(days, '"6h"', "other number of devices of one pool"),
    "bandwidth": Key(rate, '"1 GB/s"', "for the checkpoint, between sites"),
    "spread": Key(parse_ratio, "0.4", "log standard deviation of these times"),
}
CHANCE = {
    "shared": Key(share, "0.3", "of the error variance, common to all pools"),
    "family": Key(share, "0.3", "of the error variance, common to one device family"),
}


def read_goal(path: str | Path) -> FleetGoal:
    """The goal that a TOML file describes.

    Raises DataError (the file), GoalError (its content, every fault listed), UnknownNameError
    and ClusterError (a device, machine or model that is not known).
    """
    file = Path(path)
    return goal_of(read_toml(file, hint=HINT), shorten(file.name, 60), file.parent)


def goal_of(table: Mapping[str, Any], where: str = "the goal", folder: Path | None = None
            ) -> FleetGoal:  # fmt: skip
    """The goal of parsed TOML; a model file is looked for in ``folder``.

    Raises as :func:`read_goal`.
    """
    faults: list[str] = []
    found = read_keys(table, GOAL, "goal", faults)
    moves = _moves(found.pop("move", {}), faults)
    chance = read_keys(found.pop("chance", {}), CHANCE, "chance", faults)
    pools = found.pop("pool", [])
    start = found.get("start", dt.date.today())
    deadline = _deadline(found.get("deadline"), start, faults)
    budgets = _budgets(found.get("month_budgets", {}), faults)
    if "model" not in found:
        faults.append('goal.model is missing: write model = "deepseek-v3"')
    if not isinstance(pools, list) or not 0 < len(pools) <= MOST_POOLS:
        faults.append(f"pools: 1 to {MOST_POOLS} tables [[pool]] are needed")
        pools = []
    context = CONTEXT | {k: found[k] for k in ("to", "domestic") if k in found}
    context["start"] = start
    read = [read_pool(p, i, context, faults) for i, p in enumerate(pools)]
    stop_at(faults, where, GoalError)
    return FleetGoal(
        model=_model(found["model"], folder),
        pools=tuple(pool for pool in read if pool is not None),
        start=start,
        deadline=deadline,
        run=MappingProxyType({k: found[k] for k in RUN if k in found}),
        budget_usd=found.get("budget"),
        month_budgets=MappingProxyType(budgets),
        domestic_share=found.get("domestic_share", 0.0),
        lawful_only=found.get("lawful_only", False),
        parent=found.get("parent", ""),
        moves=moves,
        correlation=replace(Correlation(), **chance),
        sure=found.get("sure", 0.8),
        sure_asked="sure" in found,
        name=found.get("name", where.removesuffix(".toml")),
    )


def _model(name: str, folder: Path | None) -> str | Path:
    beside = None if folder is None else folder / name
    return beside if beside is not None and beside.is_file() else name


def _moves(table: object, faults: list[str]) -> Moves:
    found = read_keys(table, MOVE, "move", faults)
    if "bandwidth" in found:
        found["bytes_per_s"] = found.pop("bandwidth")
    try:
        return replace(Moves(), **found)
    except GoalError as error:
        faults.append(str(error))
        return Moves()


def _deadline(value: Any, start: dt.date, faults: list[str]) -> dt.date:
    far = start + dt.timedelta(days=365)
    if value is None:
        faults.append('goal.deadline is missing: write deadline = 2027-12-31, or "300d"')
        return far
    try:
        if isinstance(value, str) and "-" not in value:
            return start + dt.timedelta(days=round(parse_duration(value) / DAY))
        return parse_date(value)
    except (QuantityError, OverflowError) as error:
        faults.append(f'goal.deadline, such as 2027-12-31 or "300d": {shorten(str(error), 200)}')
        return far


def _budgets(table: object, faults: list[str]) -> dict[str, float]:
    if not isinstance(table, Mapping):
        faults.append('goal.month_budgets: a table is needed, such as {"2027-03" = "$5M"}')
        return {}
    found = {}
    for month, amount in table.items():
        try:
            found[f"{parse_date(month):%Y-%m}"] = budget(amount)
        except QuantityError as error:
            faults.append(f"goal.month_budgets: {error}")
    return found
