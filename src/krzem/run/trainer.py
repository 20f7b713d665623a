"""krzem's own trainer, seen from the controller: what of a run file it would refuse, and run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from krzem.errors import InputError, KrzemError, RunError
from krzem.layout.layout import Layout
from krzem.model.catalogue import load_model_config
from krzem.plan.plan import Plan
from krzem.run.pool_settings import LOCAL, SITE, Pool
from krzem.run.profile import cluster_for
from krzem.run.settings import RunSettings

_MODULE = "krzem.train"


def is_own(settings: RunSettings, pool: Pool) -> bool:
    """Whether the pool's command is krzem's own trainer."""
    return _MODULE in (pool.command or settings.trainer.command)


LAYOUT_FLAGS = "{layout_flags}"
"""A word of a command that becomes the engine's flags for the layout planned for the pool."""


def command_of(settings: RunSettings, pool: Pool, layout: str | None) -> tuple[str, ...]:
    """What is started on ``pool``: its command, under an adapter for an engine that has one.

    Raises:
        RunError: an engine that is not known, or a layout that it has no flags for.
    """
    if pool.launcher == SITE:
        return ("{python}", "-m", "krzem.run.courier", "{run_toml}", "{pool}")
    engine, words = settings.trainer.engine, pool.command or settings.trainer.command
    if LAYOUT_FLAGS in words:
        at = words.index(LAYOUT_FLAGS)
        flags = layout_flags(engine, settings, pool, layout)
        words = (*words[:at], *flags, *words[at + 1 :])
    if engine == "command":
        return tuple(words)
    from krzem.run.adapter import adapted

    goal = settings.goal
    return adapted(
        engine, settings.trainer.checkpoints, words, batch=goal.global_batch,
        sequence=goal.sequence,
    )  # fmt: skip


_PARALLEL = {
    "torchtitan": ("parallelism.", "training.local_batch_size"),
    "megatron-lm": (
        "tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size",
        "expert-model-parallel-size", "expert-tensor-parallel-size", "sequence-parallel",
        "num-layers-per-virtual-pipeline-stage", "micro-batch-size", "use-distributed-optimizer",
    ),
}  # fmt: skip
"""Beginnings of the names of flags that say how a step is cut."""


def layout_flags(
    engine: str, settings: RunSettings, pool: Pool, layout: str | None
) -> tuple[str, ...]:
    """The flags of ``layout`` for ``engine``, as its emitter writes them.

    None where no layout was planned: the engine's own configuration holds.

    Raises:
        RunError: the engine has no way to run the layout.
    """
    from krzem.hardware import CPU, cluster_of
    from krzem.layout.layout import parse_layout
    from krzem.model import load_model
    from krzem.plan.emit.engines import emit

    if engine not in _PARALLEL:
        raise RunError(f"{LAYOUT_FLAGS} needs trainer.engine: {' or '.join(_PARALLEL)}")
    if layout is None:
        return ()
    # Degrees depend on no device; processors have no catalogue entry to be emitted for.
    on = {"device": "h100", "devices": pool.count or 1, "name": pool.name}
    try:
        launch = emit(
            engine, parse_layout(layout), settings.goal, load_model(settings.model),
            cluster_of(on, pool.name) if pool.accelerator == CPU else cluster_for(pool, {}),
        )  # fmt: skip
    except KrzemError as error:
        raise RunError(f"layout {layout} on pool {pool.name}: {error}") from error
    words: list[str] = []
    for flag in launch.flags:
        name = flag.name.lstrip("-")
        if name.startswith(_PARALLEL[engine]):
            words += [f"--{name}", *([flag.value.strip('"')] if flag.value else [])]
    return tuple(words)


def check_trainer(settings: RunSettings) -> None:
    """Read the trainer's part of the run file before anything is started.

    Nothing is checked where torch lives elsewhere, in a container or on another cluster.

    Raises:
        RunError: with every fault, or because torch is missing on this machine.
    """
    pools = [pool for pool in settings.pools if is_own(settings, pool)]
    here = [pool for pool in pools if pool.launcher == LOCAL and pool.environment.container is None]
    if importlib.util.find_spec("torch") is None:
        if here:
            raise RunError(
                f"pool {here[0].name} trains on this machine, which has no torch: "
                "pip install 'krzem[train]'"
            )
        return
    if pools:
        _check_tables(settings)


def _check_tables(settings: RunSettings) -> None:
    from krzem.train.data import TokenDataset
    from krzem.train.settings import read_settings

    read = read_settings(settings.path)
    given = read.data.path
    faults = []
    for folder in given if isinstance(given, Mapping) else [given]:
        try:
            TokenDataset.open(read.base / str(folder))
        except KrzemError as error:
            faults.append(f"data.path: {error}")
    if faults:
        raise RunError(f"{settings.path.name} cannot be run: {'; '.join(faults)}")


def runnable(settings: RunSettings, plan: Plan) -> Layout:
    """The fastest layout of ``plan`` that the trainer runs; the fastest where that cannot be told.

    Raises:
        LayoutError: it runs none of them.
    """
    if importlib.util.find_spec("torch") is None:
        return plan.best.layout
    from krzem.train.config import model_spec
    from krzem.train.settings import read_settings
    from krzem.train.setup import first_runnable

    try:
        read = read_settings(Path(settings.path))
    except InputError:
        return plan.best.layout
    config, name = load_model_config(settings.model)
    choices = [plan.best, *plan.alternatives]
    return first_runnable([c.layout for c in choices], model_spec(config, name=name), read)
