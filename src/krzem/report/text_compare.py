"""A comparison as terminal text: one row per cluster, the best of each column marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from krzem.report.text import Document, format_sentence
from krzem.report.text_table import (
    count,
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

_HEAD = ("cluster", "precision", "days", "device-h", "MFU", "energy", "cost")


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
    yield from table(_HEAD, rows, "llrrrrr")
    yield from _cheapest(document)
    yield from paragraph(
        "* best of its column; days with their 80 % interval; MFU is of the peak of the precision",
        rest="  ",
    )
    yield from _limit(document, "deadline_days", "deadline_probability", _deadline)
    yield from _limit(document, "budget_usd", "budget_probability", _budget)


def _cheapest(document: Document) -> Iterator[str]:
    """Which costs less, by how much, and how sure that is."""
    found = document.get("cheapest")
    if found is None:
        return
    names = [entry["cluster"] for entry in document["plans"]]
    yield from paragraph(
        f"{names[found['index']]} is cheaper than {names[found['next']]} by"
        f" {money(found['saves_usd'])} ({percent(found['chance'])} chance of being cheaper)."
    )


def _row(document: Document, index: int, entry: Document) -> tuple[str, ...]:
    name = shortened(entry["cluster"], 26)
    plan = entry["plan"]
    if plan is None:
        return (name, "no plan", *[""] * (len(_HEAD) - 2))
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
    return (name, plan["goal"]["precision"], *marked)


def _mid(value: Document | None, shown: Any) -> str:
    return given(value and value["mid"], shown)


def _deadline(days: float) -> str:
    return f"Deadline of {plain(days)} days"


def _budget(usd: float) -> str:
    return f"Budget of {money(usd)}"


def _limit(
    document: Document, limit: str, chance: str, named: Callable[[float], str]
) -> Iterator[str]:
    """Who keeps a limit, and with what chance; nothing where there is none."""
    plans = [entry for entry in document["plans"] if entry["plan"]]
    limits = {entry["plan"]["goal"][limit] for entry in plans} - {None}
    for value in limits:
        kept = [f"{e['cluster']} {_kept(e['plan']['whole_run'][chance])}" for e in plans]
        yield from paragraph(f"{named(value)}: {', '.join(kept)}.")


def _kept(chance: float | None) -> str:
    """``keeps it (97 %)`` where it is kept more often than not."""
    if chance is None:
        return "cannot be judged"
    return f"{'keeps' if chance >= 0.5 else 'misses'} it ({percent(chance)})"


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
            f" {percent(plan['best']['fits_probability'])} chance of fitting.",
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


# The catalogues of devices and models as terminal tables
# -------------------------------------------------------


def format_devices(document: Document) -> str:
    """One row per device, all rates per card; an empty cell is unknown."""
    rows = [
        (
            device["id"],
            _cell(device["bf16_tflops"] or device["fp16_tflops"]),
            _cell(device["fp8_tflops"]),
            _cell(device["mem_gib"]),
            _cell(device["mem_gb_per_s"]),
            _cell(device["scaleup_gb_per_s"]),
            _cell(device["scaleup_domain"]),
            _cell(device["scaleout_gbit_per_s"]),
            _cell(device["dies_per_card"]),
            device["confidence"],
        )
        for device in document["devices"]
    ]
    head = ("id", "16-bit", "fp8", "GiB", "GB/s", "up GB/s", "domain", "out Gb/s", "dies", "trust")
    lines = table(head, rows, "lrrrrrrrrl")
    lines += ["", *paragraph(_DEVICES)]
    return "\n".join(lines) + "\n"


_DEVICES = (
    "Per card: dense TFLOP/s of bf16 (else fp16) and fp8, memory and its bandwidth, scale-up link "
    "and its domain in cards, network per card. A card with several dies counts as that many "
    "devices. An empty cell is unknown. krzem devices NAME shows one with its sources."
)


def format_device(device: Document) -> str:
    """Everything the catalogue knows of one card."""
    rows = [
        (name.replace("_", " "), value if isinstance(value, str) else given(value, plain))
        for name, value in device.items()
    ]
    return "\n".join(table(("", ""), rows, "lw")[1:]) + "\n"


def format_models(document: Document) -> str:
    """One row per built-in model with computed sizes and the published recipe."""
    rows = []
    for model in document["models"]:
        recipe = model["recipe"] or {}
        rows.append(
            (
                model["id"],
                count(model["parameters"]),
                count(model["active_parameters"]),
                given(recipe.get("tokens"), count),
                given(recipe.get("sequence")),
                given(recipe.get("global_batch")),
                recipe.get("precision") or "unknown",
                recipe.get("optimizer") or "unknown",
                shortened(model["date"], 10),
            )
        )
    head = ("id", "total", "active", "tokens", "seq", "batch", "precision", "optim", "published")
    lines = table(head, rows, "lrrrrrlll")
    lines += ["", *paragraph(_MODELS)]
    return "\n".join(lines) + "\n"


_MODELS = (
    "Total and active parameters are computed from the config, without multi-token prediction. "
    "Tokens to optimizer: the published training recipe, which a plan takes where no option says "
    "otherwise; batch in sequences. Any Hugging Face config.json works too: give its path."
)


def format_model(model: Document) -> str:
    """One model with the sources of its config and its recipe."""
    recipe = model["recipe"] or {}
    plainly = {k: v for k, v in model.items() if k != "recipe"}
    named = {f"recipe: {k}": v for k, v in recipe.items()}
    rows = [(name.replace("_", " "), _shown(value)) for name, value in (plainly | named).items()]
    return "\n".join(table(("", ""), rows, "lw")[1:]) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v:g}" for k, v in value.items()) or "unknown"
    if isinstance(value, list):
        plain_words = all(isinstance(item, str) for item in value)
        return (", " if plain_words else "; ").join(map(_shown, value)) or "none"
    return value if isinstance(value, str) else given(value, lambda number: f"{number:,.15g}")


def _cell(value: float | None) -> str:
    return "" if value is None else plain(value)
