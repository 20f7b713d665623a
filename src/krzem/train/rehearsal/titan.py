"""One rank of a torchtitan job, rehearsed: torchtitan's own trainer built, and a step taken.

torchtitan is plain PyTorch, so that its ``Trainer`` runs on tensors without values as krzem's own
engine does (:mod:`krzem.train.rehearsal.pretend`).  What is replaced beside, each with its reason,
is in :func:`_stood_in` of this module and in :mod:`krzem.train.rehearsal.titan_parts`.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from krzem.errors import KrzemError, RunError, shorten
from krzem.layout.layout import Layout
from krzem.train.parallel.stages import SPLIT_BACKWARD
from krzem.train.rehearsal.pretend import PretendMode, pretend_device, pretend_ranks
from krzem.train.rehearsal.rank import DEVICE, RankRecord, messages_seen, phases_seen, storages_seen
from krzem.train.rehearsal.record import Kind, Phase, Recorder
from krzem.train.rehearsal.replay import Replayer, repeated_micro_batches
from krzem.train.rehearsal.stages import RankSummary, summarise
from krzem.train.rehearsal.titan_config import TitanStart, configuration
from krzem.train.rehearsal.titan_import import import_torchtitan, quiet, titan
from krzem.train.rehearsal.titan_parts import stood_in
from krzem.train.rehearsal.titan_stages import schedule_parts, state_shapes

_FIRST_WITH_TYPES = (2, 14)
"""Releases of PyTorch before this one shard no parameters of the backend ``spmd_types``."""
_RUN = 2
"""Micro-batches that are run where gradients accumulate; the others do what the second did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TitanStep:
    """A step of a torchtitan job to rehearse; layout and batch as they were read from its files."""

    start: TitanStart
    layout: Layout
    sequence: int
    micro_batches: int
    """Of a rank in a step."""
    precision: str = "bf16"
    optimizer_name: str = "adamw"
    crowding: float = 1.0
    """Rows that this rank's experts are sent, over their even share."""
    repeat: bool = True
    """Whether micro-batches that repeat one another are run once; False runs each."""


def titan_summary(step: TitanStep, rank: int) -> RankSummary:
    """Rehearse one rank in this process, which should do nothing else: torchtitan sets it up.

    Raises RunError: torchtitan refuses the configuration, or it is another one than was read.
    """
    with quiet(), _collecting():
        try:
            record, notes = _rehearsed(step, rank)
        except KrzemError:
            raise
        except Exception as error:
            raise RunError(_why(error)) from error
    return summarise(step, record, notes)


def _why(error: Exception) -> str:
    """A failure inside torchtitan's code in one sentence."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    text = shorten(" ".join(str(error).split()) or type(error).__name__, 400)
    return f"torchtitan's step stops at {where}: {type(error).__name__}: {text}"


@contextmanager
def _collecting() -> Iterator[None]:
    """torchtitan takes the collection of garbage into its own hands: give it back."""
    on = gc.isenabled()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _rehearsed(step: TitanStep, rank: int) -> tuple[RankRecord, tuple[str, ...]]:
    begun, recorder = time.process_time(), Recorder()
    module = import_torchtitan()
    mode = PretendMode(DEVICE, recorder.seen)
    with step.start.surroundings(rank, step.layout.devices), ExitStack() as stack:
        config = configuration(step.start)
        notes = _changed(config)
        stack.enter_context(pretend_ranks(rank, step.layout.devices))
        stack.enter_context(pretend_device(mode))
        stack.enter_context(storages_seen(recorder))
        stack.enter_context(messages_seen(recorder))
        stack.enter_context(phases_seen(recorder))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(stood_in(module, config, mode, step.crowding))
        trainer = config.build()
        check_degrees(step, trainer)
        _keep(trainer, recorder)
        _take(step, trainer, mode, recorder, stack)
    held = [p for part in trainer.model_parts for p in part.parameters()]
    record = RankRecord(
        rank=rank,
        micro_batches=step.micro_batches,
        record=recorder.record,
        parameters=sum(getattr(p, "_local_tensor", p).numel() for p in held),
        layers=tuple(int(name) for part in trainer.model_parts for name in part.layers),
        seconds=time.process_time() - begun,
    )
    return record, notes


def _changed(config: Any) -> tuple[str, ...]:
    """Make the configuration one that runs operator by operator; what that leaves out, in words."""
    notes = []
    if config.compile.enable:
        config.compile.enable = False
        notes.append("compiled layers are rehearsed as they run without compilation")
    if not config.training.disable_cuda_graphs:
        config.training.disable_cuda_graphs = True
        notes.append("CUDA graphs are not captured: what they keep beside a step is not counted")
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if config.parallelism.spmd_backend != "partial_dtensor" and release < _FIRST_WITH_TYPES:
        notes.append(
            f"spmd_backend is partial_dtensor: PyTorch {torch.__version__.partition('+')[0]} "
            f"shards no parameters of {config.parallelism.spmd_backend}"
        )
        config.parallelism.spmd_backend = "partial_dtensor"
    return tuple(notes)


def check_degrees(step: TitanStep, trainer: Any) -> None:
    """Raises RunError where torchtitan builds another layout than the files were read to say."""
    built, x = trainer.parallel_dims, step.layout
    dp = built.dp_replicate * built.dp_shard
    count = trainer.gradient_accumulation_steps * trainer.num_pipeline_parallel_microbatches
    pairs = {
        "tp": (x.tp, built.tp), "cp": (x.cp, built.cp), "pp": (x.pp, built.pp), "dp": (x.dp, dp),
        "ep": (x.ep, built.ep), "micro-batches": (step.micro_batches, count),
        "sequence": (step.sequence, trainer.config.training.seq_len),
    }  # fmt: skip
    other = [f"{name} {own} (read: {read})" for name, (read, own) in pairs.items() if read != own]
    if other:
        raise RunError(
            f"torchtitan builds another step than the files were read to say: {', '.join(other)}; "
            "give what they leave open with --set"
        )


def _keep(trainer: Any, recorder: Recorder) -> None:
    """Weights, and the optimizer's states as they are after the first step."""
    for part in trainer.model_parts:
        for parameter in part.parameters():
            recorder.keep(parameter, "parameters", Kind.WEIGHTS)
        for buffer in part.buffers():
            recorder.keep(buffer, "buffers", Kind.WEIGHTS)
    for optimizer in trainer.optimizers:
        titan("components.optimizer.utils").init_optim_state(optimizer)
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    recorder.keep(value, "states", Kind.STATES)


