"""Puts a model's parameters on ranks: tensor and expert cuts as DTensors, FSDP2 over the rest.

Afterwards every parameter is a DTensor of the full, logical shape, and :class:`Placement` says
which part this rank holds: what initial values, checkpoints and optimizers need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Placement as Spread
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from krzem.train.model.experts import Experts
from krzem.train.model.initial import Region
from krzem.train.model.transformer import Transformer
from krzem.train.model.weights import Cut
from krzem.train.parallel.mesh import Meshes, expert_shard_size, shard_size, uses_fsdp


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """A parameter is divided along ``dim`` into ``parts``, of which this rank has ``index``."""

    dim: int
    parts: int
    index: int
    stride: int = 1
    """Ranks of a stage from one index to the next."""

    def of(self, rank: int) -> Division:
        """The same as ``rank`` of the stage has it."""
        return replace(self, index=rank // self.stride % self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the part of a parameter lies that this rank holds."""

    shape: torch.Size
    divisions: tuple[Division, ...]
    """One inside the other: tensor or expert cuts first, then FSDP's."""
    copies: int
    """Ranks that hold this very part."""
    first_copy: bool = True
    """Whether this rank is the first of them."""

    @property
    def region(self) -> Region:
        """The part as one slice per dimension (empty where the rank holds nothing)."""
        bounds = [(0, size) for size in self.shape]
        for d in self.divisions:
            low, high = bounds[d.dim]
            each = -(-(high - low) // d.parts)
            start = min(low + d.index * each, high)
            bounds[d.dim] = (start, min(start + each, high))
        return tuple(slice(low, high) for low, high in bounds)

    def region_of(self, rank: int) -> Region:
        """The part that ``rank`` of the same stage holds."""
        return replace(self, divisions=tuple(d.of(rank) for d in self.divisions)).region


def place(model: Transformer, meshes: Meshes) -> dict[str, Placement]:
    """Cut and shard ``model`` (on the meta device) in place; returns the place of each parameter.

    Modules that hold parameters of one layer become one FSDP unit, experts another on their own
    mesh.  Gradients are summed, never averaged: the loss is divided by the global batch.  Where
    nothing is sharded, parameters stay as they are (:mod:`krzem.train.parallel.replicas`).
    """
    cuts = {name: p.cut for name, p in model.named_parameters()}  # type: ignore[attr-defined]
    shapes = {name: p.shape for name, p in model.named_parameters()}
    _cut(model, meshes)
    if not uses_fsdp(meshes.layout):
        return {n: _placement(shapes[n], cuts[n], 0, meshes) for n in shapes}
    dims: dict[str, int] = {}
    for module, mesh, size in _units(model, meshes):
        prefix = _name_of(model, module)
        rule = _shard_rule(size, dims, {id(p): prefix + n for n, p in module.named_parameters()})
        _shard(module, mesh, rule, model.dtype, reshard=meshes.layout.zero == 3)
    return {n: _placement(shapes[n], cuts[n], dims[n], meshes) for n in shapes}


def _cut(model: Transformer, meshes: Meshes) -> None:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            mesh, spread = _spread(parameter.cut, meshes)  # type: ignore[attr-defined]
            if mesh is not None:
                placed = distribute_tensor(parameter.data, mesh, spread, src_data_rank=None)
                module.register_parameter(name, nn.Parameter(placed))


def _spread(cut: Cut, meshes: Meshes) -> tuple[DeviceMesh | None, list[Spread]]:
    """The mesh and placements of a parameter before FSDP; no mesh where nothing cuts it."""
    x = meshes.layout
    if cut in (Cut.EXPERT_ROWS, Cut.EXPERT_COLUMNS):
        degrees = {"expert": (x.ep, Shard(0)), "expert_tensor": (x.etp, Shard(2))}
        used = {n: spread for n, (size, spread) in degrees.items() if size > 1}
        return (meshes.experts[tuple(used)], list(used.values())) if used else (None, [])
    if x.tp == 1:
        return None, []
    kinds: dict[Cut, Spread] = {Cut.ROWS: Shard(0), Cut.COLUMNS: Shard(1)}
    return meshes.dense["tensor"], [kinds.get(cut, Replicate())]


def _units(model: Transformer, meshes: Meshes) -> list[tuple[nn.Module, DeviceMesh, int]]:
    """FSDP units, inner before outer, each with its mesh and shard size."""
    x = meshes.layout
    dense = _data_mesh(meshes.dense)
    sparse = _data_mesh(meshes.experts)
    units: list[tuple[nn.Module, DeviceMesh, int]] = [
        (m, sparse, expert_shard_size(x)) for m in model.modules() if isinstance(m, Experts)
    ]
    blocks = [*model.layers.values(), *(model.mtp if model.part.last else [])]
    return units + [(m, dense, shard_size(x)) for m in [*blocks, model]]


def _data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    return mesh["shard"] if mesh["replicate"].size() == 1 else mesh["replicate", "shard"]


def _name_of(model: nn.Module, module: nn.Module) -> str:
    name = next(n for n, m in model.named_modules() if m is module)
    return f"{name}." if name else ""


Rule = Callable[[nn.Parameter], Shard]


def _shard_rule(size: int, dims: dict[str, int], names: dict[int, str]) -> Rule:
    """FSDP cuts the first dimension that it divides evenly, else dimension 0 with padding."""

    def rule(parameter: nn.Parameter) -> Shard:
        local = getattr(parameter, "_local_tensor", parameter).shape
        dim = next((d for d, n in enumerate(local) if n % size == 0), 0)
        dims[names[id(parameter)]] = dim
        return Shard(dim)

    return rule


def _shard(
    module: nn.Module, mesh: DeviceMesh, rule: Rule, dtype: torch.dtype, *, reshard: bool
) -> None:
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if dtype is not torch.float32:
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    fully_shard(
        module,
        mesh=mesh,
        reshard_after_forward=reshard,
        shard_placement_fn=rule,
        mp_policy=policy,
    )
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)


def _placement(shape: torch.Size, cut: Cut, dim: int, meshes: Meshes) -> Placement:
    x, axes = meshes.layout, meshes.axes
    if cut in (Cut.EXPERT_ROWS, Cut.EXPERT_COLUMNS):
        mesh, size, stride = meshes.experts, expert_shard_size(x), x.ep * x.etp
        inner = [
            Division(dim=0, parts=x.ep, index=axes.ep.rank, stride=x.etp),
        ]
        if x.etp > 1:
            inner.append(Division(dim=2, parts=x.etp, index=axes.etp.rank))
        copies, copy = mesh["replicate"].size(), mesh["replicate"].get_local_rank()
    else:
        mesh, size, stride = meshes.dense, shard_size(x), x.tp
        kinds = {Cut.ROWS: 0, Cut.COLUMNS: 1}
        inner = []
        copies, copy = mesh["replicate"].size(), mesh["replicate"].get_local_rank()
        if cut in kinds:
            inner = [Division(dim=kinds[cut], parts=x.tp, index=axes.tp.rank)]
        else:
            copies, copy = copies * x.tp, copy + axes.tp.rank
    index = mesh["shard"].get_local_rank()
    outer = Division(dim=dim, parts=size, index=index, stride=stride)
    divisions = (*inner, outer)
    return Placement(shape=shape, divisions=divisions, copies=copies, first_copy=copy == 0)


def local_part(parameter: Tensor) -> Tensor:
    """The part of a parameter (or of its gradient) that this rank holds, sharing memory."""
    part = getattr(parameter, "_local_tensor", parameter)
    assert isinstance(part, Tensor)
    return part
