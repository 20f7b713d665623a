"""Published runs whose hardware is known: by how much they fell short of their plans.

``facts/known_runs.csv`` names them; their numbers stand there, or in ``facts/whole_runs.csv``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.facts.table import read_table
from krzem.model.architecture import Architecture
from krzem.model.build import read_config
from krzem.model.parameters import count
from krzem.quantity import parse_count

TABLE = "known_runs.csv"
LAB_ENGINES = {
    "deepseek": "deepseek", "eleuther": "megatron-deepspeed", "bigscience": "megatron-deepspeed",
    "bigcode": "megatron-lm", "nvidia": "megatron-lm", "mosaic": "fsdp", "ai2": "fsdp",
    "google": "maxtext", "deepmind": "maxtext", "huawei": "mindspeed-llm",
}  # fmt: skip
"""Engines by laboratory, as their reports name them; others are not known."""
KERNEL = 0.2
"""Log width of each known shortfall."""
UNSEEN, UNSEEN_MIDDLE, UNSEEN_SPREAD = 0.1, 0.3, 0.7
"""Share, log middle and width of shortfalls unlike any that is known."""
SOME_HOURS = 1e5
"""Card-hours of the run whose usual length is the constant of the line through the known ones."""
USUAL_BATCH = 2**22
"""Tokens a step where no source says it."""
WIDTH_STEP = 256
"""Inner widths are multiples of this, so that tensors can be cut."""
_TAKEN = {
    "device": "accelerator_id", "devices": "devices", "device_hours": "published_device_hours",
    "tokens": "train_tokens", "precision": "precision", "global_batch": "global_batch",
    "sequence": "seq_len",
}  # fmt: skip
_SHAPE = ("layers", "hidden", "ffn_hidden", "heads", "kv_heads", "head_dim", "vocab", "experts",
          "experts_per_token", "moe_ffn_hidden", "params_b", "seq_len")  # fmt: skip


@cache
def known_runs() -> Sequence[Mapping[str, str]]:
    """The rows, numbers filled in from the table of whole runs where they stand there."""
    totals = {row["id"]: row for row in read_table("whole_runs.csv")}
    return tuple(_filled(row, totals.get(row["total"])) for row in read_table(TABLE))


def _filled(row: Mapping[str, str], total: Mapping[str, str] | None) -> Mapping[str, str]:
    if total is None:
        return row
    taken = {name: total[column] for name, column in _TAKEN.items() if not row.get(name)}
    own = {name: total[name] for name in _SHAPE if total.get(name)} if not row["shape"] else {}
    return {**row, **taken, **own}


@cache
def shortfalls(leave_out: str = "") -> tuple[float, ...]:
    """Logarithm of published over expected hours of the known runs, one left out."""
    return tuple(
        log(float(row["shortfall"]))
        for row in read_table(TABLE)
        if row["shortfall"] and row["id"] != leave_out
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long runs take: log days by log card-hours, and what single runs do about that line."""

    days: float
    """Of a run of ``SOME_HOURS``."""
    power: float
    """The days grow with this power of the card-hours."""
    rest: NDArray[np.float64]
    """Log days of each known run over the line."""
    width: float
    """Log width of each of them as a kernel, by Silverman's rule (Density Estimation for Statistics
    and Data Analysis, 1986, equation 3.31): their tail is long, and a normal law would be wide."""

    def usual(self, hours: Any) -> Any:
        """Days that runs of so many card-hours take, an array or a number."""
        return self.days * (hours / SOME_HOURS) ** self.power

    def chance(self, off: NDArray[np.float64]) -> NDArray[np.float64]:
        """Density of runs whose log days are ``off`` over the line: those of the known ones, and
        some room, twice as wide as they lie, for what none of them did."""
        grid = np.linspace(-8.0, 8.0, 1601)
        known = np.exp(-0.5 * ((grid[:, None] - self.rest[None, :]) / self.width) ** 2).sum(axis=1)
        unseen = np.exp(-0.5 * (grid / (2.0 * self.rest.std())) ** 2)
        both = (1 - UNSEEN) * known / known.sum() + UNSEEN * unseen / unseen.sum()
        return np.asarray(np.interp(off, grid, both, left=0.0, right=0.0))