def _take(
    step: TitanStep, trainer: Any, mode: PretendMode, recorder: Recorder, stack: ExitStack
) -> None:
    """A step of the steady state: not the first, and not one that is logged."""
    staged = trainer.parallel_dims.pp_enabled
    accumulated = trainer.gradient_accumulation_steps
    run = min(accumulated, _RUN) if step.repeat else accumulated
    if staged:
        state_shapes(trainer)
        for target, name, value in schedule_parts(trainer):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(_losses_seen(trainer, recorder))
        stack.enter_context(_repeated(step, trainer, mode, recorder))
    else:
        trainer.gradient_accumulation_steps = run
        _passes_seen(trainer, recorder)
    utils = titan("distributed.utils")
    clip = utils.clip_grad_norm_

    def update(*args: Any, **kwargs: Any) -> Any:
        if not staged:
            _repeat(recorder, run, accumulated)
        for part in trainer.model_parts:
            for parameter in part.parameters():
                if parameter.grad is not None:
                    recorder.keep(parameter.grad, "gradients", Kind.GRADIENTS)
        recorder.begin(Phase("update"))
        return clip(*args, **kwargs)

    stack.enter_context(mock.patch.object(utils, "clip_grad_norm_", update))
    trainer.step = 2
    trainer.train_step(_batches(trainer))


def _batches(trainer: Any) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Sequences of one document each, on the host as a loader leaves them."""
    rows = trainer.config.training.local_batch_size
    if trainer.parallel_dims.pp_enabled:
        rows = trainer.config.parallelism.pipeline_parallel_microbatch_size
    length = trainer.config.training.seq_len
    while True:
        with unset_fake_temporarily():
            tokens = torch.zeros(rows, length, dtype=torch.int64)
            positions = torch.arange(length).repeat(rows, 1)
        yield {"input": tokens, "positions": positions}, tokens


def _repeated(step: TitanStep, trainer: Any, mode: PretendMode, recorder: Recorder) -> Any:
    return repeated_micro_batches(
        mode,
        recorder,
        trainer.num_pipeline_parallel_microbatches,
        staged=True,
        repeat=step.repeat and step.layout.schedule not in SPLIT_BACKWARD,
        models=tuple({type(part) for part in trainer.model_parts}),
    )


def _passes_seen(trainer: Any, recorder: Recorder) -> None:
    """Which micro-batch the only stage is at: its backward pass begins where the model ends."""
    count = [0]

    def forward(*_: Any) -> None:
        recorder.begin(Phase("forward", 0, count[0]))

    def backward(*_: Any) -> None:
        recorder.begin(Phase("backward", 0, count[0]))
        count[0] += 1

    (model,) = trainer.model_parts
    model.register_forward_pre_hook(forward, prepend=True)
    model.register_forward_hook(backward)


def _repeat(recorder: Recorder, run: int, accumulated: int) -> None:
    """Write down the micro-batches that do what the second did."""
    replayer = Replayer(recorder)
    for micro_batch in range(run, accumulated):
        recorder.begin(Phase("forward", 0, micro_batch))
        replayer.forward(0, micro_batch)
        recorder.begin(Phase("backward", 0, micro_batch))
        replayer.backward(0, micro_batch)


@contextmanager
def _losses_seen(trainer: Any, recorder: Recorder) -> Iterator[None]:
    """A pipeline's last stage takes the loss between its passes."""
    kind = type(trainer.loss_fn)
    given = kind.__call__

    def loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        with recorder.within(Phase("loss")):
            return given(self, *args, **kwargs)

    with mock.patch.object(kind, "__call__", loss):
        yield
