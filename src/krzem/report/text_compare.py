"""A comparison as terminal text: one row per cluster, the best of each column marked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from krzem.report.text import Document, format_sentence
from krzem.report.text_numbers import count, energy, given, interval, money, percent, plain
from krzem.report.text_table import paragraph, shortened, table

_HEAD = ("cluster", "days", "device-h", "MFU", "energy", "cost", "deadline", "budget")


def format_comparison(document: Document) -> str:
    """Text of at most 100 columns."""
    blocks = [_title(document), _table(document), _each(document), _notes(document)]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def format_comparison_table(document: Document) -> str:
    """The table alone."""
    return "\n".join(_table(document)) + "\n"


def _title(document: Document) -> Iterator[str]:
    model = document["model"]
    yield from paragraph(
        f"{model['name']}: {count(model['parameters'])} parameters,"
        f" {count(model['active_parameters'])} active per token"
    )


def _table(document: Document) -> Iterator[str]:
    rows = [_row(document, i, entry) for i, entry in enumerate(document["plans"])]
    used = [i for i in range(len(_HEAD)) if i < 6 or any(row[i] for row in rows)]
    yield from table(
        [_HEAD[i] for i in used],
        [[row[i] for i in used] for row in rows],
        "l" + "r" * (len(used) - 1),
    )
    yield "* best of its column; days with their 80 % interval"


def _row(document: Document, index: int, entry: Document) -> tuple[str, ...]:
    name = shortened(entry["cluster"], 30)
    plan = entry["plan"]
    if plan is None:
        return (name, "no plan", "", "", "", "", "", "")
    run = plan["whole_run"]
    cells = {
        "days": interval(run["days"]),
        "device_hours": _mid(run["device_hours"], count),
        "mfu": _mid(plan["best"]["mfu"], percent),
        "energy_mwh": _mid(run["energy_mwh"], energy),
        "cost_usd": _mid(run["cost_usd"], money),
    }
    marked = (
        f"{text}{'*' if document['best'][key] == index else ' '}" for key, text in cells.items()
    )
    goal = plan["goal"]
    return (
        name,
        *marked,
        _kept(goal["deadline_days"], run["deadline_probability"]),
        _kept(goal["budget_usd"], run["budget_probability"]),
    )


def _mid(value: Document | None, shown: Any) -> str:
    return given(value and value["mid"], shown)


def _kept(limit: float | None, chance: float | None) -> str:
    """``yes, 97 %`` where a limit is kept more often than not."""
    if limit is None:
        return ""
    if chance is None:
        return "unknown"
    return f"{'yes' if chance >= 0.5 else 'no'}, {percent(chance)}"


def _each(document: Document) -> Iterator[str]:
    """The answer for each cluster, or why there is none."""
    for entry in document["plans"]:
        plan = entry["plan"]
        if plan is None:
            yield from paragraph(f"{entry['cluster']}: {entry['error']}", "  ", "    ")
            continue
        sentence = format_sentence(plan, plan["best"])
        memory = plan["best"]["memory_gib"]["mid"]
        yield from paragraph(
            f"{sentence}; {plain(memory)} of {plain(plan['cluster']['memory_gib'])} GiB,"
            f" fits with {percent(plan['best']['fits_probability'])}.",
            "  ",
            "    ",
        )


def _notes(document: Document) -> Iterator[str]:
    notes: dict[str, list[str]] = {}
    for entry in document["plans"]:
        plan = entry["plan"]
        if plan is not None:
            for note in (*plan["notes"], *plan["whole_run"]["unknown"]):
                notes.setdefault(note, []).append(entry["cluster"])
    yield "Notes"
    for note, clusters in notes.items():
        everywhere = len(clusters) == len(document["plans"])
        yield from paragraph(note if everywhere else f"{', '.join(clusters)}: {note}", "  - ")
