"""What the ranks of the distributed checkpoint tests do; run with torch.multiprocessing."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

from krzem.errors import CheckpointError, KrzemError, StorageError
from krzem.train.checkpoint import AsyncSaver, Part, Retention, load, read_manifest, save
from krzem.train.checkpoint._group import host_group

CONFIG = {"hidden": 12, "layers": 2}
SHAPES = {
    "embedding": (13, 6),
    "up": (10, 7),
    "down": (7, 10),
    "norm": (5,),
    "experts": (6, 4, 9),
    "bias": (6,),
    "first_stage": (3, 3),
    "last_stage": (2, 11),
    "scalar": (),
    "counts": (9,),
}


def logical(name: str, version: int) -> Tensor:
    """The whole of a logical tensor, the same on every machine."""
    shape = SHAPES[name]
    if name == "counts":
        return torch.arange(9) * 1000 + version
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + version)
    dtype = torch.bfloat16 if name == "down" else torch.float32
    return torch.randn(shape, generator=generator).to(dtype)


def start(ranks: int, folder: Path, work: Callable[..., None], *more: Any) -> None:
    """Run ``work(rank, ranks, folder, *more)`` on ``ranks`` processes.

    They are forked from a server that has imported torch, which takes longer than the work.
    """
    _processes(ranks, folder, work, more, join=True)


def exit_codes(ranks: int, folder: Path, work: Callable[..., None]) -> list[int | None]:
    """Run ``work`` where some rank dies; how each process ended (None: it hung)."""
    context = _processes(ranks, folder, work, (), join=False)
    for process in context.processes:
        process.join(60)
    codes = [process.exitcode for process in context.processes]
    for process in context.processes:
        process.kill()
    return codes


def _processes(
    ranks: int, folder: Path, work: Callable[..., None], more: Any, *, join: bool
) -> Any:
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        [
            "krzem.train.checkpoint.loading",
            "krzem.train.checkpoint.saving",
            "torch.distributed.fsdp",
        ]
    )
    return mp.start_processes(
        _rank,
        args=(ranks, folder, work, more),
        nprocs=ranks,
        join=join,
        start_method="forkserver",
    )


def _rank(rank: int, ranks: int, folder: Path, work: Callable[..., None], more: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{os.getppid()}-{ranks}-{work.__name__}"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    try:
        work(rank, ranks, folder, *more)
    finally:
        dist.destroy_process_group()


def state_of(rank: int, ranks: int, layout: str, version: int | None) -> dict[str, Any]:
    """A rank's part of the state under ``layout``; zeros where ``version`` is None."""

    def value(name: str) -> Tensor:
        whole = logical(name, version or 0)
        return whole if version is not None else torch.zeros_like(whole)

    def spread(name: str, mesh: DeviceMesh, *placements: Placement) -> DTensor:
        return distribute_tensor(value(name), mesh, placements)

    if layout == "alone":
        return {name: value(name) for name in SHAPES}
    line = init_device_mesh("cpu", (ranks,), mesh_dim_names=("line",))
    state: dict[str, Any] = {n: value(n) for n in ("norm", "scalar", "counts")}
    if layout == "grid":
        grid = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("a", "b"))
        state["embedding"] = spread("embedding", grid, Replicate(), Shard(0))
        state["up"] = spread("up", grid, Shard(1), Shard(0))
        state["down"] = spread("down", grid, Shard(0), Shard(0))
    else:
        state["embedding"] = spread("embedding", line, Shard(0))
        state["up"] = spread("up", line, Shard(1))
        state["down"] = spread("down", line, Replicate())
    state |= experts(rank, ranks, layout, value("experts"), value("bias"))
    if rank == 0:
        state["first_stage"] = value("first_stage")
    if rank == ranks - 1:
        state["last_stage"] = value("last_stage")
    return state


