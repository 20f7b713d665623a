"""What a page shows of a comparison: cards side by side, intervals, and what helps where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from krzem.plan.design import FINALISTS, TRUSTED, Design, Judged
from krzem.report.document import cleaned, question
from krzem.report.html_answer import TONES, between, chance, ends, facts_view, share
from krzem.report.html_charts import Part, Span, Stack, intervals, stacks
from krzem.report.text import joined, wall_label
from krzem.report.text_table import (
    UNKNOWN,
    count,
    energy,
    interval,
    money,
    paragraph,
    percent,
    plain,
    table,
)

Document = dict[str, Any]
_AWARDS = {
    "days": "fastest", "device_hours": "fewest device-hours", "energy_mwh": "least energy",
    "cost_usd": "cheapest", "mfu": "best MFU",
}  # fmt: skip


def compare_view(document: Document) -> dict[str, Any]:
    """Everything of a compare document."""
    entries = document["plans"]
    answered = [entry for entry in entries if entry["plan"]]
    plans = [entry["plan"] for entry in answered]
    return {
        "kicker": "krzem compare",
        "title": f"{document['model']['name']} on {len(entries)} clusters",
        "answer": _sentence(document, answered),
        "rows": _rows(plans),
        "cards": [_card(document, index) for index in range(len(entries))],
        "charts": [chart for chart in _charts(plans) if chart],
        "titles": [_title(plan) for plan in plans],
        "gain_rows": _gain_rows(plans),
        "answers": [facts_view(plan) | {"title": _title(plan)} for plan in plans],
    }


def _title(plan: Document) -> str:
    return f"{plan['cluster']['devices']:,} × {plan['cluster']['device_name']}"


def _sentence(document: Document, answered: Sequence[Document]) -> str:
    if not answered:
        return "None of the clusters can train this model as asked; each card says why."
    soonest, cheapest = document["best"].get("days"), document["best"].get("cost_usd")
    if soonest is not None and soonest == cheapest:
        return f"Soonest done and cheapest: {_with(document, soonest, 'days', 'cost_usd')}."
    parts = []
    if soonest is not None:
        parts.append(f"Soonest done: {_with(document, soonest, 'days')}")
    if cheapest is not None:
        parts.append(f"Cheapest: {_with(document, cheapest, 'cost_usd')}")
    if parts:
        return ". ".join(parts) + "."
    have = f"{len(answered)} of {len(document['plans'])} clusters have a plan"
    return f"{have}; there is too little known of days and cost to rank them."


def _with(document: Document, index: int, *keys: str) -> str:
    """The cluster with its days or cost, and whether another one might win."""
    plan = document["plans"][index]["plan"]
    words = {"days": lambda v: f"{interval(v)} days", "cost_usd": lambda v: interval(v, money)}
    values = (words[key](plan["whole_run"][key]) for key in keys)
    doubt = [_NOUN[key] for key in keys if _overlaps(document, index, key)]
    text = f"{_title(plan)}, {', '.join(values)}"
    return f"{text} (another's interval of {' and '.join(doubt)} overlaps)" if doubt else text


_NOUN = {"days": "days", "cost_usd": "cost"}


def _overlaps(document: Document, index: int, key: str) -> bool:
    runs = [entry["plan"] and entry["plan"]["whole_run"][key] for entry in document["plans"]]
    others = [run for i, run in enumerate(runs) if run and i != index]
    return any(run["low"] <= runs[index]["high"] for run in others)


def _card(document: Document, index: int) -> dict[str, Any]:
    entry = document["plans"][index]
    plan = entry["plan"]
    if not plan:
        return {"title": entry["cluster"], "cluster": "", "error": entry["error"]}
    run, best = plan["whole_run"], plan["best"]
    days = run["days"] or run["training_days"]
    return {
        "title": _title(plan),
        "cluster": _cluster(plan["cluster"]),
        "error": None,
        "days": f"{plain(days['mid'])} days",
        "days_range": between(days) + ("" if run["days"] else ", in steps alone"),
        "cost": interval(run["cost_usd"], money),
        "wall": wall_label(plan, best),
        "badges": _badges(document, index),
        "layout_text": best["layout_text"],
    }


_RUN = (
    ("days", "days", plain), ("device_hours", "device-hours", count), ("cost_usd", "cost", money),
    ("energy_mwh", "energy", energy), ("goodput", "goodput", percent),
)  # fmt: skip
_STEP = (
    ("step_time_s", "step time, s", plain), ("mfu", "MFU", percent),
    ("tokens_per_s_per_device", "tokens/s per device", plain),
    ("memory_gib", "peak memory, GiB", plain),
)  # fmt: skip


def _rows(plans: Sequence[Document]) -> list[dict[str, Any]]:
    """One row per quantity, one cell per plan: value and range."""
    runs, bests = [plan["whole_run"] for plan in plans], [plan["best"] for plan in plans]
    found = [
        {"label": label, "cells": [_cell(part[key], form) for part in parts]}
        for parts, names in ((runs, _RUN), (bests, _STEP))
        for key, label, form in names
    ]
    texts = {
        "chance of fitting in memory": [
            (chance(plan["best"]["fits_probability"]),
             f"of {plain(plan['cluster']['memory_gib'])} GiB") for plan in plans
        ],
        "precision": [(plan["goal"]["precision"], "") for plan in plans],
        "dense peak, TFLOP/s": [(_peak(plan), "") for plan in plans],
        "scale-up, GB/s": [_link(plan["cluster"]) for plan in plans],
        "scale-out, GB/s": [(plain(plan["cluster"]["scale_out_gb_per_s"]), "") for plan in plans],
    }  # fmt: skip
    return found + [{"label": label, "cells": cells} for label, cells in texts.items()]


def _cell(value: Any, form: Callable[[float], str]) -> tuple[str, str]:
    return ends(value, form)["mid"], between(value, form)


def _peak(plan: Document) -> str:
    """The peak of the kind of arithmetic that the precision starts with."""
    peaks = plan["cluster"]["peak_tflops"]
    named = next((k for k in peaks if plan["goal"]["precision"].startswith(k)), None)
    return UNKNOWN if named is None else plain(peaks[named])


def _link(cluster: Document) -> tuple[str, str]:
    return plain(cluster["scale_up_gb_per_s"]), f"among {cluster['scale_up_domain']:,}"


def _cluster(cluster: Document) -> str:
    """The name, and what a device is where it is not a whole card."""
    name, device = cluster["name"], cluster["device_is"]
    return str(name) if device == "card" else f"{name}, a device is {device}"


def _badges(document: Document, index: int) -> list[dict[str, str]]:
    found = [
        {"kind": "good", "text": text}
        for key, text in _AWARDS.items()
        if document["best"].get(key) == index
    ]
    for what in ("deadline", "budget"):
        kept = document[f"makes_{what}"][index]
        if kept is not None:
            text = f"keeps the {what}" if kept else f"misses the {what}"
            found.append({"kind": "good" if kept else "low", "text": text})
    return found


def _charts(plans: Sequence[Document]) -> list[dict[str, Any] | None]:
    return [
        _spans(plans, "days", "Days to the last token", "days", plain),
        _spans(plans, "cost_usd", "Cost", "US dollars", money),
        _steps(plans),
    ]


def _spans(
    plans: Sequence[Document], key: str, title: str, unit: str, form: Callable[[float], str]
) -> dict[str, Any] | None:
    """Intervals of one quantity where it is known."""
    known = [plan for plan in plans if plan["whole_run"][key]]
    if not known:
        return None
    spans = [
        Span(
            label=_title(plan),
            text=interval(plan["whole_run"][key], form),
            **plan["whole_run"][key],
        )
        for plan in known
    ]
    text = "The dot is the middle, the line the 80 % interval."
    if len(known) < len(plans):
        missing = ", ".join(_title(plan) for plan in plans if plan not in known)
        text += f" Unknown for {missing}."
    chart = intervals(key, title, spans, unit, form)
    return {"title": title, "text": text, "svg": chart, "legend": None}


def _steps(plans: Sequence[Document]) -> dict[str, Any] | None:
    if not plans:
        return None
    rows = [
        Stack(label=_title(plan), parts=_parts(plan["best"]), text=_total(plan["best"]))
        for plan in plans
    ]
    legend = {item["label"]: TONES.get(item["term"], "muted")
              for plan in plans for item in plan["best"]["breakdown"]}  # fmt: skip
    return {
        "title": "Where the time of a step goes",
        "text": "The best layout of each cluster; all run the same batch of tokens a step.",
        "svg": stacks("steps", "Step time by cause", rows, "seconds"),
        "legend": list(legend.items()),
    }


def _parts(best: Document) -> list[Part]:
    return [
        Part(
            label=item["label"],
            value=item["seconds"],
            tone=TONES.get(item["term"], "muted"),
            text=percent(item["share"] or 0.0),
        )
        for item in best["breakdown"]
    ]


def _total(best: Document) -> str:
    return f"{interval(best['step_time_s'])} s"


def _gain_rows(plans: Sequence[Document]) -> list[dict[str, Any]]:
    labels = {gain["resource"]: gain["label"] for plan in plans for gain in plan["gains"]}
    return [
        {"label": label, "cells": [_gain(plan, resource) for plan in plans]}
        for resource, label in labels.items()
    ]


def _gain(plan: Document, resource: str) -> dict[str, Any]:
    found = {gain["resource"]: gain["throughput"] for gain in plan["gains"]}
    text = share(found[resource]) if resource in found else "–"
    return {"text": text, "wall": plan["best"]["wall"] == resource}


# Shapes that suit a cluster, as plain data and as text
# -----------------------------------------------------

DESIGN = "krzem.design/1"
SHOWN = 10
KEPT = 40
"""Shapes in the document."""


def design_document(found: Design) -> Document:
    """Shapes as JSON-ready data, schema ``krzem.design/1``."""
    best = found.found[0].worth
    return cleaned(
        {
            "schema": DESIGN,
            **{k: v for k, v in question(found.asked).items() if k != "model"},
            "flop": found.flop,
            "tokens": found.tokens,
            "active_parameters": found.active,
            "shapes_priced": len(found.found),
            "shapes": [_judged(j, best) for j in found.found[:KEPT]],
            "published": [_judged(j, best) for j in found.published],
            "left_out": list(found.left_out),
            "notes": _unknown(found),
        }
    )


def _judged(judged: Judged, best: float) -> Document:
    return {
        "name": judged.name,
        "shape": None if judged.shape is None else asdict(judged.shape),
        "parameters": judged.parameters,
        "active_parameters": judged.active,
        "leverage": judged.leverage,
        "extrapolated": judged.extrapolated,
        "step_time_s": judged.seconds,
        "mfu": judged.mfu,
        "dense_equivalent_flop_per_s": judged.worth,
        "against_best": judged.worth / best,
        "layout_text": judged.layout,
        "searched_whole": judged.whole,
    }


def _unknown(found: Design) -> list[str]:
    notes = [
        "leverage by arXiv 2507.17702: compute of a dense model with the same loss, over the"
        " mixture's",
        "not in the law, so not weighed: depth against width, number and width of heads, latent"
        " ranks, number of shared experts; they are kept within what has been published",
        "not weighed either: cost of serving, stability, quality of data",
        f"the first {FINALISTS} shapes and published models were searched whole; the others over"
        " layouts without context parallelism and with micro-batches of one or two",
    ]
    if found.found[0].extrapolated:
        notes.insert(
            1,
            f"the law was fitted on leverages below {TRUSTED:g}: larger ones are carried on from"
            " it, and rank sparse shapes higher than anybody has shown",
        )
    return notes


def format_design(document: Document, quiet: bool = False) -> str:
    """The best shape in a sentence; unless ``quiet``, the table, published models, limits."""
    sentence = joined(_design_sentence(document))
    if quiet:
        return sentence
    return joined(
        _design_sentence(document), _design_rows("Shapes", document["shapes"][:SHOWN]),
        _design_rows("Published", document["published"]), _notes(document),
    )  # fmt: skip


def _design_sentence(document: Document) -> Iterator[str]:
    best, cluster = document["shapes"][0], document["cluster"]
    shape = best["shape"]
    yield from paragraph(
        f"For {document['flop']:.3g} FLOPs on {cluster['devices']:,} {cluster['device']}:"
        f" {shape['hidden']:,} wide, {shape['layers']} layers, {shape['heads']} heads,"
        f" {shape['experts']} experts of {shape['width']:,}, {shape['active']} and a shared one at"
        f" work: {count(best['parameters'])} parameters, {count(best['active_parameters'])} active;"
        f" MFU {percent(best['mfu'])}, each FLOP worth {plain(best['leverage'])} of a dense model."
    )


def _design_rows(title: str, judged: list[Document]) -> Iterator[str]:
    if not judged:
        return
    yield title
    head = ("", "total", "active", "MFU", "leverage", "learns", "layout")
    rows = [
        (j["name"], count(j["parameters"]), count(j["active_parameters"]), percent(j["mfu"]),
         plain(j["leverage"]) + ("*" if j["extrapolated"] else ""), percent(j["against_best"]),
         j["layout_text"])
        for j in judged
    ]  # fmt: skip
    yield from table(head, rows, "lrrrrrw")


def _notes(document: Document) -> Iterator[str]:
    yield from paragraph(
        "learns: dense-equivalent FLOPs per second against the best; *: beyond the law's data"
    )
    for note in document["notes"]:
        yield from paragraph(f"· {note}")
    left = document["left_out"]
    if left:
        yield from paragraph(f"· {len(left)} without a plan, such as {left[0]}")
