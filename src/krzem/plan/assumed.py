"""What an unpublished quantity does to an answer: both ends of its bounds are priced.

A step time at the two ends says how far the answer moves.  The bounds count as the middle 80 % of a
log-normal, so that what they move widens the interval of the step time; a chance of fitting is the
mean of those at both ends and in the middle.  Where they move the time of the best layout by more
than :data:`MOST`, or decide whether one fits at all, there is no answer to give and the quantity is
asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from krzem.cost.uncertainty import Z80
from krzem.errors import UnknownFactError
from krzem.hardware.assumed import Assumed, at
from krzem.hardware.cluster_keys import KEYS
from krzem.layout.arrays import Layouts
from krzem.plan.price import Pricer
from krzem.plan.search import Found

MOST = 1.5
"""Ratio of the best step times at both ends up to which an unknown quantity does not matter."""
CANDIDATES = 2048
"""Layouts, the fastest of a search, that are priced again at either end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """One assumed quantity with the task priced at both ends of its bounds."""

    bounds: Assumed
    low: Pricer
    high: Pricer


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Seconds of a step at both ends; infinite where nothing fits."""

    bounds: Assumed
    at_low: float
    at_high: float

    @property
    def ratio(self) -> float:
        """The slower over the faster."""
        slow, fast = max(self.at_low, self.at_high), min(self.at_low, self.at_high)
        return slow / fast if math.isfinite(fast) else math.inf


def ends_of(pricer: Pricer) -> tuple[Ends, ...]:
    """Each assumed quantity that has a range; none where everything is known."""
    cluster = pricer.task.cluster

    def end(name: str, value: float) -> Pricer:
        return Pricer(replace(pricer.task, cluster=at(cluster, name, value)))

    return tuple(
        Ends(bounds=a, low=end(name, a.low), high=end(name, a.high))
        for name, a in cluster.assumed.items()
        if a.low < a.high
    )


def effects(ends: Sequence[Ends], x: Layouts) -> tuple[Effect, ...]:
    """What each quantity does to the step of one layout."""
    return tuple(
        Effect(bounds=e.bounds, at_low=_seconds(e.low, x), at_high=_seconds(e.high, x))
        for e in ends
    )


def widening(found: Sequence[Effect]) -> float:
    """Standard deviation that the bounds add to the logarithm of the step time."""
    moved = (math.log(effect.ratio) / (2.0 * Z80) for effect in found)
    return math.sqrt(sum(move * move for move in moved))


def least_known(ends: Sequence[Ends], spread: Callable[[Pricer], float]) -> float:
    """The largest ``spread`` of the step time at any end; 0 where everything is known.

    A slow link takes more of the step, and communication is less certain than computation.
    """
    return max((spread(pricer) for end in ends for pricer in (end.low, end.high)), default=0.0)


def fitting(ends: Sequence[Ends], x: Layouts, middle: float) -> float:
    """Chance of fitting where memory is only known within bounds."""
    chances = [middle]
    for end in ends:
        if end.bounds.key == "memory":
            chances += [float(np.ravel(p.fits(p.memory(x)))[0]) for p in (end.low, end.high)]
    return float(np.mean(chances))


def decided(ends: Sequence[Ends], found: Found, sure: float) -> tuple[Effect, ...]:
    """What each quantity does to the best step time.

    Raises UnknownFactError that names the quantity where it decides more than may be left open.
    """
    x = found.layouts.take(slice(0, CANDIDATES))
    effects = tuple(
        Effect(bounds=e.bounds, at_low=_best(e.low, x, sure), at_high=_best(e.high, x, sure))
        for e in ends
    )
    worst = max(effects, key=lambda effect: effect.ratio, default=None)
    if worst is not None and worst.ratio > MOST:
        raise _undecided(ends[effects.index(worst)].low, worst)
    return effects


def remarks(found: Sequence[Effect]) -> tuple[str, ...]:
    """How far each assumption moves the answer."""
    return tuple(
        f"over the bounds of the assumed {_words(effect.bounds)} the step moves by"
        f" {effect.ratio - 1:.1%}: its interval is the wider for it"
        for effect in found
    )


def _seconds(pricer: Pricer, x: Layouts) -> float:
    return float(np.ravel(np.asarray(pricer.step(x).total))[0])


def _best(pricer: Pricer, x: Layouts, sure: float) -> float:
    chosen = pricer.choose(x)
    fits = pricer.fits(pricer.memory(x, chosen)) >= sure
    seconds = np.where(fits, np.asarray(pricer.step(x, chosen).total), np.inf)
    return float(np.min(seconds, initial=np.inf))


def _words(bounds: Assumed) -> str:
    return bounds.key.replace("_", " ")


def _undecided(pricer: Pricer, effect: Effect) -> UnknownFactError:
    bounds, device = effect.bounds, pricer.task.cluster.device
    fits = [math.isfinite(seconds) for seconds in (effect.at_low, effect.at_high)]
    what = (
        f"the best step takes {effect.at_low:.3g} s at one end and {effect.at_high:.3g} s at the"
        f" other, {effect.ratio:.2g} times as long, and up to {MOST:g} times may be left open"
        if all(fits)
        else "the model fits at one end and not at the other"
    )
    return UnknownFactError(
        f"{pricer.task.architecture.name} on {device.id}: nobody has published the"
        f" {_words(bounds)} of {device.id}, and over what it may be ({bounds.why}; {bounds.source})"
        f" {what}. Give it in a cluster file: {bounds.key} = {KEYS[bounds.key].example}"
    )
