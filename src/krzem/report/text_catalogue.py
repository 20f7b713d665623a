"""The catalogues of devices and models as terminal tables."""

from __future__ import annotations

from typing import Any

from krzem.report.text_numbers import count, given, plain
from krzem.report.text_table import paragraph, shortened, table

Document = dict[str, Any]


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
