"""Answers of the what-if page: searches are kept, and a kept one is priced anew in an instant.

A link, a price, a failure rate, a deadline or a number of tokens does not change which layouts are
legal. After such a change the best layouts of the last search are priced again (a few hundred, in
about a tenth of a second), and the page asks for the whole search afterwards, since another link
may favour a layout that was not kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from krzem.errors import KrzemError
from krzem.plan.answer import fitting_batch
from krzem.plan.plan import Plan, planned
from krzem.plan.price import Pricer
from krzem.plan.request import Asked, settle
from krzem.plan.search import Found, front, search
from krzem.ui.state import State

REPRICED = frozenset(
    {"tokens", "deadline", "budget", "price", "scale_up", "scale_out", "failures", "buyer"}
)
"""Fields whose change leaves the legal layouts and their memory as they are."""
CANDIDATES = 192
"""Layouts of a search that are priced again."""
KEPT = 32
"""Searches that are kept."""
CURVE = 7
"""Numbers of devices on the curve."""

Superseded = Callable[[], bool]
K = TypeVar("K")
V = TypeVar("V")


class SupersededError(KrzemError):
    """The page asked for something else meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A plan for a state; ``whole`` says whether every layout was priced for it."""

    state: State
    asked: Asked
    plan: Plan
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One number of devices: its plan, or why there is none."""

    devices: int
    plan: Plan | None
    error: str = ""


class Answers:
    """Plans of states, with the searches behind them kept; may be called from several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, ...], Found] = OrderedDict()
        self._points: OrderedDict[State, Point] = OrderedDict()
        self._dropped: dict[str, Path] = {}
        self._searching = threading.Lock()

    def drop_model(self, name: str, path: Path) -> None:
        """Let states name the model of the configuration at ``path``."""
        self._dropped[name] = path

    @property
    def dropped(self) -> Mapping[str, Path]:
        """Models dropped onto the page, by name."""
        return self._dropped

    def asked(self, state: State) -> Asked:
        """The settled question; raises what :func:`krzem.plan.request.settle` raises."""
        path = self._dropped.get(state.model)
        if path is None:
            return settle(state.question())
        return settle(replace(replace(state, model="").question(), model=path))

    def plan(self, state: State, *, whole: bool, superseded: Superseded | None = None) -> Answered:
        """The best layouts of ``state``.

        Where not ``whole``, the layouts kept of a search that differs in nothing that decides
        about legality or memory are priced again, if there is one.

        Raises:
            SupersededError: ``superseded`` became true during the search.
            KrzemError: what a plan raises: an input that cannot be read, or no plan.
        """
        asked = fitting_batch(self.asked(state))
        kept = None if whole else self._kept.get(_key(state))
        pricer = Pricer(asked.task)
        found = self._searched(state, asked, superseded) if kept is None else repriced(pricer, kept)
        plan = planned(
            pricer, found, alternatives=9 if kept is None else 2, sure=asked.sure, start=asked.start
        )
        plan = replace(plan, notes=(*asked.batch_notes, *plan.notes))
        return Answered(state=state, asked=asked, plan=plan, whole=kept is None)

    def point(self, state: State, devices: int, superseded: Superseded | None = None) -> Point:
        """The plan of ``state`` on another number of devices, kept once it is known."""
        elsewhere = replace(state, devices=str(devices))
        if elsewhere not in self._points:
            try:
                found = self.plan(elsewhere, whole=False, superseded=superseded).plan
                self._points[elsewhere] = Point(devices=devices, plan=found)
            except SupersededError:
                raise
            except KrzemError as error:
                self._points[elsewhere] = Point(devices=devices, plan=None, error=str(error))
            _forget(self._points, KEPT * CURVE)
        return self._points[elsewhere]

    def known_points(self, state: State, counts: tuple[int, ...]) -> tuple[Point, ...]:
        """Points of the curve that need no search any more."""
        states = (replace(state, devices=str(count)) for count in counts)
        return tuple(self._points[s] for s in states if s in self._points)

    def _searched(self, state: State, asked: Asked, superseded: Superseded | None) -> Found:
        def stop_if_superseded(_: int) -> None:
            if superseded is not None and superseded():
                raise SupersededError("another question was asked meanwhile")

        with self._searching:
            stop_if_superseded(0)
            found = search(Pricer(asked.task), asked.space, stop_if_superseded)
        self._kept[_key(state)] = shortlist(found, asked.sure)
        _forget(self._kept, KEPT)
        return found


def _key(state: State) -> tuple[str, ...]:
    return tuple(getattr(state, f.name) for f in fields(state) if f.name not in REPRICED)


def _forget(kept: OrderedDict[K, V], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)


def shortlist(found: Found, sure: float) -> Found:
    """The fastest layouts that fit, and the front of time against memory."""
    best = found.best(sure)[:CANDIDATES]
    index = np.unique(np.concatenate([best, front(found.seconds, found.peak_bytes)[:CANDIDATES]]))
    return _taken(found, index.astype(int))


def repriced(pricer: Pricer, kept: Found) -> Found:
    """The layouts of ``kept`` priced under another task, fastest first."""
    layouts = kept.layouts
    chosen = pricer.choose(layouts)
    memory = pricer.memory(layouts, chosen)
    seconds = np.asarray(pricer.step(layouts, chosen).total)
    fresh = replace(
        kept, seconds=seconds, peak_bytes=np.asarray(memory.peak), fits=pricer.fits(memory)
    )
    return _taken(fresh, np.argsort(seconds, kind="stable"))


def _taken(found: Found, index: np.ndarray) -> Found:
    return replace(
        found,
        layouts=found.layouts.take(index),
        seconds=found.seconds[index],
        peak_bytes=found.peak_bytes[index],
        fits=found.fits[index],
    )


def curve_counts(devices: int) -> tuple[int, ...]:
    """Numbers of devices around ``devices``: halved and doubled three times."""
    return tuple(
        sorted({max(1, devices >> down) for down in (3, 2, 1)} | {devices << up for up in range(4)})
    )
