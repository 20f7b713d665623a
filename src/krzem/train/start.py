"""From a run file to a trainer that is ready."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from krzem.errors import DataError, InputError, KrzemError, RunError, UnknownFactError
from krzem.keys import listed
from krzem.layout.layout import Layout, parse_layout
from krzem.model import count
from krzem.model.catalogue import load_model_config
from krzem.quantity import format_bytes
from krzem.train.build import check_compiler
from krzem.train.config import ModelSpec, model_spec
from krzem.train.data import Component, SampleStream, TokenDataset, folder_of
from krzem.train.data.manifest import read_manifest
from krzem.train.data.tokenizer import keep_tokenizer
from krzem.train.device import check_precision, find_device, start_ranks
from krzem.train.durable import check_folder, check_place
from krzem.train.forecast import Forecast, Planner
from krzem.train.keys import PRECISIONS
from krzem.train.loop import Trainer
from krzem.train.phases import of_phase, phases_of, standing
from krzem.train.report import Contract
from krzem.train.settings import (
    SettingsError,
    TrainSettings,
    automatic_layout,
    layout_text,
    read_settings,
)
from krzem.train.setup import optimizer_config, schedule_of, why_not

LAYOUT_VARIABLE, PRECISION_VARIABLE = "KRZEM_LAYOUT", "KRZEM_PRECISION"
"""What a controller sets for the pool at hand, in place of the file's layout and precision."""
FOLDER_VARIABLE = "KRZEM_RUN_DIR"
"""What a controller sets for the folder of the run, or of trial steps."""
_STATE_BYTES = 12
"""Of a parameter in training at the least: weight, gradient and Muon's momentum in float32."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A run file with everything that it names, checked."""

    settings: TrainSettings
    spec: ModelSpec
    config: dict[str, Any]
    """The model's Hugging Face config."""
    layout: Layout
    forecast: Forecast | None
    unplanned: str
    """Why there is no forecast."""
    last: bool = True
    """Whether no phase follows."""


def prepare(
    run_file: Path,
    contract: Contract | None = None,
    planner: Planner | None = None,
    resume_from: Path | None = None,
    folder: Path | None = None,
) -> Trainer:
    """Check the whole run, join the ranks and build the model of the phase that it goes on in.

    Outcomes go to ``folder``, to the one that a controller names, or to the run file's own.

    Raises:
        RunError: with every fault found, before any work.
    """
    ready = checked(run_file, planner, resume_from=resume_from)
    settings, spec = _in_folder(ready.settings, folder), ready.spec
    check_folder(settings.folder)
    info = find_device(settings.train.device, int(os.environ.get("LOCAL_RANK", "0")))
    start_ranks(info)
    _agree(ready)
    if settings.data.verify:
        _check_contents(settings)
    if int(os.environ.get("RANK", "0")) == 0:
        _keep_tokenizer(settings)
    return Trainer(
        settings,
        spec,
        ready.config,
        ready.layout,
        info,
        _stream(settings, spec, "train"),
        held_out=_stream(settings, spec, "held_out") if settings.evaluation.every else None,
        contract=contract,
        forecast=ready.forecast,
        last=ready.last,
    )


def _in_folder(settings: TrainSettings, folder: Path | None) -> TrainSettings:
    """In ``folder``, or one that a controller names: trial steps leave the run's own alone."""
    told = folder or os.environ.get(FOLDER_VARIABLE)
    return replace(settings, folder=Path(told)) if told else settings


def checked(
    run_file: Path,
    planner: Planner | None = None,
    *,
    here: bool = True,
    resume_from: Path | None = None,
) -> Ready:
    """Settings, model, its config and the layout, with all faults of all phases at once.

    ``here`` demands the layout's ranks to be present.  Of several phases, the one in which the
    run goes on: from ``resume_from``, or from its newest good checkpoint.

    Raises:
        RunError: with every fault.
    """
    settings = _settings(run_file)
    faults: list[str] = []
    settings = _tried(lambda: on_this_pool(settings), faults) or settings
    phases = _tried(lambda: phases_of(settings), faults) or (settings,)
    now = _tried(lambda: standing(phases, resume_from), faults) or settings
    found = [_checked_phase(p, planner if p is now else None, here, faults) for p in phases]
    ready = found[phases.index(now)] if now in phases else None
    if faults or ready is None:
        raise RunError(listed(run_file, list(dict.fromkeys(faults))))
    return replace(ready, last=now is phases[-1])


