"""Several plans side by side as plain data; described in ``docs/json.md``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from krzem.errors import UnknownNameError
from krzem.hardware.catalogue import device_ids, device_row, find_id
from krzem.model.catalogue import load_model, model_fact, model_ids
from krzem.model.parameters import count
from krzem.plan.answer import Candidate, chance_cheaper
from krzem.plan.goal import Recipe, recipe_of
from krzem.report.document import clean, plan_document

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


# The built-in devices and models as plain data; described in ``docs/json.md``
# ----------------------------------------------------------------------------

DEVICES = "krzem.devices/1"
MODELS = "krzem.models/1"

_TEXT = {
    "id", "vendor", "name", "variant", "family", "country", "released", "process_node", "mem_type",
    "scaleup_name", "die_is", "framework_device", "software_stack", "sources", "confidence",
    "notes",
}  # fmt: skip


def devices_document(pattern: str = "") -> dict[str, Any]:
    """The rows of the catalogue whose id holds ``pattern``, schema ``krzem.devices/1``."""
    wanted = [i for i in device_ids() if pattern.lower() in i]
    return {"schema": DEVICES, "devices": [_device(i) for i in wanted]}


def models_document(pattern: str = "") -> dict[str, Any]:
    """The built-in models whose id holds ``pattern``, schema ``krzem.models/1``."""
    wanted = [i for i in model_ids() if pattern.lower() in i]
    return {"schema": MODELS, "models": [_model(i) for i in wanted]}


def devices_named(name: str) -> tuple[dict[str, Any], bool]:
    """The device that ``name`` means, or all whose id holds it; and whether one is meant.

    Raises UnknownNameError where there is neither.
    """
    return _named(name, "devices", find_id, devices_document)


def models_named(name: str) -> tuple[dict[str, Any], bool]:
    """The same of the built-in models."""
    return _named(name, "models", lambda asked: model_fact(asked).id, models_document)


def _named(
    name: str, key: str, find: Callable[[str], str], document: Callable[[str], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    try:
        one = find(name) if name else ""
    except UnknownNameError:
        found = document(name)
        if not found[key]:
            raise
        return found, False
    found = document(one)
    if one:
        found[key] = [row for row in found[key] if row["id"] == one]
    return found, bool(one)


def _device(device_id: str) -> dict[str, Any]:
    return {
        name: (cell or None) if name in _TEXT else _number(cell)
        for name, cell in device_row(device_id).items()
    }


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def _model(model_id: str) -> dict[str, Any]:
    fact, architecture = model_fact(model_id), load_model(model_id)
    counted = count(architecture)
    return {
        "id": model_id,
        "aliases": list(fact.aliases),
        "parameters": counted.total,
        "active_parameters": counted.active,
        "mtp_parameters": counted.mtp,
        "published_parameters": fact.total.text,
        "published_active_parameters": fact.active.text if fact.active else None,
        "type": architecture.model_type,
        "layers": architecture.layers,
        "hidden": architecture.hidden,
        "source": fact.source,
        "date": fact.date,
        "note": fact.note,
        "reading": list(architecture.notes),
        "recipe": _recipe(recipe_of(model_id)),
    }


def _recipe(recipe: Recipe | None) -> dict[str, Any] | None:
    if recipe is None:
        return None
    plain: dict[str, Any] = clean(recipe)
    plain.pop("id")
    return plain