@cache
def durations(leave_out: str = "") -> Durations:
    """From the known runs with hours and a number of cards, one left out."""
    runs = [r for r in known_runs() if r["devices"] and r["device_hours"] and r["id"] != leave_out]
    hours, cards = (
        np.array([float(r[name]) for r in runs]) for name in ("device_hours", "devices")
    )
    over, days = np.log(hours / SOME_HOURS), np.log(hours / 24.0 / cards)
    power, start = np.polyfit(over, days, 1)
    rest = days - start - power * over
    quarters = np.quantile(rest, [0.25, 0.75])
    spread = min(float(rest.std(ddof=2)), float(quarters[1] - quarters[0]) / 1.34)
    return Durations(days=float(np.exp(start)), power=float(power), rest=rest,
                     width=0.9 * spread * len(runs) ** -0.2)  # fmt: skip


def error_weights(grid: NDArray[np.float64], sigma: float, leave_out: str) -> NDArray[np.float64]:
    """Weights of ``grid``, logarithms of real over expected hours: the known runs, each with the
    width ``sigma`` of the planner's error or more, and some room for what none of them did."""
    width = max(KERNEL, sigma)
    weights = np.zeros_like(grid)
    for value in shortfalls(leave_out) or (0.0,):
        weights += np.exp(-0.5 * ((grid - value) / width) ** 2)
    weights *= (1 - UNSEEN) / weights.sum()
    unseen = np.exp(-0.5 * ((grid - UNSEEN_MIDDLE) / UNSEEN_SPREAD) ** 2)
    return np.asarray(weights + UNSEEN * unseen / unseen.sum())


def model_of(row: Mapping[str, str]) -> str | Architecture:
    """The model of a known run: a built-in one, or one of the shape that its table gives."""
    if row["model"]:
        return row["model"]
    return read_config(_config(_shape(row)), row["id"])


def _shape(row: Mapping[str, str]) -> Mapping[str, str]:
    """The row of shapes.csv that is named, or the row itself."""
    shapes = {shape["id"]: shape for shape in read_table("shapes.csv")}
    return shapes.get(row["shape"], row)


def _config(shape: Mapping[str, str]) -> dict[str, Any]:
    """A Llama (or Mixtral) config of as many parameters: the inner width is that which gives them,
    because older models have two matrices where Llama has three."""
    heads = int(shape["heads"])
    config: dict[str, Any] = {
        "model_type": "llama", "hidden_size": int(shape["hidden"]),
        "num_hidden_layers": int(shape["layers"]), "num_attention_heads": heads,
        "num_key_value_heads": int(shape["kv_heads"] or heads),
        "head_dim": int(shape["head_dim"] or int(shape["hidden"]) // heads),
        "vocab_size": int(shape["vocab"]), "intermediate_size": int(shape["ffn_hidden"] or 1),
        "max_position_embeddings": int(shape["seq_len"] or 2048), "tie_word_embeddings": False,
    }  # fmt: skip
    if shape.get("experts"):
        inner = int(shape["moe_ffn_hidden"] or shape["ffn_hidden"])
        return config | {"model_type": "mixtral", "num_local_experts": int(shape["experts"]),
                         "num_experts_per_tok": int(shape["experts_per_token"]),
                         "intermediate_size": inner}  # fmt: skip
    if shape.get("params_b"):
        unit = 3 * config["hidden_size"] * config["num_hidden_layers"]
        bare = count(read_config(config, "shape")).total - unit * config["intermediate_size"]
        if bare > float(shape["params_b"]) * 1e9:  # small models tie their embeddings
            bare -= config["hidden_size"] * config["vocab_size"]
            config["tie_word_embeddings"] = True
        inner = (float(shape["params_b"]) * 1e9 - bare) / unit
        config["intermediate_size"] = max(round(inner / WIDTH_STEP), 1) * WIDTH_STEP
    return config


def run_of(row: Mapping[str, str]) -> dict[str, Any]:
    """Tokens, batch, sequence and precision as a plan takes them."""
    run: dict[str, Any] = {"tokens": parse_count(row["tokens"])}
    if row["precision"]:
        run["precision"] = row["precision"]
    if row["global_batch"]:
        run["global_batch"] = int(row["global_batch"])
    elif not row["model"] or row["total"]:
        run["batch_tokens"] = USUAL_BATCH
    sequence = row.get("sequence") or _shape(row).get("seq_len")
    if sequence:
        run["sequence"] = int(sequence)
    return run
