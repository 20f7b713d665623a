"""Several plans side by side as plain data; described in ``docs/json.md``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from krzem.plan.answer import Candidate, chance_cheaper
from krzem.report.document import plan_document

COMPARE = "krzem.compare/1"
LEAST = ("days", "device_hours", "energy_mwh", "cost_usd")
"""Columns of ``whole_run`` where less is better."""


def compare_document(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """A comparison as JSON-ready data, schema ``krzem.compare/1``."""
    plans = [_entry(candidate) for candidate in candidates]
    run = [entry["plan"] and entry["plan"]["whole_run"] for entry in plans]
    mfu = [_mid(entry["plan"] and entry["plan"]["best"], "mfu") for entry in plans]
    precisions = {entry["plan"]["goal"]["precision"] for entry in plans if entry["plan"]}
    return {
        "schema": COMPARE,
        "model": next(entry["plan"]["model"] for entry in plans if entry["plan"]),
        "plans": plans,
        "best": {
            **{name: _best([_mid(r, name) for r in run], -1) for name in LEAST},
            "mfu": _best(mfu, 1) if len(precisions) == 1 else None,
        },
        "cheapest": _cheapest(candidates, [_mid(r, "cost_usd") for r in run]),
        "makes_deadline": [_kept(r, "deadline_probability") for r in run],
        "makes_budget": [_kept(r, "budget_probability") for r in run],
    }


def _entry(candidate: Candidate) -> dict[str, Any]:
    plan = candidate.plan
    return {
        "cluster": candidate.asked.task.cluster.name,
        "plan": None if plan is None else plan_document(plan, candidate.asked),
        "error": candidate.error,
    }


def _mid(part: dict[str, Any] | None, name: str) -> float | None:
    interval = part and part[name]
    return None if not interval else float(interval["mid"])


def _best(values: Sequence[float | None], sign: int) -> int | None:
    """Index of the best known value; None where fewer than two are known."""
    known = [(sign * value, -i) for i, value in enumerate(values) if value is not None]
    return -max(known)[1] if len(known) > 1 else None


def _cheapest(
    candidates: Sequence[Candidate], costs: Sequence[float | None]
) -> dict[str, Any] | None:
    """The cheapest by its median, the runner-up, the difference and how sure it is."""
    known = sorted((cost, i) for i, cost in enumerate(costs) if cost is not None)
    if len(known) < 2:
        return None
    (least, first), (more, second) = known[:2]
    return {
        "index": first,
        "next": second,
        "saves_usd": more - least,
        "chance": chance_cheaper(candidates[first], candidates[second]),
    }


def _kept(run: dict[str, Any] | None, name: str) -> bool | None:
    chance = None if run is None else run[name]
    return None if chance is None else bool(chance >= 0.5)
