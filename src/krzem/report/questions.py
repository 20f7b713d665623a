"""Answers of several plans as plain data and as text: phases, the fewest devices, a size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from krzem.plan.phases import PhasePlan, Phases
from krzem.plan.size import Fewest, Size
from krzem.plan.sweep import Point, Sweep
from krzem.report.document import cleaned, plan_document
from krzem.report.document_run import footprint
from krzem.report.html_charts import canvas, colour, finish, style
from krzem.report.text import footprint_part, format_plan, joined
from krzem.report.text_table import (
    count,
    days,
    energy,
    given,
    interval,
    money,
    paragraph,
    percent,
    plain,
    shortened,
    table,
)

Document = dict[str, Any]
PHASES = "krzem.phases/1"
FEWEST = "krzem.fewest/1"
SIZE = "krzem.size/1"


def phases_document(found: Phases) -> Document:
    """Phases as JSON-ready data, schema ``krzem.phases/1``."""
    return cleaned(
        {
            "schema": PHASES,
            "phases": [_phase(phase) for phase in found.phases],
            "totals": found.totals,
            "worst": found.worst,
            "deadline_probability": found.deadline_probability,
            "budget_probability": found.budget_probability,
            "footprint": footprint(found.footprint),
        }
    )


def _phase(phase: PhasePlan) -> Document:
    return {"phase": phase.text, "plan": plan_document(phase.plan, phase.asked)}


def format_phases(document: Document) -> str:
    """A row per phase, the sum, and what the phases rest on."""
    return joined(
        _title(document), _rows(document), _limits(document), footprint_part(document["footprint"]),
        _notes(document),
    )  # fmt: skip


def _title(document: Document) -> Iterator[str]:
    first = document["phases"][0]["plan"]
    worst = document["phases"][document["worst"]]["plan"]["best"]
    goal = sum(p["plan"]["goal"]["tokens"] for p in document["phases"])
    yield from paragraph(
        f"{first['model']['name']}, {count(goal)} tokens in {len(document['phases'])} phases on"
        f" {first['cluster']['devices']:,} {first['cluster']['device']}:"
        f" {days(document['totals']['days'] or document['totals']['training_days'])}; tightest in"
        f" memory is phase {document['worst'] + 1} with"
        f" {plain(worst['memory_gib']['mid'])} of {plain(first['cluster']['memory_gib'])} GiB,"
        f" {percent(worst['fits_probability'])} chance of fitting."
    )


def _rows(document: Document) -> Iterator[str]:
    head = ("phase", "tokens", "seq", "batch", "days", "MFU", "GiB", "layout")
    rows = []
    for number, phase in enumerate(document["phases"], start=1):
        plan = phase["plan"]
        goal, best, run = plan["goal"], plan["best"], plan["whole_run"]
        rows.append(
            (
                str(number), count(goal["tokens"]), f"{goal['sequence']:,}",
                f"{goal['global_batch']:,}", interval(run["days"] or run["training_days"]),
                percent(best["mfu"]["mid"]), plain(best["memory_gib"]["mid"]),
                best["layout_text"],
            )
        )  # fmt: skip
    yield from table(head, rows, "rrrrrrrw")
    sums = document["totals"]
    yield from paragraph(
        f"Together {days(sums['days'] or sums['training_days'])},"
        f" {interval(sums['device_hours'], count)} device-hours,"
        f" {interval(sums['energy_mwh'], energy)}, {interval(sums['cost_usd'], money)}."
        " Bounds add up as middles do: the phases share the errors of their model and cluster."
    )


def _limits(document: Document) -> Iterator[str]:
    goal = document["phases"][0]["plan"]["goal"]
    if goal["deadline_days"] is not None:
        yield (
            f"{given(document['deadline_probability'], percent)} chance of meeting the deadline of"
            f" {plain(goal['deadline_days'])} days for all phases."
        )
    if goal["budget_usd"] is not None:
        yield (
            f"{given(document['budget_probability'], percent)} chance of staying within the budget"
            f" of {money(goal['budget_usd'])} for all phases."
        )


def _notes(document: Document) -> Iterator[str]:
    notes = [note for phase in document["phases"] for note in phase["plan"]["notes"]]
    yield "Notes"
    for note in dict.fromkeys(notes):
        yield from paragraph(note, "  - ")


def fewest_document(found: Fewest) -> Document:
    """The fewest devices as JSON-ready data, schema ``krzem.fewest/1``."""
    assert found.best.plan is not None
    assert found.best.asked is not None
    return cleaned(
        {
            "schema": FEWEST,
            "devices": found.best.value,
            "chance": found.chance,
            "plan": plan_document(found.best.plan, found.best.asked),
            "tried": [
                {
                    "devices": point.value,
                    "days": None if point.plan is None else point.plan.whole_run.days,
                    "deadline_probability": None
                    if point.plan is None
                    else point.plan.whole_run.deadline_probability,
                    "error": point.error,
                }
                for point in found.tried
            ],
        }
    )


def format_fewest(document: Document, sentence_alone: bool = False) -> str:
    """The number first, what was tried, then its plan."""
    sentence = joined(_number(document))
    if sentence_alone:
        return sentence
    return f"{sentence}\n{joined(_tried(document))}\n{format_plan(document['plan'])}"


def _number(document: Document) -> Iterator[str]:
    plan = document["plan"]
    run, goal = plan["whole_run"], plan["goal"]
    yield from paragraph(
        f"{document['devices']:,.0f} {plan['cluster']['device']} ({plan['cluster']['nodes']:,}"
        f" nodes) are the fewest tried that meet the deadline of"
        f" {plain(goal['deadline_days'])} days with a chance of"
        f" {percent(document['chance'])} or more:"
        f" {percent(run['deadline_probability'])}, {days(run['days'])}."
    )


def _tried(document: Document) -> Iterator[str]:
    rows = [
        (
            f"{point['devices']:,.0f}",
            interval(point["days"]) if point["days"] else shortened(point["error"] or "", 70),
            given(point["deadline_probability"], percent),
        )
        for point in document["tried"]
    ]
    yield from table(("devices", "days", "in time"), rows, "rlr")


def size_document(found: Size) -> Document:
    """What a budget buys as JSON-ready data, schema ``krzem.size/1``."""
    return cleaned(
        {
            "schema": SIZE,
            "device_hours": found.device_hours,
            "rule": found.rule,
            "config": found.config,
            "flop": found.flop,
            "plan": plan_document(found.plan, found.asked),
            "splits": list(found.splits),
        }
    )


def format_size(document: Document, sentence_alone: bool = False) -> str:
    """The size first, then other ways to divide the same compute, then its plan."""
    sentence = joined(_bought(document))
    if sentence_alone:
        return sentence
    return f"{sentence}\n{joined(_splits(document))}\n{format_plan(document['plan'])}"


def _bought(document: Document) -> Iterator[str]:
    plan, config = document["plan"], document["config"]
    model, goal, losses = plan["model"], plan["goal"], plan["footprint"]["losses"]
    hours = f"{count(document['device_hours'])} device-hours"
    nodes = document["device_hours"] / plan["cluster"]["devices_per_node"]
    yield from paragraph(
        f"{hours} ({count(nodes)} node-hours) of {plan['cluster']['name']} train a dense model of"
        f" {count(model['parameters'])} parameters on {count(goal['tokens'])} tokens"
        f" ({plain(goal['tokens'] / model['parameters'])} tokens per parameter,"
        f" {document['rule']}): {days(plan['whole_run']['days'])} on"
        f" {plan['cluster']['devices']:,} devices, MFU {interval(plan['best']['mfu'], percent)};"
        f" {config['num_hidden_layers']} layers of {config['hidden_size']:,}. Expected loss"
        f" {_span(losses)} nats per token, by law."
    )


def _span(losses: list[Document]) -> str:
    low, high = min(x["low"] for x in losses), max(x["high"] for x in losses)
    return f"{low:.2f} to {high:.2f}" if f"{low:.2f}" != f"{high:.2f}" else f"{low:.2f}"


def _splits(document: Document) -> Iterator[str]:
    laws = [loss["law"] for loss in document["splits"][0]["losses"]]
    rows = [
        (
            split["rule"], count(split["parameters"]), count(split["tokens"]),
            *(f"{loss['low']:.3f}" for loss in split["losses"]),
        )
        for split in document["splits"]
    ]  # fmt: skip
    yield from paragraph(
        f"The same {document['flop']:.2e} FLOP (6 N D) divided otherwise; loss in nats per token."
        " Compare down a column: each law has a text of its own. The laws say nothing of mixtures"
        " of experts or of what serving a model costs."
    )
    yield from table(("", "parameters", "tokens", *(law.split("_")[0] for law in laws)), rows,
                     "lrr" + "r" * len(laws))  # fmt: skip


# A sweep as plain data, as terminal text and as what its page shows
# ------------------------------------------------------------------

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
