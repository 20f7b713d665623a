"""Small fleets with made-up speeds, so that optimisation is tested without planning."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from krzem.estimate import Estimate
from krzem.supply.goal import FleetGoal, Grant, Moves, Pool
from krzem.supply.speed import Slot, Speed

START = dt.date(2027, 1, 1)
TOKENS = 1e13


def made_speed(
    days: float, *, devices: int = 1024, stack: str = "cuda", family: str = "f", sigma: float = 0.1
) -> Speed:
    """A run that takes ``days`` alone."""
    one = Estimate(1.0, 1.0, 1.0)
    return Speed(
        devices=devices, nodes=devices // 8, tokens=TOKENS, days=Estimate.lognormal(days, sigma),
        step_seconds=one, tokens_per_s=one, mfu=Estimate(0.3, 0.4, 0.5), memory_bytes=one,
        goodput=one, layout="tp=1", checkpoint_bytes=1e12, family=family, stack=stack,
        watts_per_device=None, precision="bf16", engine="megatron-core",
    )  # fmt: skip


def made_pool(name: str, rent: float | None = 1.0, **more: Any) -> Pool:
    """A pool whose speed the test gives apart."""
    price = None if rent is None else Estimate(rent, rent, rent)
    return Pool(name=name, given={"device": "nvidia-h800-sxm"}, sizes=(1024,), rent=price, **more)


def made_grant(least: float, most: float) -> Grant:
    """A year of node-hours."""
    return Grant(name="g", least=least, most=most, first=START, last=dt.date(2028, 1, 1))


def made_goal(pools: Sequence[Pool], days: int = 150, **more: Any) -> FleetGoal:
    """A goal over those pools; moves are short and certain."""
    moves = Moves(start=1.0, same_stack=2.0, other_stack=5.0, resize=0.25, spread=0.01)
    given: dict[str, Any] = {"moves": moves} | more
    return FleetGoal(
        model="m", pools=tuple(pools), start=START, deadline=START + dt.timedelta(days=days),
        **given,
    )  # fmt: skip


def made_slots(*speeds: Speed) -> tuple[Slot, ...]:
    """One slot per pool, in order."""
    return tuple(Slot(pool=p, speed=speed) for p, speed in enumerate(speeds))


def slower(slot: Slot, factor: float) -> Slot:
    """The same slot, taking ``factor`` times as long."""
    return replace(slot, speed=replace(slot.speed, days=slot.speed.days.scaled(factor)))
