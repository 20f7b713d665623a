"""Trains small models under many layouts in one set of processes.

``python worker.py RANK WORLD PORT`` reads a list of cases as JSON from standard input; rank 0
writes one JSON line with the outcome of each case to standard output.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from tests.train.configs import ALL

from krzem.layout.layout import Layout, parse_layout
from krzem.train.build import compile_layers
from krzem.train.config import model_spec
from krzem.train.engine import Engine
from krzem.train.model import LossWeights
from krzem.train.model.experts import Dispatch
from krzem.train.optim import Optimizer, OptimizerConfig, update_biases

SEQUENCES, LENGTH = 8, 16


def batches(steps: int, vocab: int) -> torch.Tensor:
    """``[steps, SEQUENCES, LENGTH + 1]`` skewed ids, so that experts are loaded unevenly."""
    generator = torch.Generator().manual_seed(5)
    draw = torch.rand(steps, SEQUENCES, LENGTH + 1, generator=generator)
    return (draw**3 * vocab).long()


def documents(tokens: torch.Tensor) -> torch.Tensor:
    """``[n, LENGTH]`` document ids: a document ends at every token below 3."""
    return (tokens[:, :-1] < 3).long().cumsum(1)


def train(case: dict[str, Any], layout: Layout) -> tuple[list[list[float]], dict[str, Any], int]:
    """Losses and gradient norms of each step, and all parameters and biases at full shape.

    The last row is the evaluation of the first batch after training; the number is how many steps
    were taken again.
    """
    config = ALL[case["model"]]
    if "mtp" in case:
        config = {**config, "num_nextn_predict_layers": case["mtp"]}
    spec = model_spec(config)
    weights = LossWeights(mtp=0.3, balance=1e-2, z=case.get("z", 0.0), router_z=1e-3)
    precision = case.get("precision", "fp32")
    dtype = getattr(torch, case.get("dtype", "float32" if precision == "fp32" else "bfloat16"))
    device = torch.device(case.get("device", "cpu"))
    engine = Engine(
        spec, layout, device=device, weights=weights, seed=3, dtype=dtype,
        float8=precision == "fp8-block", dispatch=Dispatch(**case.get("dispatch", {})),
    )  # fmt: skip
    if "backend" in case and layout.devices > 1:
        compile_layers(engine.stages, case["backend"])
    config = OptimizerConfig(kind=case.get("optimizer", "adamw"), clip=0.5, eps=1e-6)
    optimizer = Optimizer(engine.held, config, groups=2, holders=engine.holders)
    history, again = [], 0
    for batch in batches(case.get("steps", 2), spec.vocab):
        own = batch.chunk(engine.data.size)[engine.data.rank].to(device)
        docs = documents(own) if case.get("documents") else None
        result = engine.step(own, sequences=SEQUENCES, documents=docs)
        optimizer.step(case.get("rate", 1e-3), result.gradient_norm)
        update_biases(engine.routers(), engine.loads(), 1e-2)
        history.append([*result.losses.values(), result.gradient_norm])
        again += bool(result.beyond)
    own = batches(1, spec.vocab)[0].chunk(engine.data.size)[engine.data.rank].to(device)
    history.append([engine.evaluate(own, documents(own) if case.get("documents") else None), 1.0])
    return history, collect(engine, shared=layout.pp > 1), again


def collect(engine: Engine, *, shared: bool) -> dict[str, Any]:
    """Every parameter and balancing bias at full shape, on all ranks."""
    found = {}
    for held in engine.held:
        full = getattr(held.parameter, "full_tensor", lambda h=held: h.parameter)()
        found[held.name if held.primary else f"copy:{held.name}"] = full.detach().cpu().clone()
    for name, router in engine.routers().items():
        if router.shape.router_bias:
            found[f"{name}.bias"] = router.e_score_correction_bias.cpu().clone()
    if not shared:
        return found
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return {name: value for part in everyone for name, value in part.items()}


@cache
def reference(case: str) -> tuple[list[list[float]], dict[str, Any], int]:
    """What one process gives."""
    return train(json.loads(case), Layout(micro_batch=2))


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    """How far the case's layout is from one process; the first rank compares."""
    history, found, again = train(case, parse_layout(case["layout"]))
    if dist.get_rank():
        return {}
    alone = {**case, "layout": "", "device": "cpu", "dispatch": {}}
    expected_history, parameters, _ = reference(json.dumps(alone))
    expected = {n: parameters[n.removeprefix("copy:")] for n in found}
    assert parameters.keys() <= found.keys(), parameters.keys() - found.keys()
    pairs = list(zip(history, expected_history, strict=True))
    apart = {n: float((found[n] - expected[n]).abs().max()) for n in found}
    biases = [apart.pop(n) for n in list(apart) if n.endswith("gate.bias")]
    worst = max(apart, key=lambda n: apart[n])
    return {
        "loss": max(abs(a - b) for x, y in pairs for a, b in zip(x[:-1], y[:-1], strict=True)),
        "norm": max(abs(x[-1] / y[-1] - 1) for x, y in pairs),
        "parameter": apart[worst],
        "bias": max(biases, default=0.0),
        "worst": worst,
        "again": again,
        "fell": expected_history[0][0] - expected_history[-1][0],
    }


def main() -> None:
    """Run all cases; a failing one is reported and ends the run."""
    rank, world, port = (int(a) for a in sys.argv[1:4])
    torch.set_num_threads(1)
    cases = json.load(sys.stdin)
    store = dist.TCPStore("127.0.0.1", port, world, is_master=rank == 0)
    for number, case in enumerate(cases):
        # Groups own threads and sockets: each case gets new ones and leaves none.
        own = dist.PrefixStore(str(number), store)
        backend = "gloo"
        if case.get("device", "cpu") != "cpu":
            from tests.train.pretend import device

            backend = f"cpu:gloo,{device.NAME}:{device.COLLECTIVES}"
        dist.init_process_group(backend, store=own, rank=rank, world_size=world)
        result = outcome(case)
        if rank == 0:
            print(json.dumps(result), flush=True)
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
