"""Which pools a buyer may have, by the rules in force on the day they are obtained."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from krzem.hardware.catalogue import find_id
from krzem.rules import RuleSet, Side, load_rules, verdict
from krzem.supply.goal import FleetGoal, Pool

FREE = "free"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the rules say of one pool."""

    lawful: bool
    """Nothing stands in the way; a licence that must be asked for does."""
    words: str


def standing(pool: Pool, goal: FleetGoal, rules: RuleSet | None = None) -> Standing:
    """The export and import side of obtaining the pool's devices; where and when they are used.

    Renting counts as obtaining on the first day of use.  Rules that may change before that day
    are taken as they are known today.  This is not legal advice.
    """
    ruleset = rules or load_rules()
    on = _day(pool, goal)
    chip = find_id(str(pool.given["device"]))
    found = verdict(chip, on, pool.country, goal.parent or None, rules=ruleset)
    sides = (Side.EXPORT, Side.IMPORT)
    words = []
    lawful = True
    for side in sides:
        outcome = found.outcomes[side]
        codes = {status.code for status in outcome.possible}
        if codes != {FREE}:
            lawful = False
            stated = " or ".join(s.words for s in outcome.possible)
            words.append(f"{side.value}: {stated}")
    place = f"to {pool.country} on {on}"
    return Standing(lawful=lawful, words=f"{'; '.join(words) or 'free'} ({place})")


def _day(pool: Pool, goal: FleetGoal) -> dt.date:
    return pool.acquired or max(pool.first, goal.start)
