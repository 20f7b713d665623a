"""Runs that go on under another layout, on other ranks or another device at each link of a chain.

A case is a run file and the links of its chain, each with ``layout``, ``steps`` and perhaps
``device``.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.train.parallel.worker import collect

from krzem.layout.layout import parse_layout
from krzem.train.loop import Trainer
from krzem.train.start import LAYOUT_VARIABLE, prepare


def digest(trainer: Trainer) -> str:
    """Of every parameter and balancing bias at full shape, bit by bit."""
    whole = collect(trainer.engine, shared=trainer.layout.pp > 1)
    total = hashlib.sha256()
    for name in sorted(n for n in whole if not n.startswith("copy:")):
        total.update(name.encode() + whole[name].contiguous().numpy().tobytes())
    return total.hexdigest()


def follow(file: Path, link: dict[str, Any]) -> dict[str, Any]:
    """Resume, take the link's steps, save."""
    device = link.get("device", "cpu")
    own = file.with_name(f"run-{os.environ['RANK']}.toml")
    own.write_text(f'{file.read_text()}[train]\ndevice = "{device}"\n')
    trainer = prepare(own)
    resumed = trainer.resume()
    loaded = digest(trainer)
    losses = [trainer._one_step().losses["loss"] for _ in range(link["steps"])]
    with trainer._saver() as saver:
        trainer._save(saver)
    where = str(trainer.engine.held[0].parameter.device.type)
    told = {"from": resumed and resumed.name, "loaded": loaded, "losses": losses, "on": where}
    return {**told, "left": digest(trainer)}


def run_case(case: dict[str, Any], rank: int, store: dist.Store) -> list[dict[str, Any]]:
    """All links; ranks that a layout does not need wait until it is done."""
    told = []
    for number, link in enumerate(case["chain"]):
        ranks = parse_layout(link["layout"]).devices
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
        os.environ[LAYOUT_VARIABLE] = link["layout"]
        own = dist.PrefixStore(str(number), store)
        if rank < ranks:
            if ranks > 1:
                dist.init_process_group("gloo", store=own, rank=rank, world_size=ranks)
            told.append(follow(Path(case["file"]), link))
            if ranks > 1:
                dist.destroy_process_group()
        own.set(f"done-{rank}", "")
        own.wait([f"done-{r}" for r in range(ranks)])
    return told


def _rank(rank: int, world: int, folder: Path, cases: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    if any(link.get("device", "cpu") != "cpu" for case in cases for link in case["chain"]):
        from tests.train.pretend import device  # noqa: F401
    store = dist.FileStore(str(folder / "store"), world)
    stores = [dist.PrefixStore(str(number), store) for number in range(len(cases))]
    told = [run_case(case, rank, own) for case, own in zip(cases, stores, strict=True)]
    if rank == 0:
        (folder / "told.json").write_text(json.dumps(told))


def run(world: int, folder: Path, cases: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What each link of each case loaded and left behind, its losses and its device, by rank 0.

    The processes are forked from a server that has imported torch, which takes longer than they do.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    mp.start_processes(_rank, args=(world, folder, cases), nprocs=world, start_method="forkserver")
    found: list[list[dict[str, Any]]] = json.loads((folder / "told.json").read_text())
    return found
