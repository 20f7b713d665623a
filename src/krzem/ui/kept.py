"""Answers of the what-if page: searches are kept, and a kept one is priced anew in an instant.

A link, a price, a failure rate, a deadline or a number of tokens does not change which layouts are
legal. After such a change the best layouts of the last search are priced again (a few hundred, in
about a tenth of a second), and the page asks for the whole search afterwards, since another link
may favour a layout that was not kept.
"""

from __future__ import annotations

import shlex
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import numpy as np

from krzem.errors import InputError, KrzemError, shorten
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import cluster_of, short_form
from krzem.plan.answer import fitting_batch
from krzem.plan.plan import Plan, planned
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.plan.search import Found, front, search
from krzem.quantity import parse_ratio

# What the what-if page asks
# --------------------------

LONGEST = 300
"""Characters of one field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The fields of the page as written; empty: what the recipe or the catalogue says."""

    model: str = "llama-3.1-70b"
    device: str = "h100"
    devices: str = "512"
    tokens: str = "2T"
    batch: str = "2048"
    seq: str = ""
    precision: str = ""
    engine: str = ""
    switches: str = ""
    """``--with``."""
    without: str = ""
    layout: str = ""
    """Limits of the search: ``tp<=8,pp=4..16``."""
    deadline: str = ""
    budget: str = ""
    sure: str = "0.9"
    price: str = ""
    """US dollars per device and hour."""
    scale_up: str = ""
    """GB/s per device, one direction."""
    scale_out: str = ""
    failures: str = ""
    """Device-days between interruptions."""
    buyer: str = ""
    """Country whose purchase the trade rules are asked for: CN."""

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> State:
        """The state that an address holds; what it does not name keeps its default.

        Raises InputError for text that is too long or holds control characters.
        """
        known = {field.name for field in fields(cls)}
        found = {name: text.strip() for name, text in query.items() if name in known}
        for name, text in found.items():
            if len(text) > LONGEST or not text.isprintable():
                raise InputError(
                    f"{name}: {shorten(text, 40)!r} is no value: at most {LONGEST} printable"
                    " characters"
                )
        return cls(**found)

    def query(self) -> str:
        """The address of this state: what differs from the defaults."""
        default = State()
        return urlencode(
            {f.name: value for f in fields(self)
             if (value := getattr(self, f.name)) != getattr(default, f.name)}
        )  # fmt: skip

    def cluster(self) -> Cluster:
        """The cluster; raises what :func:`krzem.hardware.cluster_reader.cluster_of` raises."""
        named = short_form(f"{self.device}:{self.devices}")
        return cluster_of(named | self._overrides(), "the cluster")

    def question(self) -> Question:
        """The question as :func:`krzem.plan.request.settle` takes it.

        Raises InputError for a model that is given as a path: this page reads no files of the
        machine that serves it, only what is dropped onto it.
        """
        if _is_path(self.model):
            raise InputError(
                f"model {shorten(self.model, 60)!r}: give a name that `krzem models` lists, or drop"
                " a config.json onto the page; paths are not opened from here"
            )
        options: dict[str, Any] = {name: text or None for name, text in self._options().items()}
        return Question(
            model=self.model,
            on=self.cluster(),
            sure=parse_ratio(self.sure),
            step_alone=True,
            **options,
        )

    def command(self) -> str:
        """The command line with the same answer."""
        on = "cluster.toml" if self._overrides() else f"{self.device}:{self.devices}"
        words = ["krzem", "plan", self.model, "--on", on]
        for name, written in self._options().items():
            if written:
                words += [_FLAGS[name], written]
        if self.sure != State().sure:
            words += ["--sure", self.sure]
        return shlex.join(words)

    def toml(self) -> str:
        """The cluster file of :meth:`command`; empty where the short form says all."""
        overrides = self._overrides()
        if not overrides:
            return ""
        named = short_form(f"{self.device}:{self.devices}")
        return "".join(f"{key} = {_toml(value)}\n" for key, value in (named | overrides).items())

    def _overrides(self) -> dict[str, str | float]:
        """Keys of a cluster file that overrule the catalogue."""
        found: dict[str, str | float] = {}
        if self.price:
            found["price"] = f"${self.price.strip('$/h ')}/h"
        for key, written in (("scale_up", self.scale_up), ("scale_out", self.scale_out)):
            if written:
                unit = written if written[-1].isalpha() else f"{written} GB/s"
                found[f"{key}_bandwidth"] = unit
        if self.failures:
            found["device_days_between_interruptions"] = self.failures
        return found

    def _options(self) -> dict[str, str]:
        return {
            "tokens": self.tokens, "sequence": self.seq, "global_batch": self.batch,
            "precision": self.precision, "engine": self.engine, "switched": self.switches,
            "switched_off": self.without, "limits": self.layout, "deadline": self.deadline,
            "budget": self.budget,
        }  # fmt: skip


_FLAGS = {
    "tokens": "--tokens", "sequence": "--seq", "global_batch": "--batch",
    "precision": "--precision", "engine": "--engine", "switched": "--with",
    "switched_off": "--without", "limits": "--layout", "deadline": "--deadline",
    "budget": "--budget",
}  # fmt: skip


def _toml(value: object) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)


def _is_path(model: str) -> bool:
    """Whether a model is a path here: Hub ids have a slash too, and no file of that name."""
    return (
        ".." in model
        or "\\" in model
        or model.startswith(("/", "~", "."))
        or ("/" in model and Path(model).exists())
    )


# Answers of the what-if page
# ---------------------------

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
