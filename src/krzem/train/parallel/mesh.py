"""Device meshes of a layout: the same ranks, seen from three sides.

Ranks count tensor fastest, then context, data, pipeline.  Dense parameters are sharded over data
and context ranks; experts over what expert parallelism leaves; sequences are shared by context
and tensor ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial

from krzem.errors import LayoutError
from krzem.layout.layout import Layout
from krzem.train.model.experts import Experts
from krzem.train.model.transformer import Transformer
from krzem.train.parallel.collectives import ALONE, Axes, Axis
from krzem.train.parallel.stages import SPLIT_BACKWARD


@dataclass(frozen=True, slots=True, kw_only=True)
class Meshes:
    """The views of one layout on the ranks present."""

    layout: Layout
    dense: DeviceMesh
    """[pipeline, replicate, shard, tensor]."""
    experts: DeviceMesh
    """[pipeline, replicate, shard, expert, expert_tensor]."""
    sequence: DeviceMesh
    """[pipeline, data, context, tensor]."""
    stage: DeviceMesh
    """[pipeline, stage]: a stage is all ranks that hold the same layers."""
    axes: Axes
    pipeline: Axis
    data: Axis
    """Ranks that see different sequences."""
    holders: Axis
    """Ranks of the same stage: they see all tokens between them."""

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.layout.devices


def shard_size(layout: Layout) -> int:
    """Ranks over which a dense parameter is sharded."""
    ranks = layout.dp * layout.cp
    if layout.zero == 0:
        return 1
    return layout.shard or ranks


def expert_shard_size(layout: Layout) -> int:
    """Ranks over which an expert is sharded: as dense ones where all are used, else no more."""
    ranks = layout.tp * layout.cp * layout.dp // (layout.ep * layout.etp)
    if layout.zero == 0:
        return 1
    return ranks if layout.shard == 0 else min(layout.shard, ranks)


def undivided(layout: Layout) -> str | None:
    """Why the groups of ``layout`` cannot be formed; None where they can."""
    x = layout
    shard, ranks = shard_size(x), x.tp * x.cp * x.dp
    experts = ranks // (x.ep * x.etp)
    if ranks % (x.ep * x.etp) == 0 and (x.dp * x.cp) % shard == 0:
        if experts % expert_shard_size(x) == 0:
            return None
        return (
            f"shard = {shard} does not divide the {ranks}/({x.ep}*{x.etp}) = {experts} ranks that "
            "hold the same experts"
        )
    return (
        f"ep*etp = {x.ep}*{x.etp} and shard = {shard} have to divide the ranks: tp*cp*dp = "
        f"{x.tp}*{x.cp}*{x.dp} = {ranks}, dp*cp = {x.dp * x.cp}"
    )


def uses_fsdp(layout: Layout) -> bool:
    """Whether FSDP holds the parameters: where any rank has only a part of what it computes with.

    Also under schedules that compute weights' gradients apart: with plain parameters torch 2.13
    gives others there, in the output matrix above all.
    """
    sharded = shard_size(layout) * expert_shard_size(layout) > 1
    return sharded or (layout.pp > 1 and layout.schedule in SPLIT_BACKWARD)


def build_meshes(layout: Layout, device_type: str) -> Meshes:
    """The meshes of ``layout`` over all ranks of the default process group.

    Raises:
        LayoutError: the layout needs another number of ranks, or its parts do not divide them.
    """
    x, world = layout, dist.get_world_size()
    if x.devices != world:
        raise LayoutError(
            f"the layout needs tp*cp*pp*dp = {x.tp}*{x.cp}*{x.pp}*{x.dp} = {x.devices} ranks, "
            f"{world} are present"
        )
    shard, ranks = shard_size(x), x.tp * x.cp * x.dp
    experts = ranks // (x.ep * x.etp)
    expert_shard = expert_shard_size(x)
    if (problem := undivided(x)) is not None:
        raise LayoutError(problem)

    def mesh(shape: tuple[int, ...], names: str) -> DeviceMesh:
        return init_device_mesh(device_type, shape, mesh_dim_names=tuple(names.split()))

    dense = mesh((x.pp, x.dp * x.cp // shard, shard, x.tp), "pipeline replicate shard tensor")
    spread = (x.pp, experts // expert_shard, expert_shard, x.ep, x.etp)
    sparse = mesh(spread, "pipeline replicate shard expert expert_tensor")
    sequence = mesh((x.pp, x.dp, x.cp, x.tp), "pipeline data context tensor")
    whole = mesh((x.pp, x.dp, x.cp * x.tp), "pipeline data sequence")
    stage = mesh((x.pp, ranks), "pipeline stage")
    axes = Axes(
        tp=_axis(sequence, "tensor"),
        cp=_axis(sequence, "context"),
        sequence=_axis(whole, "sequence"),
        ep=_axis(sparse, "expert"),
        etp=_axis(sparse, "expert_tensor"),
    )
    return Meshes(
        layout=x,
        dense=dense,
        experts=sparse,
        sequence=sequence,
        stage=stage,
        axes=axes,
        pipeline=_axis(dense, "pipeline"),
        data=_axis(sequence, "data"),
        holders=_axis(stage, "stage"),
    )


def _axis(mesh: DeviceMesh, name: str) -> Axis:
    one = mesh[name]
    if one.size() == 1:
        return ALONE
    return Axis(group=one.get_group(), size=one.size(), rank=one.get_local_rank())


# Gradients summed over ranks that hold whole copies of the same parameters
# -------------------------------------------------------------------------

_LARGE = 2**18
"""Elements from which a gradient is worth a collective of its own."""


@dataclass(slots=True, eq=False)
class _Bucket:
    """Parameters whose gradients are summed together over ``group``."""

    parameters: list[nn.Parameter]
    group: dist.ProcessGroup
    missing: int = 0
    """Parameters that the backward pass has not reached yet."""
    reached: list[nn.Parameter] = field(default_factory=list)
    flat: Tensor | None = None
    """Their gradients, one after the other, while they are summed."""
    work: dist.Work | None = None


class Replicas:
    """The copies of one pipeline stage."""

    def __init__(self, model: Transformer, meshes: Meshes) -> None:
        buckets = _buckets(model, meshes)
        alone = [b for b in buckets if dist.get_world_size(b.group) == 1]
        self._alone = [p for b in alone for p in b.parameters]
        self._buckets = [b for b in buckets if b not in alone]
        self._armed, self._next = False, 0
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._reached, bucket))

    def arm(self) -> None:
        """The next backward pass is the last one of its step."""
        self._armed = True
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    def finish(self) -> None:
        """Give every parameter that the loss reaches the sum of the copies' gradients."""
        while self._next < len(self._buckets):
            self._begin()
        for bucket in self._buckets:
            _end(bucket)
        for parameter in (p for p in self._alone if p.grad is not None):
            _local_gradient(parameter)
        self._armed, self._next = False, 0

    def _reached(self, bucket: _Bucket, _: Tensor) -> None:
        if not self._armed:
            return
        bucket.missing -= 1
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._begin()

    def _begin(self) -> None:
        """Start to sum the next bucket."""
        bucket = self._buckets[self._next]
        self._next += 1
        bucket.reached = [p for p in bucket.parameters if p.grad is not None]
        if bucket.reached:
            parts = [_local_gradient(p).reshape(-1) for p in bucket.reached]
            bucket.flat = torch.cat(parts) if len(parts) > 1 else parts[0]
            bucket.work = dist.all_reduce(bucket.flat, group=bucket.group, async_op=True)


