"""A sweep as plain data, as terminal text and as what its page shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from krzem.plan.sweep import Point, Sweep
from krzem.report.document import cleaned, plan_document
from krzem.report.html_theme import canvas, colour, finish, style
from krzem.report.text_numbers import given, interval, money, percent, plain
from krzem.report.text_table import paragraph, shortened, table

Document = dict[str, Any]
SWEEP = "krzem.sweep/1"


def sweep_document(sweep: Sweep) -> Document:
    """A sweep as JSON-ready data, schema ``krzem.sweep/1``."""
    quantity = sweep.quantity
    return cleaned(
        {
            "schema": SWEEP,
            "sweep": sweep.name,
            "label": quantity.label,
            "unit": quantity.unit,
            "points": [_point(point, quantity.scale) for point in sweep.points],
        }
    )


def _point(point: Point, scale: float) -> Document:
    found = None
    if point.plan is not None and point.asked is not None:
        found = plan_document(point.plan, point.asked)
    return {"value": point.value / scale, "plan": found, "error": point.error}


def format_sweep(document: Document) -> str:
    """The table of a sweep; text of at most 100 columns."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Document) -> Iterator[str]:
    known = [p for p in document["points"] if p["plan"]]
    model, cluster = known[0]["plan"]["model"], known[0]["plan"]["cluster"]
    yield from paragraph(
        f"{model['name']} on {cluster['device_name']}, by {document['label']}: the best layout of"
        " each point, with 80 % intervals"
    )
    yield ""
    head = (document["unit"], "step, s", "tokens/s/dev", "MFU", "days", "cost", "layout")
    yield from table(head, [_row(p) for p in document["points"]], "rrrrrrl")
    for point in document["points"]:
        if point["error"]:
            yield from paragraph(f"{plain(point['value'])}: {point['error']}", "  ")


def _row(point: Document) -> tuple[str, ...]:
    plan = point["plan"]
    value = f"{point['value']:,.6g}"
    if plan is None:
        return (value, "no plan", "", "", "", "", "")
    best, run = plan["best"], plan["whole_run"]
    return (
        value,
        given(best["step_time_s"]["mid"], plain),
        f"{best['tokens_per_s_per_device']['mid']:,.0f}",
        percent(best["mfu"]["mid"]),
        interval(run["days"] or run["training_days"]),
        "" if run["cost_usd"] is None else money(run["cost_usd"]["mid"]),
        shortened(best["layout_text"], 30),
    )


def sweep_view(document: Document) -> Document:
    """What ``sweep.html`` shows."""
    known = [p for p in document["points"] if p["plan"]]
    first = known[0]["plan"]
    one = known[0]["plan"]["whole_run"]["days"] is not None
    days = [(p["value"], p["plan"]["whole_run"]["days" if one else "training_days"]) for p in known]
    rates = [(p["value"], p["plan"]["best"]["tokens_per_s_per_device"]) for p in known]
    fastest = max(rate["mid"] for _, rate in rates)
    return {
        "kicker": "krzem plan --sweep",
        "title": f"{first['model']['name']} on {first['cluster']['device_name']}",
        "answer": (
            f"{_axis(document).capitalize()} from {plain(known[0]['value'])} to"
            f" {plain(known[-1]['value'])}: at the last point the rate per device is"
            f" {percent(rates[-1][1]['mid'] / fastest)} of the best one."
        ),
        "charts": [
            {"title": "Days of the run", "svg": _curve("days", days, document, "days")},
            {
                "title": "Tokens per second and device",
                "svg": _curve("rate", rates, document, "tokens/s per device"),
            },
        ],
        "rows": [_cells(point) for point in document["points"]],
        "unit": document["unit"],
    }


def _axis(document: Document) -> str:
    """The swept quantity with its unit, where its name does not say it."""
    label, unit = str(document["label"]), str(document["unit"])
    return label if label == unit else f"{label} ({unit})"


def _cells(point: Document) -> Document:
    value, step, rate, mfu, days, cost, _ = _row(point)
    plan = point["plan"]
    layout = point["error"] if plan is None else plan["best"]["layout_text"]
    return {
        "value": value, "step": step, "rate": rate, "mfu": mfu, "days": days, "cost": cost,
        "layout": layout,
    }  # fmt: skip


def _curve(name: str, points: list[tuple[float, Document]], document: Document, unit: str) -> Any:
    """The middle and the 80 % band over the swept quantity."""
    with style():
        figure, axes = canvas(3.2)
        x = [value for value, _ in points]
        axes.fill_between(x, [p["low"] for _, p in points], [p["high"] for _, p in points],
                          color=colour("line"), linewidth=0)  # fmt: skip
        axes.plot(x, [p["mid"] for _, p in points], color=colour("accent"), marker="o")
        if len(x) > 2 and x[-1] / x[0] > 8:
            axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{value:,.6g}" for value in x])
        axes.set_ylim(bottom=0)
        axes.grid(color=colour("line"), linewidth=0.5)
        axes.set_xlabel(_axis(document))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_ylabel(unit)
        spoken = "; ".join(f"{value:,.6g}: {p['mid']:.4g}" for value, p in points)
        return finish(figure, name, f"{unit} by {document['label']}", spoken)
