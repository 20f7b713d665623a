"""The questions turned round: the largest model for a fleet and a date, the fewest devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import lcm, log
from pathlib import Path
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

from krzem.errors import ClusterError, GoalError, InputError, KrzemError, ModelError
from krzem.estimate import Estimate
from krzem.hardware.cluster_reader import cluster_of
from krzem.model.architecture import Architecture
from krzem.model.build import read_config
from krzem.model.catalogue import load_model
from krzem.model.parameters import count
from krzem.plan.goal import config_of, recipe_of
from krzem.supply.chance import Odds, odds
from krzem.supply.goal import FleetGoal, Pool
from krzem.supply.optimum import earliest
from krzem.supply.speed import Progress, Speed, slots, speed
from krzem.supply.stages import Schedule

# A family of models of one shape: a config grown or shrunk
# ---------------------------------------------------------

DEPTH = "num_hidden_layers"
WIDTHS = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size",
)  # fmt: skip
RANKS = ("q_lora_rank", "kv_lora_rank", "o_lora_rank")
HEADS = ("num_attention_heads", "index_n_heads")
WIDTH_STEP, RANK_STEP, HEAD_STEP = 128, 64, 8


def scaled(config: Mapping[str, Any], factor: float, name: str) -> Architecture:
    """The architecture of about ``factor`` times the parameters; raises ModelError.

    ``config`` is a Hugging Face ``config.json`` with the names of its usual fields.
    """
    if not 0 < factor < 1e6:
        raise ModelError(f"a model cannot be scaled by {factor:g}")
    if DEPTH not in config or "hidden_size" not in config:
        raise ModelError(
            f"{name} cannot be scaled: its config lacks {DEPTH} or hidden_size; give a config of"
            " the Llama or DeepSeek kind"
        )
    edge = factor ** (1.0 / 3.0)
    changed = dict(config)
    layers = int(config[DEPTH])
    depth = max(round(layers * edge), 2)
    for key in WIDTHS:
        _stretch(changed, key, edge, WIDTH_STEP)
    for key in RANKS:
        _stretch(changed, key, edge, RANK_STEP)
    for key in HEADS:
        _stretch(changed, key, edge, _head_step(config) if key == HEADS[0] else HEAD_STEP)
    if config.get("num_key_value_heads") == config.get("num_attention_heads"):
        changed["num_key_value_heads"] = changed["num_attention_heads"]
    if "head_dim" not in config and "qk_rope_head_dim" not in config and HEADS[0] in config:
        # The size of a head is not written down but follows from width over heads: keep it.
        changed["hidden_size"] = changed[HEADS[0]] * (config["hidden_size"] // config[HEADS[0]])
    for key, value in config.items():
        if isinstance(value, list) and layers <= len(value) <= layers + 1 and layers > 2:
            changed[key] = _resampled(value, depth + len(value) - layers)
    changed[DEPTH] = depth
    return read_config(changed, f"{name} x {factor:.3g}")


def _head_step(config: Mapping[str, Any]) -> int:
    """Heads come in multiples of their groups."""
    groups = [config.get("o_groups"), config.get("num_key_value_heads")]
    heads = config.get("num_attention_heads")
    return lcm(HEAD_STEP, *(g for g in groups if isinstance(g, int) and 0 < g != heads))


def _stretch(config: dict[str, Any], key: str, edge: float, step: int) -> None:
    value = config.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        config[key] = max(round(value * edge / step), 1) * step


def _resampled(values: list[Any], count: int) -> list[Any]:
    """The same pattern in another length; the ends stay."""
    return [values[min(int(i * len(values) / count), len(values) - 1)] for i in range(count)]


# The questions turned round: the largest model for a fleet and a date, the fewest devices
# ----------------------------------------------------------------------------------------

SMALLEST, LARGEST = 1e-3, 64.0
"""Factors between which a model is looked for."""
CLOSE = 1.05
"""The search stops when the factor is known to 5 %."""
_STEPS = (1.0, 1.25, 1.5, 1.75)


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest model of a family that the fleet trains by the date."""

    factor: float
    """Of the parameters of the model that was given, about."""
    architecture: Architecture
    parameters: int
    active_parameters: int
    tokens: float
    schedule: Schedule
    odds: Odds
    tried: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fewest:
    """The fewest devices of one pool that train the model by the date."""

    pool: str
    devices: int | None
    """None: not even all of the pool."""
    speed: Speed | None
    chance: float | None
    words: str


def largest(
    goal: FleetGoal,
    *,
    tokens_per_parameter: float | None = None,
    progress: Progress | None = None,
) -> Largest:
    """The largest scaled model whose run meets the date with the chance ``goal.sure``.

    The tokens are the goal's, or ``tokens_per_parameter`` times the active parameters.

    Raises GoalError where not even the smallest one does.
    """
    base, config = _base(goal)
    found: dict[float, tuple[Architecture, Schedule, Odds]] = {}
    tried = 0

    def meets(factor: float) -> bool:
        nonlocal tried
        tried += 1
        try:
            architecture = scaled(config, factor, base.name)
            asked = _with_model(goal, architecture, tokens_per_parameter)
            answer = _earliest(asked, progress)
        except (ClusterError, GoalError):
            return False
        if answer is None or answer[1].meets_date < goal.sure:
            return False
        found[factor] = (architecture, *answer)
        return True

    low, high = _bracket(meets)
    if low is None:
        raise GoalError(
            f"no model of the family of {base.name}, down to {SMALLEST:g} of its size, is trained"
            f" by {goal.deadline} with a {goal.sure:.0%} chance: add devices or time"
        )
    while high / low > CLOSE:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if meets(middle) else (low, middle)
    architecture, schedule, chance = found[low]
    counted = count(architecture)
    return Largest(
        factor=low,
        architecture=architecture,
        parameters=counted.total,
        active_parameters=counted.active,
        tokens=schedule.stages[0].slot.speed.tokens,
        schedule=schedule,
        odds=chance,
        tried=tried,
        how=f"{base.name} with depth and width each times {low ** (1 / 3):.3g}, experts and head"
        " sizes unchanged; widths rounded to 128, heads to 8",
    )