def _checked_phase(
    settings: TrainSettings, planner: Planner | None, here: bool, faults: list[str]
) -> Ready | None:
    model = _tried(lambda: _model(settings), faults)
    batches = _tried(lambda: settings.batches, faults)
    for check in (
        lambda: optimizer_config(settings),
        lambda: schedule_of(settings),
        lambda: _check_device(settings),
        lambda: check_place(settings.folder),
        lambda: _check_compiler(settings) if here else None,
    ):
        _tried(check, faults)
    vocabulary = None if model is None else model[0].vocab
    for split in ("train", "held_out") if settings.evaluation.every else ("train",):
        _tried(lambda split=split: _stream_of(settings, vocabulary, split), faults)  # type: ignore[misc]
    if model is None or batches is None:
        return None
    spec, config = model
    planned = _tried(lambda: _planned(settings, spec, planner, here), faults)
    if planned is None:
        return None
    layout, forecast, why = planned
    faults += why_not(spec, settings, layout)
    for rule in (
        lambda: _check_ranks(layout) if here else None,
        lambda: _check_memory(settings, spec, layout) if here else None,
    ):
        _tried(rule, faults)
    return Ready(
        settings=settings,
        spec=spec,
        config=config,
        layout=layout,
        forecast=forecast,
        unplanned=why,
    )


def _settings(run_file: Path) -> TrainSettings:
    """The run file's settings; where it has faults, those of what it names are told as well.

    Raises:
        RunError: with every fault.
    """
    try:
        return read_settings(run_file)
    except SettingsError as error:
        faults, given, folder = list(error.faults), error.model, error.folder
        _tried(lambda: check_place(folder), faults)
        model = _tried(lambda: _model_of(given), faults) if given else None
        vocabulary = None if model is None else model[0].vocab
        paths = [] if error.data is None else weighed_folders(error.data.path)
        for path in paths:
            _tried(lambda path=path: _dataset(run_file.parent, path, "train", vocabulary), faults)  # type: ignore[misc]
        raise RunError(listed(run_file, faults)) from None


def on_this_pool(settings: TrainSettings) -> TrainSettings:
    """``settings`` in the arithmetic that the controller asks for.

    Raises:
        RunError: the trainer does not have it.
    """
    precision = os.environ.get(PRECISION_VARIABLE) or settings.goal.precision
    if precision not in PRECISIONS:
        raise RunError(
            f"precision {precision!r} was asked for; the trainer computes in "
            f"{' or '.join(PRECISIONS)}: set the pool's precision"
        )
    return replace(settings, goal=replace(settings.goal, precision=precision))


def _check_device(settings: TrainSettings) -> None:
    device = find_device(settings.train.device).device
    check_precision(device, settings.goal.precision)


def _check_compiler(settings: TrainSettings) -> None:
    if settings.train.compile:
        check_compiler(find_device(settings.train.device).device)


def _tried(action: Callable[[], Value], faults: list[str]) -> Value | None:
    """What ``action`` gives; None where it fails, with its sentence among the faults."""
    try:
        return action()
    except KrzemError as error:
        faults.append(str(error))
        return None


def _model(settings: TrainSettings) -> tuple[ModelSpec, dict[str, Any]]:
    """What is trained in the phase of ``settings``."""
    return _model_of(settings.model, lambda config: of_phase(config, settings))


def _model_of(
    given: Path | str, changed: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
) -> tuple[ModelSpec, dict[str, Any]]:
    """A model from a config's path or a built-in name."""
    config, name = load_model_config(given)
    config = changed(config)
    return model_spec(config, name=name), dict(config)


