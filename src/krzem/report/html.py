"""A plan, explanation or comparison as one HTML page that opens without a network.

The page is rendered from the JSON document of ``docs/json.md`` and from nothing else, so it cannot
disagree with ``--json``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from krzem.errors import DataError
from krzem.report.html_answer import (
    answer_view,
    chance,
    facts_view,
    heading,
    layout_view,
    run_view,
    sentence,
    share,
    tile,
)
from krzem.report.html_charts import Point, Span, intervals, scatter
from krzem.report.html_compare import compare_view
from krzem.report.selfcontained import environment, framed, write_text
from krzem.report.text import tied
from krzem.report.text_check import gain, measured_lines
from krzem.report.text_table import interval, percent, plain

# What a page shows of a judged job: verdict, what to change, and the job as it was read
# --------------------------------------------------------------------------------------

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


# What a page shows of a search: the front of time against memory, and the best layouts
# -------------------------------------------------------------------------------------

SLOWEST_SHOWN = 3.0
"""Layouts slower than this many times the chosen one are counted, not drawn."""


def _sweep(document: Document) -> dict[str, Any]:
    from krzem.report.questions import sweep_view

    return sweep_view(document)


def search_view(document: Document) -> dict[str, Any]:
    """Front and table of a plan document."""
    best = document["best"]
    sure = document["goal"]["sure"]
    slowest = SLOWEST_SHOWN * best["step_time_s"]["mid"]
    drawn = [point for point in document["front"] if point["step_time_s"] <= slowest]
    return {
        "front": _front(drawn, best, document["cluster"]["memory_gib"], sure),
        "front_text": _front_text(document, len(document["front"]) - len(drawn)),
        "front_legend": [
            ("less than 50 % chance of fitting", "fit1"),
            (f"50 % to {percent(sure)}", "fit2"),
            (f"{percent(sure)} to 99 %", "fit3"),
            ("99 % and more", "fit4"),
        ],
        "ties_text": _ties_text(document),
        "rows": [
            _row(best, "the best"),
            *(_row(other, _against(other, document)) for other in document["alternatives"]),
        ],
    }


def _front(drawn: list[Document], best: Document, limit: float, sure: float) -> Any:
    points = [
        Point(memory_gib=p["memory_gib"], seconds=p["step_time_s"],
              tone=_tone(p["fits_probability"], sure))
        for p in drawn
    ]  # fmt: skip
    chosen = Point(memory_gib=best["memory_gib"]["mid"], seconds=best["step_time_s"]["mid"],
                   tone="accent")  # fmt: skip
    return scatter("front", "Step time against memory", points, chosen, limit)


def _tone(chance: float, sure: float) -> str:
    if chance >= 0.99:
        return "fit4"
    return "fit3" if chance >= sure else "fit2" if chance >= 0.5 else "fit1"


def _front_text(document: Document, hidden: int) -> str:
    seconds = plain(document["search_seconds"])
    text = (
        f"{document['layouts_evaluated']:,} legal layouts were priced in {seconds} s. Each dot is"
        " one that no other beats in both time and memory; the ring is the layout that was chosen."
    )
    if hidden:
        text += f" {hidden} leaner ones, more than {SLOWEST_SHOWN:g} times slower, are not drawn."
    return text


def _ties_text(document: Document) -> str:
    ties = document["ties"]
    text = "Each row is the best of its parallel shape; intervals hold the middle 80 %. "
    if ties > 1:
        return text + (
            f"{ties:,} layouts lie within the error bar of the best one: the model cannot tell them"
            " apart, so measure two or three of them before a long run."
        )
    return text + "No other layout lies within the error bar of the best one."


def _against(other: Document, document: Document) -> str:
    slower = f"{share(other['relative_time'] - 1.0)} time"
    return f"tie, {slower}" if tied(other, document) else slower


def _row(plan: Document, against: str) -> dict[str, str]:
    return {
        "layout": plan["layout_text"],
        "step": interval(plan["step_time_s"]),
        "mfu": interval(plan["mfu"], percent),
        "memory": plain(plan["memory_gib"]["mid"]),
        "fits": chance(plan["fits_probability"]),
        "against": against,
    }


# A plan, explanation or comparison as one HTML page that opens without a network
# -------------------------------------------------------------------------------


def write_html(document: Document, path: str | Path) -> None:
    """Write the page of ``document`` to ``path``, all or nothing.

    Raises:
        DataError: a document of another kind.
        KrzemError: the extra ``report`` is not installed.
        StorageError: the disk does not take it.
    """
    write_text(Path(path), render(document))


def render(document: Document) -> str:
    """The page as text; raises as :func:`write_html` does."""
    schema = str(document.get("schema", "none"))
    if schema not in _PAGES:
        raise DataError(
            f"no page for a document of schema {schema[:40]!r}; there is one for"
            f" {', '.join(_PAGES)}"
        )
    name, view = _PAGES[schema]
    template = environment().get_template(name)
    shown = view(document)
    return framed(
        template, kicker=shown["kicker"], title=shown["title"], page=shown, document=document
    )


def _plan(document: Document) -> dict[str, Any]:
    return _one(document, document["best"], "krzem plan") | {"search": search_view(document)}


def _explain(document: Document) -> dict[str, Any]:
    return _one(document, document["layout_plan"], "krzem explain") | {"search": None}


def _one(document: Document, plan: Document, kicker: str) -> dict[str, Any]:
    return answer_view(document, plan) | {
        "kicker": kicker,
        "title": heading(document),
        "answer": sentence(document, plan),
        "layout": layout_view(plan, document["cluster"]),
    }


_PAGES: dict[str, tuple[str, Callable[[Document], dict[str, Any]]]] = {
    "krzem.plan/1": ("plan.html", _plan),
    "krzem.explain/1": ("plan.html", _explain),
    "krzem.compare/1": ("compare.html", compare_view),
    "krzem.sweep/1": ("sweep.html", _sweep),
    "krzem.check/1": ("check.html", check_view),
}
