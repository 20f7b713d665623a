"""Two processes: ``python ranks.py RANK WORLD PORT FOLDER``; checks layouts against a witness."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.train.configs import ALL
from tests.witness.models import RATE, batches, build, with_documents
from tests.witness.plants import wrong_backward

from krzem.layout.layout import Layout, parse_layout
from krzem.train import engine as engine_module
from krzem.train.engine import Engine
from krzem.train.optim import Optimizer, OptimizerConfig
from krzem.witness.checking import check
from krzem.witness.recording import record
from krzem.witness.rule import TrainerRule
from krzem.witness.subject import Setting
from krzem.witness.trainer import TrainerSubject
from krzem.witness.witness import read_witness

LAYOUTS = ("dp=2,ep=2,mbs=1", "tp=2,mbs=2", "cp=2,cpkind=a2a,mbs=2", "pp=2,mbs=2")


def main() -> None:
    rank, world, port, folder = sys.argv[1:5]
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", int(port), int(world), is_master=rank == "0")
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=int(world))
    found = {}
    for dtype in ("float32", "bfloat16"):
        witness = read_witness(Path(folder) / f"{dtype}.json")
        for text in LAYOUTS if dtype == "float32" else LAYOUTS[:2]:
            model = under(text, dtype)
            verdict = check(witness, model)
            found[f"{dtype} {text}"] = [verdict.passed, verdict.message, verdict.not_compared]
    with wrong_backward(model := under(LAYOUTS[0], "float32")):
        verdict = check(read_witness(Path(folder) / "float32.json"), model)
    found["faulty"] = [verdict.passed, verdict.message, []]
    with clipped_by_its_own(model := under(LAYOUTS[0], "float32")):
        verdict = check(read_witness(Path(folder) / "float32.json"), model)
    found["clipping"] = [verdict.passed, verdict.message, []]
    model = under(LAYOUTS[0], "float32")
    witness = record(
        model, with_documents(batches()), settings=(Setting(name="tp", layout=LAYOUTS[1]),)
    )
    found["recorded"] = [check(witness, model).passed, str(model.engine.layout), []]
    if rank == "0":
        print(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@contextlib.contextmanager
def clipped_by_its_own(model: TrainerSubject) -> Iterator[None]:
    """The collective of the gradient norm is left out: each rank clips by its own part."""
    right, squared = engine_module.sum_over, engine_module.squared_norm
    own: list[torch.Tensor] = []

    def kept(*args: Any) -> torch.Tensor:
        own.append(squared(*args))
        return own[-1]

    def wrong(values: torch.Tensor, axis: Any) -> torch.Tensor:
        found = right(values, axis)
        if own:  # The sum that follows: losses, this square, and the rows beyond a capacity.
            found[-2] = own.pop()
        return found

    engine_module.sum_over, engine_module.squared_norm = wrong, kept
    try:
        yield
    finally:
        engine_module.sum_over, engine_module.squared_norm = right, squared


def under(text: str, dtype: str) -> TrainerSubject:
    def again(layout: Layout, kind: torch.dtype) -> tuple[Engine, Optimizer]:
        return build("deepseek_v3", layout, kind)

    engine, optimizer = again(parse_layout(text), getattr(torch, dtype))
    return TrainerSubject(
        engine, ALL["deepseek_v3"], rule=TrainerRule(OptimizerConfig()), build=again,
        optimizer=optimizer, rate=RATE,
    )  # fmt: skip


if __name__ == "__main__":
    main()
