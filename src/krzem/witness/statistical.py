"""Where bits cannot agree: short seeded runs of two machines, told apart by their losses.

A change of precision or of an algorithm changes every number a little, so no floor of one step can
judge it.  What can be judged is whether training comes out the same: a few runs on A that differ in
their seed alone show how much a loss scatters, and runs on B have to lie within.

The test is the one that MLPerf accepts submissions by, its reference convergence points: Student's
t-test with a common variance between the submission's runs and twice as many of the reference, at
5 % (MLCommons training rules, section 13; mlcommons/logging, ``rcp_checker.py``).  MLPerf asks one
side (faster than the reference is suspect); here a loss on either side is a difference.  A test
that does not reject proves nothing by itself, so its power is stated: the chance that a loss off by
``shift`` would have been rejected.  Below ``least_power`` the answer is neither yes nor no.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krzem.errors import DataError, InputError

ALPHA = 0.05
"""Chance that equal machines are told apart: MLPerf's."""
SHIFT = 0.01
"""Relative difference of a mean loss that has to be found (MindSpore's guide on precision)."""
LEAST_POWER = 0.8
STEPS = 20
"""Last steps of a run whose mean loss stands for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a comparison of runs says."""

    accepted: bool
    rejected: bool
    """Neither: there are too few runs to tell."""
    reference: tuple[float, ...]
    """Mean last losses on A, a run each."""
    tried: tuple[float, ...]
    """The same on B."""
    difference: float
    """Of the means, over that of A."""
    p_value: float
    alpha: float
    """False-alarm rate of the test."""
    shift: float
    power: float
    """Chance that a difference of ``shift`` is found."""
    found_at_least: float
    """The smallest relative difference that is found with ``LEAST_POWER``."""
    runs_needed: int
    """On A, with half as many on B, for that power at ``shift``."""

    @property
    def message(self) -> str:
        """One sentence."""
        what = f"mean last loss {self.difference:+.2%} on {len(self.tried)} runs against "
        what += f"{len(self.reference)} (p = {self.p_value:.3f}, alpha {self.alpha:g}, "
        what += f"power {self.power:.0%} at {self.shift:.1%})"
        if self.rejected:
            return f"rejected: {what}"
        if self.accepted:
            return f"accepted: {what}"
        return f"undecided: {what}; {self.runs_needed} runs on A and half as many on B would tell"


def last_loss(metrics: Path, steps: int = STEPS) -> float:
    """The mean loss of the last ``steps`` of a run, from its ``metrics.jsonl`` or its folder.

    Raises:
        DataError: too few steps, or a loss that is no number.
    """
    file = metrics / "metrics.jsonl" if metrics.is_dir() else metrics
    losses: dict[int, float] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the metrics {file}: {error}") from None
    for line in lines:
        try:
            value = json.loads(line)
            losses[int(value["step"])] = float(value["loss"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a line that was cut off, or of something else
    last = [losses[step] for step in sorted(losses)][-steps:]
    if len(last) < steps:
        raise DataError(f"{file} holds {len(last)} steps with a loss; {steps} are asked for")
    if not all(math.isfinite(x) for x in last):
        raise DataError(f"{file}: a loss among the last {steps} is no number")
    return statistics.fmean(last)


def compare(
    reference: Sequence[float],
    tried: Sequence[float],
    *,
    alpha: float = ALPHA,
    shift: float = SHIFT,
) -> Outcome:
    """Judge the losses of runs on B against those on A.

    Raises:
        InputError: fewer than three runs on A, none on B, or scipy is missing.
    """
    if len(reference) < 3 or not tried:
        raise InputError(
            f"{len(reference)} runs on A and {len(tried)} on B: at least three seeds on A, which "
            "show how a loss scatters, and one run on B are needed"
        )
    if not 0 < alpha < 1 or shift <= 0:
        raise InputError(f"alpha = {alpha:g} has to lie between 0 and 1, shift = {shift:g} above 0")
    stats: Any = _scipy()
    mean, freedom = statistics.fmean(reference), len(reference) + len(tried) - 2
    freedom = max(freedom, 1)
    squares = sum((x - mean) ** 2 for x in reference)
    other = statistics.fmean(tried)
    squares += sum((x - other) ** 2 for x in tried)
    sigma = math.sqrt(squares / freedom) or abs(mean) * 1e-12
    spread = sigma * math.sqrt(1 / len(reference) + 1 / len(tried))
    p_value = float(2 * stats.t.sf(abs(other - mean) / spread, freedom))
    power = _power(stats, shift * abs(mean) / spread, freedom, alpha)
    rejected = p_value < alpha
    return Outcome(
        accepted=not rejected and power >= LEAST_POWER,
        rejected=rejected,
        reference=tuple(reference),
        tried=tuple(tried),
        difference=(other - mean) / abs(mean) if mean else math.inf,
        p_value=p_value,
        alpha=alpha,
        shift=shift,
        power=power,
        found_at_least=_found(stats, spread, freedom, alpha) / abs(mean) if mean else math.inf,
        runs_needed=_needed(stats, sigma, shift * abs(mean), alpha),
    )


def _power(stats: Any, noncentral: float, freedom: int, alpha: float) -> float:
    """Chance that a two-sided t-test rejects where the means are ``noncentral`` spreads apart."""
    limit = float(stats.t.isf(alpha / 2, freedom))
    above = float(stats.nct.sf(limit, freedom, noncentral))
    below = float(stats.nct.cdf(-limit, freedom, noncentral))
    if math.isnan(above):  # far out in the tail, where it is certain
        return 1.0
    return min(1.0, above + (0.0 if math.isnan(below) else below))


def _found(stats: Any, spread: float, freedom: int, alpha: float) -> float:
    """The difference that is found with the least power asked for."""
    low, high = 0.0, 1.0
    while _power(stats, high, freedom, alpha) < LEAST_POWER and high < 1e6:
        high *= 2
    for _ in range(20):
        middle = (low + high) / 2
        enough = _power(stats, middle, freedom, alpha) >= LEAST_POWER
        low, high = (low, middle) if enough else (middle, high)
    return high * spread


def _needed(stats: Any, sigma: float, difference: float, alpha: float) -> int:
    """Runs on A, with half as many on B, that give the least power; at most a thousand."""
    runs = 4
    while runs < 1000:
        other = runs // 2
        spread = sigma * math.sqrt(1 / runs + 1 / other)
        if _power(stats, difference / spread, runs + other - 2, alpha) >= LEAST_POWER:
            return runs
        runs = 2 * math.ceil(runs * 0.55)
    return 1000


def _scipy() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise InputError(
            "the statistical comparison needs scipy, which is not installed: "
            "pip install 'krzem[parity]'"
        ) from None
    return stats
