"""The whole run as plain data: days, hours, energy, money, and what nobody knows."""

from __future__ import annotations

from typing import Any

from krzem.facts.table import Fact
from krzem.hardware.catalogue import Device
from krzem.hardware.cluster import Cluster
from krzem.plan.footprint import Footprint, Threshold
from krzem.plan.forecast import Checkpointing, WholeRun
from krzem.plan.request import Asked

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


# The facts a plan rests on, each with unit, source, date and confidence
# ----------------------------------------------------------------------

_RATES = (
    ("memory per device", "memory_bytes", 2.0**30, "GiB"),
    ("memory bandwidth per device", "memory_bytes_per_s", 1e9, "GB/s"),
    ("scale-up bandwidth per device", "scale_up_bytes_per_s", 1e9, "GB/s"),
    ("scale-up domain", "scale_up_domain", 1, "devices"),
    ("scale-out bandwidth per device", "scale_out_bytes_per_s", 1e9, "GB/s"),
    ("devices per node", "devices_per_node", 1, "devices"),
)
"""What, field of Cluster and of Device, its unit in bytes, the unit shown."""


def facts(asked: Asked) -> list[dict[str, Any]]:
    """Everything that was looked up: model, recipe, device, links, operation, prices."""
    cluster = asked.task.cluster
    return [
        _model(asked),
        *_recipe(asked),
        *_peak(asked),
        *(_rate(cluster, *rate) for rate in _RATES),
        *(_measured(cluster, name, value) for name, value in cluster.measured.items()),
        *(_operation(fact) for fact in cluster.facts.values()),
    ]


def _entry(
    what: str, value: Any, unit: str, source: str, date: str, confidence: str, note: str = ""
) -> dict[str, Any]:
    return {
        "what": what,
        "value": value,
        "low": None,
        "high": None,
        "unit": unit,
        "source": source,
        "date": date,
        "confidence": confidence,
        "note": note,
    }


def _model(asked: Asked) -> dict[str, Any]:
    architecture = asked.task.architecture
    source = architecture.source or "the config that was given"
    return _entry("model config", architecture.name, "", source, "", "high")


def _recipe(asked: Asked) -> list[dict[str, Any]]:
    recipe = asked.recipe
    if recipe is None or not asked.from_recipe:
        return []
    units = {
        "tokens": "tokens", "sequence": "tokens", "global_batch": "sequences",
        "state_bytes": "bytes per parameter",
    }  # fmt: skip
    return [
        _entry(
            f"recipe: {name.replace('_', ' ')}",
            _shown(getattr(recipe, name)),
            units.get(name, ""),
            recipe.source,
            recipe.date,
            recipe.confidence,
            recipe.notes,
        )
        for name in asked.from_recipe
    ]


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    if isinstance(value, tuple):
        return ", ".join(f"{s.global_batch:,} for {s.tokens:.3g} tokens" for s in value)
    return value


def _peak(asked: Asked) -> list[dict[str, Any]]:
    """The catalogue's peak; one that was given is among the facts of the cluster."""
    cluster = asked.task.cluster
    kind = asked.task.goal.precision.arithmetic
    kind = "tf32" if kind == "fp32" else kind
    if f"{kind}_peak" in cluster.facts:
        return []
    peak = cluster.device.peak_flops[kind] / 1e12
    return [_catalogued(f"{kind} dense peak per device", peak, "TFLOP/s", cluster.device)]


def _catalogued(what: str, value: float, unit: str, device: Device) -> dict[str, Any]:
    return _entry(
        what, value, unit, device.sources, device.released, str(device.confidence), device.notes
    )


def _rate(cluster: Cluster, what: str, field: str, factor: float, unit: str) -> dict[str, Any]:
    value = getattr(cluster, field)
    listed = getattr(cluster.device, field)
    bounds = cluster.assumed.get(field)
    if bounds is not None:
        entry = _entry(what, value / factor, unit, bounds.source, bounds.date, "assumed",
                       bounds.why)  # fmt: skip
        return entry | {"low": bounds.low / factor, "high": bounds.high / factor}
    if value == listed:
        return _catalogued(what, value / factor, unit, cluster.device)
    return _entry(what, value / factor, unit, cluster.name, "", "given")


def _measured(cluster: Cluster, name: str, value: float) -> dict[str, Any]:
    return _entry(f"measured {name.replace('_', ' ')}", value, "", cluster.name, "", "measured")


def _operation(fact: Fact) -> dict[str, Any]:
    entry = _entry(
        fact.what.replace("_", " "), fact.mid, fact.unit, fact.source, fact.date,
        str(fact.confidence), fact.notes,
    )  # fmt: skip
    return entry | {"low": fact.low, "high": fact.high}
