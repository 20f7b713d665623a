"""The Markdown of an application, from its document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from krzem.quantity import format_bytes, format_count
from krzem.supply.text import dollars, share, span, table

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
        f"Pre-training of {model['name']} ({format_count(model['parameters'], 3)} parameters"
        f"{_active(model)}) on"
        f" {format_count(goal['tokens'], 3)} tokens, on {d['resources']['nodes']:,} nodes"
        f" ({cluster['devices']:,} x {cluster['device_name']}{_of_a_card(cluster)}):"
        f" {_spread(total)} node-hours, evaluation included, over"
        f" {_spread(d['resources']['days'])} days.",
    ]


def _of_a_card(cluster: Document) -> str:
    part = cluster["device_is"]
    return "" if part == "card" else f", a device being {part}"


def _active(model: Document) -> str:
    active = model["active_parameters"]
    return "" if active == model["parameters"] else f", {format_count(active, 3)} active per token"


def _scaling(d: Document) -> list[str]:
    lines = [
        "## Scaling",
        "",
        f"Strong scaling: {d['goal']['global_batch']:,} sequences of {d['goal']['sequence']:,}"
        " tokens a step at every size, the best layout at each. Efficiency is tokens per second"
        " and node against the first row; MFU counts model FLOPs (causal attention once, nothing"
        f" recomputed) over the dense peak in {d['goal']['precision']}.",
        "",
        _scaling_table(d["scaling"]),
    ]
    if len(d["weak_scaling"]) > 1:
        lines += [
            "",
            "Weak scaling: the sequences of a step grow with the nodes.",
            "",
            _scaling_table(d["weak_scaling"]),
        ]
    lines += ["", f"Layouts ({d['engine']}):", ""]
    return [*lines, *(f"- {row['nodes']:,} nodes: `{row['layout']}`" for row in d["scaling"])]


def _scaling_table(rows: Sequence[Document]) -> str:
    batches = any("global_batch" in row for row in rows)
    cells = [
        [
            f"{row['nodes']:,}",
            f"{row['devices']:,}",
            *([f"{row['global_batch']:,}"] if batches else []),
            _spread(row["step_time_s"], 2),
            "measured" if row["measured"] else "predicted",
            _spread(row["tokens_per_s"]),
            share(row["efficiency"]),
            share(row["mfu"], 1),
            _spread(row["memory_gib"], 1),
        ]
        for row in rows
    ]
    head = ("nodes", "devices", *(["batch"] if batches else []), "step time, s", "basis",
            "tokens/s", "efficiency", "MFU", "GiB per device")  # fmt: skip
    return table(head, cells)


def _argument(d: Document) -> list[str]:
    fit = d["correction"]
    lines = ["## How the figures were got", "", *(f"- {note}" for note in d["notes"]), ""]
    if fit is None:
        lines.append(
            "Nothing was measured on the target machine yet. Step times are predicted from the"
            " model's operators, the device's and links' rates and coefficients fitted to published"
            " runs; the intervals are those of runs that the fit had not seen. They narrow with"
            " measurements: give them with `--measured` (nodes, step_time_s)."
        )
        return lines
    rows = [[f"{m['nodes']:,}", f"{m['step_time_s']:.3g}"] for m in fit["measured"]]
    lines += [
        f"Measured step times are {fit['ratio']:.2f} times the predicted ones on (geometric) mean,"
        f" and every prediction above is multiplied by that. Its spread,"
        f" {share(fit['log_spread'])}, is the interval up to {fit['largest_nodes']:,} nodes;"
        " each doubling beyond adds 3 %.",
        "",
        table(("nodes", "measured step time, s"), rows),
    ]
    return lines


def _memory(d: Document) -> list[str]:
    if not d["memory"]:
        row = next(r for r in d["scaling"] if r["nodes"] == d["resources"]["nodes"])
        return [
            "## Memory per device",
            "",
            f"{_spread(row['memory_gib'], 1)} GiB on the fullest pipeline rank, of"
            f" {d['cluster']['memory_gib']:.1f} that software sees; layout `{d['layout']}`.",
        ]
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
        [f"evaluation ({share(r['evaluation_share'])})", f"{r['node_hours_evaluation']:,.0f}"],
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


def _software(d: Document) -> list[str]:
    goal = d["goal"]
    return [
        "## Software",
        "",
        f"- training: {d['engine']}, as released by {d['software_date']}, in a container",
        f"- arithmetic: {goal['precision']}; optimizer: {goal['optimizer']}; bytes per parameter: "
        + ", ".join(f"{k} {v:g}" for k, v in goal["state_bytes"].items()),
        "- launch: one process per device, by the scheduler's own launcher; a run goes on from its"
        " last checkpoint after every job and every interruption",
    ]


def _share(d: Document) -> list[str]:
    s = d["share"]
    if s is None:
        return ["No public machine is named: give `--machine` for its shares and its calls."]
    lines = [
        f"{s['nodes']:,} of {s['machine_nodes']:,} nodes of {d['machine']}"
        f" ({share(s['of_nodes'], 1)}); {share(s['of_year'], 2)} of its node-hours of a year."
    ]
    if s["floor_of_nodes"]:
        enough = "is" if s["of_nodes"] >= s["floor_of_nodes"] else "is not"
        lines.append(
            f"The call looks for jobs of at least {share(s['floor_of_nodes'])} of the machine: this"
            f" {enough} one."
        )
    if s["floor_of_year"]:
        enough = "is" if s["of_year"] >= s["floor_of_year"] else "is not"
        lines.append(
            f"Large scale begins at {share(s['floor_of_year'])} of a year's production: this"
            f" {enough} large scale."
        )
    if s["cap"]:
        lines.append(f"A request may ask for at most {s['cap']}.")
    return lines


def _jobs(d: Document) -> list[str]:
    j = d["jobs"]
    lines = ["## Jobs and share of the machine", "", *_share(d), ""]
    if j["count"] is None:
        lines.append("How long a job may last there is not in this record: give `--job-hours`.")
    else:
        lines.append(
            f"Jobs of {j['hours']:g} hours on {j['nodes']:,} nodes, one after another:"
            f" {_spread(j['count'])} of them ({j['source']}). Each ends with a checkpoint of"
            f" {format_bytes(j['checkpoint_bytes'], 3)}."
        )
    if j["most_nodes"] and j["nodes"] > j["most_nodes"]:
        lines.append(
            f"The usual queue takes {j['most_nodes']:,} nodes at most ({j['source']}): a"
            " reservation, or a queue for large jobs, must be asked for."
        )
    return lines


def _data(d: Document) -> list[str]:
    s, goal = d["storage"], d["goal"]
    rate = d["scaling"][-1]["tokens_per_s"]["mid"] * s["bytes_per_token"]
    return [
        "## Input, output and data",
        "",
        f"- read: {format_count(goal['tokens'], 3)} tokens once, tokenised, {s['bytes_per_token']}"
        f" bytes each: {format_bytes(s['data_bytes'], 3)} in files of a few GB, at most"
        f" {format_bytes(rate, 3)} a second over all nodes",
        f"- written: a checkpoint of {format_bytes(s['checkpoint_bytes'], 3)}, one file per rank or"
        f" sharded; the last {s['copies']} are kept on the machine",
        f"- transferred in: {format_bytes(s['data_bytes'], 3)} before the start; out: the milestone"
        " checkpoints and the logs",
        "- kept after the grant: weights, configuration, logs and the list of data sources, under a"
        " persistent identifier (the repository and the licence are yours to name)",
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


def _milestones(d: Document) -> list[str]:
    rows = [
        [
            f"M{k + 1}",
            share(m["share"]),
            format_count(m["tokens"], 3),
            f"{m['steps']:,}",
            _spread(m["days"], 1),
            _spread(m["node_hours"]),
        ]
        for k, m in enumerate(d["milestones"])
    ]
    head = ("milestone", "of the run", "tokens", "steps", "day (80 %)", "node-hours (80 %)")
    return [
        "## Milestones",
        "",
        table(head, rows),
        "",
        "At each: the loss on held-out text and the benchmarks of the evaluation plan, the measured"
        " step time against this table, and a checkpoint that is kept.",
    ]


def _risk(d: Document) -> list[str]:
    total, tokens = d["resources"]["node_hours_total"], d["goal"]["tokens"]
    reached = tokens * total["mid"] / total["high"]
    first = d["milestones"][0]
    return [
        "## Risks and fallback",
        "",
        f"- slower than planned: at the upper end of the interval the run takes"
        f" {total['high']:,.0f} node-hours; with the {total['mid']:,.0f} asked for it then reaches"
        f" {format_count(reached, 3)} tokens, and the learning rate is brought down there",
        f"- found early: the step time is known after the first milestone"
        f" ({format_count(first['tokens'], 3)} tokens, {first['node_hours']['mid']:,.0f}"
        " node-hours), before most of the grant is used",
        "- interruptions: what they cost is in the node-hours; a run goes on from its last"
        " checkpoint",
        f"- a smaller grant: tokens go with node-hours; half of them train"
        f" {format_count(tokens / 2, 3)} tokens, at the same batch and layout",
    ]


def _cost(d: Document) -> list[str]:
    cost = d["cost_usd"]
    if cost is None:
        unknown = "No price of this machine is known; a cloud's own calculator is asked for."
        return ["## Cost", "", unknown]
    text = f"{dollars(cost['mid'])} {span(dollars(cost['low']), dollars(cost['high']))}"
    return ["## Cost", "", f"At the plan's price per device-hour: {text}, without storage."]


def _rules(d: Document) -> list[str]:
    found = d["rules"]
    if found is None:
        words = (
            "Not judged: give `--machine`, or `--country` with the country the devices stand in."
        )
    else:
        meant = "leave" if found["lawful"] else "do not leave"
        words = (
            f"{d['cluster']['device_name']}: {found['words']}. The rules in this record {meant}"
            f" that to the parties. {found['age']} Arithmetic on published figures (krzem rules),"
            " and no legal advice."
        )
    return ["## Trade rules", "", words]


def _yours(d: Document) -> list[str]:
    return ["## Yours to write", "", *(f"- {line}" for line in d["yours"])]


_SECTIONS = {
    "summary": _summary,
    "software": _software,
    "jobs": _jobs,
    "data": _data,
    "milestones": _milestones,
    "risk": _risk,
    "scaling": _scaling,
    "argument": _argument,
    "memory": _memory,
    "resources": _resources,
    "storage": _storage,
    "schedule": _schedule,
    "cost": _cost,
    "rules": _rules,
    "yours": _yours,
}
