"""One rank of a layout, rehearsed: the engine built and a step taken on tensors without values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.fsdp._fully_shard._fsdp_param as fsdp_param
import torch.distributed.fsdp._fully_shard._fsdp_param_group as fsdp_group
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining.stage import PipelineStage

from krzem.layout.layout import Layout
from krzem.train.config import ModelSpec
from krzem.train.engine import Engine, StepResult
from krzem.train.model.context import LossWeights
from krzem.train.model.experts import EXACT, Dispatch
from krzem.train.model.transformer import Transformer
from krzem.train.ops.routes import assumed_routes
from krzem.train.optim import Optimizer, OptimizerConfig, update_biases
from krzem.train.parallel.held import Placement
from krzem.train.parallel.stages import SPLIT_BACKWARD
from krzem.train.rehearsal.pretend import PretendMode, pretend_device, pretend_ranks
from krzem.train.rehearsal.record import Kind, Phase, Record, Recorder
from krzem.train.rehearsal.replay import repeated_micro_batches

DEVICE = torch.device("cuda", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step to rehearse."""

    spec: ModelSpec
    layout: Layout
    sequence: int
    """Tokens of a sequence."""
    micro_batches: int
    """Of a rank in a step."""
    precision: str = "bf16"
    """bf16, fp32 or fp8-block."""
    by_rows: bool = False
    """Whether experts in fp8-block have scales of whole rows."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    bias_rate: float = 1e-3
    documents: bool = False
    repeat: bool = True
    """Whether micro-batches that repeat one another are run once; False runs each."""
    crowding: float = 1.0
    """Rows that this rank's experts are sent, over their even share."""
    dispatch: Dispatch = EXACT
    """How rows get to experts; with a capacity no row goes beyond it."""

    @property
    def optimizer_name(self) -> str:
        """adamw or muon."""
        return self.optimizer.kind

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return torch.float32 if self.precision == "fp32" else torch.bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRecord:
    """What rank ``rank`` did in a step."""

    rank: int
    micro_batches: int
    record: Record
    parameters: int
    """Elements that the rank holds."""
    layers: tuple[int, ...]
    """That its stages hold."""
    seconds: float
    """Processor time of the rehearsal."""


class _Engine(Engine):
    """The trainer's engine without what needs values: initial ones, and their count over ranks."""

    def _fill(
        self, stage: Transformer, parts: dict[str, Tensor], placed: dict[str, Placement], seed: int
    ) -> None:
        pass

    def _check_count(self, *_: Any) -> None:
        pass

    def _result(self) -> StepResult:
        return replace(super()._result(), beyond=0)


def rehearse_rank(
    step: Step, rank: int, prepared: Callable[[Engine, Recorder], None] | None = None
) -> RankRecord:
    """Take ``step`` as ``rank``; ``prepared`` may look at the engine before the step.

    Raises:
        KrzemError: the layout is none that the trainer runs.
    """
    begun, recorder = time.process_time(), Recorder()
    mode = PretendMode(DEVICE, recorder.seen)
    with _rehearsing(mode, recorder, step, rank):
        engine, optimizer = _built(step, recorder)
        if prepared is not None:
            prepared(engine, recorder)
        tokens = torch.zeros(
            step.micro_batches * step.layout.micro_batch,
            step.sequence + 1,
            dtype=torch.int64,
            device=DEVICE,
        )
        documents = torch.zeros_like(tokens[:, :-1]) if step.documents else None
        _take(step, engine, optimizer, tokens, documents, recorder)
    return RankRecord(
        rank=rank,
        micro_batches=step.micro_batches,
        record=recorder.record,
        parameters=sum(h.part.numel() for h in engine.held),
        layers=tuple(i for stage in engine.stages for i in stage.part.layers),
        seconds=time.process_time() - begun,
    )


@contextmanager
def _rehearsing(mode: PretendMode, recorder: Recorder, step: Step, rank: int) -> Iterator[None]:
    def routes(_: Tensor, even: list[int], incoming: bool) -> list[int]:
        mode.read_all(_)
        return [round(n * step.crowding) for n in even] if incoming else even

    with ExitStack() as stack:
        if step.layout.devices > 1:
            stack.enter_context(pretend_ranks(rank, step.layout.devices))
        stack.enter_context(pretend_device(mode))
        stack.enter_context(assumed_routes(routes))
        stack.enter_context(storages_seen(recorder))
        stack.enter_context(messages_seen(recorder))
        stack.enter_context(_plain_parameters_made())
        stack.enter_context(phases_seen(recorder))
        stack.enter_context(
            repeated_micro_batches(
                mode,
                recorder,
                step.micro_batches,
                staged=step.layout.pp > 1,
                repeat=step.repeat and _repeats(step.layout),
            )
        )
        yield


def _repeats(layout: Layout) -> bool:
    """Whether micro-batches between the second and the last do what the second did: not where
    backward passes are cut, nor where the first of them leaves weights gathered for later ones."""
    return layout.schedule not in SPLIT_BACKWARD and (layout.pp == 1 or layout.zero < 3)


