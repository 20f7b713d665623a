"""Ranks of a run of which one fails; each says what it says into a file and ends as it would."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from krzem.errors import StorageError
from krzem.train import loop
from krzem.train.command import main
from krzem.train.engine import StepResult
from krzem.train.loop import Trainer

AT = 3
"""Steps that are done when something happens."""


def disk_full(trainer: Trainer) -> None:
    if trainer.rank == 1:
        raise StorageError("cannot write x: the disk is full")


def dies(trainer: Trainer) -> None:
    if trainer.rank == 1:
        os._exit(7)


def breaks(trainer: Trainer) -> None:
    """A parameter on the second rank becomes no number."""
    if trainer.rank == 1:
        with torch.no_grad():
            trainer.engine.held[3].part.fill_(float("nan"))


def shuts_experts_out(trainer: Trainer) -> None:
    """The routers of the second rank's pipeline stage send all tokens to two experts."""
    if trainer.rank == 1:
        for router in trainer.engine.routers().values():
            router.e_score_correction_bias[2:] = -1e3


def _rank(rank: int, file: Path, happens: Callable[[Trainer], None]) -> None:
    torch.set_num_threads(1)
    said = (file.parent / f"said-{rank}").open("w")
    for descriptor in (1, 2):
        os.dup2(said.fileno(), descriptor)
    store = dist.FileStore(str(file.parent / "store"), 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    step = loop.Trainer._one_step

    def at_some_step(trainer: Trainer) -> StepResult:
        trainer.collapse.span = 4
        if trainer.step == AT:
            happens(trainer)
        return step(trainer)

    loop.Trainer._one_step = at_some_step  # type: ignore[method-assign]
    code = main(file)
    sys.stderr.flush()
    os._exit(code)


def run(file: Path, happens: Callable[[Trainer], None]) -> tuple[list[int | None], list[str]]:
    """How each rank ended (None: it hung for minutes), and what it said."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    context = mp.start_processes(
        _rank, args=(file, happens), nprocs=2, join=False, start_method="forkserver"
    )
    for process in context.processes:
        process.join(200)
    codes = [process.exitcode for process in context.processes]
    for process in context.processes:
        process.kill()
    return codes, [(file.parent / f"said-{rank}").read_text() for rank in range(2)]
