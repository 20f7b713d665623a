"""One judge for all: the verdict on a chip, and in a line what fleets, runs and proposals say."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from krzem.rules.chip import find_country, load_chip
from krzem.rules.ruleset import RuleSet, load_rules
from krzem.rules.text import age, summary
from krzem.rules.verdicts import Buyer, Verdict, evaluate


def verdict(
    chip: str,
    on: dt.date,
    to: str = "CN",
    parent: str | None = None,
    *,
    state_funded: bool = False,
    rents: bool = False,
    acquired: dt.date | None = None,
    rules: RuleSet | None = None,
) -> Verdict:
    """The verdict on a chip of the catalogue; countries as codes or English names.

    ``parent`` is the seat of the buyer's ultimate parent where that is another country; ``rents``
    says that time is rented on chips of others, ``acquired`` when owned ones were obtained.
    ``Verdict.clear`` says in one word whether a plan may count on the chip, ``Verdict.certain``
    whether the day lies within what was searched.  Raises
    UnknownNameError for a chip or country that is not known.
    """
    ruleset = rules or load_rules()
    country = find_country(to)
    buyer = Buyer(
        on=on,
        to=country,
        parent=find_country(parent) if parent else country,
        state_funded=state_funded,
        rents=rents,
        acquired=acquired,
    )
    return evaluate(load_chip(chip, ruleset), ruleset, buyer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the rules say of devices in one place on one day."""

    lawful: bool
    """No rule asks for an authority's decision, and no figure that decides is missing."""
    words: str
    """The verdict, and of what: ``export: licence; to CN on 2026-11-30``."""
    age: str
    """How old the newest text is on that day; empty where the day is not after it."""


def standing(
    chip: str,
    on: dt.date,
    to: str,
    parent: str | None = None,
    *,
    rents: bool = False,
    acquired: dt.date | None = None,
    rules: RuleSet | None = None,
) -> Standing:
    """The verdict of ``krzem rules`` on a chip, by its catalogue id, used in ``to`` on that day.

    ``parent`` is the country of the user's ultimate parent.  Time on chips that others own is
    rented; what is owned since ``acquired`` is judged as an export by the rules of that day, and as
    use by those of ``on``.  Rules that may change before that day are taken as they are known
    today.  This is not legal advice.

    Raises:
        UnknownNameError: no such chip or country.
    """
    found = verdict(
        chip, on, to, parent, rents=rents, rules=rules,
        acquired=acquired if acquired and acquired <= on else None,
    )  # fmt: skip
    country, seat = found.buyer.to, found.buyer.parent
    how = "rented in" if rents else "to"
    since = f", owned since {acquired}" if acquired else ""
    owner = "" if seat == country else f", parent in {seat}"
    return Standing(
        lawful=found.clear is True,
        words=f"{summary(found)}; {how} {country} on {on}{owner}{since}",
        age=age(found),
    )
