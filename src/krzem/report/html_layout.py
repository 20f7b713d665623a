"""What a page shows of one layout plan: how it is cut, its step and its memory."""

from __future__ import annotations

from typing import Any

from krzem.report.html_charts import Part, Span, Stack, stacks, waterfall
from krzem.report.html_format import chance
from krzem.report.text_numbers import interval, percent, plain

Document = dict[str, Any]
TONES = {
    "compute": "work1", "recompute": "work2", "tensor_parallel": "talk1",
    "expert_parallel": "talk2", "pipeline_transfer": "talk3", "data_parallel": "talk4",
    "bubble": "idle", "optimizer": "extra1", "overhead": "extra2",
}  # fmt: skip
"""Colours of a step: work, communication, waiting, the rest."""
MEMORY = {
    "weights": ("weights", "work1"),
    "gradients": ("gradients", "talk2"),
    "optimizer": ("optimizer states", "talk4"),
    "activations": ("activations", "extra1"),
    "transient": ("transient buffers", "work2"),
    "reserve": ("reserve", "idle"),
}
"""Parts of a device\'s memory: what they are called, in which tone they are drawn."""
_CHIPS = {
    "tp": "tensor", "cp": "context", "pp": "pipeline", "vpp": "virtual stages",
    "ep": "expert", "etp": "expert-tensor", "dp": "data", "zero": "ZeRO",
    "micro_batch": "micro-batch", "schedule": "schedule", "recompute": "recomputation",
}  # fmt: skip


def layout_view(plan: Document, cluster: Document) -> dict[str, Any]:
    """Texts and charts of ``plan``, a layout plan of the document."""
    return {
        "devices": f"{cluster['devices']:,}",
        "layout_text": plan["layout_text"],
        "chips": [*_chips(plan["layout"]), ("micro-batches a step", plan["micro_batches"])],
        "waterfall": _waterfall(plan),
        "memory": interval(plan["memory_gib"]),
        "capacity": plain(cluster["memory_gib"]),
        "fits": chance(plan["fits_probability"]),
        "stacks": _stacks(plan, cluster),
        "memory_legend": list(MEMORY.values()),
        "memory_rows": [_row(rank, plan) for rank in plan["ranks"]],
    }


def _chips(layout: Document) -> list[tuple[str, Any]]:
    """Degrees above one, and what else tells layouts apart."""
    always = ("tp", "pp", "dp", "zero", "micro_batch")
    return [
        (label, layout[name])
        for name, label in _CHIPS.items()
        if name in always or layout[name] not in (1, None, "none")
    ]


def _waterfall(plan: Document) -> Any:
    step = plan["step_time_s"]
    total = Span(label="one step", text=f"{interval(step)} s", **step)
    parts = [
        Part(
            label=item["label"],
            value=item["seconds"],
            tone=TONES.get(item["term"], "muted"),
            text=f"{plain(item['seconds'])} s · {percent(item['share'] or 0.0)}",
        )
        for item in plan["breakdown"]
        if item["seconds"] != 0
    ]
    return waterfall("step", total, parts, "seconds")


def _stacks(plan: Document, cluster: Document) -> Any:
    rows = [
        Stack(label=stage_label(rank, plan), parts=_parts(rank), text=plain(rank["total_gib"]))
        for rank in plan["ranks"]
    ]
    return stacks("memory", "Memory per pipeline stage", rows, "GiB", cluster["memory_gib"])


def _parts(rank: Document) -> list[Part]:
    return [
        Part(label=label, value=rank[f"{name}_gib"], tone=tone, text=plain(rank[f"{name}_gib"]))
        for name, (label, tone) in MEMORY.items()
    ]


def _row(rank: Document, plan: Document) -> dict[str, Any]:
    return {
        "label": stage_label(rank, plan),
        "parts": [part.text for part in _parts(rank)],
        "total": plain(rank["total_gib"]),
    }


def stage_label(rank: Document, plan: Document) -> str:
    """The pipeline stage that a rank stands for."""
    return f"{rank['rank']} stage" if len(plan["ranks"]) > 1 else "every device"
