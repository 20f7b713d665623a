"""What a checkpoint holds of a run, and how a run goes on from one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from krzem.errors import CheckpointError
from krzem.train.checkpoint import (
    Part,
    State,
    check_config,
    latest_good,
    load,
    load_meta,
    read_manifest,
)
from krzem.train.checkpoint.manifest import MANIFEST
from krzem.train.engine import Engine
from krzem.train.optim import Optimizer
from krzem.train.parallel.held import Held
from krzem.train.phases import ROTATION_KEYS
from krzem.train.settings import TrainSettings


def newest_good(
    root: Path, rejected: Callable[[Path, str], None], *, anew: bool = False
) -> Path | None:
    """The newest good checkpoint in ``root``; None where nothing was committed there yet.

    ``rejected`` is told of each newer one and why it was passed over.  ``anew``: None also where
    all are damaged, because a controller has decided so.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged: to begin anew in their folder
            would throw the run away without a word.
    """
    damaged: list[Path] = []

    def passed_over(folder: Path, why: str) -> None:
        rejected(folder, why)
        if (folder / MANIFEST).exists():
            damaged.append(folder)

    found = latest_good(root, rejected=passed_over)
    if found is None and damaged and not anew:
        raise CheckpointError(
            f"none of the {len(damaged)} checkpoints in {root} is good: put back a copy of one, or "
            "begin anew in another [run] folder"
        )
    return found


def check_optimizer(folder: Path, wanted: Collection[str], optimizer: str) -> None:
    """Refuse a checkpoint that holds every weight of ``wanted`` and another optimizer's states.

    Raises:
        CheckpointError: it was written with another optimizer than ``optimizer``.
    """
    stored = read_manifest(folder).tensors
    missing = {name.partition("/")[0] for name in wanted if name not in stored}
    if missing and "weight" not in missing:
        raise CheckpointError(
            f"{folder} has no {' and '.join(sorted(missing))} for {optimizer}: it was trained with "
            "another goal.optimizer; go on with that one, or carry its weights alone over: "
            "krzem checkpoint export, then import, into another [run] folder"
        )


def run_state(engine: Engine, optimizer: Optimizer | None) -> State:
    """This rank's boxes: ``weight/`` (also routers' biases and tables), optimizer state by kind."""
    return dict(_state(engine, optimizer, primary=True))


def copies_state(engine: Engine, optimizer: Optimizer | None) -> State:
    """The boxes of copies (embeddings used at both ends of a pipeline), to be loaded as well."""
    return dict(_state(engine, optimizer, primary=False))


def _state(
    engine: Engine, optimizer: Optimizer | None, *, primary: bool
) -> Iterator[tuple[str, Tensor | Part]]:
    for held in engine.held:
        if held.primary is primary:
            yield f"weight/{held.name}", _box(held, held.part)
    if optimizer is not None:
        for key, held in optimizer.items():
            if held.primary is primary:
                for kind, tensor in optimizer.state[key].items():
                    yield f"{kind}/{held.name}", _box(held, tensor)
    if primary:
        for name, router in engine.routers().items():
            if router.shape.router_bias:
                yield f"weight/{name}.e_score_correction_bias", router.e_score_correction_bias
            if router.hashed:
                yield f"weight/{name}.tid2eid", router.tid2eid


def _box(held: Held, tensor: Tensor) -> Part:
    region = held.placement.region if held.placement.shape else ()
    return Part(
        tensor=tensor.detach(),
        shape=tuple(held.placement.shape),
        offset=tuple(cut.start for cut in region),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run goes on."""

    step: int
    sample: int
    updates: int
    """Steps of the optimizer."""
    begins_phase: bool = False
    """Whether the checkpoint is the last of the phase before."""


def restore(
    folder: Path,
    engine: Engine,
    optimizer: Optimizer,
    settings: TrainSettings,
    config: Mapping[str, Any],
    order: str,
) -> Position:
    """Load the checkpoint in ``folder``; ``order`` is the fingerprint of the run's data.

    Raises:
        CheckpointError: of another model, other data or optimizer, damaged or incomplete.
    """
    meta = load_meta(folder)
    if "imported_from" in meta:
        return _imported(folder, engine, optimizer, settings, config, int(meta.get("tokens", 0)))
    begins = int(meta.get("phase", 0)) < settings.phase
    if not begins and meta.get("order") != order:
        raise CheckpointError(
            f"{folder} was trained on other data, or in another order "
            f"({str(meta.get('order'))[:12]} instead of {order[:12]}): data, weights, sequence "
            "length and seed have to be those of the run, or start a new folder"
        )
    manifest = read_manifest(folder)
    config = _as_before(config, manifest.config) if begins else config
    check_config(folder, manifest, config)
    state = run_state(engine, optimizer)
    check_optimizer(folder, state, settings.goal.optimizer)
    load(folder, state, config=config)
    _load_copies(folder, engine, optimizer)
    return Position(
        step=int(meta["step"]), updates=int(meta["updates"]), begins_phase=begins,
        sample=settings.first_sample if begins else int(meta["sample"]),
    )  # fmt: skip


def _as_before(config: Mapping[str, Any], saved: Mapping[str, Any] | None) -> dict[str, Any]:
    """This phase's config with the rotations of the phase before."""
    rest = {k: v for k, v in config.items() if k not in ROTATION_KEYS}
    return rest | {k: v for k, v in (saved or {}).items() if k in ROTATION_KEYS}


def _load_copies(folder: Path, engine: Engine, optimizer: Optimizer | None) -> None:
    if engine.layout.pp > 1:
        load(folder, copies_state(engine, optimizer), strict=False, check="sizes")


def _imported(
    folder: Path, engine: Engine, optimizer: Optimizer, settings: TrainSettings,
    config: Mapping[str, Any], tokens: int,
) -> Position:  # fmt: skip
    """Begin from weights that came from elsewhere, and from moments if this optimizer's came.

    The schedule and the data start at ``tokens``.
    """
    manifest = read_manifest(folder)
    wanted = {**run_state(engine, optimizer), **copies_state(engine, optimizer)}
    moments = all(name in manifest.tensors for name in wanted)
    taken = optimizer if moments else None
    load(folder, run_state(engine, taken), config=config, strict=False)
    _load_copies(folder, engine, taken)
    past = max(0, tokens - settings.begin) // settings.goal.sequence
    return Position(
        step=manifest.step, updates=manifest.step if moments else 0,
        sample=settings.first_sample + past,
    )  # fmt: skip


def phase_sentence(settings: TrainSettings) -> str:
    """What a phase begins with."""
    goal = settings.goal
    stated = settings.phases[settings.phase - 1].get("name") or f"phase {settings.phase}"
    return (
        f"{stated} begins at {settings.begin:,} tokens: {goal.global_batch:,} sequences of "
        f"{goal.sequence:,} tokens from {settings.data.path}"
    )
