"""Where no plan keeps every limit: which one to relax, and by how much.

Each limit is relaxed alone, the others held: the least by which it must give is the optimum of its
own slack.  What the rules forbid is not relaxed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from krzem.supply.goal import FleetGoal
from krzem.supply.months import add_months, months_between
from krzem.supply.network import MILLION, THOUSAND, Network
from krzem.supply.optimum import earliest
from krzem.supply.speed import Slot
from krzem.supply.stages import schedule_of

LATER_MONTHS = 36
"""How far the date is moved at most."""


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


def _network(goal: FleetGoal, slots: Sequence[Slot]) -> Network:
    return Network(goal, slots, months_between(goal.start, goal.deadline))


def _none(limit: str, unit: str, what: str) -> Relaxation:
    return Relaxation(limit=limit, by=None, unit=unit, words=f"{what} alone does not help")


def _date(goal: FleetGoal, slots: Sequence[Slot]) -> Relaxation:
    """The earliest later end."""
    months = months_between(goal.start, add_months(goal.deadline, LATER_MONTHS))
    schedule = earliest(goal, slots, months)
    if schedule is None:
        return _none("date", "days", f"a date up to {LATER_MONTHS} months later")
    by = max(schedule.finish_day - (goal.deadline - goal.start).days, 0.0)
    words = f"finish on {schedule.finish} instead of {goal.deadline}: {by:,.0f} days later"
    return Relaxation(limit="date", by=by, unit="days", words=words)


def _tokens(goal: FleetGoal, slots: Sequence[Slot]) -> Relaxation:
    solution = _network(goal, slots).shortfall()
    if solution is None:
        return _none("tokens", "tokens", "training fewer tokens")
    total = slots[0].speed.tokens
    by = float(solution.objective) * total
    words = f"train {(total - by) / 1e12:,.3g}T tokens instead of {total / 1e12:,.3g}T"
    return Relaxation(limit="tokens", by=by, unit="tokens", words=words)


def _money(goal: FleetGoal, slots: Sequence[Slot], limit: str) -> Relaxation:
    network = _network(goal, slots)
    columns = network.slack.budget if limit == "budget" else network.slack.months
    solution = network.least_slack(columns)
    if solution is None:
        return _none(limit, "USD", "more money" if limit == "budget" else "more money by month")
    by = float(solution.at(columns).sum()) * MILLION
    if limit == "budget":
        assert goal.budget_usd is not None
        words = f"a budget of ${(goal.budget_usd + by) / MILLION:,.2f}M: ${by / MILLION:,.2f}M more"
    else:
        over = [
            f"${float(v):,.2f}M more in {month.name}"
            for v, month in zip(solution.at(columns), network.months, strict=True)
            if v > 1e-4
        ]
        words = "budgets by month: " + ", ".join(over)
    return Relaxation(limit=limit, by=by, unit="USD", words=words)


def _domestic(goal: FleetGoal, slots: Sequence[Slot]) -> Relaxation:
    network = _network(goal, slots)
    solution = network.least_slack(network.slack.domestic)
    if solution is None:
        return _none("domestic_share", "share", "a lower domestic share")
    home = [stage.tokens for stage in schedule_of(network, solution).stages
            if goal.pools[stage.slot.pool].domestic]  # fmt: skip
    reached = min(sum(home) / slots[0].speed.tokens, goal.domestic_share)
    words = f"a domestic share of {reached:.1%} instead of {goal.domestic_share:.1%}"
    return Relaxation(limit="domestic_share", by=goal.domestic_share - reached, unit="share",
                      words=words)  # fmt: skip


def _grants(goal: FleetGoal, slots: Sequence[Slot], side: str) -> Relaxation:
    network = _network(goal, slots)
    columns = network.slack.most if side == "most" else network.slack.least
    solution = network.least_slack(columns)
    limit = f"grants_{side}"
    if solution is None:
        return _none(limit, "node-hours", f"other {'upper' if side == 'most' else 'lower'} limits"
                     " of grants")  # fmt: skip
    values = solution.at(columns) * THOUSAND
    change = "more than the" if side == "most" else "less than the least of the"
    words = "; ".join(
        f"{v:,.0f} node-hours {change} {grant.name} grant of {goal.pools[p].name}"
        for v, (p, grant) in zip(values, network.grants, strict=True)
        if v > 0.5
    )
    return Relaxation(limit=limit, by=float(values.sum()), unit="node-hours", words=words)
