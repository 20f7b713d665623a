"""Exhaustive search: every legal layout is priced, none is guessed away.

With what unpublished quantities do to its answer, and what being picked does to the best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from krzem.cost.coefficients import Z80, between
from krzem.errors import UnknownFactError
from krzem.hardware.cluster import Assumed, at
from krzem.hardware.cluster_keys import KEYS
from krzem.layout.layout import Layouts, join
from krzem.layout.space import Space, layouts
from krzem.plan.goal import SURE
from krzem.plan.price import BLOCK, Pricer, Task, narrowing, split

POSSIBLE = 0.05
"""Below this chance of fitting a layout is not timed."""
KEEP = 4096
"""Layouts kept per block of the search for the front and the ranking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The outcome of a search: candidates in arrays, sorted by step time."""

    layouts: Layouts
    seconds: np.ndarray
    """Step time, mid."""
    peak_bytes: np.ndarray
    fits: np.ndarray
    """Probability of fitting."""
    evaluated: int
    """Legal layouts whose memory was priced."""
    timed: int
    """Those with a chance to fit, whose step time was priced."""
    search_seconds: float
    least_bytes: float
    """Peak of the legal layout that needs least memory (infinite where none is legal)."""

    def best(self, sure: float = SURE) -> np.ndarray:
        """Indices of layouts that fit with at least this chance, fastest first."""
        return np.flatnonzero(self.fits >= sure)

    def distinct(self, order: np.ndarray, wanted: int) -> list[int]:
        """The first ``wanted`` of ``order`` that differ in parallel shape."""
        x = self.layouts
        same = ("tp", "pp", "ep", "etp", "schedule", "zero")
        shapes: set[tuple[float, ...]] = set()
        chosen: list[int] = []
        for i in order:
            shape = tuple(int(getattr(x, n)[i]) for n in same)
            # Half the sequence of twice as many is the same work, cut another way.
            double = (*shape, -1, int(x.micro_batch[i]) / int(x.cp[i]))
            degrees = (*shape, int(x.cp[i]))
            if double not in shapes and degrees not in shapes:
                chosen.append(int(i))
            shapes |= {double, degrees}
            if len(chosen) >= wanted:
                break
        return chosen


def search(
    pricer: Pricer,
    space: Space | None = None,
    progress: Callable[[int], None] | None = None,
) -> Found:
    """Price the whole space; ``progress`` is called with the number of layouts priced so far."""
    start = time.perf_counter()
    kept: list[tuple[Layouts, np.ndarray, np.ndarray, np.ndarray]] = []
    evaluated = timed = 0
    least = np.inf
    for block in _blocks(pricer, space or pricer.task.space):
        chosen = pricer.choose(block)
        memory = pricer.memory(block, chosen)
        fits = pricer.fits(memory)
        evaluated += len(block)
        least = min(least, float(np.min(memory.peak)))
        possible = np.flatnonzero(fits >= POSSIBLE)
        if len(possible):
            kept_block = block.take(possible)
            seconds = np.asarray(pricer.step(kept_block, chosen.take(possible)).total)
            timed += len(possible)
            top = _prune(seconds, np.asarray(memory.peak)[possible], fits[possible])
            kept.append(
                (kept_block.take(top), seconds[top], np.asarray(memory.peak)[possible][top],
                 fits[possible][top])
            )  # fmt: skip
        if progress is not None:
            progress(evaluated)
    return _collect(kept, evaluated, timed, least, time.perf_counter() - start)


def _blocks(pricer: Pricer, space: Space) -> Iterator[Layouts]:
    """Small blocks joined and large ones cut, so that every block is worth its overhead."""
    waiting: list[Layouts] = []
    size = 0
    for legal in layouts(pricer.task.problem, space):
        block = legal.take(pricer.allowed(legal, space.limits))
        if not len(block):
            continue
        if len(block) >= BLOCK:
            yield from split(block)
            continue
        waiting.append(block)
        size += len(block)
        if size >= BLOCK:
            yield from split(join(waiting))
            waiting, size = [], 0
    if waiting:
        yield from split(join(waiting))


def _prune(seconds: np.ndarray, peak: np.ndarray, fits: np.ndarray) -> np.ndarray:
    """The layouts of a block that could still be shown: the fastest and the time-memory front."""
    if len(seconds) <= KEEP:
        return np.arange(len(seconds))
    sure = np.where(fits >= SURE, seconds, np.inf)
    fastest = np.argpartition(sure, KEEP // 2)[: KEEP // 2]
    anyhow = np.argpartition(seconds, KEEP // 2)[: KEEP // 2]
    return np.unique(np.concatenate([fastest, anyhow, front(seconds, peak)]))


def front(seconds: np.ndarray, peak: np.ndarray) -> np.ndarray:
    """Indices of the layouts that no other beats in both time and memory, fastest first."""
    order = np.lexsort((peak, seconds))
    lowest = np.minimum.accumulate(peak[order])
    keep = np.r_[True, lowest[1:] < lowest[:-1]] if len(order) else np.array([], dtype=bool)
    return order[keep]


def _collect(
    kept: list[tuple[Layouts, np.ndarray, np.ndarray, np.ndarray]],
    evaluated: int,
    timed: int,
    least: float,
    elapsed: float,
) -> Found:
    if not kept:
        nothing = np.array([])
        empty = Layouts(**{name: nothing.astype(np.int64) for name in Layouts.__slots__})
        return Found(
            layouts=empty, seconds=nothing, peak_bytes=nothing, fits=nothing, evaluated=evaluated,
            timed=timed, search_seconds=elapsed, least_bytes=least,
        )  # fmt: skip
    everything = join([k[0] for k in kept])
    seconds, peak, fits = (np.concatenate([k[i] for k in kept]) for i in (1, 2, 3))
    order = np.argsort(seconds, kind="stable")
    return Found(
        layouts=everything.take(order),
        seconds=seconds[order],
        peak_bytes=peak[order],
        fits=fits[order],
        evaluated=evaluated,
        timed=timed,
        search_seconds=elapsed,
        least_bytes=least,
    )


# What an unpublished quantity does to an answer: both ends of its bounds are priced
# ----------------------------------------------------------------------------------

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


# What being picked does to the best of many predictions
# ------------------------------------------------------

RIVALS, LOOKED_AT = 64, 2000
"""Parallel shapes that compete, and layouts among which they are looked for."""
DRAWS = 400


def picked(task: Task, found: Found, best: np.ndarray) -> float:
    """By which the fastest layout is to be expected slower than predicted.

    Layouts of one model on one cluster share most of their error; what is left
    (:func:`krzem.cost.coefficients.between`) differs by parallel shape, and the fastest is picked
    for it.  Parametric bootstrap: predictions as if they were true, drawn anew with that
    error, and the mean error of the one that then looks fastest.
    """
    spread = between(task.architecture.is_moe) * narrowing(task)
    rivals = found.distinct(best[:LOOKED_AT], RIVALS)
    log = np.log(found.seconds[rivals])
    noise = np.random.default_rng(0).normal(size=(DRAWS, len(rivals))) * spread
    winner = np.argmin(log + noise, axis=1)
    return math.exp(-float(np.mean(noise[np.arange(DRAWS), winner])))


def picked_note(seconds: float, factor: float) -> tuple[str, ...]:
    """What to expect of the best of many predictions, where it differs by a per cent or more."""
    if factor < 1.01:
        return ()
    return (
        f"the fastest of many predictions errs on the fast side: expect {factor - 1:.0%} more,"
        f" {seconds * factor:.3g} s a step (spread between layouts on runs left out)",
    )
