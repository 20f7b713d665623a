"""The solver against a search of all orders, each with its own linear programme of days.

The search shares nothing with the solver: an order of visits is fixed, and when each begins and how
long it lasts is the optimum of a small programme in continuous time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog
from tests.supply.fleet_cases import START, made_goal, made_grant, made_pool, made_speed

from krzem.estimate import Estimate
from krzem.supply import optimum
from krzem.supply.goal import Delivery, FleetGoal, Grant
from krzem.supply.optimum import cheapest, earliest
from krzem.supply.speed import Slot
from krzem.supply.verify import faults

LONGEST = 4
"""Visits of an order."""
CASES = range(30)
NEAR = 6e-3


def random_goal(seed: int) -> tuple[FleetGoal, tuple[Slot, ...]]:
    """Two or three slots with windows, prices, stacks, grants and limits drawn by ``seed``."""
    draw = np.random.default_rng(seed)
    pools, speeds = [], []
    for p in range(draw.integers(2, 4)):
        first = START + dt.timedelta(days=int(draw.choice([0, 0, draw.integers(1, 60)])))
        more: dict[str, Any] = {"deliveries": (Delivery(on=first, devices=10**6),)}
        if draw.random() < 0.5:
            more["until"] = first + dt.timedelta(days=int(draw.integers(10, 90)))
        rent: float | None = float(draw.uniform(0.5, 4.0))
        if draw.random() < 0.25:
            hours = 128 * 24 * float(draw.uniform(20, 80))
            more["grants"] = (made_grant(0.2 * hours, hours),)
            rent = None
        pools.append(made_pool(f"p{p}", rent, domestic=bool(draw.random() < 0.5), **more))
        speeds.append(made_speed(float(draw.uniform(30, 150)), stack=str(draw.choice(["a", "b"]))))
    slots = [Slot(pool=p, speed=speed) for p, speed in enumerate(speeds)]
    if len(slots) < 3 and draw.random() < 0.5:
        twice = speeds[0].days.mid / 1.9
        slots.append(Slot(pool=0, speed=made_speed(twice, devices=2048, stack=speeds[0].stack)))
        p0 = pools[0]
        pools[0] = replace(p0, sizes=(1024, 2048), grants=(), rent=Estimate(2.0, 2.0, 2.0))
    limits: dict[str, Any] = {}
    if draw.random() < 0.3 and any(pool.domestic for pool in pools):
        limits["domestic_share"] = float(draw.choice([0.2, 0.5]))
    if draw.random() < 0.3:
        limits["budget_usd"] = float(draw.uniform(3e6, 9e6))
    return made_goal(pools, days=int(draw.integers(60, 160)), **limits), tuple(slots)


def orders(count: int) -> Iterator[tuple[int, ...]]:
    for length in range(1, LONGEST + 1):
        for order in product(range(count), repeat=length):
            if all(a != b for a, b in pairwise(order)):
                yield order


def arrival(goal: FleetGoal, before: Slot | None, after: Slot) -> float:
    moves = goal.moves
    if before is None:
        return moves.start
    if before.pool == after.pool:
        return moves.resize
    same = before.speed.stack == after.speed.stack
    transfer = after.speed.checkpoint_bytes / moves.bytes_per_s / 86_400.0
    return (moves.same_stack if same else moves.other_stack) + transfer


class Order:
    """Variables: when each visit begins, how long it lasts."""

    def __init__(self, goal: FleetGoal, visits: Sequence[Slot]) -> None:
        self.goal, self.visits = goal, visits
        self.arrive = [arrival(goal, a, b) for a, b in zip((None, *visits), visits, strict=False)]
        self.rows: list[list[float]] = []
        self.limits: list[float] = []
        self.bounds: list[tuple[float, float | None]] = []
        self._build()

    def _at_most(self, begins: dict[int, float], lasts: dict[int, float], limit: float) -> None:
        n = len(self.visits)
        row = [0.0] * (2 * n)
        for k, v in begins.items():
            row[k] += v
        for k, v in lasts.items():
            row[n + k] += v
        self.rows.append(row)
        self.limits.append(limit)

    def _build(self) -> None:
        goal, visits = self.goal, self.visits
        end = float((goal.deadline - goal.start).days)
        for k, slot in enumerate(visits):
            pool = goal.pools[slot.pool]
            windows = [(g.first, g.last) for g in pool.grants] or [(goal.start, goal.deadline)]
            first = max((windows[0][0] - goal.start).days, (pool.first - goal.start).days, 0)
            last = min((windows[0][1] - goal.start).days, (pool.until - goal.start).days, end)
            self.bounds.append((float(first), None))
            self._at_most({k: 1.0}, {k: 1.0}, float(last))
            if k:
                self._at_most({k - 1: 1.0, k: -1.0}, {k - 1: 1.0}, 0.0)
        for slot, arrive in zip(visits, self.arrive, strict=True):
            self.bounds.append((arrive + min(1.0, 0.01 * slot.speed.days.mid), None))
        rates = [1.0 / slot.speed.days.mid for slot in visits]
        lost = sum(r * a for r, a in zip(rates, self.arrive, strict=True))
        self._at_most({}, {k: -r for k, r in enumerate(rates)}, -1.0 - lost)
        share = goal.domestic_share
        if share:
            signs = [float(goal.pools[slot.pool].domestic) - share for slot in visits]
            lost = sum(s * r * a for s, r, a in zip(signs, rates, self.arrive, strict=True))
            self._at_most({}, {k: -s * rates[k] for k, s in enumerate(signs)}, -lost)
        self.price = [self._usd(slot) for slot in visits]
        if goal.budget_usd is not None:
            self._at_most({}, dict(enumerate(self.price)), goal.budget_usd)
        for p in {slot.pool for slot in visits}:
            for grant in goal.pools[p].grants:
                self._grant(p, grant)

    def _usd(self, slot: Slot) -> float:
        rent = self.goal.pools[slot.pool].rent
        return 0.0 if rent is None else rent.mid * slot.speed.devices * 24.0

    def _grant(self, p: int, grant: Grant) -> None:
        hours = {k: slot.speed.nodes * 24.0 for k, slot in enumerate(self.visits) if slot.pool == p}
        self._at_most({}, hours, grant.most)
        self._at_most({}, {k: -v for k, v in hours.items()}, -grant.least)

    def solve(self, cost: Sequence[float]) -> float:
        found = linprog(cost, A_ub=self.rows, b_ub=self.limits, bounds=self.bounds)
        return float(found.fun) if found.status == 0 else float("inf")

    def least_usd(self) -> float:
        return self.solve([0.0] * len(self.visits) + self.price)

    def first_end(self) -> float:
        cost = [0.0] * (2 * len(self.visits))
        cost[len(self.visits) - 1] = cost[-1] = 1.0
        return self.solve(cost)


def no_money(goal: FleetGoal) -> bool:
    return all(pool.rent is None for pool in goal.pools)


@pytest.mark.parametrize("seed", CASES)
def test_a_search_of_all_orders_agrees(seed: int) -> None:
    goal, slots = random_goal(seed)
    every = [Order(goal, [slots[i] for i in order]) for order in orders(len(slots))]
    usd = min(order.least_usd() for order in every)
    found = cheapest(goal, slots)
    if np.isinf(usd):
        assert found is None or len(found.stages) > LONGEST
        return
    assert found is not None
    assert not faults(goal, found)
    if not no_money(goal):
        assert found.usd <= usd * (1 + NEAR) + 1.0
        assert found.usd >= usd * (1 - NEAR) or len(found.stages) > LONGEST
    if seed % 3 == 0:
        first = earliest(goal, slots)
        assert first is not None
        assert not faults(goal, first)
        end = min(order.first_end() for order in every)
        assert first.finish_day <= end + 0.02 * end
        assert first.finish_day >= end - 0.01 or len(first.stages) > LONGEST


@pytest.mark.parametrize("seed", [1, 4, 6])
def test_set_by_set_finds_what_all_at_once_finds(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal, slots = random_goal(seed)
    whole, first = cheapest(goal, slots), earliest(goal, slots)
    monkeypatch.setattr(optimum, "WHOLE", 1)
    parts, early = cheapest(goal, slots), earliest(goal, slots)
    assert (whole is None) == (parts is None)
    assert (first is None) == (early is None)
    if whole and parts and first and early:
        assert parts.usd == pytest.approx(whole.usd, rel=0.02)
        assert early.finish_day == pytest.approx(first.finish_day, abs=1.0)
        assert not faults(goal, parts)
        assert not faults(goal, early)
