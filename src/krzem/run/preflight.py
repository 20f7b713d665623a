"""Before a pool is used: what the planner expects of it for the tokens that are left.

A pool of catalogued accelerators is planned from its data sheet, and from what was measured on it
where something was.  Processors without an accelerator are planned from measurements alone.  Where
nobody can say how fast a pool is, the plan says so, and the gate on its speed stays silent.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from krzem.cost.assemble import machine
from krzem.cost.coefficients import fitted
from krzem.errors import ClusterError, KrzemError, LayoutError, UnknownFactError
from krzem.estimate import Basis, Estimate
from krzem.hardware import CPU, Cluster
from krzem.hardware.catalogue import find_id
from krzem.layout.layout import Layout, parse_layout
from krzem.model import load_model
from krzem.plan.answer import divides, explanation_of, plan_of
from krzem.plan.goal import Goal
from krzem.plan.plan import Explanation, LayoutPlan, Plan
from krzem.plan.price import Task
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.rules import Standing, standing
from krzem.run.clock import DAY, duration
from krzem.run.far import with_travel
from krzem.run.pool_settings import SITE, Pool
from krzem.run.profile import cluster_for, read_profile
from krzem.run.services import PoolPlan
from krzem.run.settings import RunSettings
from krzem.run.trainer import is_own, runnable
from krzem.run.trial import SPEED

CHOICES = 40
"""Parallel shapes of the planner that are tried on krzem's trainer, fastest first."""
_UNCALIBRATED = 0.6
"""Spread (of the logarithm) of a step time on a kind of device that no published run calibrates:
the middle 80 % span a factor of about two either way."""


_TRIED = 0.12
"""The same of steps that the trainer itself was tried on: how the first differ from the later."""


def plan_pool(
    settings: RunSettings,
    pool: Pool,
    *,
    tokens_left: float,
    days_left: float | None,
    measured: Mapping[str, float] | None,
) -> PoolPlan:
    """What ``pool`` would do with ``tokens_left``, and what trade rules say of it today.

    Never raises for what it cannot know.
    """
    made = _pool_plan(settings, pool, tokens_left, days_left, measured)
    made = with_travel(settings, pool, made) if pool.launcher == SITE else made
    rules = _standing(pool)
    if rules is None or rules.lawful:
        return replace(made, rules=rules)
    return replace(made, rules=rules, warnings=(*made.warnings, f"trade rules: {rules.words}"))


def _standing(pool: Pool) -> Standing | None:
    """The verdict of ``krzem rules``; None without a country, an accelerator or a cluster."""
    if pool.country is None or pool.accelerator == CPU:
        return None
    try:
        device = find_id(pool.accelerator) if pool.accelerator else cluster_for(pool, {}).device.id
    except KrzemError:
        return None  # the plan says what is wrong with it
    return standing(
        device,
        datetime.date.today(),
        pool.country,
        pool.parent,
        rents=pool.rented,
        acquired=pool.acquired,
    )


def _pool_plan(
    settings: RunSettings,
    pool: Pool,
    tokens_left: float,
    days_left: float | None,
    measured: Mapping[str, float] | None,
) -> PoolPlan:
    days = _deadline(settings, days_left)
    given = dict(measured or {}) or _from_profile(pool)
    tried = given.pop(SPEED, None)
    own = is_own(settings, pool)
    try:
        found = _plan(settings, pool, tokens_left, days, given)
    except UnknownFactError as error:
        refused = _illegal(settings, pool, tokens_left) if own else None
        if refused:
            return PoolPlan(pool=pool.name, tokens_per_s=None, basis="no plan", refused=refused)
        return _without_plan(settings, pool, tokens_left, days, str(error))
    except KrzemError as error:
        if pool.tokens_per_s is not None and not own and not isinstance(error, ClusterError):
            return _without_plan(settings, pool, tokens_left, days, str(error))
        return PoolPlan(pool=pool.name, tokens_per_s=None, basis="no plan", refused=str(error))
    return _judged(settings, pool, found, tokens_left, days, bool(given), tried)


_STAND_IN = {
    "bf16_flops": 1e11, "fp16_flops": 1e11, "tf32_flops": 1e11, "memory_bytes_per_s": 1e10,
    "launch_seconds": 1e-5, "scale_up_bytes_per_s": 1e9, "scale_up_latency_seconds": 1e-5,
}  # fmt: skip
"""Rates of processors nobody has measured: a layout is legal, and fits, at any speed."""


def _illegal(settings: RunSettings, pool: Pool, tokens: float) -> str | None:
    """Why no layout of a pool whose speed is unknown could train the model, if so."""
    if pool.accelerator != CPU:
        return None
    try:
        found = _plan(settings, pool, tokens, None, dict(_STAND_IN))
    except UnknownFactError:
        return None
    except KrzemError as error:
        return str(error)
    return _too_large(found.best if isinstance(found, Plan) else found.plan)