def _bracket(meets: Callable[[float], bool]) -> tuple[float | None, float]:
    """A factor that meets the date and a larger one that does not."""
    factor, last = 1.0, None
    if meets(factor):
        while factor < LARGEST:
            last, factor = factor, factor * 2
            if not meets(factor):
                return last, factor
        return factor, factor
    while factor > SMALLEST:
        high, factor = factor, factor / 2
        if meets(factor):
            return factor, high
    return None, factor


def _base(goal: FleetGoal) -> tuple[Architecture, dict[str, Any]]:
    if isinstance(goal.model, Architecture):
        raise InputError("the largest model needs the config of one: give its name or path")
    base = load_model(goal.model)
    return base, dict(config_of(goal.model, base))


def _with_model(
    goal: FleetGoal, architecture: Architecture, tokens_per_parameter: float | None
) -> FleetGoal:
    """The same goal for another model; what the recipe said is written out."""
    run = dict(_recipe(goal)) | dict(goal.run)
    if tokens_per_parameter is not None:
        run["tokens"] = round(tokens_per_parameter * count(architecture).active)
    if "global_batch" in goal.run or "batch_tokens" in goal.run:
        for key in ("global_batch", "batch_tokens"):
            if key not in goal.run:
                run.pop(key, None)
    return replace(goal, model=architecture, run=MappingProxyType(run))


def _recipe(goal: FleetGoal) -> dict[str, Any]:
    """What the published recipe of a built-in model says, as a plan takes it."""
    found = recipe_of(load_model(goal.model).name) if isinstance(goal.model, str | Path) else None
    if found is None:
        return {}
    names = ("tokens", "sequence", "global_batch", "precision", "optimizer")
    return {n: getattr(found, n) for n in names if getattr(found, n) is not None}


def _earliest(goal: FleetGoal, progress: Progress | None) -> tuple[Schedule, Odds] | None:
    found, _ = slots(goal, progress)
    schedule = earliest(goal, found)
    return None if schedule is None else (schedule, odds(goal, schedule))


def fewest(goal: FleetGoal, progress: Progress | None = None) -> tuple[Fewest, ...]:
    """For each pool alone, the fewest devices that meet the date with the chance ``goal.sure``."""
    return tuple(_fewest(goal, pool, progress) for pool in goal.pools)


def _fewest(goal: FleetGoal, pool: Pool, progress: Progress | None) -> Fewest:
    counts = _counts(pool)
    tried: dict[int, tuple[Speed, float] | str] = {}

    def chance(index: int) -> float:
        devices = counts[index]
        if devices not in tried:
            if progress is not None:
                progress(f"{pool.name} at {devices:,} devices")
            tried[devices] = _chance(goal, pool, devices)
        answer = tried[devices]
        return 0.0 if isinstance(answer, str) else answer[1]

    low, high = 0, len(counts) - 1
    if chance(high) < goal.sure:
        return _not_enough(pool, counts[high], tried[counts[high]])
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= goal.sure else (middle + 1, high)
    answer = tried[counts[high]] if counts[high] in tried else _chance(goal, pool, counts[high])
    assert not isinstance(answer, str)
    measured, sure = answer
    words = f"{counts[high]:,} devices: {_in_time(measured, sure)}"
    return Fewest(pool=pool.name, devices=counts[high], speed=measured, chance=sure, words=words)


def _in_time(speed: Speed, sure: float) -> str:
    return f"{speed.days.mid:,.0f} days, {sure:.0%} chance of meeting the deadline"


def _not_enough(pool: Pool, devices: int, answer: tuple[Speed, float] | str) -> Fewest:
    if isinstance(answer, str):
        return Fewest(pool=pool.name, devices=None, speed=None, chance=None, words=answer)
    measured, sure = answer
    words = f"all {devices:,} devices: {_in_time(measured, sure)}"
    return Fewest(pool=pool.name, devices=None, speed=measured, chance=sure, words=words)


def _chance(goal: FleetGoal, pool: Pool, devices: int) -> tuple[Speed, float] | str:
    try:
        measured = speed(goal, pool, devices)
    except (ClusterError, GoalError) as error:
        return str(error)
    first = max((pool.available(devices) - goal.start).days, 0)
    days = min(goal.deadline, pool.until)
    room = float((days - goal.start).days - first) - goal.moves.start
    return measured, pool.chance * within(measured.days, room)


def within(days: Estimate, room: float) -> float:
    """Chance that something of ``days`` takes at most ``room``; two-sided log-normal."""
    if room <= 0:
        return 0.0
    side = days.high / days.mid if room > days.mid else days.mid / days.low
    if side <= 1.0:
        return float(room >= days.mid)
    return NormalDist().cdf(log(room / days.mid) / (log(side) / 1.2815515655446004))


def _counts(pool: Pool) -> list[int]:
    """Whole nodes up to the pool's size, in steps of a quarter of a power of two."""
    most = pool.sizes[-1]
    try:
        per_node = cluster_of(dict(pool.given) | {"devices": most}).devices_per_node
    except KrzemError:
        per_node = 1
    nodes = max(most // per_node, 1)
    found = {nodes}
    power = 1
    while power <= nodes:
        found |= {int(power * step) for step in _STEPS if power * step <= nodes}
        power *= 2
    return [n * min(per_node, most) for n in sorted(found)]
