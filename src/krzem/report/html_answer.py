"""What a page shows of one answer beside its layout: the run, the wall, facts and notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krzem.report.html_charts import Part, bars
from krzem.report.html_format import (
    UNKNOWN,
    between,
    both,
    day,
    dollars,
    large,
    maybe,
    middle,
    number,
    percent,
    share,
)

Document = Mapping[str, Any]
_ROWS = (
    ("training_days", "days in steps alone", number, "step time, tokens, batch"),
    ("days", "days, with everything", number, "and failures, restarts, checkpoints"),
    ("device_hours", "device-hours", large, "days, devices"),
    ("node_hours", "node-hours", large, "days, nodes"),
    ("energy_mwh", "energy, MWh", number, "device-hours, power"),
    ("cost_usd", "cost, US dollars", dollars, "device-hours, price"),
    ("goodput", "goodput", percent, "failures, restarts, checkpoints"),
    ("interruptions", "interruptions", number, "failure rate"),
    ("recovery_s", "seconds to recover from one", number, "restart, loading"),
)


def answer_view(document: Document, plan: Document) -> dict[str, Any]:
    """Everything of a plan or explain document that is not of the layout itself."""
    run = document["whole_run"]
    return facts_view(document) | {
        "wall": wall(document, plan),
        "gains": _gains(document, plan),
        "run_rows": _run_rows(run),
        "run_notes": [*run["unknown"], *run["notes"]],
        "tiles": tiles(document, plan),
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


def wall(document: Document, plan: Document) -> str:
    """The label of the resource that binds."""
    labels = {gain["resource"]: gain["label"] for gain in document["gains"]}
    return str(labels.get(plan["wall"], plan["wall"]))


def sentence(document: Document, plan: Document) -> str:
    """The answer in one sentence or two."""
    goal, cluster, run = document["goal"], document["cluster"], document["whole_run"]
    who = f"{document['model']['name']} trains on {large(goal['tokens'])} tokens with"
    where = f"{cluster['devices']:,} {cluster['device_name']}"
    if run["days"] is None:
        time = f"{both(run['training_days'])} days in steps alone"
    else:
        time = f"{both(run['days'])} days"
    cost = f" and {both(run['cost_usd'], dollars)}" if run["cost_usd"] else ""
    end = f"It fits into memory with a chance of {percent(plan['fits_probability'])}, and "
    return f"{who} {where} in {time}{cost}. {end}{wall(document, plan)} is the wall.{_limits(run)}"


def _limits(run: Document) -> str:
    parts = []
    for what, chance in (("deadline", run["deadline_probability"]),
                         ("budget", run["budget_probability"])):  # fmt: skip
        if chance is not None:
            parts.append(f" The {what} is kept with a chance of {percent(chance)}.")
    return "".join(parts)


def tiles(document: Document, plan: Document) -> list[dict[str, Any]]:
    """The key figures with their intervals."""
    run = document["whole_run"]
    found = [
        _tile("days", run["days"] or run["training_days"]),
        _tile("device-hours", run["device_hours"], large),
        _tile("cost", run["cost_usd"], dollars),
        _tile("energy, MWh", run["energy_mwh"]),
        _tile("step time, s", plan["step_time_s"]),
        _tile("MFU", plan["mfu"], percent),
        _tile("tokens/s per device", plan["tokens_per_s_per_device"]),
        _tile("peak memory, GiB", plan["memory_gib"]),
    ]
    if run["finish"]:
        early, late = day(run["finish"]["early"]), day(run["finish"]["late"])
        middle_day = day(run["finish"]["middle"])
        finish = {"label": "finish", "value": middle_day, "range": f"{early} – {late}"}
        found.insert(1, finish | {"long": True})
    return found


def _tile(label: str, interval: Any, form: Any = number) -> dict[str, Any]:
    return {"label": label, "value": middle(interval, form), "range": between(interval, form)}


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
    rows = [{"label": "steps", "low": "", "mid": f"{run['steps']:,}", "high": "",
             "basis": "tokens, batch"}]  # fmt: skip
    for name, label, form, basis in _ROWS:
        value = run[name]
        low, mid, high = (
            form(value[end]) if value else UNKNOWN if end == "mid" else ""
            for end in ("low", "mid", "high")
        )
        rows.append({"label": label, "low": low, "mid": mid, "high": high, "basis": basis})
    saved = run["checkpoint"]
    rows.append(
        {
            "label": "a checkpoint every, steps",
            "low": "",
            "mid": maybe(saved["interval_steps"], number),
            "high": "",
            "basis": f"{number(saved['size_gib'])} GiB"
            + (", the interval that loses least" if saved["optimal"] else ", as asked"),
        }
    )
    return rows


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
    shown = large(value) if isinstance(value, int | float) else maybe(value, str)
    ends = {"low": fact["low"], "high": fact["high"]}
    known = None not in ends.values() and ends["low"] != ends["high"]
    kind = {"high": " good", "given": " good", "measured": " good", "low": " low"}
    return {
        "what": fact["what"],
        "value": f"{shown} {fact['unit']}".strip(),
        "range": between({k: float(v) for k, v in ends.items()}, large) if known else "",
        "date": fact["date"],
        "confidence": fact["confidence"],
        "badge": kind.get(fact["confidence"], ""),
        "source": sources.index(fact["source"] or "not stated") + 1,
    }
