"""From a checkpoint's folder to a model under witness, and the two verbs on it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from krzem.errors import CheckpointError
from krzem.layout.layout import Layout, parse_layout
from krzem.train.checkpoint import load, read_manifest
from krzem.train.config import model_spec
from krzem.train.device import find_device, start_ranks
from krzem.train.engine import Engine
from krzem.train.model.context import LossWeights
from krzem.train.optim import OptimizerConfig
from krzem.train.state import copies_state, run_state
from krzem.witness.batches import Source, WitnessBatch
from krzem.witness.checking import check
from krzem.witness.recording import Progress, record
from krzem.witness.rule import TrainerRule
from krzem.witness.tolerance import Tolerance
from krzem.witness.trainer import TrainerSubject, dtype_of
from krzem.witness.verdict import Verdict
from krzem.witness.witness import Witness, read_witness, write_witness


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConstants:
    """What a step needs beside the model and the weights."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    bias_rate: float = 1e-3
    weights: LossWeights = field(default_factory=LossWeights)


def open_checkpoint(
    folder: Path,
    *,
    device: str = "auto",
    dtype: str = "float32",
    layout: str = "",
    constants: RunConstants | None = None,
) -> TrainerSubject:
    """The model of a checkpoint with its weights, in ``layout`` over the ranks present.

    Raises:
        CheckpointError: incomplete, altered, or without the model's config.
        LayoutError: the layout does not fit the model or the ranks.
    """
    constants = constants or RunConstants()
    config = read_manifest(folder).config
    if config is None:
        raise CheckpointError(f"{folder} does not hold the model's config: it cannot be built")
    info = find_device(device, _local_rank())
    start_ranks(info)
    spec = model_spec(config)

    def build(layout: Layout, dtype: torch.dtype) -> Engine:
        engine = Engine(spec, layout, device=info.device, dtype=dtype, weights=constants.weights)
        load(folder, run_state(engine, None), config=config, strict=False)
        if layout.pp > 1:
            load(folder, copies_state(engine, None), strict=False, check="sizes")
        return engine

    groups = spec.layers[0].attention.output_groups or 1
    rule = TrainerRule(
        constants.optimizer, bias_rate=constants.bias_rate, groups=groups, device=info.device
    )
    engine = build(parse_layout(layout) if layout else _plain_layout(), dtype_of(dtype))
    return TrainerSubject(engine, config, rule=rule, build=build)


def record_checkpoint(
    folder: Path,
    batches: Sequence[WitnessBatch],
    *,
    device: str = "auto",
    dtype: str = "float32",
    layout: str = "",
    constants: RunConstants | None = None,
    also: Sequence[str] = (),
    layouts: Sequence[str] = (),
    out: Path | None = None,
    progress: Progress | None = None,
) -> Witness:
    """Record the witness of a checkpoint and attach it, or write it to ``out``."""
    constants = constants or RunConstants()
    model = open_checkpoint(
        folder, device=device, dtype=dtype, layout=layout, constants=constants
    )  # fmt: skip
    run = {"step": read_manifest(folder).step, **_constants_value(constants)}
    witness = record(model, batches, also=also, layouts=layouts, run=run, progress=progress)
    if first_rank():
        write_witness(witness, folder if out is None else out)
    return witness


def check_checkpoint(
    folder: Path,
    *,
    witness: Witness | None = None,
    device: str = "auto",
    dtype: str | None = None,
    layout: str = "",
    constants: RunConstants | None = None,
    tolerance: Tolerance | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Load a checkpoint on this hardware and judge it against its own witness, or ``witness``.

    ``constants`` are those of the run; without them the recorded ones are taken.
    """
    if witness is None:
        witness = read_witness(folder)
    model = open_checkpoint(
        folder,
        device=device,
        dtype=dtype or witness.dtype,
        layout=layout,
        constants=constants or constants_of(witness.run),
    )
    return check(
        witness, model, dtype=dtype, tolerance=tolerance, source=source, progress=progress
    )  # fmt: skip


def constants_of(run: Mapping[str, Any]) -> RunConstants:
    """The constants that a witness holds.

    Raises:
        CheckpointError: they are not what this version knows.
    """
    try:
        return RunConstants(
            optimizer=OptimizerConfig(**run.get("optimizer", {})),
            bias_rate=float(run.get("bias_rate", 1e-3)),
            weights=LossWeights(**run.get("weights", {})),
        )
    except TypeError as error:
        raise CheckpointError(f"the witness names constants unknown here: {error}") from None


def first_rank() -> bool:
    """Whether this process speaks for all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _constants_value(constants: RunConstants) -> dict[str, Any]:
    return {
        "optimizer": asdict(constants.optimizer),
        "bias_rate": constants.bias_rate,
        "weights": asdict(constants.weights),
    }


def _plain_layout() -> Layout:
    """Data parallel over the ranks present, weights sharded where there are several."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return Layout(dp=ranks, zero=3 if ranks > 1 else 1)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
