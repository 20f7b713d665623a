"""Micro-batches that repeat one another are run once and written down as often as they occur.

The second micro-batch of a stage is the pattern: the first gathers weights and makes gradients, the
last reduces them; those between do what the second did.  The schedule itself, its messages and its
waits are run for every micro-batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from krzem.train.model.transformer import Transformer
from krzem.train.rehearsal.pretend import PretendMode
from krzem.train.rehearsal.record import Communication, Phase, Record, Recorder, Storage

_PATTERN = 1
"""The micro-batch that others repeat."""


class Replayer:
    """Repeats phases of a record, each at the moment at which the schedule comes to it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._made: dict[int, list[Storage]] = {}
        self._carried: dict[tuple[int, int], list[tuple[Storage, Storage]]] = defaultdict(list)

    def forward(self, chunk: int, micro_batch: int) -> None:
        """Write down the forward pass of ``micro_batch`` through ``chunk``."""
        self._repeat(self._phase("forward", chunk), (chunk, micro_batch), carry=True)

    def backward(self, chunk: int, micro_batch: int) -> None:
        """Write down its backward pass; what the forward pass left is let go as in the pattern."""
        source = self._phase("backward", chunk)
        record = self.recorder.record
        base, start = record.operators, record.starts[source]
        end = base + record.starts[source + 1] - start
        phase = len(record.phases) - 1
        for pattern, copy in self._carried.pop((chunk, micro_batch), ()):
            if pattern.died is not None:
                within = pattern.died_phase == source
                copy.died, copy.died_phase = (base + pattern.died - start if within else end), phase
        self._repeat(source, (chunk, micro_batch), carry=False)

    def _phase(self, what: str, chunk: int) -> int:
        return self.recorder.record.phases.index(Phase(what, chunk, _PATTERN))

    def _repeat(self, source: int, owner: tuple[int, int], *, carry: bool) -> None:
        record = self.recorder.record
        base, phase = record.operators, len(record.phases) - 1
        start, stop = record.starts[source], record.starts[source + 1]
        for pattern in self._storages(source):
            copy = replace(pattern, born=base + pattern.born - start, phase=phase)
            copy.died = copy.died_phase = copy.kind = None
            if pattern.died is not None and pattern.died_phase == source:
                copy.died, copy.died_phase = base + pattern.died - start, phase
            elif carry:
                self._carried[owner].append((pattern, copy))
            else:  # One that the pattern itself still holds stands for all of them.
                copy.died, copy.died_phase = base + stop - start, phase
            record.storages.append(copy)
        self._repeat_events(record, source, base - start, phase)
        record.operators += stop - start

    def _storages(self, source: int) -> list[Storage]:
        if source not in self._made:
            storages = self.recorder.record.storages
            self._made[source] = [s for s in storages if s.phase == source]
        return self._made[source]

    def _repeat_events(self, record: Record, source: int, shift: int, phase: int) -> None:
        record.communications += [
            replace(event, at=event.at + shift, phase=phase)
            for event in record.communications
            if isinstance(event, Communication) and event.phase == source and event.peer is None
        ]
        record.reads += [
            (at + shift, phase, where) for at, own, where in record.reads if own == source
        ]
        record.flops[-1] += record.flops[source]
        record.traffic[-1] += record.traffic[source]


@contextmanager
def repeated_micro_batches(
    mode: PretendMode,
    recorder: Recorder,
    micro_batches: int,
    *,
    staged: bool,
    repeat: bool,
    models: Sequence[type[nn.Module]] = (Transformer,),
) -> Iterator[None]:
    """Below, models of these classes run their first two micro-batches and the last; others are
    written down.

    Without stages (``staged`` False) the passes of each micro-batch are marked here.
    """
    replayer = Replayer(recorder)
    outputs: dict[int, tuple[torch.Size, torch.dtype]] = {}
    counts: dict[int, int] = defaultdict(int)
    chunks: dict[int, int] = {}

    def call(model: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        key = id(model)
        chunk = chunks.setdefault(key, len(chunks))
        micro_batch, counts[key] = counts[key], counts[key] + 1
        if not staged:
            recorder.begin(Phase("forward", 0, micro_batch))
        if repeat and _PATTERN < micro_batch < micro_batches - 1:
            with mode.unseen():
                anchor = torch.empty((), device=x.device, requires_grad=True)
            out: Tensor = _Repeated.apply(
                anchor,
                x,
                outputs[key],
                mode,
                lambda: replayer.forward(chunk, micro_batch),
                lambda: replayer.backward(chunk, micro_batch),
            )
        else:
            out = nn.Module.__call__(model, x, *args, **kwargs)
            outputs[key] = (out.shape, out.dtype)
        if not staged:
            recorder.begin(Phase("backward", 0, micro_batch))
        return out

    with ExitStack() as stack:
        for kind in models:
            stack.enter_context(mock.patch.object(kind, "__call__", call))
        yield


class _Repeated(torch.autograd.Function):
    """A micro-batch of which only the ends exist."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        output: tuple[torch.Size, torch.dtype],
        mode: PretendMode,
        forward: Callable[[], None],
        backward: Callable[[], None],
    ) -> Tensor:
        forward()
        ctx.mode, ctx.backward = mode, backward
        ctx.input = (x.shape, x.dtype) if ctx.needs_input_grad[1] else None
        shape, dtype = output
        with mode.unseen():
            return torch.empty(shape, dtype=dtype, device=x.device)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        ctx.backward()
        with ctx.mode.unseen():
            dx = None
            if ctx.input is not None:
                dx = torch.empty(ctx.input[0], dtype=ctx.input[1], device=g.device)
            return torch.zeros((), device=g.device), dx, None, None, None, None
