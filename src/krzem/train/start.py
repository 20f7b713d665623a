"""From a run file to a trainer that is ready, or a description of what it would be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krzem.errors import KrzemError, RunError
from krzem.layout.layout import Layout, parse_layout
from krzem.model import count, load_model
from krzem.model.catalogue import model_ids
from krzem.model.config_file import load_config
from krzem.quantity import format_bytes
from krzem.train.config import ModelSpec, model_spec
from krzem.train.data import Component, SampleStream, TokenDataset
from krzem.train.device import find_device, start_ranks
from krzem.train.engine import check_layout
from krzem.train.loop import Trainer, check_batch, optimizer_config, schedule_of
from krzem.train.parallel.stages import parts
from krzem.train.report import Contract
from krzem.train.settings import TrainSettings, automatic_layout, read_settings

LAYOUT_VARIABLE = "KRZEM_LAYOUT"


def prepare(run_file: Path, contract: Contract | None = None) -> Trainer:
    """Check the whole run, join the ranks and build the model.

    Raises:
        RunError: with every fault found, before any work.
    """
    settings, spec, config, layout = checked(run_file)
    info = find_device(settings.train.device, int(os.environ.get("LOCAL_RANK", "0")))
    start_ranks(info)
    return Trainer(
        settings,
        spec,
        config,
        layout,
        info,
        _stream(settings, spec, "train"),
        held_out=_stream(settings, spec, "held_out") if settings.evaluation.every else None,
        contract=contract,
    )


def checked(run_file: Path) -> tuple[TrainSettings, ModelSpec, dict[str, Any], Layout]:
    """Settings, model, its config and the layout, with all faults at once."""
    settings = read_settings(run_file)
    spec, config = _model(settings)
    layout = _layout(settings, spec)
    faults: list[str] = []
    checks = [
        lambda: check_layout(spec, layout),
        lambda: parts(len(spec.layers), layout),
        lambda: check_batch(settings, layout),
        lambda: optimizer_config(settings),
        lambda: schedule_of(settings),
        lambda: _check_ranks(layout),
        lambda: _check_evaluation(settings, layout),
        lambda: _stream(settings, spec, "train"),
        lambda: _stream(settings, spec, "held_out") if settings.evaluation.every else None,
    ]
    for check in checks:
        try:
            check()
        except KrzemError as error:
            faults.append(str(error))
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        raise RunError(f"{run_file} cannot be run, {len(faults)} faults:\n{listed}")
    return settings, spec, config, layout


def describe(run_file: Path) -> dict[str, Any]:
    """What would be run: parameters, layout and the bytes that parameters and states take."""
    settings, spec, _, layout = checked(run_file)
    counted = count(spec.arch)
    everything = counted.total + counted.mtp
    states = 2 if settings.goal.optimizer == "adamw" else 1
    # Master weights, gradients and optimiser states, all float32 and shared out by sharding.
    share = everything * 4 * (2 + states) / layout.devices if layout.zero else everything * 16
    return {
        "model": spec.arch.name,
        "parameters": f"{counted.total:,} + {counted.mtp:,} (MTP), {counted.active:,} active",
        "layout": str(layout),
        "ranks": layout.devices,
        "steps": settings.steps,
        "tokens per step": settings.goal.global_batch * settings.goal.sequence,
        "device": find_device(settings.train.device).name,
        "parameters and states": f"about {format_bytes(share)} on each rank, before activations",
        "step time": "see krzem plan: the trainer states what it measures, not what it guesses",
        "folder": str(settings.folder),
    }


def _model(settings: TrainSettings) -> tuple[ModelSpec, dict[str, Any]]:
    if isinstance(settings.model, Path):
        raw: Mapping[str, Any] = load_config(settings.model)[0]
        return model_spec(settings.model), dict(raw)
    load_model(settings.model)
    raise RunError(
        f"model {settings.model!r} is a built-in name ({len(model_ids())} there are); the trainer "
        "needs the config.json itself: name its path"
    )


def _layout(settings: TrainSettings, spec: ModelSpec) -> Layout:
    stated = os.environ.get(LAYOUT_VARIABLE) or settings.layout
    if stated != "auto":
        return parse_layout(stated)
    experts = max((x.feed_forward.experts for x in spec.layers), default=0)
    return automatic_layout(_world(), experts, settings.goal.global_batch)


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_ranks(layout: Layout) -> None:
    if layout.devices != _world():
        raise RunError(
            f"the layout needs tp*cp*pp*dp = {layout.tp}*{layout.cp}*{layout.pp}*{layout.dp} = "
            f"{layout.devices} ranks, {_world()} are present; start with torchrun "
            f"--nproc-per-node {layout.devices}, or change the layout"
        )


def _check_evaluation(settings: TrainSettings, layout: Layout) -> None:
    if settings.evaluation.every and layout.pp > 1:
        raise RunError("evaluation.every needs a layout without pipeline stages (pp=1)")


def _stream(settings: TrainSettings, spec: ModelSpec, split: str) -> SampleStream:
    """The order of samples over the data sets of ``[data] path``."""
    given = settings.data.path
    weighed = given.items() if isinstance(given, Mapping) else [(given, 1)]
    components = [
        Component(
            dataset=TokenDataset.open(
                settings.base / str(path), split, model_vocabulary=spec.vocab
            ),
            weight=weight,
        )
        for path, weight in weighed
    ]
    return SampleStream(components, sequence=settings.goal.sequence, seed=settings.train.seed)