def _built(step: Step, recorder: Recorder) -> tuple[Engine, Optimizer]:
    engine = _Engine(
        step.spec,
        step.layout,
        device=DEVICE,
        dtype=step.dtype,
        weights=step.weights,
        float8=step.precision == "fp8-block",
        by_rows=step.by_rows,
        dispatch=step.dispatch,
    )
    optimizer = Optimizer(engine.held, step.optimizer, groups=1, holders=engine.holders)
    for held in engine.held:
        recorder.keep(held.part, "parameters", Kind.WEIGHTS)
    for stage in engine.stages:
        for buffer in stage.buffers():
            recorder.keep(buffer, "buffers", Kind.WEIGHTS)
    for state in optimizer.state.values():
        for value in state.values():
            recorder.keep(value, "states", Kind.STATES)
    return engine, optimizer


@contextmanager
def _plain_parameters_made() -> Iterator[None]:
    """``to_empty`` swaps a parameter's content, which fake tensors refuse: it is replaced."""
    given = Transformer.to_empty

    def to_empty(model: Transformer, *, device: torch.device, recurse: bool = True) -> Transformer:
        if isinstance(model, FSDPModule):
            return given(model, device=device, recurse=recurse)
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                made = nn.Parameter(torch.empty_like(parameter, device=device))
                module.register_parameter(name, made)
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(buffer, device=device))
        return model

    with mock.patch.object(Transformer, "to_empty", to_empty):
        yield


def _take(
    step: Step,
    engine: Engine,
    optimizer: Optimizer,
    tokens: Tensor,
    documents: Tensor | None,
    recorder: Recorder,
) -> None:
    sequences = len(tokens) * step.layout.dp
    result = engine.step(tokens, sequences=sequences, documents=documents)
    for held in engine.held:
        if held.grad is not None:
            recorder.keep(held.grad, "gradients", Kind.GRADIENTS)
    recorder.begin(Phase("update"))
    optimizer.step(1e-4, result.gradient_norm)
    update_biases(engine.routers(), engine.loads(), step.bias_rate)


@contextmanager
def storages_seen(recorder: Recorder) -> Iterator[None]:
    """FSDP gives and takes the storage of gathered weights without an operator."""

    def allocate(tensor: Tensor) -> None:
        if tensor.untyped_storage().size() != tensor.numel() * tensor.itemsize:
            given_alloc(tensor)
            recorder.resized(tensor, tensor.numel() * tensor.itemsize)

    def free(tensor: Tensor) -> None:
        given_free(tensor)
        recorder.resized(tensor, 0)

    def marked(given: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with recorder.gathering():
                return given(*args, **kwargs)

        return run

    group = fsdp_group.FSDPParamGroup
    given_alloc, given_free = fsdp_param.alloc_storage, fsdp_param.free_storage
    with (
        mock.patch.object(fsdp_param, "alloc_storage", allocate),
        mock.patch.object(fsdp_group, "alloc_storage", allocate),
        mock.patch.object(fsdp_param, "free_storage", free),
        mock.patch.object(group, "unshard", marked(group.unshard)),
        mock.patch.object(group, "wait_for_unshard", marked(group.wait_for_unshard)),
    ):
        yield


class _Message:
    """The handle of a batch of messages."""

    def __init__(self, recorder: Recorder, batch: int) -> None:
        self._recorder, self._batch = recorder, batch

    def wait(self, *_: Any) -> bool:
        self._recorder.waited(self._batch)
        return True


@contextmanager
def messages_seen(recorder: Recorder) -> Iterator[None]:
    """Which messages are given to the library together, and where a rank waits for them."""
    given = dist.batch_isend_irecv

    def together(operations: list[Any]) -> list[Any]:
        with recorder.batch() as batch:
            given(operations)
        return [_Message(recorder, batch)]

    with mock.patch.object(dist, "batch_isend_irecv", together):
        yield


_PASSES = {
    "forward_one_chunk": "forward",
    "backward_one_chunk": "backward",
    "backward_weight_one_chunk": "weights",
}


@contextmanager
def phases_seen(recorder: Recorder) -> Iterator[None]:
    """Which micro-batch of which stage a pipeline's schedule is at."""
    with ExitStack() as stack:
        for name, what in _PASSES.items():
            stack.enter_context(
                mock.patch.object(PipelineStage, name, _marked(name, what, recorder))
            )
        yield


def _marked(name: str, what: str, recorder: Recorder) -> Callable[..., Any]:
    given = getattr(PipelineStage, name)

    def run(stage: Any, micro_batch: int, *args: Any, **kwargs: Any) -> Any:
        chunk = stage.stage_index // stage.group_size
        with recorder.within(Phase(what, chunk, micro_batch)):
            return given(stage, micro_batch, *args, **kwargs)

    return run
