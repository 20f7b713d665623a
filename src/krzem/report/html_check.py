"""What a page shows of a judged job: verdict, what to change, and the job as it was read."""

from __future__ import annotations

from typing import Any

from krzem.report.html_answer import facts_view, run_view, tile
from krzem.report.html_charts import Span, intervals
from krzem.report.html_format import chance
from krzem.report.html_layout import layout_view
from krzem.report.text_check import gain, measured_lines
from krzem.report.text_numbers import interval, percent, plain

Document = dict[str, Any]


def check_view(document: Document) -> dict[str, Any]:
    """Everything that ``check.html`` shows."""
    plan = document["layout_plan"]
    return (
        facts_view(document)
        | run_view(document)
        | {
            "kicker": "krzem check",
            "title": f"{document['model']['name']} on {document['cluster']['devices']:,} ×"
            f" {document['cluster']['device_name']}",
            "answer": f"{document['sentence']}.",
            "tiles": _tiles(document),
            "warnings": _warnings(document),
            "measured": measured_lines(document),
            "compared": _compared(document),
            "gains": _gains(document),
            "suggestions": [_suggestion(s) for s in document["suggestions"]],
            "layout": layout_view(plan, document["cluster"]),
            "calibration": _calibration(document),
            "fields": [_field(name, f) for name, f in document["job"]["fields"].items()],
            "assumed": document["assumed"],
        }
    )


def _tiles(document: Document) -> list[dict[str, Any]]:
    plan, measured = document["layout_plan"], document["measured"]
    found = [{"label": "verdict", "value": document["verdict"], "range": "", "long": True}]
    if measured is not None and measured["step_time_s"] is not None:
        seconds, mfu = plain(measured["step_time_s"]), percent(measured["mfu"])
        found.append({"label": "measured step, s", "value": seconds, "range": f"MFU {mfu}"})
    return [
        *found,
        tile("predicted step, s", plan["step_time_s"]),
        tile("predicted MFU", plan["mfu"], percent),
        tile("peak memory, GiB", plan["memory_gib"]),
        {"label": "chance of fitting in memory", "value": chance(plan["fits_probability"]),
         "range": f"{plain(document['cluster']['memory_gib'])} GiB a device"},
    ]  # fmt: skip


def _warnings(document: Document) -> list[str]:
    return [
        *(f"The log is of another job: {why}." for why in document["impossible"]),
        *(f"{c['text']}." for c in document["conflicts"]),
        *(f"It may not run: {doubt}" for doubt in document["doubts"]),
        *(f"It would be explained by {words}." for words in document["explanations"]),
    ]


def _compared(document: Document) -> Any:
    measured, step = document["measured"], document["layout_plan"]["step_time_s"]
    if measured is None or measured["step_time_s"] is None:
        return ""
    seconds, error = measured["step_time_s"], measured["step_error_s"]
    spans = [
        Span(label="predicted", text=f"{interval(step)} s", **step),
        Span(label="measured", low=max(seconds - 1.28 * error, 0.0), mid=seconds,
             high=seconds + 1.28 * error, text=f"{plain(seconds)} s"),
    ]  # fmt: skip
    return intervals("compared", "Measured and predicted step", spans, "seconds a step", plain)


def _gains(document: Document) -> Any:
    rows = [s for s in document["suggestions"] if s["gain"]["mid"] > 0]
    if not rows:
        return ""
    spans = [
        Span(label=s["change"].partition(":")[0], text=gain(s),
             **{key: max(100 * s["gain"][key], 0.0) for key in ("low", "mid", "high")})
        for s in rows
    ]  # fmt: skip
    return intervals("changes", "Gain of each change", spans, "% more tokens per second", plain)


def _suggestion(s: Document) -> dict[str, Any]:
    return {
        "change": s["change"],
        "gain": gain(s),
        "memory": plain(s["memory_gib"]),
        "fits": chance(s["fits_probability"]),
        "flags": s["flags"],
        "edits": [_edit(edit) for edit in s["edits"]],
    }


def _edit(edit: Document) -> dict[str, Any]:
    new = edit["new"].splitlines() or [""]
    added = new[0] == edit["old"]
    return {
        "where": f"{edit['file']}:{edit['line']}",
        "old": [] if added or not edit["old"].strip() else [edit["old"].strip()],
        "new": [line.strip() for line in (new[1:] if added else new) if line.strip()],
    }


def _calibration(document: Document) -> list[dict[str, str]]:
    found = document["calibration"]
    if found is None:
        return []
    return [
        {"name": run["name"], "seconds": plain(run["step_time_s"])}
        | {key: f"{run[key]:.3f}" for key in ("as_shipped", "calibrated", "left_out")}
        for run in found["runs"]
    ]


def _field(name: str, found: Document) -> dict[str, str]:
    value = found["value"]
    shown = ", ".join(value) if isinstance(value, list) else str(value)
    where = f"{found['file']}:{found['line']}" if found["line"] else found["text"]
    return {"name": name, "value": shown, "basis": found["basis"], "where": where[:120]}
