"""Pipeline schedules: torch's, driven with our stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from krzem.errors import LayoutError
from krzem.layout.layout import Layout, Schedule, stage_ranks
from krzem.train.model.transformer import Transformer
from krzem.train.parallel.collectives import Axis

_SCHEDULES: dict[Schedule, Any] = {
    Schedule.ONE_F_ONE_B: Schedule1F1B,
    Schedule.INTERLEAVED: ScheduleInterleaved1F1B,
    Schedule.ZB_V: ScheduleZBVZeroBubble,
    Schedule.DUALPIPE_V: ScheduleDualPipeV,
}


class Pipeline:
    """The stages of one rank and the schedule that runs them."""

    def __init__(
        self,
        stages: list[Transformer],
        layout: Layout,
        axis: Axis,
        *,
        micro_batches: int,
        length: int,
        device: torch.device,
    ) -> None:
        if layout.schedule not in _SCHEDULES:
            raise LayoutError(
                f"the trainer has no pipeline schedule {layout.schedule}; it has "
                f"{', '.join(_SCHEDULES)}"
            )
        ranks = stage_ranks(layout)
        own = [i for i, rank in enumerate(ranks) if rank == axis.rank]
        self.first, self.last = 0 in own, len(ranks) - 1 in own
        wrapped = [
            _stage(model, index, len(ranks), layout.micro_batch, length, device, axis)
            for index, model in zip(own, stages, strict=True)
        ]
        kind = _SCHEDULES[layout.schedule]
        single = layout.schedule is Schedule.ONE_F_ONE_B
        self.schedule = kind(
            wrapped[0] if single else wrapped,
            micro_batches,
            loss_fn=_already_a_loss,
            scale_grads=False,
        )

    def run(self, tokens: Tensor, documents: Tensor | None) -> None:
        """Forward and backward of all micro-batches of ``tokens [n * micro_batch, S + 1]``."""
        inputs: dict[str, Tensor] = {"tokens": tokens}
        if documents is not None:
            inputs["documents"] = documents
        arguments = (tokens,) if self.first else ()
        target = {"target": tokens} if self.last else {}
        self.schedule.step(*arguments, return_outputs=False, **target, **inputs)


def check_micro_batches(layout: Layout, count: int, what: str) -> None:
    """Refuse ``count`` micro-batches a rank where the schedule needs more, or other multiples.

    Raises:
        LayoutError: with the arithmetic; ``what`` names the batch.
    """
    pp, schedule = layout.pp, layout.schedule
    if pp == 1:
        return
    least = 2 * pp if schedule is Schedule.DUALPIPE_V else pp
    sums = f"{what} makes dp*mbs = {layout.dp}*{layout.micro_batch}: {count} micro-batches"
    if schedule in (Schedule.ONE_F_ONE_B, Schedule.DUALPIPE_V) and count < least:
        raise LayoutError(
            f"{sums}, fewer than the {least} stages of pp={pp} with schedule={schedule}; use a "
            "larger batch, or a smaller mbs or pp"
        )
    rounds = max(1, count // pp)
    if schedule is Schedule.INTERLEAVED and count % rounds:
        raise LayoutError(
            f"{sums}, which interleaved stages on pp={pp} ranks take in {rounds} equal rounds: "
            f"{count} / {rounds} is no whole number; use a multiple of {pp}"
        )


@torch.no_grad()
def forward_only(
    stages: list[Transformer],
    layout: Layout,
    axis: Axis,
    tokens: Tensor,
    documents: Tensor | None,
) -> None:
    """Run ``tokens [n, S + 1]`` through all stages, micro-batch by micro-batch, for their losses.

    Each rank runs its stages in forward order; a stage's residual goes to the next one's rank.
    """
    ranks = stage_ranks(layout) if layout.pp > 1 else (0,)
    own = dict(zip((i for i, r in enumerate(ranks) if r == axis.rank), stages, strict=True))
    for start in range(0, len(tokens), layout.micro_batch):
        piece = slice(start, start + layout.micro_batch)
        ids, docs = tokens[piece], None if documents is None else documents[piece]
        x = ids
        for index, model in own.items():
            if index and ranks[index - 1] != axis.rank:
                x = torch.empty(_residual(model, ids), dtype=model.dtype, device=ids.device)
                dist.recv(x, group=axis.group, group_src=ranks[index - 1])
            x = model(x, tokens=ids, documents=docs)
            if index + 1 < len(ranks) and ranks[index + 1] != axis.rank:
                dist.send(x.contiguous(), group=axis.group, group_dst=ranks[index + 1])


def _residual(model: Transformer, ids: Tensor) -> tuple[int, ...]:
    """Shape of what one stage hands to the next for ``ids [B, S + 1]``."""
    streams = (model.spec.streams,) if model.spec.streams > 1 else ()
    length = (ids.shape[1] - 1) // model.axes.sequence.size
    return (len(ids), length, *streams, model.spec.hidden)


class _Stage(PipelineStage):
    """A stage that has memory for what it receives from when it asks for it until it is used.

    torch 2.13 sets aside two buffers for every micro-batch of a step, however few are under way.
    """

    @contextmanager
    def _without_memory(self) -> Iterator[None]:
        device, self.device = self.device, torch.device("meta")
        try:
            yield
        finally:
            self.device = device

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        """Gather the weights before half a backward pass.

        torch looks the weights up by the module's parameters, which after a forward pass under
        zero=3 are the shards: no gradient would reach them.
        """
        if backward_type != "full":
            for module in self.submod.modules():
                if isinstance(module, FSDPModule):
                    module.unshard()
        return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)

    def _setup_forward_recv_info(self, num_microbatches: int, has_backward: bool) -> None:
        with self._without_memory():
            super()._setup_forward_recv_info(num_microbatches, has_backward)

    def _setup_backward_recv_info(self, num_microbatches: int) -> None:
        with self._without_memory():
            super()._setup_backward_recv_info(num_microbatches)

    def _get_recv_ops(self, recv_infos: Any) -> list[dist.P2POp]:
        for info in recv_infos:
            if info.buffer is not None:
                info.buffer = torch.empty_like(info.buffer, device=self.device)
        return super()._get_recv_ops(recv_infos)

    def _retrieve_recv_activations(self, fwd_chunk_id: int) -> tuple[Any, ...]:
        found: tuple[Any, ...] = super()._retrieve_recv_activations(fwd_chunk_id)
        _let_go(self.args_recv_info[fwd_chunk_id])
        return found

    def _retrieve_recv_grads(self, bwd_chunk_id: int) -> tuple[Any, ...]:
        found: tuple[Any, ...] = super()._retrieve_recv_grads(bwd_chunk_id)
        _let_go(self.grad_recv_info[bwd_chunk_id])
        return found


def _let_go(recv_infos: Any) -> None:
    """Keep the shapes of received tensors alone: who uses them holds them."""
    for info in recv_infos:
        if info.buffer is not None:
            info.buffer = torch.empty_like(info.buffer, device="meta", requires_grad=False)


def _already_a_loss(output: Tensor, _: Tensor) -> Tensor:
    return output


def _stage(
    model: Transformer,
    index: int,
    count: int,
    sequences: int,
    length: int,
    device: torch.device,
    axis: Axis,
) -> _Stage:
    """A stage with its shapes stated, so that torch need not run it once to find them."""
    ids = torch.empty(sequences, length + 1, dtype=torch.int64, device="meta")
    shape = _residual(model, ids)
    residual = torch.empty(shape, dtype=model.dtype, device="meta", requires_grad=True)
    loss = torch.empty((), device="meta", requires_grad=True)
    whole = index == count - 1 and _meets_twice(model)
    return _Stage(
        model,
        index,
        count,
        device,
        input_args=(ids if index == 0 else residual,),
        output_args=(loss if index == count - 1 else residual,),
        group=axis.group,
        dw_builder=_nothing_later if whole else None,
    )


def _meets_twice(model: Transformer) -> bool:
    """Whether paths from several weights of a last stage to its loss meet behind each other.

    torch's split of a backward pass into inputs and weights walks such a part of the graph once
    for each group of weights, the second time after its saved tensors were freed.  MTP modules
    that continue from each other and share an embedding make one.
    """
    arch = model.spec.arch
    return arch.mtp_layers > 1 or (arch.mtp_layers == 1 and arch.tied_embeddings)


def _nothing_later() -> Callable[[], None]:
    """What is left of a backward pass that computed inputs and weights together."""
    return lambda: None
