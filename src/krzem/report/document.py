"""Plans as plain data for ``--json``, pages and tables; described in ``docs/json.md``.

Every number is finite or null.  An interval is ``{"low", "mid", "high"}``, its middle 80 %.
"""

from __future__ import annotations

import datetime
import enum
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from krzem.engine.setup import month_of
from krzem.estimate import Estimate
from krzem.layout.layout import Layout
from krzem.model.parameters import count
from krzem.plan.plan import TIE, Explanation, FrontPoint, LayoutPlan, Plan, RankMemory, trained
from krzem.plan.price import Task
from krzem.plan.request import Asked
from krzem.plan.wall import Gain
from krzem.report.document_run import facts, footprint, whole_run

GIB = 2.0**30
PLAN = "krzem.plan/1"
EXPLAIN = "krzem.explain/1"

TERMS = {
    "compute": "computation",
    "recompute": "recomputation",
    "tensor_parallel": "tensor and context parallel",
    "expert_parallel": "expert all-to-all",
    "pipeline_transfer": "pipeline transfers",
    "bubble": "pipeline bubble",
    "data_parallel": "gradients and weights",
    "optimizer": "optimizer step",
    "overhead": "engine overhead, stragglers",
}
"""Terms of a step and how reports call them."""


def plan_document(plan: Plan, asked: Asked) -> dict[str, Any]:
    """A plan as JSON-ready data, schema ``krzem.plan/1``."""
    asked = replace(asked, task=plan.task)
    best = plan.best.step_seconds.mid
    return cleaned(
        {
            "schema": PLAN,
            **question(asked),
            "layouts_evaluated": plan.layouts_evaluated,
            "layouts_timed": plan.layouts_timed,
            "search_seconds": plan.search_seconds,
            "best": layout_plan(plan.best) | {"wall": plan.wall},
            "ties": plan.ties,
            "tie_within": TIE,
            "alternatives": [
                layout_plan(other) | {"relative_time": other.step_seconds.mid / best}
                for other in plan.alternatives
            ],
            "front": [_point(point) for point in plan.front],
            "gains": [_gain(gain) for gain in plan.gains],
            "whole_run": whole_run(plan.whole_run),
            "footprint": footprint(plan.footprint),
            "facts": facts(asked),
            "notes": [*asked.notes, *plan.notes],
        }
    )


def explain_document(explanation: Explanation, asked: Asked) -> dict[str, Any]:
    """One layout as JSON-ready data, schema ``krzem.explain/1``."""
    asked = replace(asked, task=explanation.task)
    return cleaned(
        {
            "schema": EXPLAIN,
            **question(asked),
            "layout_plan": layout_plan(explanation.plan) | {"wall": explanation.wall},
            "gains": [_gain(gain) for gain in explanation.gains],
            "refused": list(explanation.refused),
            "whole_run": None
            if explanation.whole_run is None
            else whole_run(explanation.whole_run),
            "footprint": footprint(explanation.footprint),
            "facts": facts(asked),
            "notes": [*asked.notes, *explanation.notes],
        }
    )


def cleaned(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document with every value made plain."""
    return {key: clean(value) for key, value in document.items()}


def clean(value: Any) -> Any:
    """``value`` with numbers that JSON has no word for as null, and values as plain data."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Estimate):
        return clean(value.as_dict())
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, enum.Enum):
        return clean(value.value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: clean(getattr(value, f.name)) for f in fields(value)}
    return value


def question(asked: Asked) -> dict[str, Any]:
    """Model, cluster, goal and engine: what the answer is about."""
    return {
        "model": _model(asked),
        "cluster": _cluster(asked),
        "goal": _goal(asked),
        "engine": {
            "name": asked.task.engine,
            "title": asked.task.description.title,
            "version": asked.task.setup.version,
            "stated": dict(asked.task.stated),
            "schedules": list(asked.space.schedules),
            "date": asked.date.isoformat(),
            "software_date": software_date(asked).isoformat(),
        },
    }


def software_date(asked: Asked) -> datetime.date:
    """The age of the software that is planned: never newer than the last for the chips."""
    planned = datetime.date.fromisoformat(f"{month_of(asked.task.setup.year)}-01")
    return planned if planned < asked.date.replace(day=1) else asked.date


