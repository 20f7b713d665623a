"""Gradients summed over ranks that hold whole copies of the same parameters: nothing is sharded.

Parameters stay plain tensors (or tensor- and expert-parallel parts).  A large gradient is summed
where it is, the small ones of a layer together; during the last backward pass of a step each is
summed as soon as it is complete, in the same order on every rank, while earlier layers compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from krzem.train.model.experts import Experts
from krzem.train.model.transformer import Transformer
from krzem.train.parallel.mesh import Meshes

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
