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
from krzem.train.device import find_device, has_float32, start_ranks
from krzem.train.engine import Engine
from krzem.train.model.context import LossWeights
from krzem.train.optim import Optimizer, OptimizerConfig
from krzem.train.resuming import copies_state, run_state
from krzem.witness.batches import Source, WitnessBatch
from krzem.witness.checking import check
from krzem.witness.judge import Tolerance
from krzem.witness.recording import Progress, record
from krzem.witness.rule import TrainerRule
from krzem.witness.trainer import TrainerSubject, dtype_of
from krzem.witness.verdict import Verdict
from krzem.witness.witness import Witness, read_witness, write_witness


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConstants:
    """What a step needs beside the model and the weights."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    bias_rate: float = 1e-3
    weights: LossWeights = field(default_factory=LossWeights)
    rate: float | None = None
    """Learning rate of the next step; None: no schedule is known."""
    settings: Mapping[str, Any] | None = None
    """What has to be equal wherever the run is trained; None: no run file was read."""


def open_checkpoint(
    folder: Path,
    *,
    device: str = "auto",
    dtype: str = "float32",
    layout: str = "",
    constants: RunConstants | None = None,
) -> TrainerSubject:
    """The model of a checkpoint with its weights and moments, in ``layout`` over the ranks present.

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

    groups = spec.layers[0].attention.output_groups or 1

    def build(layout: Layout, dtype: torch.dtype) -> tuple[Engine, Optimizer | None]:
        engine = Engine(spec, layout, device=info.device, dtype=dtype, weights=constants.weights)
        return engine, _loaded(folder, engine, constants.optimizer, groups)

    rule = TrainerRule(
        constants.optimizer, bias_rate=constants.bias_rate, groups=groups, device=info.device
    )
    chosen = parse_layout(layout) if layout else _plain_layout()
    engine, optimizer = build(chosen, dtype_of(dtype))
    return TrainerSubject(
        engine, config, rule=rule, build=build, optimizer=optimizer, rate=constants.rate
    )


def _loaded(folder: Path, engine: Engine, config: OptimizerConfig, groups: int) -> Optimizer | None:
    """Fill ``engine``; the optimizer with its moments where the checkpoint holds all of them."""
    manifest = read_manifest(folder)
    optimizer: Optimizer | None = Optimizer(
        engine.held, config, groups=groups, holders=engine.holders
    )
    if not all(name in manifest.tensors for name in run_state(engine, optimizer)):
        optimizer = None
    load(folder, run_state(engine, optimizer), config=manifest.config, strict=False)
    if engine.layout.pp > 1:
        load(folder, copies_state(engine, optimizer), strict=False, check="sizes")
    if optimizer is not None:
        optimizer.steps = int(manifest.meta.get("updates", manifest.step))
    return optimizer


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
    dtypes: Sequence[str] = (),
    layout: str = "",
    constants: RunConstants | None = None,
    tolerance: Tolerance | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Load a checkpoint on this hardware and judge it against its own witness, or ``witness``.

    In every arithmetic that was recorded, or in ``dtypes``; float32 is told from TF32 by what this
    device's products keep.  ``constants`` are those of the run; without them the recorded ones.
    """
    if witness is None:
        witness = read_witness(folder)
    first = next((t for t in dtypes or (witness.dtype,) if t != "tf32"), "float32")
    model = open_checkpoint(
        folder,
        device=device,
        dtype=first,
        layout=layout,
        constants=constants or constants_of(witness.run),
    )
    return check(
        witness,
        model,
        dtypes=arithmetic_of(witness, model.engine.device, dtypes),
        tolerance=tolerance,
        source=source,
        settings=None if constants is None else constants.settings,
        progress=progress,
    )


def arithmetic_of(witness: Witness, device: torch.device, asked: Sequence[str]) -> tuple[str, ...]:
    """The types to check in: where this device's float32 is TF32, the floor of that is taken."""
    wanted = tuple(asked) or tuple(witness.readings)
    if "float32" in wanted and "tf32" in witness.floors and not has_float32(device):
        return tuple("tf32" if dtype == "float32" else dtype for dtype in wanted)
    return wanted


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
            rate=run.get("rate"),
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
        "rate": constants.rate,
        "settings": None if constants.settings is None else dict(constants.settings),
    }


def _plain_layout() -> Layout:
    """Data parallel over the ranks present, weights sharded where there are several."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return Layout(dp=ranks, zero=3 if ranks > 1 else 1)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
