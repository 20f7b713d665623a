"""The parameters of one rank, over all stages it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from krzem.train.model.transformer import Transformer
from krzem.train.parallel.axis import Axis
from krzem.train.parallel.placing import Placement, local_part


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
