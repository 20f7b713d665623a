"""Exhaustive search: every legal layout is priced, none is guessed away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from krzem.layout.arrays import Layouts, join
from krzem.layout.space import Space, layouts
from krzem.plan.price import BLOCK, Pricer, split

SURE = 0.9
"""Chance of fitting that a recommended layout has at least."""
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
