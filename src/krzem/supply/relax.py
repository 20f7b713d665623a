"""Where no plan keeps every limit: which one to relax, and by how much.

Each limit is relaxed alone, the others held: the least by which it must give is the optimum of its
own slack.  What the rules forbid is not relaxed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from krzem.quantity import format_count
from krzem.supply.goal import FleetGoal
from krzem.supply.linear import Solution
from krzem.supply.network import Network
from krzem.supply.optimum import WHOLE, Question, earliest
from krzem.supply.periods import add_months
from krzem.supply.programme import MILLION, THOUSAND
from krzem.supply.speed import Slot
from krzem.supply.stages import schedule_of
from krzem.supply.text import dollars

LATER_MONTHS = 36
"""How far the date is moved at most."""
LEAST_PART = 1e-3
"""Of the tokens: training fewer is no advice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """What one limit must give for a plan to exist."""

    limit: str
    """date, tokens, budget, month_budgets, domestic_share, grants_most, grants_least."""
    by: float | None
    """In ``unit``; None where relaxing this limit alone does not help."""
    unit: str
    words: str


def relaxations(goal: FleetGoal, slots: Sequence[Slot]) -> tuple[Relaxation, ...]:
    """Every limit that the goal has, those that help first."""
    found = [_date(goal, slots), _tokens(goal, slots)]
    if goal.budget_usd is not None:
        found.append(_money(goal, slots, "budget"))
    if goal.month_budgets:
        found.append(_money(goal, slots, "month_budgets"))
    if goal.domestic_share:
        found.append(_domestic(goal, slots))
    if any(pool.grants for pool in goal.pools):
        found += [_grants(goal, slots, "most"), _grants(goal, slots, "least")]
    return tuple(sorted(found, key=lambda r: r.by is None))


def _least(goal: FleetGoal, slots: Sequence[Slot], limit: str) -> tuple[Network, Solution] | None:
    """The least slack of one limit; on the slots that the programme over sets uses, if many."""
    question = Question(goal=goal, slots=tuple(slots), until=goal.deadline)
    few: Sequence[Slot] = question.slots
    if len(few) > WHOLE:
        outline = question.outline(question.calendar(few))
        found = outline.least_slack(getattr(outline.slack, limit))
        if found is None:
            return None
        few = [few[i] for i in outline.chosen(found)]
    network = question.network(few, question.calendar(few))
    solution = network.least_slack(getattr(network.slack, limit))
    return None if solution is None else (network, solution)


def _none(limit: str, unit: str, what: str) -> Relaxation:
    return Relaxation(limit=limit, by=None, unit=unit, words=f"{what} alone does not help")


def _date(goal: FleetGoal, slots: Sequence[Slot]) -> Relaxation:
    """The earliest later end."""
    schedule = earliest(goal, slots, add_months(goal.deadline, LATER_MONTHS))
    if schedule is None:
        return _none("date", "days", f"a date up to {LATER_MONTHS} months later")
    date = schedule.finish + dt.timedelta(days=1)
    by = max(float((date - goal.deadline).days), 1.0)
    later = f"{by:,.0f} day{'' if by == 1 else 's'} later"
    words = f"the date {goal.deadline + dt.timedelta(days=by)} instead of {goal.deadline}: {later}"
    return Relaxation(limit="date", by=by, unit="days", words=words)


def _tokens(goal: FleetGoal, slots: Sequence[Slot]) -> Relaxation:
    found = _least(goal, slots, "tokens")
    total = slots[0].speed.tokens
    left = 0.0 if found is None else total * (1.0 - found[1].objective)
    if left < LEAST_PART * total:
        return _none("tokens", "tokens", "training fewer tokens")
    by = min(total - left, total)
    words = f"train {format_count(left, 3)} tokens instead of {format_count(total, 3)}"
    return Relaxation(limit="tokens", by=by, unit="tokens", words=words)


def _money(goal: FleetGoal, slots: Sequence[Slot], limit: str) -> Relaxation:
    found = _least(goal, slots, "budget" if limit == "budget" else "months")
    if found is None:
        return _none(limit, "USD", "more money" if limit == "budget" else "more money by month")
    network, solution = found
    columns = network.slack.budget if limit == "budget" else network.slack.months
    by = float(solution.at(columns).sum()) * MILLION
    if limit == "budget":
        assert goal.budget_usd is not None
        words = f"a budget of {dollars(goal.budget_usd + by)}: {dollars(by)} more"
    else:
        over = [
            f"{dollars(float(v) * MILLION)} more in {month}"
            for v, month in zip(solution.at(columns), network.months, strict=True)
            if v > 1e-4
        ]
        words = "budgets by month: " + ", ".join(over)
    return Relaxation(limit=limit, by=by, unit="USD", words=words)


def _domestic(goal: FleetGoal, slots: Sequence[Slot]) -> Relaxation:
    found = _least(goal, slots, "domestic")
    if found is None:
        return _none("domestic_share", "share", "a lower domestic share")
    home = [stage.tokens for stage in schedule_of(*found).stages
            if goal.pools[stage.slot.pool].domestic]  # fmt: skip
    reached = min(sum(home) / slots[0].speed.tokens, goal.domestic_share)
    words = f"a domestic share of {reached:.1%} instead of {goal.domestic_share:.1%}"
    return Relaxation(limit="domestic_share", by=goal.domestic_share - reached, unit="share",
                      words=words)  # fmt: skip


def _grants(goal: FleetGoal, slots: Sequence[Slot], side: str) -> Relaxation:
    limit = f"grants_{side}"
    found = _least(goal, slots, side)
    if found is None:
        return _none(limit, "node-hours", f"other {'upper' if side == 'most' else 'lower'} limits"
                     " of grants")  # fmt: skip
    network, solution = found
    values = solution.at(network.slack.most if side == "most" else network.slack.least) * THOUSAND
    change = "more than" if side == "most" else "less than the least of"
    words = "; ".join(
        f"{v:,.0f} node-hours {change} grant {grant.name} of {goal.pools[p].name}"
        for v, (p, grant) in zip(values, network.grants, strict=True)
        if v > 0.5
    )
    return Relaxation(limit=limit, by=float(values.sum()), unit="node-hours", words=words)
