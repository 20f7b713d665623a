"""The Markdown of an application, from its document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krzem.quantity import format_bytes, format_count
from krzem.supply.text import dollars, span, table

Document = Mapping[str, Any]


def proposal_markdown(document: Document) -> str:
    """All sections in the order of the call."""
    parts = [
        f"# {document['title']}",
        "",
        f"Written {document['written']} by krzem from a plan; figures are predictions unless they"
        " are marked as measured, with 80 % intervals in brackets.",
        "",
        "What the call asks for:",
        "",
        *(f"- {line}" for line in document["asks"]),
        "",
        f"Sources: {'; '.join(document['sources'])} ({document['date']}).",
    ]
    for name in document["sections"]:
        parts += ["", *_SECTIONS[name](document)]
    return "\n".join(parts) + "\n"


def _spread(value: Mapping[str, float], digits: int = 0) -> str:
    return f"{value['mid']:,.{digits}f} " + span(
        f"{value['low']:,.{digits}f}", f"{value['high']:,.{digits}f}"
    )


def _summary(d: Document) -> list[str]:
    model, cluster, goal = d["model"], d["cluster"], d["goal"]
    total = d["resources"]["node_hours_total"]
    return [
        "## Summary",
        "",
        f"Pre-training of {model['name']} ({format_count(model['parameters'], 3)} parameters,"
        f" {format_count(model['active_parameters'], 3)} active per token) on"
        f" {format_count(goal['tokens'], 3)} tokens, on {d['resources']['nodes']:,} nodes"
        f" ({cluster['devices']:,} x {cluster['device_name']}, one device being"
        f" {cluster['device_is']}): {_spread(total)} node-hours, evaluation included, over"
        f" {_spread(d['resources']['days'])} days.",
    ]


def _scaling(d: Document) -> list[str]:
    rows = [
        [
            f"{row['nodes']:,}",
            f"{row['devices']:,}",
            _spread(row["step_time_s"], 2),
            _spread(row["tokens_per_s"]),
            f"{row['efficiency']:.0%}",
            f"{row['mfu']:.1%}",
            _spread(row["memory_gib"], 1),
        ]
        for row in d["scaling"]
    ]
    head = ("nodes", "devices", "step time, s", "tokens/s", "efficiency", "MFU", "GiB per device")
    layouts = [f"- {row['nodes']:,} nodes: `{row['layout']}`" for row in d["scaling"]]
    return [
        "## Scaling",
        "",
        f"Strong scaling: {d['goal']['global_batch']:,} sequences of {d['goal']['sequence']:,}"
        " tokens a step at every size, the best layout at each. Efficiency is tokens per second"
        " and node against the first row; MFU counts model FLOPs (causal attention once, nothing"
        f" recomputed) over the dense peak in {d['goal']['precision']}.",
        "",
        table(head, rows),
        "",
        f"Layouts ({d['engine']}):",
        "",
        *layouts,
    ]


def _argument(d: Document) -> list[str]:
    fit = d["correction"]
    lines = ["## How the figures were got", ""]
    if fit is None:
        lines.append(
            "Nothing was measured on the target machine yet. Step times are predicted from the"
            " model's operators, the device's and links' rates and coefficients fitted to published"
            " runs; the intervals are those of runs that the fit had not seen. They narrow with"
            " measurements: give them with --measured (nodes, step_time_s)."
        )
        return lines
    rows = [[f"{m['nodes']:,}", f"{m['step_time_s']:.3g}"] for m in fit["measured"]]
    lines += [
        f"Measured step times are {fit['ratio']:.2f} times the predicted ones on (geometric) mean,"
        f" and every prediction above is multiplied by that. Its spread,"
        f" {fit['log_spread']:.0%}, is the interval up to {fit['largest_nodes']:,} nodes;"
        " each doubling beyond adds 3 %.",
        "",
        table(("nodes", "measured step time, s"), rows),
    ]
    return lines


def _memory(d: Document) -> list[str]:
    names = [key for key in d["memory"][0] if key.endswith("_gib")]
    rows = [[rank["rank"], *(f"{rank[name]:.1f}" for name in names)] for rank in d["memory"]]
    head = ("pipeline rank", *(n.removesuffix("_gib").replace("_", " ") for n in names))
    return [
        "## Memory per device",
        "",
        f"GiB, of {d['cluster']['memory_gib']:.1f} that software sees; layout `{d['layout']}`.",
        "",
        table(head, rows),
    ]


def _resources(d: Document) -> list[str]:
    r = d["resources"]
    rows = [
        ["training steps", f"{r['node_hours_steps']:,.0f}"],
        ["checkpoints, interruptions, restarts", f"{r['node_hours_restarts']:,.0f}"],
        [f"evaluation ({r['evaluation_share']:.0%})", f"{r['node_hours_evaluation']:,.0f}"],
        ["total", _spread(r["node_hours_total"])],
    ]
    lines = [
        "## Resources",
        "",
        f"In {d['unit']}, {r['nodes']:,} nodes for {_spread(r['days'])} days.",
        "",
        table(("for", "node-hours"), rows),
    ]
    if d["bands"]:
        lines += ["", *_bands(d)]
    return lines


def _bands(d: Document) -> list[str]:
    rows = [
        [
            band["call"],
            "–" if band["least"] is None else f"{band['least']:,.0f}",
            "–" if band["most"] is None else f"{band['most']:,.0f}",
            "yes" if band["fits"] else "no",
        ]
        for band in d["bands"]
    ]
    lines = [
        f"Calls of {d['machine']} ({d['bands'][0]['source']}):",
        "",
        table(("call", "least", "most", "the request fits"), rows),
    ]
    if not any(band["fits"] for band in d["bands"]):
        lines += ["", _no_band(d)]
    return lines


def _no_band(d: Document) -> str:
    wanted = d["resources"]["node_hours_total"]["mid"]
    if all(wanted < (band["least"] or 0) for band in d["bands"]):
        return (
            "The request is below the least of every call listed: ask for a smaller kind of access."
        )
    return (
        "No single call takes this request: split the run over grants or machines"
        " (krzem fleet plans that)."
    )


def _storage(d: Document) -> list[str]:
    s = d["storage"]
    return [
        "## Storage",
        "",
        f"- checkpoints: {s['copies']} x {format_bytes(s['checkpoint_bytes'], 3)} ="
        f" {format_bytes(s['checkpoints_bytes'], 3)} (weights, master weights, optimiser moments)",
        f"- tokens: {format_count(d['goal']['tokens'], 3)} x {s['bytes_per_token']} bytes ="
        f" {format_bytes(s['data_bytes'], 3)}",
        f"- together: {format_bytes(s['total_bytes'], 3)}, plus what evaluation writes",
    ]


def _schedule(d: Document) -> list[str]:
    r, fits = d["resources"], d["resources"]["days"]["mid"]
    months = max(fits / 30.4, 0.01)
    rows = [
        ["port, burn-in, scaling tests", "before the start", "a benchmark or preparatory grant"],
        ["training", f"{months:,.1f} months", f"{r['node_hours_training']['mid']:,.0f} node-hours"],
        ["evaluation", "beside training", f"{r['node_hours_evaluation']:,.0f} node-hours"],
    ]
    return ["## Work schedule", "", table(("what", "when", "with"), rows)]


def _cost(d: Document) -> list[str]:
    cost = d["cost_usd"]
    if cost is None:
        unknown = "No price of this machine is known; a cloud's own calculator is asked for."
        return ["## Cost", "", unknown]
    text = f"{dollars(cost['mid'])} {span(dollars(cost['low']), dollars(cost['high']))}"
    return ["## Cost", "", f"At the plan's price per device-hour: {text}, without storage."]


def _yours(d: Document) -> list[str]:
    return ["## Yours to write", "", *(f"- {line}" for line in d["yours"])]


_SECTIONS = {
    "summary": _summary,
    "scaling": _scaling,
    "argument": _argument,
    "memory": _memory,
    "resources": _resources,
    "storage": _storage,
    "schedule": _schedule,
    "cost": _cost,
    "yours": _yours,
}
