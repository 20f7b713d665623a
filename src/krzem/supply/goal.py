"""What a fleet is asked for: a run, a date, the pools that can be had and the limits on them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from krzem.errors import GoalError
from krzem.estimate import Estimate
from krzem.model.architecture import Architecture
from krzem.quantity import Written

FAR = dt.date(9999, 12, 31)
LONGEST_MOVE_DAYS = 366.0
"""Longer ones are taken for slips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """From ``on`` the pool has ``devices`` devices in all."""

    on: dt.date
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Node-hours that are asked for: none, or between the least and the most."""

    name: str
    least: float
    """Node-hours; the smallest request that the call takes."""
    most: float
    first: dt.date
    last: dt.date
    """The day after the last."""
    usd_per_node_hour: float = 0.0
    chance: float = 1.0
    """Of being given."""
    late_days: float = 0.0
    """By which it may begin and end earlier or later: half the range of the lead time."""
    applied: dt.date | None = None
    """When it is asked for, where its first day follows from a lead time."""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Devices of one kind in one place."""

    name: str
    given: Mapping[str, Any]
    """Keys of a cluster file, the number of devices left out."""
    sizes: tuple[int, ...]
    """Numbers of devices that may be used at once, ascending."""
    rent: Estimate | None = None
    """US dollars per device and hour of use."""
    buy: Estimate | None = None
    """US dollars per device, paid in the month of the first delivery."""
    running: float = 0.0
    """US dollars per device and hour of use, on top."""
    deliveries: tuple[Delivery, ...] = ()
    until: dt.date = FAR
    grants: tuple[Grant, ...] = ()
    chance: float = 1.0
    """That the pool is there at all: delivered, granted, and accepted for the run."""
    site_power_w: float | None = None
    country: str = ""
    """Where the devices stand."""
    acquired: dt.date | None = None
    """When devices that are already owned were obtained: the day whose rules count."""
    domestic: bool = False
    precision: str | None = None
    """Overrides that of the goal."""
    engine: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> dt.date:
        """The first delivery."""
        return min((d.on for d in self.deliveries), default=dt.date.min)

    def available(self, devices: int) -> dt.date:
        """The day from which that many devices are there."""
        days = [d.on for d in self.deliveries if d.devices >= devices]
        return min(days, default=FAR) if self.deliveries else dt.date.min


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What it takes to bring a run from one pool to another, in days.

    The destination is occupied while its numbers are compared with the source's.
    """

    start: float = 2.0
    """Before the first pool trains."""
    same_stack: float = 2.0
    """To another pool of the same software stack."""
    other_stack: float = 10.0
    """To another vendor's stack."""
    resize: float = 0.25
    """Another number of devices of the same pool."""
    bytes_per_s: float = 1e9
    """Between sites, for the checkpoint."""
    spread: float = 0.4
    """Standard deviation of the logarithm of these times."""

    def __post_init__(self) -> None:
        for name in ("start", "same_stack", "other_stack", "resize"):
            days = getattr(self, name)
            if not 0 <= days <= LONGEST_MOVE_DAYS:
                raise GoalError(
                    f"move.{name} is {days:g} days: 0 to {LONGEST_MOVE_DAYS:g} are possible"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """How much of the variance of step-time errors pools have in common."""

    shared: float = 0.3
    """Of all pools: the model, the recipe."""
    family: float = 0.3
    """Of pools whose devices share an architecture."""

    def __post_init__(self) -> None:
        if self.shared < 0 or self.family < 0 or self.shared + self.family > 1:
            raise GoalError(
                f"chance.shared + chance.family = {self.shared:g} + {self.family:g}: two shares of"
                " one variance, each at least 0 and together at most 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetGoal:
    """The whole question."""

    model: str | Path | Architecture
    pools: tuple[Pool, ...]
    start: dt.date
    deadline: dt.date
    """The run must be complete when this day begins."""
    run: Mapping[str, Written] = field(default_factory=lambda: MappingProxyType({}))
    """What a plan may be told beside model and cluster: tokens, sequence, global_batch, ..."""
    budget_usd: float | None = None
    month_budgets: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """US dollars by month (``2027-03``)."""
    domestic_share: float = 0.0
    """Of the tokens, trained on domestic devices."""
    lawful_only: bool = False
    parent: str = ""
    """Seat of the buyer's ultimate parent, where it is another country."""
    moves: Moves = field(default_factory=Moves)
    correlation: Correlation = field(default_factory=Correlation)
    sure: float = 0.8
    """Chance of meeting the date that inverse questions ask for."""
    sure_asked: bool = False
    """Whether the cheapest plan that is so sure is sought too."""
    name: str = "fleet"

    def __post_init__(self) -> None:
        if self.deadline <= self.start:
            raise GoalError(f"the date {self.deadline} is not after the start {self.start}")
        if (self.deadline - self.start).days > 366 * 10:
            raise GoalError(
                f"from {self.start} to {self.deadline} are more than ten years: a plan by months"
                " covers at most ten"
            )
        names = [pool.name for pool in self.pools]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise GoalError(f"two pools are called {twice[0]!r}: give each a name of its own")
        if not self.pools:
            raise GoalError('no pool is given: write [[pool]] with on = "h800:2048"')
        if self.domestic_share and not any(pool.domestic for pool in self.pools):
            raise GoalError(
                f"domestic_share is {self.domestic_share:.0%}, and no pool counts as domestic, so"
                ' that no plan can reach it: write domestic = "CN" in the goal (devices of vendors'
                " there count), or domestic = true in a pool"
            )
