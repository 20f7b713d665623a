"""The whole run as plain data: days, hours, energy, money, and what nobody knows."""

from __future__ import annotations

from typing import Any

from krzem.plan.footprint import Footprint, Threshold
from krzem.plan.forecast import Checkpointing, WholeRun

GIB = 2.0**30


def whole_run(run: WholeRun) -> dict[str, Any]:
    """The forecast; an unknown quantity is None and explained in ``unknown``."""
    finish = None
    if run.finish is not None:
        days = (day.isoformat() for day in run.finish)
        finish = dict(zip(("early", "middle", "late"), days, strict=True))
    return {
        "steps": run.steps,
        "training_days": run.training_days,
        "days": run.days,
        "device_hours": run.device_hours,
        "node_hours": run.node_hours,
        "energy_mwh": run.energy_mwh,
        "cost_usd": run.cost_usd,
        "parts": [
            {"part": part.name.removesuffix("_share"), "label": part.label, "days": part.days}
            for part in run.parts
        ],
        "goodput": run.goodput,
        "interruptions": run.interruptions,
        "failures": run.failures,
        "recovery_s": run.recovery_seconds,
        "checkpoint": _checkpoint(run.checkpoint),
        "finish": finish,
        "deadline_probability": run.deadline_probability,
        "budget_probability": run.budget_probability,
        "unknown": list(run.unknown),
        "notes": list(run.notes),
    }


def _checkpoint(saved: Checkpointing) -> dict[str, Any]:
    return {
        "size_gib": saved.bytes / GIB,
        "write_s": saved.write_seconds,
        "interval_s": saved.interval_seconds,
        "interval_steps": saved.interval_steps,
        "optimal": saved.optimal,
    }


def footprint(found: Footprint | None) -> dict[str, Any] | None:
    """Compute against thresholds, carbon and loss; None where no number of tokens is known."""
    if found is None:
        return None
    return {
        "flop": found.flop,
        "thresholds": [_threshold(t, found.flop) for t in found.thresholds],
        "grid": found.grid,
        "co2_tonnes": found.co2_tonnes,
        "losses": list(found.losses),
        "notes": list(found.notes),
    }


def _threshold(threshold: Threshold, flop: float) -> dict[str, Any]:
    return {
        "id": threshold.id,
        "threshold_flop": threshold.flop,
        "share": flop / threshold.flop,
        "above": flop > threshold.flop,
        "place": threshold.place,
        "law": threshold.law,
        "duty": threshold.duty,
        "status": threshold.status,
        "date": threshold.date,
        "counts": threshold.counts,
        "source": threshold.source,
    }
