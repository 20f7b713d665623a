"""What lies between the time of the steps and the calendar.

Steps as priced are those of a clean cluster that does nothing else.  A run also evaluates, meets
slow nodes, goes back behind spikes of the loss, writes checkpoints, is interrupted, and stands
still for maintenance; and its layout is not the best that a search finds.  With the time ``T`` of
all steps (the smaller batches of a ramp included)::

    stepping = T x distance x (1 + evaluation + slow + rollback)
    wall     = stepping / goodput(checkpoints, interruptions) x (1 + stops)

``evaluation`` is the share of step time that validation takes: iterations between two evaluations,
iterations of one, a third of a step each (a forward pass, no backward pass).  ``slow`` is what
nodes that are slow without failing cost over a long run, ``rollback`` the steps done again behind
loss spikes, ``stops`` planned maintenance and work on the run.  Their ranges are published ones
(``facts/operations.csv``).  ``distance`` is what published totals leave over all of these: the
best layout found against the one that a team ran, errors that a search picks out, fewer devices
for a while, totals that count more than one pre-training.  It is fitted on
``facts/whole_runs.csv``: a middle for layouts that a search found, another for those that ran.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from krzem.cost.coefficients import shipped
from krzem.estimate import Basis, Estimate
from krzem.facts.table import published
from krzem.plan.goodput import Draws, draw, summary

DAY = 86_400.0
SHARES = ("evaluation_share", "slow_share", "rollback_share")
"""Shares of step time, by their rows in ``operations.csv``."""
STOPS = "stop_share"
PARTS = (
    ("steps", "steps"),
    ("ramp", "ramp of the batch"),
    ("distance_share", "overheads of published runs"),
    ("evaluation_share", "evaluation"),
    ("slow_share", "slow nodes"),
    ("rollback_share", "loss spikes"),
    ("checkpoints", "writing checkpoints"),
    ("interruptions", "restarts and lost steps"),
    ("stop_share", "planned stops"),
)
"""Parts of the calendar in their order, and what reports call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the days of a run; the middles of all parts add up to the middle of its days."""

    name: str
    label: str
    days: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How published totals stand to what was forecast for them (logarithms)."""

    searched: float
    """Middle, where the layout is the best of a search."""
    given: float
    """The same where the layout is the one that ran."""
    sigma: float
    """Standard deviation beside the error of the step time."""

    def estimate(self, given: bool) -> Estimate:
        """The factor for one run."""
        middle = self.given if given else self.searched
        return Estimate.lognormal(math.exp(middle), self.sigma, Basis.ESTIMATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """What a run takes beyond its steps, checkpoints and interruptions."""

    shares: Mapping[str, Estimate]
    """Parts of step time by name (:data:`SHARES`)."""
    stops: Estimate
    """Planned stops, as a part of everything else."""
    distance: Estimate
    """Factor on the time of the steps."""


@cache
def distance() -> Distance | None:
    """The shipped distance; None before any is fitted."""
    found: Mapping[str, Any] | None = shipped().get("whole_run")
    if found is None:
        return None
    return Distance(**{name: float(found[name]) for name in Distance.__slots__})


def beyond(given: bool, nodes: int) -> Beyond | None:
    """What the published runs say of a run; None where nothing is fitted.

    A single node has no slow ones to wait for.
    """
    far = distance()
    return None if far is None else without_distance(nodes, far.estimate(given))


def without_distance(nodes: int, factor: Estimate | None = None) -> Beyond:
    """The shares alone: what totals are held against when the distance is fitted."""
    names = [name for name in SHARES if name != "slow_share" or nodes > 1]
    return Beyond(
        shares={name: _range(name) for name in names},
        stops=_range(STOPS),
        distance=factor or Estimate(1.0, 1.0, 1.0),
    )


def _range(name: str) -> Estimate:
    fact = published(name, ())
    if fact is None:
        return Estimate(0.0, 0.0, 0.0)
    return Estimate(fact.low, fact.mid, fact.high)


def stepping(training: Draws, more: Beyond | None) -> Draws:
    """Seconds in which devices step, from those of the steps alone."""
    if more is None:
        return training
    shares = sum((draw(share, name) for name, share in more.shares.items()), np.zeros(1))
    return np.asarray(training * draw(more.distance, "distance") * (1.0 + shares))


def stopped(wall: Draws, more: Beyond | None) -> Draws:
    """Wall clock with the planned stops."""
    return wall if more is None else np.asarray(wall * (1.0 + draw(more.stops, STOPS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Draws of where the seconds of a run go, each counting what stands above it."""

    full: Draws
    """All tokens with the full batch, nothing else."""
    training: Draws
    """With the smaller batches of the ramp."""
    stepping: Draws
    """With everything that makes devices step longer or again."""
    saving: Draws
    """Writing checkpoints alone."""
    wall: Draws
    """With checkpoints, interruptions and lost steps."""
    total: Draws
    """With planned stops."""


def parts(times: Times, more: Beyond | None, days: Estimate) -> tuple[Part, ...]:
    """Where ``days`` go, in the order of :data:`PARTS`; what is nothing is left out.

    Middles are medians of the draws, which do not add up by themselves: the least certain part
    (``distance_share``, or the interruptions where there is none) takes what is left.
    """
    found = _draws_of(times, more)
    rest = "interruptions" if more is None or more.distance.mid == 1.0 else "distance_share"
    middles = {name: float(np.median(values)) / DAY for name, values in found.items()}
    middles[rest] = days.mid - sum(v for name, v in middles.items() if name != rest)
    return tuple(
        Part(name=name, label=label, days=_around(middles[name], found[name] / DAY))
        for name, label in PARTS
        if name in found and (name == rest or np.any(found[name]))
    )


def _draws_of(times: Times, more: Beyond | None) -> dict[str, Draws]:
    """Seconds of each part."""
    found = {"steps": times.full, "ramp": times.training - times.full}
    if more is not None:
        farther = times.training * draw(more.distance, "distance")
        found["distance_share"] = farther - times.training
        found |= {name: farther * draw(share, name) for name, share in more.shares.items()}
    found["checkpoints"] = times.saving
    found["interruptions"] = times.wall - times.stepping - times.saving
    found[STOPS] = times.total - times.wall
    return found


def _around(middle: float, values: Draws) -> Estimate:
    whole = summary(values)
    return Estimate(min(whole.low, middle), middle, max(whole.high, middle))
