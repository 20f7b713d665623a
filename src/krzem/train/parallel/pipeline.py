"""Pipeline schedules: torch's, driven with our stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from krzem.errors import LayoutError
from krzem.layout.layout import Layout, Schedule
from krzem.train.model.transformer import Transformer
from krzem.train.parallel.axis import Axis
from krzem.train.parallel.stages import stage_ranks

_SCHEDULES: dict[Schedule, Any] = {
    Schedule.ONE_F_ONE_B: Schedule1F1B,
    Schedule.INTERLEAVED: ScheduleInterleaved1F1B,
    Schedule.ZB_V: ScheduleZBVZeroBubble,
    Schedule.DUALPIPE_V: ScheduleDualPipeV,
}
SPLIT_BACKWARD = frozenset({Schedule.ZB_V, Schedule.DUALPIPE_V})
"""Schedules that compute input and weight gradients apart."""


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
) -> PipelineStage:
    """A stage with its shapes stated, so that torch need not run it once to find them."""
    streams = [model.spec.streams] if model.spec.streams > 1 else []
    shape = (sequences, length // model.axes.sequence.size, *streams, model.spec.hidden)
    residual = torch.empty(shape, dtype=model.dtype, device="meta", requires_grad=True)
    ids = torch.empty(sequences, length + 1, dtype=torch.int64, device="meta")
    loss = torch.empty((), device="meta", requires_grad=True)
    return PipelineStage(
        model,
        index,
        count,
        device,
        input_args=(ids if index == 0 else residual,),
        output_args=(loss if index == count - 1 else residual,),
        group=axis.group,
    )
