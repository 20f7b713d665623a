"""What the what-if page shows of an answer, as text and lengths for its templates."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from krzem.engine.description import engine_named, engines
from krzem.engine.switches import parse_switches, switches
from krzem.errors import InputError
from krzem.hardware.catalogue import device_ids
from krzem.hardware.machines import machines
from krzem.layout.layout import Precision
from krzem.model.catalogue import model_ids
from krzem.plan.request import Asked
from krzem.report.document import plan_document
from krzem.report.html_answer import MEMORY, TONES, chance, sentence, share, stage_label, tiles
from krzem.report.text import wall_label
from krzem.report.text_table import count, interval, money, percent, plain
from krzem.rules import summary, verdict
from krzem.rules.text import age
from krzem.ui.kept import Answered, Point, State


def form_view(state: State) -> dict[str, Any]:
    """Choices that the form offers beside the state itself."""
    stated = _stated(state)
    engine = _engine_switches(state.engine)
    return {
        "models": sorted(model_ids()),
        "devices": sorted(device_ids()),
        "machines": sorted(machines()),
        "engines": [name for name, found in engines().items() if found.emitter or name == "other"],
        "precisions": [p.value for p in Precision],
        "switches": [
            {"name": name, "meaning": switches()[name].meaning, "choices": choices,
             "now": stated.get(name, "")}
            for name, choices in engine.items()
        ],
    }  # fmt: skip


def _stated(state: State) -> dict[str, str]:
    """Choices of switches that are stated; none where they cannot be read: the answer says why."""
    try:
        return parse_switches([state.switches], [state.without])
    except InputError:
        return {}


def _engine_switches(name: str) -> Mapping[str, Sequence[str]]:
    engine = engine_named(name) if name else engine_named("megatron-lm")
    return {s.name: s.choices for s in engine.switches.values() if len(s.choices) > 1}


def answer_view(answered: Answered) -> dict[str, Any]:
    """Everything that the answer fragment shows of one plan."""
    document = plan_document(answered.plan, answered.asked)
    best = document["best"]
    return {
        "sentence": sentence(document, best),
        "whole": answered.whole,
        "priced": f"{document['layouts_evaluated']:,}",
        "tiles": tiles(document, best),
        "step": _step(document),
        "memory": _memory(document),
        "wall": wall_label(document, best),
        "gains": _gains(document),
        "layouts": _layouts(document),
        "switches": best["switches"],
        "rules": rules_view(answered),
        "command": answered.state.command(),
        "toml": answered.state.toml(),
        "notes": document["notes"],
        "query": answered.state.query(),
    }


def rules_view(answered: Answered) -> dict[str, str] | None:
    """What trade rules say of the chip today, for the buyer's country; None where none is given.

    Raises UnknownNameError for a country that is not known.
    """
    device = answered.asked.task.cluster.device
    if not answered.state.buyer or device.id not in device_ids():
        return None
    found = verdict(device.id, datetime.date.today(), answered.state.buyer)
    return {"chip": device.name, "to": found.buyer.to, "says": summary(found), "age": age(found)}


def _bars(rows: Sequence[tuple[str, float, str, str]]) -> list[dict[str, Any]]:
    """Rows of one chart: label, share of the longest in per cent, tone, text."""
    most = max((abs(value) for _, value, _, _ in rows), default=1.0) or 1.0
    return [
        {"label": label, "left": 0.0, "width": round(100 * max(value, 0.0) / most, 2),
         "tone": tone, "text": text}
        for label, value, tone, text in rows
    ]  # fmt: skip


def _step(document: Mapping[str, Any]) -> dict[str, Any]:
    """The waterfall of a step: every part begins where the one before ends."""
    step = document["best"]["step_time_s"]
    parts = [p for p in document["best"]["breakdown"] if p["seconds"]]
    end = max(step["high"], sum(max(p["seconds"], 0.0) for p in parts))
    rows, left = [], 0.0
    for part in parts:
        width = max(part["seconds"], 0.0)
        rows.append(
            {"label": part["label"], "left": round(100 * left / end, 2),
             "width": round(100 * width / end, 2), "tone": TONES.get(part["term"], "extra2"),
             "text": f"{plain(part['seconds'])} s, {percent(part['share'] or 0.0)}"}
        )  # fmt: skip
        left += part["seconds"]
    return {
        "rows": rows,
        "total": f"{interval(step)} s",
        "low": round(100 * step["low"] / end, 2),
        "high": round(100 * step["high"] / end, 2),
    }


def _memory(document: Mapping[str, Any]) -> dict[str, Any]:
    capacity, ranks = document["cluster"]["memory_gib"], document["best"]["ranks"]
    most = 1.05 * max(capacity, *(rank["total_gib"] for rank in ranks))
    return {
        "rows": [_rank(rank, most, document["best"]) for rank in ranks],
        "capacity": round(100 * capacity / most, 2),
        "capacity_text": f"{plain(capacity)} GiB on a device",
        "fits": chance(document["best"]["fits_probability"]),
        "legend": list(MEMORY.values()),
    }  # fmt: skip


def _rank(rank: dict[str, Any], most: float, plan: dict[str, Any]) -> dict[str, Any]:
    parts, left = [], 0.0
    for name, (label, tone) in MEMORY.items():
        value = rank[f"{name}_gib"]
        place = {"left": round(100 * left / most, 2), "width": round(100 * value / most, 2)}
        parts.append({"label": f"{label} {plain(value)} GiB", "tone": tone, **place})
        left += value
    return {
        "label": stage_label(rank, plan),
        "parts": parts,
        "text": f"{plain(rank['total_gib'])} GiB",
    }


def _gains(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    wall = document["best"]["wall"]
    return _bars(
        [(g["label"], g["throughput"], "accent" if g["resource"] == wall else "talk3",
          share(g["throughput"])) for g in document["gains"]]
    )  # fmt: skip


def _layouts(document: Mapping[str, Any]) -> list[dict[str, str]]:
    best = document["best"]
    plans = [best | {"relative_time": 1.0}, *document["alternatives"]]
    return [
        {"layout": p["layout_text"], "step": interval(p["step_time_s"]),
         "mfu": percent(p["mfu"]["mid"]), "memory": plain(p["memory_gib"]["mid"]),
         "fits": chance(p["fits_probability"]),
         "against": "best" if p["relative_time"] == 1.0 else share(p["relative_time"] - 1.0)}
        for p in plans
    ]  # fmt: skip


def pinned_view(answers: Sequence[Answered]) -> dict[str, Any]:
    """A table of pinned answers, one column each."""
    documents = [plan_document(a.plan, a.asked) for a in answers]
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("model", lambda d: d["model"]["name"]),
        ("cluster", lambda d: f"{d['cluster']['devices']:,} × {d['cluster']['device_name']}"),
        ("engine", lambda d: d["engine"]["title"]),
        ("best layout", lambda d: d["best"]["layout_text"]),
        ("step, s", lambda d: interval(d["best"]["step_time_s"])),
        ("MFU", lambda d: interval(d["best"]["mfu"], percent)),
        ("memory, GiB", lambda d: interval(d["best"]["memory_gib"])),
        ("chance of fitting in memory", lambda d: chance(d["best"]["fits_probability"])),
        ("days", lambda d: _of_run(d, "days", plain)),
        ("device-hours", lambda d: _of_run(d, "device_hours", count)),
        ("cost", lambda d: _of_run(d, "cost_usd", money)),
        ("wall", lambda d: wall_label(d, d["best"])),
    ]
    return {
        "titles": [("pinned" if i < len(answers) - 1 else "now") for i in range(len(answers))],
        "rows": [{"label": label, "cells": [form(d) for d in documents]} for label, form in rows],
    }


def _of_run(document: Mapping[str, Any], name: str, form: Callable[[float], str]) -> str:
    run = document["whole_run"]
    return "unknown without tokens" if run is None else interval(run[name], form)


def _ends(point: Point, name: str) -> tuple[float, float, float] | None:
    run = None if point.plan is None else point.plan.whole_run
    found = None if run is None else getattr(run, name)
    return None if found is None else (found.low, found.mid, found.high)


def curve_view(points: Sequence[Point], asked: Asked, wanted: int) -> dict[str, Any]:
    """Days and cost over numbers of devices: two charts with their band."""
    now, goal = asked.task.cluster.devices, asked.task.goal
    return {
        "known": len(points),
        "wanted": wanted,
        "charts": [
            chart for chart in (
                _chart("days of the whole run", points, now, "days", plain,
                       limit=("deadline", goal.deadline_days)),
                _chart("cost", points, now, "cost_usd", money, limit=("budget", goal.budget_usd)),
            ) if chart is not None
        ],
        "errors": [f"{p.devices:,} devices: {p.error}" for p in points if p.error],
    }  # fmt: skip


WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 440.0, 230.0, 58.0, 36.0, 14.0
"""Of a chart, in units of its drawing."""


def _chart(
    title: str,
    points: Sequence[Point],
    now: int,
    name: str,
    form: Callable[[float], str],
    *,
    limit: tuple[str, float | None],
) -> dict[str, Any] | None:
    known = [(p.devices, ends) for p in points if (ends := _ends(p, name)) is not None]
    if not known:
        return None
    counts = [devices for devices, _ in known]
    bound = [] if limit[1] is None else [limit[1]]
    low = min(*bound, *(ends[0] for _, ends in known), math.inf) / 1.15
    high = max(*bound, *(ends[2] for _, ends in known), 0.0) * 1.15

    def x(devices: float) -> float:
        across = math.log(max(counts) / min(counts)) or 1.0
        return round(LEFT + (WIDTH - LEFT - 20) * math.log(devices / min(counts)) / across, 1)

    def y(value: float) -> float:
        return round(
            TOP + (HEIGHT - TOP - BOTTOM) * math.log(high / value) / math.log(high / low), 1
        )

    band = [(x(d), y(e[2])) for d, e in known] + [(x(d), y(e[0])) for d, e in reversed(known)]
    return {
        "title": title,
        "band": " ".join(f"{px},{py}" for px, py in band),
        "line": " ".join(f"{x(d)},{y(e[1])}" for d, e in known),
        "dots": [
            {"x": x(d), "y": y(e[1]), "now": d == now,
             "text": f"{d:,} devices: {form(e[1])} ({form(e[0])} to {form(e[2])})"}
            for d, e in known
        ],
        "x_ticks": [{"x": x(d), "text": f"{d:,}"} for d in counts],
        "limit": {"y": y(bound[0]), "text": f"{limit[0]} {form(bound[0])}"} if bound else None,
        "y_ticks": [{"y": y(v), "text": form(v)} for v in _ticks(low, high)],
    }  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends, two to five of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        inside = [
            v for e in range(first, last + 1) for m in steps if low <= (v := m * 10.0**e) <= high
        ]
        if len(inside) >= 2:
            return inside if len(inside) <= 5 else inside[:: -(-len(inside) // 5)]
    return [math.sqrt(low * high)]
