"""What a page shows of one answer beside its layout: the run, the wall, facts and notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from krzem.quantity import format_rate
from krzem.report.html_charts import Part, Span, Stack, bars, stacks, waterfall
from krzem.report.text import wall_label
from krzem.report.text_table import (
    UNKNOWN,
    count,
    energy,
    given,
    interval,
    money,
    percent,
    plain,
    seconds,
)

# Numbers of a page
# -----------------

Interval = Mapping[str, float] | None


def chance(value: float) -> str:
    """A probability, never rounded to certainty: 93 %, > 99 %, < 1 %."""
    if 0.995 <= value < 1.0:
        return "> 99 %"
    return "< 1 %" if 0.0 < value < 0.005 else percent(value)


def share(value: float) -> str:
    """A relative change with its sign: +4.4 %."""
    return f"+{percent(value)}" if value >= 0 else f"−{percent(-value)}"


def amount(value: float) -> str:
    """Large numbers by the letter of their power, others digit by digit: 14.8T, 15,360."""
    return count(value) if abs(value) >= 1e6 else plain(value)


def day(value: str) -> str:
    """2027-02-11 as 11 Feb 2027."""
    found = date.fromisoformat(value)
    return f"{found.day} {found:%b %Y}"


def ends(interval: Interval, form: Any = plain) -> dict[str, str]:
    """``low``, ``mid`` and ``high`` as text; an unknown one says so once."""
    if not interval:
        return {"low": "", "mid": UNKNOWN, "high": ""}
    return {end: form(interval[end]) for end in ("low", "mid", "high")}


def between(interval: Interval, form: Any = plain) -> str:
    """The ends of the interval, a common unit once: 61.6 – 84, 14 – 19 %; empty where unknown."""
    if not interval:
        return ""
    low, unit, high, other = (
        part for end in ("low", "high") for part in form(interval[end]).partition(" ")[::2]
    )
    return f"{low} – {high} {other}".rstrip() if unit == other else f"{low} {unit} – {high} {other}"


def days_between(early: str, late: str) -> str:
    """Two dates, a common year once: 1 Feb – 23 Feb 2027."""
    first = day(early)
    return f"{first[:-5] if early[:4] == late[:4] else first} – {day(late)}"


# What a page shows of one answer beside its layout: the run, the wall, facts and notes
# -------------------------------------------------------------------------------------

Document = dict[str, Any]
_ROWS: tuple[tuple[str, str, Callable[[float], str], str], ...] = (
    ("training_days", "days in steps alone", plain, "step time, tokens, batch"),
    ("days", "days, with everything", plain, "the parts below"),
    ("device_hours", "device-hours", count, "days, devices"),
    ("node_hours", "node-hours", count, "days, nodes"),
    ("energy_mwh", "energy", energy, "device-hours, power"),
    ("cost_usd", "cost", money, "device-hours, price"),
    ("goodput", "goodput", percent, "failures, restarts, checkpoints"),
    ("interruptions", "interruptions", plain, "failure rate"),
    ("recovery_s", "recovery from one", seconds, "restart, loading"),
)


_BADGES = {"high": " good", "given": " good", "measured": " good", "low": " low"}


def answer_view(document: Document, plan: Document) -> dict[str, Any]:
    """Everything of a plan or explain document that is not of the layout itself."""
    return (
        facts_view(document)
        | run_view(document)
        | {
            "wall": wall_label(document, plan),
            "gains": _gains(document, plan),
            "tiles": tiles(document, plan),
        }
    )


def run_view(document: Document) -> dict[str, Any]:
    """The whole run, row by row; nothing where its tokens are not known."""
    run = document["whole_run"]
    return {
        "run_rows": [] if run is None else _run_rows(run),
        "run_notes": [] if run is None else [*run["unknown"], *run["notes"]],
    }


def facts_view(document: Document) -> dict[str, Any]:
    """The facts used, their sources numbered, and the notes."""
    sources = _sources(document["facts"])
    return {
        "facts": [_fact(fact, list(sources)) for fact in document["facts"]],
        "sources": [{"text": text, "notes": notes} for text, notes in sources.items()],
        "notes": document["notes"],
    }


def heading(document: Document) -> str:
    """What is asked, in a few words."""
    cluster = document["cluster"]
    return f"{document['model']['name']} on {cluster['devices']:,} × {cluster['device_name']}"


def sentence(document: Document, plan: Document) -> str:
    """The answer in a few sentences."""
    goal, cluster, run = document["goal"], document["cluster"], document["whole_run"]
    fits = chance(plan["fits_probability"])
    if run is None:
        return (
            f"A step of {document['model']['name']} on {cluster['devices']:,}"
            f" {cluster['device_name']} takes {interval(plan['step_time_s'])} s. It has a"
            f" {fits} chance of fitting in memory; {wall_label(document, plan)} is the wall."
        ).replace(" %", "\N{NO-BREAK SPACE}%")
    time = f"{interval(run['days'])} days"
    if run["days"] is None:
        time = f"{interval(run['training_days'])} days in steps alone"
    cost = f" and costs {interval(run['cost_usd'], money)}" if run["cost_usd"] else ""
    text = (
        f"Training {document['model']['name']} on {count(goal['tokens'])} tokens with"
        f" {cluster['devices']:,} {cluster['device_name']} takes {time}{cost}. It has a {fits}"
        f" chance of fitting in memory; {wall_label(document, plan)} is the wall.{_limits(run)}"
    )
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _limits(run: Document) -> str:
    return "".join(
        f" There is a {chance(run[f'{what}_probability'])} chance of {doing} the {what}."
        for what, doing in (("deadline", "meeting"), ("budget", "staying within"))
        if run[f"{what}_probability"] is not None
    )


def tiles(document: Document, plan: Document) -> list[dict[str, Any]]:
    """The key figures with their intervals."""
    return [
        *_run_tiles(document["whole_run"]),
        *_compute_tiles(document.get("footprint")),
        tile("step time, s", plan["step_time_s"]),
        tile("MFU", plan["mfu"], percent),
        tile("tokens/s per device", plan["tokens_per_s_per_device"]),
        tile("peak memory, GiB", plan["memory_gib"]),
        {
            "label": "chance of fitting in memory",
            "value": chance(plan["fits_probability"]),
            "range": f"{plain(document['cluster']['memory_gib'])} GiB a device",
        },
    ]


def _run_tiles(run: Document | None) -> list[dict[str, Any]]:
    if run is None:
        return []
    days = "days" if run["days"] else "days in steps alone"
    return [
        tile(days, run["days"] or run["training_days"]),
        *_finish(run["finish"]),
        tile("device-hours", run["device_hours"], count),
        tile("cost", run["cost_usd"], money),
        tile("energy", run["energy_mwh"], energy),
    ]


def _compute_tiles(found: Document | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    passed = [t for t in found["thresholds"] if t["above"] and t["status"] != "repealed"]
    above = f"above {passed[-1]['threshold_flop']:.0e} of {passed[-1]['place']}" if passed else ""
    tiles = [{"label": "training FLOP", "value": f"{found['flop']:.2e}", "range": above}]
    if found["co2_tonnes"]:
        tiles.append(tile(f"CO₂, t ({found['grid']['name']})", found["co2_tonnes"]))
    return tiles


def tile(label: str, value: Any, form: Callable[[float], str] = plain) -> dict[str, Any]:
    """A key figure with its interval."""
    return {"label": label, "value": ends(value, form)["mid"], "range": between(value, form)}


def _finish(finish: Document | None) -> list[dict[str, Any]]:
    if finish is None:
        return []
    shown = days_between(finish["early"], finish["late"])
    return [{"label": "last token", "value": day(finish["middle"]), "range": shown, "long": True}]


def _gains(document: Document, plan: Document) -> Any:
    parts = [
        Part(
            label=gain["label"],
            value=100 * gain["throughput"],
            tone="accent" if gain["resource"] == plan["wall"] else "talk3",
            text=share(gain["throughput"]),
        )
        for gain in document["gains"]
    ]
    return bars("gains", "Gain of a tenth more of each resource", parts, "% more tokens per second")


def _run_rows(run: Document) -> list[dict[str, str]]:
    known = [
        {"label": label, "basis": basis} | ends(run[name], form)
        for name, label, form, basis in _ROWS
    ]
    after = 1 + next(i for i, row in enumerate(_ROWS) if row[0] == "days")
    known[after:after] = [
        {"label": f"· {part['label']}", "basis": "days"} | ends(part["days"], plain)
        for part in run["parts"]
    ]
    saved = run["checkpoint"]
    every = {"low": "", "mid": "unknown", "high": ""}
    if saved["interval_s"] is not None:
        every["mid"] = f"{saved['interval_steps']:,} steps"
    kind = "the interval that loses least" if saved["optimal"] else "the interval that was given"
    return [
        {
            "label": "steps",
            "low": "",
            "mid": f"{run['steps']:,}",
            "high": "",
            "basis": "tokens, batch",
        },
        *known,
        {"label": "a checkpoint every", "basis": f"{plain(saved['size_gib'])} GiB, {kind}"} | every,
        {"label": "writing a checkpoint", "basis": "size, storage"}
        | ends(saved["write_s"], seconds),
    ]


def _sources(facts: list[Document]) -> dict[str, list[str]]:
    """Sources in the order they are first used, each with the notes made on it."""
    found: dict[str, list[str]] = {}
    for fact in facts:
        notes = found.setdefault(fact["source"] or "not stated", [])
        if fact["note"] and fact["note"] not in notes:
            notes.append(fact["note"])
    return found


def _fact(fact: Document, sources: list[str]) -> dict[str, Any]:
    value = fact["value"]
    form = format_rate if fact["unit"] == "B/s" else amount
    shown = value if isinstance(value, str) else given(value, form)
    unit = "" if fact["unit"] in ("1", "B/s") else fact["unit"]
    ranged = fact["low"] is not None and fact["low"] != fact["high"]
    return {
        "what": fact["what"],
        "value": f"{shown} {unit}".strip(),
        "range": between(fact, form) if ranged else "",
        "date": fact["date"],
        "confidence": fact["confidence"],
        "badge": _BADGES.get(fact["confidence"], ""),
        "source": sources.index(fact["source"] or "not stated") + 1,
    }


# What a page shows of one layout plan: how it is cut, its step and its memory
# ----------------------------------------------------------------------------

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
