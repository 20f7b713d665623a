"""Which pools a buyer may have, by the rules of the day they are obtained and of their use."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from krzem.hardware.catalogue import find_id
from krzem.rules import RuleSet, summary, verdict
from krzem.supply.goal import FleetGoal, Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the rules say of one pool."""

    lawful: bool
    """No rule asks for an authority's decision, and no figure that decides is missing."""
    words: str


def standing(pool: Pool, goal: FleetGoal, rules: RuleSet | None = None) -> Standing:
    """The verdict of ``krzem rules`` on a pool where and when it is used.

    A pool that is rented or granted is time on chips that others own; one with ``acquired`` is
    judged as an export by the rules of that day, and as use by those of the first day of use.
    Rules that may change before that day are taken as they are known today.  This is not legal
    advice.
    """
    on = max(pool.first, goal.start)
    found = verdict(
        find_id(str(pool.given["device"])),
        on,
        pool.country,
        goal.parent or None,
        rents=_rents(pool),
        acquired=pool.acquired if pool.acquired and pool.acquired <= on else None,
        rules=rules,
    )
    return Standing(lawful=found.clear is True, words=f"{summary(found)}; {_where(pool, on)}")


def _rents(pool: Pool) -> bool:
    others = pool.rent is not None or bool(pool.grants)
    return others and pool.buy is None and pool.acquired is None


def _where(pool: Pool, on: dt.date) -> str:
    how = "rented in" if _rents(pool) else "to"
    since = f", owned since {pool.acquired}" if pool.acquired else ""
    return f"{how} {pool.country} on {on}{since}"
