"""Trade rules on accelerators as computable tests: what may be sent where, on which day.

Reading order: ``facts/rules.toml`` (the rules), ``ruleset`` (the same as values), ``expression``
(the language of their tests), ``chip`` (what is tested), ``verdicts`` (what follows).
"""

from __future__ import annotations

import datetime as dt

from krzem.rules.chip import Chip, Disagreement, disagreements, load_chip
from krzem.rules.disagreement import Alternative, alternatives
from krzem.rules.places import find_country
from krzem.rules.ruleset import Rule, RuleSet, Side, Status, load_rules
from krzem.rules.standing import Standing, standing
from krzem.rules.text import summary
from krzem.rules.verdicts import Buyer, Finding, Outcome, Verdict, evaluate

__all__ = [
    "Alternative",
    "Buyer",
    "Chip",
    "Disagreement",
    "Finding",
    "Outcome",
    "Rule",
    "RuleSet",
    "Side",
    "Standing",
    "Status",
    "Verdict",
    "alternatives",
    "disagreements",
    "evaluate",
    "find_country",
    "load_chip",
    "load_rules",
    "standing",
    "summary",
    "verdict",
]


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
