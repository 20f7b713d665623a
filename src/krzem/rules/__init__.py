"""Trade rules on accelerators as computable tests: what may be sent where, on which day.

Reading order: ``facts/rules.toml`` (the rules), ``ruleset`` (the same as values), ``expression``
(the language of their tests), ``chip`` (what is tested), ``verdicts`` (what follows).
"""

from __future__ import annotations

from krzem.rules.chip import Chip, Disagreement, disagreements, find_country, load_chip
from krzem.rules.ruleset import Rule, RuleSet, Side, Status, load_rules
from krzem.rules.standing import Standing, standing, verdict
from krzem.rules.text import summary
from krzem.rules.verdicts import (
    Alternative,
    Buyer,
    Finding,
    Outcome,
    Verdict,
    alternatives,
    evaluate,
)

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
