"""Solves a network: all of it where it is small, the part that can matter where it is large.

With many pools most can have no part in the best plan.  The relaxed programme (a fraction of the
run here, a fraction there) says which could: the true programme is solved over the slots that it
uses, and over those that it uses when these are gone.  Its optimum also bounds what any plan could
reach, and the difference is reported as the gap.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from krzem.supply.goal import FleetGoal
from krzem.supply.linear import Solution
from krzem.supply.months import Month
from krzem.supply.network import Network
from krzem.supply.speed import Slot
from krzem.supply.stages import Schedule, schedule_of

MISSED = 1e-5
"""Share of the run that may be left untrained as rounding of the solver."""
WHOLE = 60
"""Up to so many slots times months everything is solved at once."""
ROUNDS = 2
"""Supports of the relaxed programme that are taken together."""
USED_DAYS = 1e-3


class Aim(enum.StrEnum):
    """What is sought."""

    CHEAPEST = "cheapest"
    SHORTFALL = "shortfall"
    EARLIEST = "earliest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A programme to be solved for some slots."""

    goal: FleetGoal
    slots: tuple[Slot, ...]
    months: tuple[Month, ...]
    aim: Aim
    pessimism: float = 0.0

    def network(self, slots: Sequence[Slot]) -> Network:
        """The programme over some of the slots."""
        return Network(self.goal, slots, self.months, pessimism=self.pessimism)

    def solve(self, network: Network, relaxed: bool = False) -> Solution | None:
        """Its optimum; None where there is no plan."""
        solver = {
            Aim.CHEAPEST: network.cheapest,
            Aim.SHORTFALL: network.shortfall,
            Aim.EARLIEST: network.earliest,
        }[self.aim]
        return solver(relaxed)


def best(question: Question) -> tuple[Network, Solution] | None:
    """The optimum and the network it belongs to; None where there is no plan."""
    slots = question.slots
    if not slots:
        return None
    if len(slots) * len(question.months) > WHOLE:
        decided, found = _over_support(question)
        if decided:
            return found
    network = question.network(slots)
    solution = question.solve(network)
    return None if solution is None else (network, solution)


def _over_support(question: Question) -> tuple[bool, tuple[Network, Solution] | None]:
    """The optimum over slots that can matter; first whether these are enough to say."""
    bound: Solution | None = None
    chosen: list[Slot] = []
    rest = list(question.slots)
    for _ in range(ROUNDS):
        network = question.network(rest)
        relaxed = question.solve(network, relaxed=True)
        if relaxed is None:
            break
        bound = bound or relaxed
        days = relaxed.at(network.x).sum(axis=1)
        used = [slot for slot, d in zip(rest, days, strict=True) if d > USED_DAYS]
        chosen += used
        rest = [slot for slot in rest if slot not in used]
        if not rest:
            break
    if bound is None:
        return True, None
    network = question.network(chosen)
    solution = question.solve(network)
    if solution is None or (
        question.aim is Aim.SHORTFALL and solution.objective > MISSED >= bound.objective
    ):
        return False, None
    whole = abs(solution.objective)
    if question.aim is Aim.EARLIEST:
        whole = sum(month.days for month in question.months)
    gap = (solution.objective - bound.objective) / max(whole, 1e-9)
    return True, (network, replace(solution, gap=max(solution.gap, gap)))


def cheapest(goal: FleetGoal, slots: Sequence[Slot], months: Sequence[Month]) -> Schedule | None:
    """The cheapest schedule that ends within ``months``; None where none keeps every limit."""
    found = best(Question(goal=goal, slots=tuple(slots), months=tuple(months), aim=Aim.CHEAPEST))
    return None if found is None else schedule_of(*found)


def earliest(
    goal: FleetGoal, slots: Sequence[Slot], months: Sequence[Month], pessimism: float = 0.0
) -> Schedule | None:
    """The schedule that ends first within ``months``; None where none ends."""

    question = Question(
        goal=goal, slots=tuple(slots), months=tuple(months), aim=Aim.SHORTFALL, pessimism=pessimism
    )
    for count in range(_first_possible(question) + 1, len(months) + 1):
        shorter = replace(question, months=question.months[:count])
        found = best(shorter)
        if found is None or found[1].objective > MISSED:
            continue
        last = best(replace(shorter, aim=Aim.EARLIEST))
        if last is not None:
            return schedule_of(*last)
    return None


def _first_possible(question: Question) -> int:
    """The first month by whose end the relaxed run ends: no true run ends in an earlier one."""

    def ends(month: int) -> bool:
        shorter = replace(question, months=question.months[: month + 1])
        found = shorter.solve(shorter.network(shorter.slots), relaxed=True)
        return found is not None and found.objective <= MISSED

    if not question.slots:
        return len(question.months)
    # Short programmes are quick, so the search gallops from the first month.
    low, high = 0, 1
    while high < len(question.months) and not ends(high - 1):
        low, high = high, 2 * high
    high = min(high, len(question.months))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if ends(middle) else (middle + 1, high)
    return low