def experts(
    rank: int, ranks: int, layout: str, whole: Tensor, bias: Tensor
) -> dict[str, list[Part]]:
    """Experts owned by ranks (expert parallel), or cut along their width (tensor parallel)."""

    def part(data: Tensor, dim: int, low: int, high: int) -> Part:
        offset = [0] * data.dim()
        offset[dim] = low
        box = data.narrow(dim, low, high - low).clone()
        return Part(tensor=box, shape=tuple(data.shape), offset=tuple(offset))

    if layout == "line":  # every rank a slice of each expert's width
        edges = [9 * r // ranks for r in range(ranks + 1)]
        cut = [part(whole, 2, edges[rank], edges[rank + 1])]
    else:  # round robin: boxes that do not touch
        cut = [part(whole, 0, e, e + 1) for e in range(rank, 6, ranks)]
    return {"experts": cut, "bias": [part(bias, 0, 0, 6)]}


def check(state: dict[str, Any], version: int) -> None:
    """Every piece of ``state`` must be the logical tensor's, bit for bit."""
    for name, value in state.items():
        whole = logical(name, version)
        if isinstance(value, DTensor):
            assert torch.equal(value.full_tensor(), whole), name
        elif isinstance(value, Tensor):
            assert torch.equal(value, whole), name
        else:
            for part in value:
                box = whole
                for dim, (low, size) in enumerate(zip(part.offset, part.tensor.shape, strict=True)):
                    box = box.narrow(dim, low, size)
                assert torch.equal(part.tensor, box), name


def save_layout(rank: int, ranks: int, folder: Path, layout: str, version: int) -> None:
    """Save version ``version`` under ``layout``."""
    saved = save(
        folder / "run",
        version,
        state_of(rank, ranks, layout, version),
        meta={"tokens": version * 100},
        config=CONFIG,
        group=host_group(),
    )
    assert (saved.bytes > 0) == (rank == 0)


def move(rank: int, ranks: int, folder: Path, layout: str, version: int) -> None:
    """Load version ``version`` into ``layout`` and save the next."""
    state = state_of(rank, ranks, layout, None)
    manifest = load(folder / "run" / f"step-{version:09d}", state, config=CONFIG)
    assert manifest.meta == {"tokens": version * 100}
    check(state, version)
    save_layout(rank, ranks, folder, layout, version + 1)


def four_ranks(rank: int, ranks: int, folder: Path) -> None:
    """All that needs four ranks, in one start."""
    save_layout(rank, ranks, folder, "grid", 1)
    state = state_of(rank, ranks, "line", None)
    load(folder / "run" / "step-000000001", state, config=CONFIG)
    check(state, 1)
    strided(rank, ranks, folder)
    failures(rank, ranks, folder)
    asynchronous(rank, ranks, folder)
    train(rank, ranks, folder, None, 3)


def three_ranks(rank: int, ranks: int, folder: Path) -> None:
    """All that needs three ranks, in one start."""
    move(rank, ranks, folder, "line", 3)
    train(rank, ranks, folder, 3, 2)


def a_rank_dies(rank: int, ranks: int, folder: Path) -> None:
    """Rank 1 is killed while it writes; the others learn of it and commit nothing."""
    root = folder / "dies"
    with AsyncSaver(root) as saver:
        saver.save(1, state_of(rank, ranks, "line", 1), {})
    if rank == 1:
        os.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    saver.save(2, state_of(rank, ranks, "line", 2), {})
    with pytest.raises(CheckpointError, match="saving failed"):
        saver.wait()
    os._exit(0)  # an orderly end would wait for the dead rank


def strided(rank: int, ranks: int, folder: Path) -> None:
    """FSDP over tensor parallel: a placement whose shards run against the mesh's order."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(3)
    layer = nn.Linear(6, 10, bias=False)
    whole = layer.weight.detach().clone()
    layer.weight = nn.Parameter(distribute_tensor(layer.weight, mesh["tp"], [Shard(0)]))
    fully_shard(layer, mesh=mesh["dp"])
    save(folder / "strided", 1, dict(layer.named_parameters()), meta={})
    target = torch.zeros(10, 6)
    load(folder / "strided" / "step-000000001", {"weight": target})
    assert torch.equal(target, whole)


def failures(rank: int, ranks: int, folder: Path) -> None:
    """What goes wrong on one rank is raised on all, in one sentence, and harms nothing."""
    root = folder / "run"
    group = host_group()
    before = sorted(p.name for p in (root / "step-000000001").iterdir())

    def refused(kind: type[KrzemError], says: str, state: Any, **more: Any) -> None:
        with pytest.raises(kind, match=says) as caught:
            save(root, 9, state, meta={}, group=group, **more)
        assert "\n" not in str(caught.value)
        dist.barrier()
        assert not list(root.glob("step-000000009/*"))

    state = state_of(rank, ranks, "grid", 1)
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    os.write = full if rank == 2 else real
    refused(StorageError, r"^rank 2: cannot write .*the disk is full", state)
    os.write = real

    def outdated() -> None:
        raise CheckpointError("another trainer took over this run (token 4, ours is 3)")

    refused(CheckpointError, "another trainer took over", state, commit_guard=outdated)
    gone = {n: v for n, v in state.items() if n != "experts" or rank != 1}
    refused(CheckpointError, "experts has 216 elements but the ranks hold 144", gone)
    other = {**state, "norm": torch.zeros(4 if rank == 3 else 5)}
    refused(CheckpointError, r"norm is \[5\] .* on rank 0 but \[4\] .* on rank 3", other)
    partial = DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (ranks,)), [Partial()])
    mine = {**state, "norm": partial} if rank == 1 else state
    refused(CheckpointError, "^rank 1: norm is a partial sum", mine)
    assert sorted(p.name for p in (root / "step-000000001").iterdir()) == before
    unusable(rank, ranks, root / "step-000000001")


def unusable(rank: int, ranks: int, good: Path) -> None:
    """Loading refuses on every rank, before it changes anything."""
    state = state_of(rank, ranks, "line", None)
    wrong = {**state, "up": torch.zeros(2)} if rank == 1 else state
    with pytest.raises(CheckpointError, match=r"rank 1: .*up is \[10, 7\] there, \[2\] here"):
        load(good, wrong)
    idle = {n: v for n, v in state.items() if n != "up"}
    with pytest.raises(CheckpointError, match="1 tensors that no rank asked for: up"):
        load(good, idle)
    with pytest.raises(CheckpointError, match=r"another model\. hidden: 12 there, 13 here"):
        load(good, state, config={**CONFIG, "hidden": 13})
    victim = good / sorted(read_manifest(good).files)[3]
    dist.barrier()
    raw = victim.read_bytes()
    if rank == 0:
        victim.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    dist.barrier()
    with pytest.raises(CheckpointError, match=f"{victim.name} was altered in .* at "):
        load(good, state)
    assert not any(v.count_nonzero() for v in state.values() if isinstance(v, Tensor))
    dist.barrier()
    if rank == 0:
        victim.write_bytes(raw)
    dist.barrier()


def asynchronous(rank: int, ranks: int, folder: Path) -> None:
    """Training changes the state while it is saved; the save has the state of its step."""
    root = folder / "async"
    weight = distribute_tensor(torch.zeros(64, 33), init_device_mesh("cpu", (ranks,)), [Shard(0)])
    with AsyncSaver(root, config=CONFIG, retention=Retention(keep_last=2)) as saver:
        for step in range(1, 5):
            weight.to_local().fill_(step)
            saver.save(step, {"w": weight}, {"step": step})
            weight.to_local().fill_(-1)
    dist.barrier()
    assert sorted(p.name for p in root.iterdir()) == ["step-000000003", "step-000000004"]
    target = torch.zeros(64, 33)
    load(root / "step-000000004", {"w": target}, config=CONFIG)
    assert torch.equal(target, torch.full((64, 33), 4.0))


def train(rank: int, ranks: int, folder: Path, version: int | None, steps: int) -> None:
    """FSDP2 and AdamW for some steps, from scratch or from a checkpoint, then save."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    if ranks > 1:
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, foreach=False)
    for parameter in model.parameters():  # so that the moments exist before loading
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state: dict[str, Any] = {f"weight/{n}": p for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            state[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    begin, losses = 0, []
    if version is not None:
        manifest = load(folder / "fsdp" / f"step-{version:09d}", state)
        begin, losses = version, list(manifest.meta["losses"])
    else:
        for value in optimizer.state.values():
            value["step"].zero_()
    for step in range(begin, begin + steps):
        losses.append(_step(model, optimizer, rank, ranks, step))
    save(folder / "fsdp", begin + steps, state, meta={"losses": losses})


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, ranks: int, step: int
) -> float:
    """One step on 12 samples that belong to the step, shared among the ranks."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(12, 5, generator=generator).chunk(ranks)[rank]
    targets = torch.randn(12, 3, generator=generator).chunk(ranks)[rank]
    optimizer.zero_grad()
    loss = (model(inputs) - targets).square().mean()
    loss.backward()
    optimizer.step()
    mean = loss.detach().clone()
    if ranks > 1:
        dist.all_reduce(mean)
    return float(mean) / ranks
