"""Where sources disagree about a chip: does the verdict hang on whom one believes?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from krzem.rules.chip import Disagreement, disagreements
from krzem.rules.ruleset import RuleSet, Side
from krzem.rules.verdicts import Outcome, Verdict, evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One disagreement and what the verdict would be with the other figure."""

    disagreement: Disagreement
    outcomes: Mapping[Side, Outcome] | None
    """None where no other number is offered."""
    changes: tuple[Side, ...]
    """The sides on which the verdict would change."""


def alternatives(verdict: Verdict, ruleset: RuleSet) -> tuple[Alternative, ...]:
    """Every recorded disagreement about the chip of ``verdict``, evaluated."""
    return tuple(_alternative(d, verdict, ruleset) for d in disagreements(verdict.chip.id))


def _alternative(item: Disagreement, verdict: Verdict, ruleset: RuleSet) -> Alternative:
    if item.value is None:
        return Alternative(disagreement=item, outcomes=None, changes=())
    figure: dict[str, Any] = {item.quantity: item.value}
    chip = replace(verdict.chip, **figure)
    other = evaluate(chip, ruleset, verdict.buyer)
    changes = tuple(
        side
        for side, outcome in verdict.outcomes.items()
        if outcome.possible != other.outcomes[side].possible
    )
    return Alternative(disagreement=item, outcomes=other.outcomes, changes=changes)
