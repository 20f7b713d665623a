"""Plans and explanations as terminal text, made from their JSON documents.

``format_*`` functions return text in the terminal's columns; nothing here prints or computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from krzem.quantity import format_rate
from krzem.report.text_table import (
    WIDTH,
    bar,
    columns,
    count,
    days,
    energy,
    interval,
    money,
    paragraph,
    percent,
    plain,
    printable,
    seconds,
    shortened,
    table,
)

Document = dict[str, Any]
_BAR, _LEAST_BAR = 36, 12


def format_plan(document: Document) -> str:
    """The whole report of a plan: the answer first, then what it rests on."""
    return joined(
        _answer(document, document["best"]),
        setting_part(document),
        step_part(document["best"]),
        memory_part(document, document["best"]),
        _layouts(document),
        _gains(document),
        run_part(document),
        footprint_part(document.get("footprint")),
        _facts(document),
        _notes(document),
        _search(document),
    )


def format_explanation(document: Document) -> str:
    """The report of one layout."""
    return joined(
        _answer(document, document["layout_plan"]),
        setting_part(document),
        step_part(document["layout_plan"]),
        memory_part(document, document["layout_plan"]),
        _gains(document),
        run_part(document),
        footprint_part(document.get("footprint")),
        _facts(document),
        _notes(document),
    )


def format_sentence(document: Document, chosen: Document) -> str:
    """The answer in one sentence."""
    run, goal, cluster = document["whole_run"], document["goal"], document["cluster"]
    where = f"{cluster['devices']:,} {cluster['device']}"
    if cluster["device_is"] != "card":
        where += f" ({cluster['device_is']})"
    asked = f"{document['model']['name']} on {where}"
    if run is not None:
        asked = f"{document['model']['name']}, {count(goal['tokens'])} tokens on {where}"
    parts = [
        f"{_warning(document, chosen)}{asked}: {_days(run, chosen)}",
        f"MFU {interval(chosen['mfu'], percent)}",
        f"layout {chosen['layout_text']}",
        f"wall: {wall_label(document, chosen)}",
    ]
    return printable(", ".join(parts))


def wall_label(document: Document, chosen: Document) -> str:
    """``scale-out network`` for ``network``."""
    labels = {gain["resource"]: gain["label"] for gain in document["gains"]}
    return str(labels.get(chosen["wall"], chosen["wall"]))


UNLIKELY = 0.5
"""Below this chance of fitting the first sentence says that a layout does not fit."""


def _warning(document: Document, chosen: Document) -> str:
    """What must be known first: that the engine does not run a layout, or that it hardly fits."""
    found = ""
    if document.get("refused"):
        found = f"{document['engine']['title']} does not run this layout (see notes): "
    if chosen["fits_probability"] < UNLIKELY:
        found += f"{percent(chosen['fits_probability'])} chance of fitting in memory: "
    return found


def _days(run: Document | None, chosen: Document) -> str:
    if run is None:
        return f"a step of {interval(chosen['step_time_s'])} s"
    if run["days"] is None:
        return f"{days(run['training_days'])} of steps (failures unknown)"
    hours = interval(run["device_hours"], count).split(" ")[0]
    return f"{days(run['days'])}, {hours} device-hours"


def joined(*sections: Iterator[str]) -> str:
    blocks = ["\n".join(section) for section in sections]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _answer(document: Document, chosen: Document) -> Iterator[str]:
    yield from paragraph(format_sentence(document, chosen) + ".")
    goal, run = document["goal"], document["whole_run"]
    if run is None:
        return
    if goal["deadline_days"] is not None:
        limit = f"deadline of {plain(goal['deadline_days'])} days"
        yield _kept("meeting", limit, run["deadline_probability"])
    if goal["budget_usd"] is not None:
        limit = f"budget of {money(goal['budget_usd'])}"
        yield _kept("staying within", limit, run["budget_probability"])


def _kept(verb: str, limit: str, chance: float | None) -> str:
    if chance is None:
        return f"The {limit} cannot be judged: the whole run below says what is unknown."
    return f"{percent(chance)} chance of {verb} the {limit}."


def setting_part(document: Document) -> Iterator[str]:
    model, cluster, goal = document["model"], document["cluster"], document["goal"]
    active = model["active_parameters"]
    sizes = f"{count(model['parameters'])} parameters"
    if active != model["parameters"]:
        sizes += f", {count(active)} active per token"
    if model["mtp_parameters"]:
        sizes += f", {count(model['mtp_parameters'])} more for multi-token prediction"
    yield from paragraph(f"{sizes}; {model['layers']} layers of {model['hidden']:,}", "Model    ")
    yield from paragraph(
        f"{cluster['nodes']:,} node{'' if cluster['nodes'] == 1 else 's'} of"
        f" {cluster['devices_per_node']}; per device "
        f"{plain(cluster['memory_gib'])} GiB at {plain(cluster['memory_gb_per_s'])} GB/s, "
        f"{plain(cluster['scale_up_gb_per_s'])} GB/s to {cluster['scale_up_domain']} devices, "
        f"{plain(cluster['scale_out_gb_per_s'])} GB/s beyond",
        "Cluster  ",
    )
    yield from paragraph(
        f"{goal['global_batch']:,} sequences of {goal['sequence']:,} tokens per step = "
        f"{count(goal['tokens_per_step'])} tokens; {goal['precision']}, {goal['optimizer']}"
        f"{_finetune(goal.get('finetune'))}",
        "Goal     ",
    )
    yield from paragraph(_engine(document), "Engine   ")


def _finetune(tuned: Document | None) -> str:
    if tuned is None:
        return ""
    if tuned["rank"] is None:
        return "; full fine-tuning"
    trained = f"{count(tuned['trained_parameters'])} parameters trained"
    return f"; {tuned['kind']} of rank {tuned['rank']} on {', '.join(tuned['targets'])}, {trained}"


def _engine(document: Document) -> str:
    """Name, version, date, and what it is set to for the layout that is shown."""
    engine = document["engine"]
    chosen = document.get("best") or document.get("layout_plan") or {}
    version = f" {engine['version']}" if engine["version"] else ""
    found = f"{engine['title']}{version}, software of {engine['software_date']}"
    switches = chosen.get("switches", {})
    words = [n if choice == "on" else f"{n}={choice}" for n, choice in switches.items()
             if choice != "off"]  # fmt: skip
    off = [name for name, choice in switches.items() if choice == "off"]
    if words:
        found += f"; with {', '.join(words)}"
    if off:
        found += f"; without {', '.join(off)}"
    return found


def step_part(chosen: Document) -> Iterator[str]:
    yield from paragraph(
        f"Step {interval(chosen['step_time_s'])} s; "
        f"{interval(chosen['tokens_per_s_per_device'])} tokens/s per device; "
        f"MFU {interval(chosen['mfu'], percent)}; {chosen['micro_batches']:,} micro-batches"
    )
    largest = max((term["share"] or 0.0 for term in chosen["breakdown"]), default=0.0) or 1.0
    room = max(_BAR - WIDTH + columns(), _LEAST_BAR)
    rows = [
        (
            f"  {term['label']}",
            f"{term['seconds']:.3f} s",
            percent(term["share"] or 0.0),
            bar((term["share"] or 0.0) / largest, room),
        )
        for term in chosen["breakdown"]
        if abs(term["seconds"]) >= 5e-4
    ]
    yield from table(("", "", "", ""), rows, "lrrl")[1:]


_PARTS = ("weights", "gradients", "optimizer", "activations", "transient", "reserve")


def memory_part(document: Document, chosen: Document) -> Iterator[str]:
    capacity = document["cluster"]["memory_gib"]
    yield from paragraph(
        f"Memory {interval(chosen['memory_gib'])} of {plain(capacity)} GiB on the fullest rank: "
        f"{percent(chosen['fits_probability'])} chance of fitting"
    )
    rows = [
        (
            f"  {rank['rank']}",
            *(f"{rank[f'{part}_gib']:.1f}" for part in _PARTS),
            f"{rank['total_gib']:.1f}",
            memory_bar(rank["total_gib"], capacity),
        )
        for rank in chosen["ranks"]
    ]
    head = ("  GiB", "weights", "grads", "optim", "activ", "transient", "reserve", "total", "")
    yield from table(head, rows, "lrrrrrrrb")


def memory_bar(used: float, capacity: float, width: int = 20) -> str:
    """``used`` of ``capacity``; a ``>`` at the end where it overflows."""
    share = used / capacity if capacity else 1.0
    return f"▕{bar(share, width).ljust(width)}{'>' if share > 1 else '▏'}"


def _layouts(document: Document) -> Iterator[str]:
    best = document["best"]
    rows = [_layout_row("best", best)]
    for other in document["alternatives"]:
        slower = f"+{percent(other['relative_time'] - 1)}"
        rows.append(_layout_row("tie" if tied(other, document) else slower, other))
    yield "Layouts, at most one of each parallel shape"
    yield from table(("  ", "s/step", "GiB", "fits", "layout"), rows, "lrrrw")
    if document["ties"] > 1:
        yield from paragraph(
            f"{document['ties']:,} layouts are within the error of the best one: pick the "
            "one your engine supports and your team knows.",
            "  ",
        )


def tied(other: Document, document: Document) -> bool:
    """Whether an alternative cannot be told apart from the best layout."""
    return bool(other["relative_time"] <= 1 + document["tie_within"])


def _layout_row(mark: str, chosen: Document) -> tuple[str, ...]:
    return (
        f"  {mark}",
        plain(chosen["step_time_s"]["mid"]),
        f"{chosen['memory_gib']['mid']:.1f}",
        percent(chosen["fits_probability"]),
        chosen["layout_text"],
    )


def _gains(document: Document) -> Iterator[str]:
    yield "What a tenth more of each would gain in throughput"
    rows = [
        (f"  {gain['label']}", f"{gain['throughput'] * 100:+.1f} %")
        for gain in document["gains"]
        if gain["throughput"] >= 0.0005
    ]
    yield from table(("", ""), rows or [("  none", "")], "lr")[1:]


def run_part(document: Document) -> Iterator[str]:
    run = document["whole_run"]
    if run is None:
        return
    saved = run["checkpoint"]
    rows = [
        ("  time in steps", f"{days(run['training_days'])} in {run['steps']:,} steps"),
        ("  on the calendar", days(run["days"])),
        *((f"    {part['label']}", f"{interval(part['days'])} days") for part in run["parts"]),
        ("  goodput", interval(run["goodput"], percent)),
        ("  failures", _failures(run)),
        ("  device-hours", interval(run["device_hours"], count)),
        ("  node-hours", interval(run["node_hours"], count)),
        ("  energy", interval(run["energy_mwh"], energy)),
        ("  cost", interval(run["cost_usd"], money)),
        ("  checkpoint", _checkpoint(saved)),
    ]
    if run["finish"]:
        finish = run["finish"]
        rows.append(("  finish", f"{finish['middle']} ({finish['early']} to {finish['late']})"))
    yield "Whole run"
    yield from table(("", ""), rows, "lw")[1:]
    for sentence in run["unknown"]:
        yield from paragraph(sentence, "  ")


def _failures(run: Document) -> str:
    """The range that a run meets, and its expectation."""
    met = run.get("failures")
    if not met:
        return interval(run["interruptions"])
    return (
        f"{met['low']:,.0f} to {met['high']:,.0f} ({plain(run['interruptions']['mid'])} expected)"
    )


def footprint_part(found: Document | None) -> Iterator[str]:
    """Compute against the nearest thresholds, carbon, and the loss to expect."""
    if found is None:
        return
    rows = [("  training compute", f"{found['flop']:.3g} FLOP")]
    rows += [("    " + t["place"], _threshold(t)) for t in _telling(found["thresholds"])]
    if found["grid"]:
        where = f"{found['grid']['name']}, {plain(found['grid']['g_per_kwh'])} g/kWh"
        rows.append(("  CO2", f"{interval(found['co2_tonnes'])} t ({where})"))
    if found["losses"]:
        low, high = (f(v[k] for v in found["losses"]) for f, k in ((min, "low"), (max, "high")))
        laws = ", ".join(f"{v['law']} {_range(v['low'], v['high'])}" for v in found["losses"])
        said = f"{_range(low, high)} nats per token, by {laws}; each on its own text: compare plans"
        rows.append(("  expected loss", f"{said} by one law"))
    yield "Compute, carbon, loss"
    yield from table(("", ""), rows, "lw")[1:]
    for note in found["notes"]:
        yield from paragraph(note, "  ")


def _range(low: float, high: float) -> str:
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}–{high:.2f}"


def _telling(thresholds: list[Document]) -> list[Document]:
    """The thresholds passed, and the next ones above that are in force."""
    ahead = [t for t in thresholds if not t["above"] and t["status"] != "repealed"]
    nearest = min((t["threshold_flop"] for t in ahead), default=0.0)
    return [t for t in thresholds if t["above"] or (t in ahead and t["threshold_flop"] == nearest)]


def _threshold(t: Document) -> str:
    base = f"{t['law']} ({t['status']}, {t['date']})"
    if t["above"]:
        return f"above {t['threshold_flop']:.0e} FLOP of {base}: {t['duty']}"
    return f"{percent(t['share'])} of the {t['threshold_flop']:.0e} FLOP of {base}"


def _checkpoint(saved: Document) -> str:
    size = f"{plain(saved['size_gib'])} GiB"
    if saved["interval_s"] is None:
        return f"{size}; interval unknown"
    kind = "optimal" if saved["optimal"] else "as given"
    return (
        f"{size} every {seconds(saved['interval_s'])} ({saved['interval_steps']:,} steps, {kind}),"
        f" written in {interval(saved['write_s'], seconds)}"
    )


def _facts(document: Document) -> Iterator[str]:
    yield "Facts used (--json holds the sources whole)"
    rows = [
        (f"  {shortened(fact['what'], 30)}", shortened(_value(fact), 36), fact["confidence"],
         f"{fact['source']} {fact['date']}".strip())
        for fact in document["facts"]
    ]  # fmt: skip
    yield from table(("", "", "", ""), rows, "lllc")[1:]


def _value(fact: Document) -> str:
    value = fact["value"]
    if isinstance(value, str):
        return value
    shown = format_rate if fact["unit"] == "B/s" else count if value >= 1e6 else plain
    unit = "" if fact["unit"] in ("B/s", "1") else fact["unit"]
    if fact["low"] is None or fact["low"] == fact["high"]:
        return f"{shown(value)} {unit}".strip()
    return f"{interval({**fact, 'mid': value}, shown)} {unit}".strip()


def _notes(document: Document) -> Iterator[str]:
    run = document["whole_run"]
    notes = [*document.get("refused", ()), *document["notes"], *(run["notes"] if run else ())]
    if notes:
        yield "Notes"
    for note in notes:
        yield from paragraph(note, "  - ")


def _search(document: Document) -> Iterator[str]:
    yield from paragraph(
        f"{document['layouts_evaluated']:,} legal layouts priced, {document['layouts_timed']:,} of "
        f"them timed, in {document['search_seconds']:.1f} s."
    )
