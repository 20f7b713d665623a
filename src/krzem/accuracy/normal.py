"""Is this MFU normal?  A figure against published measured runs and against the model's own best.

Peers are published runs of the same chip family in as many bits, on about as many devices, of
about as large a model; where these are too few the sizes, then the bits are let go.  Of the trials
of one organisation with one model on one number of devices the best counts: sweeps publish poor
layouts too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from krzem.accuracy.calibrate import published, reached_mfu, timed_cases
from krzem.accuracy.case import Case
from krzem.errors import GoalError
from krzem.estimate import Estimate
from krzem.model.architecture import Architecture
from krzem.model.catalogue import load_model
from krzem.model.parameters import count, flops_per_token
from krzem.plan.answer import Progress, plan_of
from krzem.plan.goal import recipe_of
from krzem.plan.plan import Plan
from krzem.plan.price import Pricer, Task
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.quantity import Written, parse_length

FEW = 8
"""Peers that are asked for before sizes are let go."""
ALIKE_DEVICES, ALIKE_PARAMETERS = 8.0, 4.0
"""Within which factor a run is about as large."""
USUAL_TOKENS, USUAL_SEQUENCE = 4_194_304, 8192
"""A step where neither the question nor a recipe says."""
FAR = 0.75
"""Below this share of the lower bound a figure is very low."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Published runs that the figure is held against."""

    who: str
    """What they share, in words."""
    runs: int
    organisations: int
    low: float
    """10 % point of their MFU."""
    median: float
    high: float
    below: float
    """Share of them with a lower MFU than the figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal:
    """The verdict on one figure."""

    verdict: str
    """``normal``, ``low``, ``very low``, ``high`` or ``impossible``."""
    meaning: str
    mfu: float
    tokens_per_s_per_device: float
    expected: Estimate
    """MFU of the best layout."""
    peers: Peers | None
    """None where nothing is published of the chip family."""
    counted_full: float
    """What the MFU would be called where attention is counted without its causal mask."""
    asked: Asked
    plan: Plan


def normal(
    question: Question,
    *,
    mfu: float | None = None,
    tokens_per_s: float | None = None,
    progress: Progress | None = None,
) -> Normal:
    """Judge an MFU (a fraction) or tokens per second and device of the run in ``question``.

    Raises GoalError where neither or both are given or the figure is none; and what a plan raises.
    """
    if (mfu is None) == (tokens_per_s is None):
        raise GoalError("give one of --mfu 38% and --tokens-per-s 9800 (of one device)")
    asked = settle(_filled(question))
    task = asked.task
    pricer = Pricer(task)
    of_a_token = pricer.step_flops() / task.goal.tokens_per_step
    if mfu is None:
        mfu = (tokens_per_s or 0.0) * of_a_token / pricer.peak_flops()
    if not 0 < mfu < math.inf:
        raise GoalError("a figure above zero is needed, such as --mfu 38% or --tokens-per-s 9800")
    plan = plan_of(asked, alternatives=1, progress=progress)
    among = peers(task, mfu)
    verdict, meaning = _verdict(mfu, plan.best.mfu, among)
    full = flops_per_token(task.architecture, task.goal.sequence, attention="full")
    return Normal(
        verdict=verdict,
        meaning=meaning,
        mfu=mfu,
        tokens_per_s_per_device=mfu * pricer.peak_flops() / of_a_token,
        expected=plan.best.mfu,
        peers=among,
        counted_full=mfu * full / flops_per_token(task.architecture, task.goal.sequence),
        asked=asked,
        plan=plan,
    )


def _filled(question: Question) -> Question:
    """The question with a usual step where neither it nor a recipe says."""
    model = question.model
    architecture = model if isinstance(model, Architecture) else load_model(model)
    recipe = recipe_of(architecture.name)
    sequence: Written | None = question.sequence
    if sequence is None and (recipe is None or recipe.sequence is None):
        longest = architecture.max_positions or USUAL_SEQUENCE
        sequence = min(USUAL_SEQUENCE, longest)
    batch = question.batch_tokens
    if question.global_batch is None and batch is None:
        published_batch = recipe is not None and recipe.global_batch is not None
        length = parse_length(sequence or (recipe and recipe.sequence) or USUAL_SEQUENCE)
        batch = None if published_batch else max(USUAL_TOKENS, length)
    return replace(question, sequence=sequence, batch_tokens=batch, step_alone=True)


def _verdict(mfu: float, expected: Estimate, among: Peers | None) -> tuple[str, str]:
    if mfu >= 1.0:
        return "impossible", "more than the dense peak: FLOPs or peak are counted otherwise"
    if mfu > expected.high:
        return "high", (
            "above what the best layout is expected to reach: check how FLOPs are counted"
            " (attention without its mask, recomputation, a sparse peak)"
        )
    if mfu >= expected.low:
        return "normal", "within what the best layout is expected to reach"
    if among is not None and among.below >= 0.25:
        return "low", (
            "below what the best layout is expected to reach, as published runs of such chips are"
        )
    if mfu >= FAR * expected.low:
        return "low", "below what the best layout is expected to reach: krzem check FILE says why"
    return "very low", "far below what the best layout is expected to reach: look for what is wrong"


@cache
def _published() -> tuple[tuple[Case, float], ...]:
    """Published pre-training runs, the best of each organisation, model and size, with its MFU."""
    best: dict[tuple[object, ...], tuple[Case, float]] = {}
    for case in timed_cases(published()):
        if case.finetune in ("lora", "qlora"):
            continue
        size = count(case.architecture).total
        key = (case.organisation, case.device.id, size, case.devices, case.precision.arithmetic)
        reached = reached_mfu(case)
        if key not in best or reached > best[key][1]:
            best[key] = (case, reached)
    return tuple(best.values())


def peers(task: Task, mfu: float) -> Peers | None:
    """The published runs that ``task`` is most like, and where ``mfu`` stands among them."""
    family = task.cluster.device.family
    bits = task.goal.precision.arithmetic
    parameters = count(task.architecture).total
    tests: Mapping[str, Callable[[Case], bool]] = {
        f"of {family}": lambda c: c.device.family == family,
        f"in {bits}": lambda c: c.precision.arithmetic == bits,
        "of about this size": lambda c: _alike(
            count(c.architecture).total, parameters, ALIKE_PARAMETERS
        ),
        "on about as many devices": lambda c: _alike(
            c.devices, task.cluster.devices, ALIKE_DEVICES
        ),
    }
    for kept in range(len(tests), 0, -1):
        names = list(tests)[:kept]
        found = [(c, r) for c, r in _published() if all(tests[name](c) for name in names)]
        if len(found) >= FEW or (kept == 1 and found):
            return _peers(" ".join(names), found, mfu)
    return None


def _alike(one: float, other: float, factor: float) -> bool:
    return abs(math.log(one / other)) <= math.log(factor)


def _peers(who: str, found: Sequence[tuple[Case, float]], mfu: float) -> Peers:
    reached = np.array([r for _, r in found])
    low, median, high = (float(v) for v in np.quantile(reached, (0.1, 0.5, 0.9)))
    return Peers(
        who=who,
        runs=len(found),
        organisations=len({case.organisation for case, _ in found}),
        low=low,
        median=median,
        high=high,
        below=float(np.mean(reached < mfu)),
    )