def _end(bucket: _Bucket) -> None:
    if bucket.work is None or bucket.flat is None:
        return
    bucket.work.wait()
    sizes = [_local_gradient(p).numel() for p in bucket.reached]
    for parameter, part in zip(bucket.reached, bucket.flat.split(sizes), strict=True):
        grad = parameter.grad
        part = part.view(_local_gradient(parameter).shape)
        if isinstance(grad, DTensor):
            part = DTensor.from_local(part, grad.device_mesh, grad.placements, run_check=False)
        parameter.grad = part
    bucket.flat = bucket.work = None


def _local_gradient(parameter: nn.Parameter) -> Tensor:
    """This rank's part of the gradient, summed over tensor-parallel ranks where each has a term."""
    grad = parameter.grad
    assert grad is not None
    if not isinstance(grad, DTensor):
        return grad
    if any(isinstance(p, Partial) for p in grad.placements):
        assert isinstance(parameter, DTensor)
        grad = grad.redistribute(placements=parameter.placements)
        parameter.grad = grad
    return grad.to_local()


def _buckets(model: Transformer, meshes: Meshes) -> list[_Bucket]:
    """In the order in which a backward pass completes them; embedding and output come last."""
    dense = meshes.dense["replicate"].get_group()
    sparse = meshes.experts["replicate"].get_group()
    taken: set[int] = set()

    def bucket(module: nn.Module, group: dist.ProcessGroup) -> list[_Bucket]:
        own = [p for p in module.parameters() if id(p) not in taken]
        taken.update(id(p) for p in own)
        small = [p for p in own if p.numel() < _LARGE]
        large = [_Bucket([p], group) for p in reversed(own) if p.numel() >= _LARGE]
        return [*large, _Bucket(small, group)] if small else large

    found: list[_Bucket] = []
    blocks: Sequence[nn.Module] = [*model.layers.values(), *(model.mtp if model.part.last else [])]
    for block in reversed(blocks):
        experts = [m for m in block.modules() if isinstance(m, Experts)]
        for module in experts:
            found += bucket(module, sparse)
        found += bucket(block, dense)
    return found + bucket(model, dense)
