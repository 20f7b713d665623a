"""The run: data in, steps, numbers out, checkpoints, a clean end.

What a step trains on is a function of the global sample index alone; the position of the run is
the number of samples taken, and the size of the next step a function of it.  A run that is stopped
goes on where it was under any layout.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from krzem.errors import RunError
from krzem.layout.layout import Layout
from krzem.model import flops_per_token
from krzem.train.build import compile_layers
from krzem.train.checkpoint import (
    AsyncSaver,
    Retention,
)
from krzem.train.config import ModelSpec
from krzem.train.device import DeviceInfo, peak_memory, synchronize
from krzem.train.engine import Engine, StepResult
from krzem.train.forecast import Forecast
from krzem.train.model.experts import Dispatch
from krzem.train.optim import ExpertLoad, Optimizer, update_biases
from krzem.train.report import Contract, Reporter
from krzem.train.resuming import newest_good, phase_sentence, restore, run_state
from krzem.train.settings import TrainSettings
from krzem.train.setup import loss_weights, optimizer_config, schedule_of
from krzem.train.summary import last_step
from krzem.train.watch import (
    CollapseWatch,
    OwnWork,
    Recorder,
    Watch,
    again_sentence,
    blame,
    broken,
    is_finite,
)


class Source(Protocol):
    """Where samples come from."""

    fingerprint: str
    """Equal for sources that give equal samples."""

    def batch(self, start: int, count: int) -> np.ndarray:
        """Tokens of global samples ``start`` to ``start + count``: int64 [count, sequence + 1]."""

    def batch_with_documents(self, start: int, count: int) -> Any:
        """The same with ``tokens`` and ``documents`` [count, sequence + 1]."""


class NotFiniteError(RunError):
    """A loss or a gradient that is no number; nothing was saved after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How a run ended."""

    step: int
    loss: float
    stopped: bool
    """True where it was asked to stop before its last step."""


class Trainer:
    """One run on this rank; :meth:`run` trains it to the end."""

    def __init__(
        self,
        settings: TrainSettings,
        spec: ModelSpec,
        config: dict[str, Any],
        layout: Layout,
        info: DeviceInfo,
        source: Source,
        *,
        held_out: Source | None = None,
        contract: Contract | None = None,
        forecast: Forecast | None = None,
        last: bool = True,
    ) -> None:
        self.last = last
        """Whether no phase of the run follows."""
        self.settings, self.spec, self.config = settings, spec, config
        self.info, self.source, self.held_out = info, source, held_out
        self.contract, self.layout, self.forecast = contract, layout, forecast
        t, goal = settings.train, settings.goal
        self.engine = Engine(
            spec,
            layout,
            device=info.device,
            dtype=torch.float32 if goal.precision == "fp32" else torch.bfloat16,
            float8=goal.precision == "fp8-block",
            by_rows=t.expert_scales == "row",
            weights=loss_weights(settings),
            seed=t.seed,
            dispatch=Dispatch(capacity=t.capacity, beside=not info.is_cpu),
        )
        if t.compile:
            compile_layers(self.engine.stages)
        groups = spec.layers[0].attention.output_groups or 1
        self.optimizer = Optimizer(
            self.engine.held,
            optimizer_config(settings),
            groups=groups,
            holders=self.engine.holders,
        )
        self.schedule = schedule_of(settings)
        self.watch, self.collapse = Watch(), CollapseWatch()
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.step, self.sample = 0, settings.first_sample
        self._repeated = 0
        self.batches, self._stop = settings.batches, False
        self.root = settings.folder / "checkpoints"
        self._recorder = None
        if settings.metrics.profile is not None and self.rank == 0:
            self._recorder = Recorder(
                settings.folder, info.device, settings.metrics.profile,
                memory=settings.metrics.memory_snapshot,
            )  # fmt: skip
        self.reporter = Reporter(
            settings.folder,
            tokens=settings.tokens_at(settings.samples),
            every=settings.metrics.every if self.rank == 0 else 0,
            boards=settings.metrics.boards if self.rank == 0 else (),
            plan=forecast,
            peak=self.peak,
        )

    def resume(self, folder: Path | None = None) -> Path | None:
        """Load ``folder``, or the newest good checkpoint of the run; None where there is none.

        Raises:
            CheckpointError: of another model, other data or optimizer, damaged or incomplete.
        """
        found = folder or newest_good(self.root, self._passed_over, anew=self.contract is not None)
        if found is None:
            return None
        here = restore(
            found, self.engine, self.optimizer, self.settings, self.config, self.source.fingerprint
        )
        self.step, self.sample, self.optimizer.steps = here.step, here.sample, here.updates
        if here.begins_phase and self.rank == 0:
            self.reporter.event(self.step, "phase", phase_sentence(self.settings))
        return found

    def _say_positions(self) -> None:
        """Tell of sequences beyond the positions that the model's config states."""
        length, most = self.settings.goal.sequence, self.spec.arch.max_positions
        if self.rank == 0 and self.steps_left and most and length > most:
            self.reporter.event(
                self.step,
                "warning",
                f"sequences of {length:,} tokens go beyond the model's max_position_embeddings = "
                f"{most:,}: it has not been told how to rotate there (rope scaling, max_positions)",
            )

    def _passed_over(self, folder: Path, why: str) -> None:
        if self.rank == 0:
            self.reporter.event(0, "warning", f"{folder.name} is passed over: {why}")

    def run(self) -> RunEnd:
        """Train from the present step to the last, or until asked to stop; saves at the end.

        Raises:
            NotFiniteError: a loss or gradient is no number.
            StorageError: the disk does not take a checkpoint.
        """
        previous = self._listen()
        self._repeated = last_step(self.settings.folder) if self.rank == 0 else 0
        self._say_positions()
        loss = float("nan")
        try:
            with self._saver() as saver, self.reporter:
                while self.steps_left and not self._asked_to_stop():
                    with self._recorded():
                        loss = self._one_step().losses["loss"]
                    every = self.settings.checkpoint.every
                    if every and self.step % every == 0 and self.steps_left:
                        self._save(saver)
                    self._evaluate()
                stopped = self.steps_left > 0 or (not self.last and self._asked_to_stop())
                self._save(saver)
        finally:
            if self._recorder is not None:
                self._recorder.finish()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return RunEnd(step=self.step, loss=loss, stopped=stopped)

    def train_steps(self, count: int) -> None:
        """Train at most ``count`` steps and save nothing: to compare machines."""
        with self.reporter:
            for _ in range(min(count, self.steps_left)):
                self._one_step()

    @property
    def steps_left(self) -> int:
        """Steps from here to the last token."""
        return self.batches.steps(self.sample, self.settings.samples)

    def _recorded(self) -> AbstractContextManager[None]:
        """The next step under torch's profiler, where the run file asks for it."""
        return nullcontext() if self._recorder is None else self._recorder.step(self.step + 1)

    def _one_step(self) -> StepResult:
        begun, size = time.perf_counter(), self.batches.at(self.sample)
        own = OwnWork(self.info.device)
        self._beat("data")
        with own.alone():
            tokens, documents = self._batch(self.source, self.sample, size)
        self._beat("compute")
        with own.together():
            result = self.engine.step(
                tokens, sequences=size, documents=documents, targets=self._targets(tokens)
            )
        if not is_finite(result):
            self._report_broken(result)
        self._beat("update")
        rate = self.schedule.at(self.settings.tokens_at(self.sample + size))
        with own.alone():
            self.optimizer.step(rate, result.gradient_norm)
        counts = self.engine.loads()
        loads = update_biases(self.engine.routers(), counts, self.settings.train.bias_rate)
        synchronize(self.info.device)
        self.step, self.sample = self.step + 1, self.sample + size
        self._beat("update", own.seconds)
        self._record(result, loads, rate, size, time.perf_counter() - begun)
        self._warn(result, counts)
        return result

    def _targets(self, tokens: Tensor) -> int:
        """Tokens to be predicted in the global batch; 0 where that is all of them."""
        if not getattr(self.source, "is_partly_learned", False):
            return 0
        return self.engine.learned(tokens)

    def _batch(self, source: Source, first: int, count: int) -> tuple[Tensor, Tensor | None]:
        """This rank's share of ``count`` samples from ``first``."""
        data = self.engine.data
        own = count // data.size
        start = first + data.rank * own
        device = self.info.device
        if not self.settings.data.documents:
            return torch.from_numpy(source.batch(start, own)).to(device), None
        batch = source.batch_with_documents(start, own)
        documents = torch.from_numpy(batch.documents[:, :-1].astype(np.int64))
        return torch.from_numpy(batch.tokens).to(device), documents.to(device)

    def _record(
        self,
        result: StepResult,
        loads: list[ExpertLoad],
        rate: float,
        size: int,
        seconds: float,
    ) -> None:
        if self.rank:
            return
        length = self.settings.goal.sequence
        tokens = size * length
        self.reporter.step(
            {
                "step": self.step,
                "tokens": self.settings.tokens_at(self.sample),
                **result.losses,
                "grad_norm": result.gradient_norm,
                "rate": rate,
                "seconds": seconds,
                "tokens_per_s": tokens / seconds,
                "mfu": self._mfu(tokens / seconds),
                "peak_load": max((x.peak for x in loads), default=None),
                "first_sample": self.sample - size,
                "last_sample": self.sample - 1,
                "attempt": getattr(self.contract, "attempt", 0),
                "time": time.time(),
                "memory_bytes": peak_memory(self.info.device),
                **({"beyond": result.beyond} if self.settings.train.capacity else {}),
                **({"phase": self.settings.phase} if self.settings.phases else {}),
                # The step was taken before, and lost: its first line no longer counts.
                **({"repeated": True} if self.step <= self._repeated else {}),
            },
            left=self.steps_left,
        )

    def _warn(self, result: StepResult, counts: Mapping[str, Tensor]) -> None:
        """Tell of what is out of the ordinary: a spike, rows that a capacity had no room for, a
        router of any stage that collapsed."""
        spike = self.watch.spike(self.step, result.losses["loss"])
        events = [("warning", spike)] if spike else []
        if result.beyond:
            events.append(("taken again", again_sentence(self.step, result)))
        self.collapse.add(counts)
        if self.collapse.due:
            events += self._of_all_stages(self.collapse.judge(self.step))
        for kind, message in events:
            if self.rank == 0:
                self.reporter.event(self.step, kind, message)

    def _of_all_stages(self, own: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """``own`` and the events of routers that other ranks hold, each once."""
        if self.layout.pp == 1:
            return own
        everyone: list[list[tuple[str, str]]] = [[]] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
        return list(dict.fromkeys(event for events in everyone for event in events))

    @property
    def peak(self) -> float | None:
        """FLOP/s of one device as stated, or of the device planned for; None: neither is given."""
        stated = self.settings.metrics.peak
        if stated is not None or self.forecast is None:
            return stated
        return self.forecast.peak_flops

    def _mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOPs utilisation; None where no peak is known."""
        if self.peak is None:
            return None
        per_token = flops_per_token(self.spec.arch, self.settings.goal.sequence)
        return tokens_per_s * per_token / (self.peak * self.layout.devices)

    def _evaluate(self) -> None:
        e = self.settings.evaluation
        if self.held_out is None or not e.every or self.step % e.every:
            return
        self._beat("evaluate")
        each = self.engine.data.size * self.layout.micro_batch
        count = -(-e.sequences // each) * each
        loss = self.engine.evaluate(*self._batch(self.held_out, 0, count))
        if self.rank == 0:
            self.reporter.value(self.step, "held_out_loss", loss)

    def _saver(self) -> AsyncSaver:
        guard = None if self.contract is None else self.contract.commit_guard
        keep = Retention(keep_last=self.settings.checkpoint.keep_last)
        return AsyncSaver(self.root, config=self.config, retention=keep, commit_guard=guard)

    def _save(self, saver: AsyncSaver) -> None:
        self._beat("save")
        meta = {
            "step": self.step,
            "updates": self.optimizer.steps,
            "tokens": self.settings.tokens_at(self.sample),
            "sample": self.sample,
            "order": self.source.fingerprint,
            "seed": self.settings.train.seed,
        }
        if self.settings.phases:
            stated = self.settings.phases[: self.settings.phase]
            meta |= {"phase": self.settings.phase, "phases": list(stated)}
        saver.save(self.step, run_state(self.engine, self.optimizer), meta)

    def _report_broken(self, result: StepResult) -> None:
        own = broken(self.engine.held, own_loss=not self.engine.has_finite_losses())
        everyone = [own]
        if dist.is_initialized():
            everyone *= dist.get_world_size()
            dist.all_gather_object(everyone, own)
        raise NotFiniteError(
            f"step {self.step + 1}: loss {result.losses['loss']}, gradient norm "
            f"{result.gradient_norm}: {blame(everyone)}; nothing was saved after step {self.step}"
        )

    def _listen(self) -> dict[int, Any]:
        """Take Ctrl-C and SIGTERM as a request to save and end after this step."""

        def ask(number: int, frame: Any) -> None:
            self._stop = True

        return {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}

    def _asked_to_stop(self) -> bool:
        """Whether any rank was asked to; all ranks agree."""
        own = self._stop or (self.contract is not None and self.contract.stop_requested())
        if not dist.is_initialized():
            return own
        flag = torch.tensor(int(own), device=self.info.device)
        dist.all_reduce(flag)
        return bool(flag.item())

    def _beat(self, phase: str, own_seconds: float | None = None) -> None:
        if self.contract is not None:
            self.contract.beat(self.step, phase, own_seconds=own_seconds)