def _planned(
    settings: TrainSettings, spec: ModelSpec, planner: Planner | None, here: bool
) -> tuple[Layout, Forecast | None, str]:
    """The layout with its forecast, or with the reason why there is none."""
    given = os.environ.get(LAYOUT_VARIABLE)
    text = settings.layout if not given else layout_text(given, Path())
    stated = None if text == "auto" else parse_layout(text)
    ranks = _world() if here or "WORLD_SIZE" in os.environ else None
    why = "no planner"
    if planner is not None:
        try:
            found = planner(settings, spec, stated, ranks)
            return found.layout, found, ""
        except UnknownFactError as error:
            why = str(error)
        except KrzemError as error:
            if stated is None:
                raise
            # The planner's rules are narrower than the trainer's: its refusal is told, not obeyed.
            why = f"the planner does not price it: {error}"
    if stated is not None:
        return stated, None, why
    experts = max((x.feed_forward.experts for x in spec.layers), default=0)
    return automatic_layout(ranks or 1, experts, settings.batches.sizes), None, why


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _agree(ready: Ready) -> None:
    """Refuse to train where ranks read different run files or came to different layouts."""
    if not dist.is_initialized():
        return
    own = f"{ready.layout} {ready.settings.goal} {ready.settings.schedule} {ready.settings.train}"
    everyone = [""] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    other = next((rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]), None)
    if other is not None:
        raise InputError(
            f"rank {other} was given another run than rank 0 (run file, layout or clock differ): "
            f"{everyone[other]} instead of {everyone[0]}"
        )


def _check_contents(settings: TrainSettings) -> None:
    """Refuse tokens that are not those that were built; the ranks share the reading.

    Raises:
        DataError: on every rank, with the shard.
    """
    rank, ranks = 0, 1
    if dist.is_initialized():
        rank, ranks = dist.get_rank(), dist.get_world_size()
    own = ""
    for path in weighed_folders(settings.data.path):
        folder = folder_of(settings.base, path)
        own = own or read_manifest(folder).fault(folder, deep=True, rank=rank, ranks=ranks)
    faults = [own] * ranks
    if ranks > 1:
        dist.all_gather_object(faults, own)
    fault = next(filter(None, faults), "")
    if fault:
        raise DataError(
            f"{fault}; build the data again with `krzem data build` ([data] verify = false trains "
            "on it without looking)"
        )


def _keep_tokenizer(settings: TrainSettings) -> None:
    """What writes and reads text with this run's model, in its folder."""
    data = folder_of(settings.base, next(iter(weighed_folders(settings.data.path))))
    known = read_manifest(data).tokenizer
    keep_tokenizer(data, known.name, known.end_of_document, settings.folder)


def _check_ranks(layout: Layout) -> None:
    present = _world()
    if layout.devices != present:
        raise RunError(
            f"the layout needs tp*cp*pp*dp = {layout.tp}*{layout.cp}*{layout.pp}*{layout.dp} = "
            f"{layout.devices} ranks, {present} {'is' if present == 1 else 'are'} present; start "
            f"with torchrun --nproc-per-node {layout.devices}, or change the layout"
        )


def _check_memory(settings: TrainSettings, spec: ModelSpec, layout: Layout) -> None:
    """Refuse what no layout of these ranks can hold, before a machine runs out of memory."""
    device = find_device(settings.train.device)
    if device.memory_bytes is None:
        return
    counted = count(spec.arch)
    parameters = counted.total + counted.mtp
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.is_cpu else 1
    each, room = _STATE_BYTES * parameters / layout.devices, device.memory_bytes / sharing
    if each > room:
        raise RunError(
            f"{parameters:,} parameters of at least {_STATE_BYTES} bytes (float32 weights, "
            f"gradients and momenta) over {layout.devices} ranks are {format_bytes(each)} a rank, "
            f"and {device.name} has {format_bytes(room)} for it; start more ranks or train a "
            "smaller model (`krzem plan` says what holds this one)"
        )


def _stream(settings: TrainSettings, spec: ModelSpec, split: str) -> SampleStream:
    return _stream_of(settings, spec.vocab, split)


def _stream_of(settings: TrainSettings, vocabulary: int | None, split: str) -> SampleStream:
    """The order of samples over the data sets of ``[data] path``."""
    components = [
        Component(dataset=_dataset(settings.base, path, split, vocabulary), weight=weight)
        for path, weight in weighed_folders(settings.data.path).items()
    ]
    return SampleStream(components, sequence=settings.goal.sequence, seed=settings.train.seed)


def weighed_folders(path: str | Mapping[str, float]) -> Mapping[str, float]:
    """The folders of ``[data] path`` with their weights."""
    return {path: 1} if isinstance(path, str) else path


def _dataset(base: Path, path: str, split: str, vocabulary: int | None) -> TokenDataset:
    return TokenDataset.open(folder_of(base, path), split, model_vocabulary=vocabulary)
