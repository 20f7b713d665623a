"""The trainer's tables of a run file as dataclasses: every key, how it is read, what it means."""

# ruff: noqa: RUF009 - setting() is a dataclass field
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from krzem.errors import QuantityError, shorten
from krzem.keys import REQUIRED, Number, Whole, anything, flag, one_of, setting, shown, text
from krzem.quantity import parse_count, parse_flops, parse_length
from krzem.train.optim.schedule import KINDS

PRECISIONS = ("bf16", "fp32", "fp8-block")
"""Arithmetic of matrix products that the trainer has."""
MOST_SEED = 2**63 - 1
FOLDERS = ("string", "object")
"""JSON types of what :func:`read_folders` reads."""


def read_steps(value: Any) -> tuple[int, int]:
    """Steps "10:13": the first, and the one after the last."""
    first, colon, after = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not (first + after).isdigit() or not first or not after:
        raise QuantityError(
            f'it must be steps such as "10:13", the last one not among them, not {shown(value)}.'
        )
    if not 0 < int(first) < int(after):
        raise QuantityError("the first step must be 1 or more, and below the second number.")
    return int(first), int(after)


def read_folders(value: Any) -> Any:
    """A folder, or folders with weights."""
    if isinstance(value, Mapping) and value:
        for folder, weight in value.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise QuantityError(f"the weight of {shorten(folder)} must be a number.")
        return value
    if not isinstance(value, str) or not value.strip():
        raise QuantityError(
            f"it must be a folder in quotes, or folders with weights, not {shown(value)}."
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalTable:
    """``[goal]``: what is trained, shared with the planner."""

    tokens: int = setting(REQUIRED, parse_count, '"2B"', "tokens of the whole run")
    sequence: int = setting(REQUIRED, parse_length, '"4k"', "tokens of a sequence")
    global_batch: int = setting(REQUIRED, parse_count, "512", "sequences per optimizer step")
    precision: str = setting("bf16", one_of(*PRECISIONS), '"bf16"', "arithmetic of matrix products")
    optimizer: str = setting("adamw", one_of("adamw", "muon"), '"adamw"', "adamw or muon")
    deadline: Any = setting(None, anything, '"60d"', "the controller's")
    budget: Any = setting(None, anything, '"$4M"', "the controller's")
    deadline_days: Any = setting(None, anything, "60", "the planner's")
    budget_usd: Any = setting(None, anything, "4e6", "the planner's")
    states: Any = setting(None, anything, "{ moments = 8 }", "the planner's")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTable:
    """``[train]``: how it is trained."""

    seed: int = setting(0, Whole(most=MOST_SEED), "1", "of initial values and of the order of data")
    device: str = setting("auto", text, '"cuda"', "auto, cpu, cuda or npu")
    mtp: float = setting(0.3, Number(), "0.3", "weight of multi-token prediction")
    balance: float = setting(1e-4, Number(), "1e-4", "weight of the sequence-wise balance loss")
    bias_rate: float = setting(1e-3, Number(), "1e-3", "step of the balancing biases")
    z: float = setting(0.0, Number(), "1e-4", "weight of the output's z-loss")
    router_z: float = setting(0.0, Number(), "1e-3", "weight of the routers' z-loss")
    indexer: float = setting(
        1e-2, Number(), "1e-2", "weight of what sparse attention's indexer learns from"
    )
    compile: bool = setting(False, flag, "true", "compile layers with torch.compile")
    expert_scales: str = setting(
        "block", one_of("block", "row"), '"row"', "what a scale of experts in fp8-block is of"
    )
    capacity: float | None = setting(
        None, Number(1), "1.25", "rows that a rank may send another's experts, over an even share"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataTable:
    """``[data]``: tokens made by ``krzem data build``."""

    path: Any = setting(
        REQUIRED, read_folders, '"tokens"', "a folder, or a table of folders with weights",
        types=FOLDERS,
    )  # fmt: skip
    documents: bool = setting(False, flag, "true", "keep attention within a document")
    verify: bool = setting(
        True, flag, "false", "read every shard at the start and compare with its hash"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerTable:
    """``[optimizer]``."""

    rate: float = setting(3e-4, Number(), "3e-4", "peak learning rate")
    beta1: float = setting(0.9, Number(0, 1), "0.9", "of AdamW")
    beta2: float = setting(0.95, Number(0, 1), "0.95", "of AdamW")
    eps: float = setting(1e-8, Number(), "1e-8", "of AdamW")
    momentum: float = setting(0.95, Number(0, 1), "0.95", "of Muon")
    weight_decay: float = setting(0.1, Number(), "0.1", "of matrices")
    clip: float = setting(1.0, Number(), "1.0", "largest gradient norm, 0 for none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleTable:
    """``[schedule]``: the learning rate and the batch over tokens."""

    kind: str = setting("wsd", one_of(*KINDS), '"cosine"', "shape after the warm-up")
    warmup: int = setting(0, parse_count, '"100M"', "tokens of linear warm-up")
    decay_share: float = setting(0.2, Number(0, 1), "0.2", "last part of the run, of wsd")
    final_share: float = setting(0.1, Number(0, 1), "0.1", "rate at the end over the peak")
    ramp_from: int = setting(0, Whole(), "64", "sequences of the first step, 0: no batch ramp")
    ramp_by: int = setting(0, Whole(), "64", "sequences by which the batch grows, 0: ramp_from")
    ramp_tokens: int = setting(
        0, parse_count, '"10B"', "tokens over which it grows to goal.global_batch"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointTable:
    """``[checkpoint]``."""

    every: int = setting(1000, Whole(), "1000", "steps between checkpoints, 0: only at the end")
    keep_last: int = setting(3, Whole(1), "3", "newest checkpoints kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTable:
    """``[evaluation]``: loss on held-out data."""

    every: int = setting(0, Whole(), "1000", "steps between evaluations, 0: none")
    sequences: int = setting(64, Whole(1), "64", "sequences of one evaluation")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsTable:
    """``[metrics]``."""

    every: int = setting(10, Whole(), "1000", "steps between lines on the screen")
    tensorboard: bool = setting(False, flag, "true", "also write TensorBoard files")
    wandb: bool = setting(False, flag, "true", "also log to Weights & Biases")
    mlflow: bool = setting(False, flag, "true", "also log to MLflow")
    profile: tuple[int, int] | None = setting(
        None, read_steps, '"10:13"', 'steps that torch\'s profiler records, such as "10:13"'
    )
    memory_snapshot: bool = setting(
        False, flag, "true", "also record the device's memory over those steps"
    )
    peak: float | None = setting(
        None, parse_flops, '"989 TFLOP/s"', "dense peak of one device, for MFU"
    )

    @property
    def boards(self) -> tuple[str, ...]:
        """Where numbers go besides the run's own files."""
        return tuple(n for n in ("tensorboard", "wandb", "mlflow") if getattr(self, n))
