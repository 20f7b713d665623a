"""Device meshes of a layout: the same ranks, seen from three sides.

Ranks count tensor fastest, then context, data, pipeline.  Dense parameters are sharded over data
and context ranks; experts over what expert parallelism leaves; sequences are shared by context
and tensor ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from krzem.errors import LayoutError
from krzem.layout.layout import Layout
from krzem.train.parallel.axis import ALONE, Axes, Axis
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
    if ranks % (x.ep * x.etp) or experts % expert_shard or (x.dp * x.cp) % shard:
        raise LayoutError(
            f"ep*etp = {x.ep}*{x.etp} and shard = {shard} have to divide the ranks: tp*cp*dp = "
            f"{x.tp}*{x.cp}*{x.dp} = {ranks}, dp*cp = {x.dp * x.cp}"
        )

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