def _check_batch(settings: RunSettings, pool: Pool, asked: Asked) -> None:
    """The batch is part of what the run is: no pool may train with another one.

    Raises LayoutError with the numbers of devices that could.
    """
    batch = settings.goal.global_batch
    if divides(asked):
        return
    good = [n for n in _counts_near(pool.count or 1) if _could(settings, pool, n)]
    offer = f"{', '.join(map(str, good))} devices could" if good else "give another global_batch"
    raise LayoutError(
        f"no layout of {pool.count} devices divides a batch of {batch:,} sequences; {offer}"
    )


def _counts_near(count: int) -> list[int]:
    """Other numbers of devices, from half to twice as many; of many only round ones."""
    near = range(max(1, count // 2), 2 * count + 1)
    round_ones = {2**power for power in range(24)} & set(near)
    return sorted(set(near) - {count}) if len(near) <= 24 else sorted(round_ones - {count})


def _could(settings: RunSettings, pool: Pool, count: int) -> bool:
    other = replace(pool, count=count, processes=None)
    try:
        goal = replace(settings.goal, precision=pool.precision or settings.goal.precision)
        given = dict(_STAND_IN) if pool.accelerator == CPU else {}
        return divides(_asked(settings, cluster_for(other, given), goal, None, True, given))
    except KrzemError:
        return False


def _deadline(settings: RunSettings, days_left: float | None) -> float | None:
    left = settings.seconds_left(0.0)
    return days_left if settings.deadline is None or left is None else left / DAY


def _from_profile(pool: Pool) -> dict[str, float]:
    return {} if pool.profile is None else dict(read_profile(Path(pool.profile)).measured)


def _plan(
    settings: RunSettings, pool: Pool, tokens: float, days: float | None, measured: dict[str, float]
) -> Plan | Explanation:
    goal = replace(
        settings.goal,
        tokens=max(tokens, settings.goal.tokens_per_step),
        precision=pool.precision or settings.goal.precision,
        deadline_days=None if days is None or days <= 0 else days,
    )
    layout = None if pool.layout == "auto" else parse_layout(pool.layout)
    own = is_own(settings, pool)
    asked = _asked(settings, cluster_for(pool, measured), goal, layout, own, measured)
    if layout is None:
        if own and pool.cluster is None:
            _check_batch(settings, pool, asked)
        found = plan_of(asked, alternatives=CHOICES if own else 0)
        layout = runnable(settings, found) if own else found.best.layout
        if layout == found.best.layout:
            return found
        asked = _asked(settings, cluster_for(pool, measured), goal, layout, own, measured)
    explained = explanation_of(asked, layout)
    if explained.task.goal.global_batch != goal.global_batch:
        raise LayoutError(
            f"layout {layout} divides no batch of {goal.global_batch:,} sequences; the nearest it "
            f"does is {explained.task.goal.global_batch:,}, and that would be another run"
        )
    return explained


def _asked(
    settings: RunSettings,
    cluster: Cluster,
    goal: Goal,
    layout: Layout | None,
    own: bool,
    measured: Mapping[str, float],
) -> Asked:
    """The planner's question; with krzem's trainer its engine and what that keeps in memory."""
    states = kept_bytes(goal.precision, goal.optimizer, layout) if own else None
    asked = settle(
        Question(
            model=load_model(settings.model),
            on=cluster,
            tokens=goal.tokens,
            sequence=goal.sequence,
            global_batch=goal.global_batch,
            precision=goal.precision,
            optimizer=goal.optimizer,
            state_bytes=states,
            engine="krzem" if own else None,
        )
    )
    settled = replace(asked.task.goal, deadline_days=goal.deadline_days, budget_usd=goal.budget_usd)
    task = replace(asked.task, goal=settled)
    if measured:
        task = replace(task, cluster=sharpened(task, measured))
    return replace(asked, task=task)


def kept_bytes(precision: str, optimizer: str, layout: Layout | None) -> str:
    """What krzem's trainer keeps for a parameter: float32 weight, gradient and moments.

    Between steps a sharded layout below zero=3 also keeps the gathered weights, as computed with.
    """
    weight, master, moments = 4, 0, 8 if optimizer == "adamw" else 4
    if layout is not None and layout.zero in (1, 2) and layout.dp * layout.cp > 1:
        weight, master = 4 if precision == "fp32" else 2, 4
    return f"weight={weight},gradient=4,master={master},moments={moments}"


def sharpened(task: Task, measured: Mapping[str, float]) -> Cluster:
    """The task's cluster with measured rates in place of what the model makes of the data sheet.

    The model multiplies peaks by shares that published runs taught it; a measured rate already is
    such a product, so each figure is scaled until the model arrives at the measured rate.
    """
    cluster = task.cluster
    assumed = machine(task.situation(()), fitted())
    device = cluster.device
    kind = task.goal.precision.arithmetic
    kind = "tf32" if kind == "fp32" else kind
    rate = measured.get(f"{kind}_flops")
    peaks = dict(device.peak_flops)
    if rate is not None and kind in peaks:
        peaks[kind] *= rate / assumed.matmul_flops

    def rate_of(name: str, sheet: float, reached: float) -> float:
        return sheet * measured[name] / reached if name in measured else sheet

    return replace(
        cluster,
        device=replace(device, peak_flops=MappingProxyType(peaks)),
        measured=MappingProxyType({**cluster.measured, **measured}),
        memory_bytes_per_s=rate_of(
            "memory_bytes_per_s", cluster.memory_bytes_per_s, assumed.memory_bytes_per_s
        ),
        scale_up_bytes_per_s=rate_of(
            "scale_up_bytes_per_s", cluster.scale_up_bytes_per_s, assumed.up_bytes_per_s
        ),
        scale_out_bytes_per_s=rate_of(
            "scale_out_bytes_per_s", cluster.scale_out_bytes_per_s, assumed.out_bytes_per_s
        ),
    )


def _judged(
    settings: RunSettings,
    pool: Pool,
    found: Plan | Explanation,
    tokens_left: float,
    days: float | None,
    is_measured: bool,
    tried: float | None = None,
) -> PoolPlan:
    """A plan as the controller wants it: speed, days, chance, refusal or warnings."""
    best: LayoutPlan = found.best if isinstance(found, Plan) else found.plan
    seconds = best.step_seconds
    if found.task.cluster.device.id == CPU:
        seconds = Estimate.lognormal(seconds.mid, _UNCALIBRATED, Basis.MEASURED)
    speed = seconds.inverse(float(found.task.goal.tokens_per_step))
    basis = "plan, with measured rates" if is_measured else "plan, from the data sheet"
    if tried is not None:
        speed = Estimate.lognormal(tried, _TRIED, Basis.MEASURED)
        basis = "measured on steps of the trainer itself"
    if pool.tokens_per_s is not None:
        speed, basis = _stated(pool.tokens_per_s), "stated in the run file"
    # Neither a stated speed nor processors have the failures and overheads of a large cluster.
    plain = pool.tokens_per_s is not None or found.task.cluster.device.id == CPU
    whole = None if plain or tried is not None else found.whole_run
    return _in_time(
        settings,
        PoolPlan(
            pool=pool.name,
            tokens_per_s=speed,
            basis=basis,
            layout=str(best.layout),
            days=speed.inverse(tokens_left / DAY) if whole is None else whole.days,
            wall=found.wall,
            refused=_too_large(best),
        ),
        days,
        None if whole is None else whole.deadline_probability,
    )


def _too_large(best: LayoutPlan) -> str | None:
    if best.fits_probability >= 0.5:
        return None
    return (
        f"layout {best.layout} has a {best.fits_probability:.0%} chance of fitting in memory "
        f"({best.memory_bytes.mid / 2**30:.1f} GiB expected)"
    )


def _stated(tokens_per_s: float) -> Estimate:
    return Estimate(tokens_per_s, tokens_per_s, tokens_per_s, Basis.ESTIMATED)


def _without_plan(
    settings: RunSettings, pool: Pool, tokens_left: float, days: float | None, why: str
) -> PoolPlan:
    """A pool that the planner cannot judge: by its stated speed, or openly unknown."""
    if pool.tokens_per_s is None:
        silent = "its speed is unknown until it is measured"
        if not settings.qualify.enabled:
            silent = "its speed is unknown, so the gate on speed stays silent: give tokens_per_s"
        return PoolPlan(
            pool=pool.name, tokens_per_s=None, basis=f"unknown: {why}", warnings=(silent,)
        )
    speed = _stated(pool.tokens_per_s)
    made = PoolPlan(
        pool=pool.name,
        tokens_per_s=speed,
        basis=f"stated in the run file ({why})",
        days=speed.inverse(tokens_left / DAY),
    )
    return _in_time(settings, made, days, None)


def _in_time(
    settings: RunSettings, made: PoolPlan, days: float | None, chance: float | None
) -> PoolPlan:
    """The plan with its chance of keeping the deadline, refused or warned of by rule."""
    needed = made.days
    if days is None or needed is None:
        return made
    if chance is None:
        chance = _chance(needed, days)
    made = replace(made, in_time=chance)
    rule = settings.recovery
    if chance >= rule.certainty:
        return made
    left = f"{duration(days * DAY)} are left" if days > 0 else "the deadline is past"
    sentence = (
        f"has a {chance:.0%} chance of meeting the deadline; at least {rule.certainty:.0%} is "
        f"required: it needs about {duration(needed.mid * DAY)}, {left}"
    )
    if rule.refuse_late:
        return replace(made, refused=made.refused or sentence)
    return replace(made, warnings=(*made.warnings, sentence))


def _chance(needed: Estimate, days: float) -> float:
    """Chance that a log-normal with this 80 % interval stays below ``days``."""
    if days <= 0:
        return 0.0
    sigma = math.log(needed.high / needed.low) / (2 * 1.2815515655446004)
    if sigma == 0:
        return float(needed.mid <= days)
    return 0.5 * math.erfc(-math.log(days / needed.mid) / (sigma * math.sqrt(2)))
