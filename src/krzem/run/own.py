"""krzem's own trainer, seen from the controller: what of a run file it would refuse, and run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from krzem.errors import KrzemError, RunError
from krzem.layout.layout import Layout
from krzem.model.catalogue import load_model_config
from krzem.plan.plan import Plan
from krzem.run.settings import LOCAL, Pool, RunSettings

_MODULE = "krzem.train"


def is_own(settings: RunSettings, pool: Pool) -> bool:
    """Whether the pool's command is krzem's own trainer."""
    return _MODULE in (pool.command or settings.trainer.command)


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
    from krzem.train.runnable import first_runnable
    from krzem.train.settings import read_settings

    try:
        read = read_settings(Path(settings.path))
    except RunError:
        return plan.best.layout
    config, name = load_model_config(settings.model)
    choices = [plan.best, *plan.alternatives]
    return first_runnable([c.layout for c in choices], model_spec(config, name=name), read)