def _model(asked: Asked) -> dict[str, Any]:
    architecture = asked.task.architecture
    counted = count(architecture)
    return {
        "name": architecture.name,
        "source": architecture.source,
        "type": architecture.model_type,
        "parameters": counted.total,
        "active_parameters": counted.active,
        "mtp_parameters": counted.mtp,
        "by_module": counted.by_module(),
        "layers": architecture.layers,
        "hidden": architecture.hidden,
        "vocabulary": architecture.vocab,
    }


def _cluster(asked: Asked) -> dict[str, Any]:
    cluster, device = asked.task.cluster, asked.task.cluster.device
    return {
        "name": cluster.name,
        "device": device.id,
        "device_name": f"{device.vendor} {device.name}".strip(),
        "device_is": device.device_is,
        "devices": cluster.devices,
        "nodes": cluster.nodes,
        "devices_per_node": cluster.devices_per_node,
        "memory_gib": cluster.memory_bytes / GIB,
        "memory_gb_per_s": cluster.memory_bytes_per_s / 1e9,
        "scale_up_domain": cluster.scale_up_domain,
        "scale_up_gb_per_s": cluster.scale_up_bytes_per_s / 1e9,
        "scale_out_gb_per_s": cluster.scale_out_bytes_per_s / 1e9,
        "oversubscription": cluster.oversubscription,
        "peak_tflops": {kind: peak / 1e12 for kind, peak in device.peak_flops.items()},
        "power_w": cluster.power_w,
        "usd_per_device_hour": cluster.usd_per_device_hour,
    }


def _goal(asked: Asked) -> dict[str, Any]:
    goal = asked.task.goal
    return {
        "tokens": goal.tokens,
        "sequence": goal.sequence,
        "global_batch": goal.global_batch,
        "tokens_per_step": goal.tokens_per_step,
        "precision": goal.precision,
        "optimizer": goal.optimizer,
        "state_bytes": goal.states,
        "finetune": _finetune(asked.task),
        "deadline_days": goal.deadline_days,
        "budget_usd": goal.budget_usd,
        "start": None if asked.start is None else asked.start.isoformat(),
        "sure": asked.sure,
        "from_recipe": list(asked.from_recipe),
    }


def _finetune(task: Task) -> dict[str, Any] | None:
    """What is tuned, and how many parameters that trains; None for pre-training."""
    tuning = task.goal.tuning
    if tuning.kind == "none":
        return None
    return {
        "kind": tuning.kind,
        "rank": tuning.rank or None,
        "targets": list(tuning.targets),
        "trained_parameters": trained(task, count(task.architecture).total),
    }


def layout_plan(plan: LayoutPlan) -> dict[str, Any]:
    total = sum(plan.terms.values())
    return {
        "layout": _layout(plan.layout),
        "layout_text": str(plan.layout),
        "micro_batches": plan.micro_batches,
        "step_time_s": plan.step_seconds,
        "tokens_per_s_per_device": plan.tokens_per_s_per_device,
        "mfu": plan.mfu,
        "memory_gib": plan.memory_bytes.scaled(1 / GIB),
        "fits_probability": plan.fits_probability,
        "breakdown": [
            {
                "term": term,
                "label": TERMS.get(term, term.replace("_", " ")),
                "seconds": seconds,
                "share": seconds / total if total else None,
            }
            for term, seconds in plan.terms.items()
        ],
        "ranks": [_rank(rank) for rank in plan.ranks],
        "switches": dict(plan.switches),
    }


def _layout(layout: Layout) -> dict[str, Any]:
    return {f.name: getattr(layout, f.name) for f in fields(Layout)}


def _rank(rank: RankMemory) -> dict[str, Any]:
    parts = [f.name for f in fields(RankMemory) if f.name != "rank"]
    return {
        "rank": rank.rank,
        **{f"{name}_gib": getattr(rank, name) / GIB for name in parts},
        "total_gib": rank.total / GIB,
    }


def _point(point: FrontPoint) -> dict[str, Any]:
    return {
        "layout": _layout(point.layout),
        "layout_text": str(point.layout),
        "step_time_s": point.step_seconds,
        "memory_gib": point.memory_bytes / GIB,
        "fits_probability": point.fits_probability,
    }


def _gain(gain: Gain) -> dict[str, Any]:
    return {"resource": gain.resource, "label": gain.label, "throughput": gain.throughput}
