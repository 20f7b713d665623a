"""The parameters of one rank, over all stages it holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Placement as Spread
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from krzem.train.model.experts import Experts
from krzem.train.model.transformer import Transformer
from krzem.train.model.weights import Cut, Region
from krzem.train.parallel.collectives import Axis
from krzem.train.parallel.mesh import Meshes, expert_shard_size, shard_size, uses_fsdp

# A model's parameters on ranks
# -----------------------------


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
    nothing is sharded, parameters stay as they are (:mod:`krzem.train.parallel.mesh`).
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


# The parameters of one rank, over all stages it holds
# ----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One parameter on this rank."""

    name: str
    """Its logical name, the same under every layout."""
    parameter: Tensor
    """A DTensor of the full shape, or a plain tensor where there is one process."""
    placement: Placement
    primary: bool = True
    """False for a copy on another stage (embeddings used at both ends of the model)."""

    @property
    def part(self) -> Tensor:
        """What this rank holds of it."""
        return local_part(self.parameter)

    @property
    def grad(self) -> Tensor | None:
        """This rank's part of the gradient, None where the loss does not reach the parameter."""
        grad = self.parameter.grad
        return None if grad is None else local_part(grad)


def whole(parameter: Tensor) -> Placement:
    """The placement of a parameter that one process holds."""
    return Placement(shape=parameter.shape, divisions=(), copies=1)


def held_by(stages: list[Transformer], placements: list[dict[str, Placement]]) -> tuple[Held, ...]:
    """All parameters of ``stages``; embeddings of a last stage that has its own are copies."""
    return tuple(
        Held(
            name=name,
            parameter=parameter,
            placement=placed.get(name) or whole(parameter),
            primary=stage.part.first or not name.startswith("embed_tokens."),
        )
        for stage, placed in zip(stages, placements, strict=True)
        for name, parameter in stage.named_parameters()
    )


def add_shared_gradients(stages: list[Transformer], pipeline: Axis) -> None:
    """Give the embeddings at both ends of a pipeline the sum of their gradients."""
    first = next((s for s in stages if s.part.first), None)
    last = next((s for s in stages if s.part.last), None)
    if pipeline.size == 1 or (first is not None and first is last):
        return
    ends = [s for s in (first, last) if s is not None]
    if not ends or not all(shares_embedding(s) for s in ends):
        return
    grads = [_gradient(s.embed_tokens.weight) for s in ends]
    if len(grads) == 2:
        total = grads[0] + grads[1]
    else:
        total = grads[0] + _from_other_end(grads[0], pipeline)
    for grad in grads:
        grad.copy_(total)


def shares_embedding(stage: Transformer) -> bool:
    """Whether the model uses its embedding at both ends."""
    return stage.spec.arch.tied_embeddings or stage.spec.arch.mtp_layers > 0


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return local_part(parameter.grad)


def _from_other_end(grad: Tensor, pipeline: Axis) -> Tensor:
    assert pipeline.group is not None
    other = dist.get_global_rank(pipeline.group, pipeline.size - 1 - pipeline.rank)
    received = torch.empty_like(grad)
    jobs = [
        dist.P2POp(dist.isend, grad.contiguous(), other, pipeline.group),
        dist.P2POp(dist.irecv, received, other, pipeline.group),
    ]
    for work in dist.batch_isend_irecv(jobs):
        work.wait()
    return received


def squared_norm(held: tuple[Held, ...], device: torch.device) -> Tensor:
    """This rank's part of the squared norm of the gradient: summed over ranks it is the whole."""
    found = [(h.grad, h.placement.copies) for h in held if h.primary and h.grad is not None]
    if not found:
        return torch.zeros((), device=device)
    norms = torch.stack(torch._foreach_norm([g for g, _ in found]))
    shares = torch.tensor([1 / math.sqrt(c) for _, c in found], device=device)
    return (norms.float() * shares).square().sum()
