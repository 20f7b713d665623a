"""Verdicts as plain values for ``--json`` (schema ``krzem.rules/1``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from krzem.rules.ruleset import RuleSet
from krzem.rules.text import outcome_words, summary
from krzem.rules.verdicts import Alternative, Finding, Outcome, Verdict

SCHEMA = "krzem.rules/1"


def document(
    verdicts: Iterable[tuple[Verdict, Sequence[Alternative]]], ruleset: RuleSet
) -> dict[str, Any]:
    """The whole output; dates as ISO text, unknown figures as null."""
    return {
        "schema": SCHEMA,
        "compiled": ruleset.compiled.isoformat(),
        "newest_text": ruleset.newest_text.isoformat(),
        "newest_report": ruleset.newest_report.isoformat(),
        "searched": ruleset.searched.isoformat(),
        "disclaimer": " ".join(ruleset.disclaimer.split()),
        "not_covered": list(ruleset.not_covered),
        "verdicts": [_verdict(v, others) for v, others in verdicts],
    }


def _verdict(verdict: Verdict, others: Sequence[Alternative]) -> dict[str, Any]:
    chip = verdict.chip
    return {
        "chip": chip.id,
        "name": chip.name,
        "vendor_country": chip.country,
        "on": verdict.buyer.on.isoformat(),
        "to": verdict.buyer.to,
        "parent": verdict.buyer.parent,
        "state_funded": verdict.buyer.state_funded,
        "rents": verdict.buyer.rents,
        "acquired": verdict.buyer.acquired.isoformat() if verdict.buyer.acquired else None,
        "clear": verdict.clear,
        "certain": verdict.certain,
        "text_age_days": verdict.text_age_days,
        "words": summary(verdict),
        "figures": {
            "tpp": chip.tpp,
            "performance_density": chip.performance_density,
            "die_area_mm2": chip.die_area_mm2,
            "dram_gb_per_s": chip.dram_gb_per_s,
            "io_gb_per_s": chip.io_gb_per_s,
            "released": chip.released or None,
            "data_centre": chip.data_centre,
        },
        "arithmetic": list(chip.arithmetic),
        "outcomes": {side.value: _outcome(o) for side, o in verdict.outcomes.items()},
        "rules": [_finding(f) for f in verdict.findings],
        "disagreements": [_alternative(a) for a in others],
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "status": outcome.status.code if outcome.status else None,
        "words": outcome_words(outcome),
        "possible": [s.code for s in outcome.possible],
        "depends_on": list(outcome.depends_on),
        "bands": [
            {"quantity": b.quantity, "low": b.low, "high": b.high, "status": b.status.code}
            for b in outcome.bands
        ],
    }


def _finding(finding: Finding) -> Mapping[str, Any]:
    rule = finding.rule
    return {
        "id": rule.id,
        "title": rule.title,
        "side": rule.side.value,
        "from": rule.period.first.isoformat() if rule.period.first else None,
        "until": rule.period.last.isoformat() if rule.period.last else None,
        "test": rule.test.text if rule.test else None,
        "met": finding.meets,
        "depends_on": list(finding.depends_on),
        "out_of_scope": finding.out_of_scope or None,
        "counts": finding.counts,
        "status": finding.effect.status.code if finding.effect else None,
        "effect": finding.effect.text if finding.effect else None,
        "conditions": list(rule.conditions),
        "bill": rule.bill,
        "source": list(rule.source),
        "read": rule.read.isoformat(),
        "confidence": rule.confidence,
    }


def _alternative(item: Alternative) -> dict[str, Any]:
    what = item.disagreement
    return {
        "quantity": what.quantity or None,
        "value": what.value,
        "who": what.who,
        "explanation": what.explanation,
        "changes": [side.value for side in item.changes],
        "outcomes": {s.value: _outcome(o) for s, o in (item.outcomes or {}).items()},
    }
