"""What a run file would run: the dry run, as values and as text."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from krzem.model import count
from krzem.quantity import format_bytes, format_count, format_seconds
from krzem.train.checkpoint import load_meta
from krzem.train.config import ModelSpec
from krzem.train.data.dataset import folder_of
from krzem.train.data.manifest import read_manifest
from krzem.train.data.part import TRAIN
from krzem.train.device import find_device
from krzem.train.forecast import Forecast, Planner
from krzem.train.model.transformer import Transformer
from krzem.train.optim.muon import is_matrix
from krzem.train.resuming import newest_good
from krzem.train.settings import TrainSettings
from krzem.train.start import checked, weighed_folders

_WIDTH = 100
_FLOAT32 = 4
_INTERVAL = ("low", "mid", "high")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataShare:
    """One data set of the run."""

    path: str
    tokens: int
    """That it holds for training."""
    times: float
    """How often the run goes through it."""

    def as_text(self) -> str:
        """The data set for people."""
        return f"{self.tokens:,} tokens in {self.path}, gone through {self.times:.3g} times"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A checked run: sizes that follow from the files, and what the planner expects."""

    model: str
    parameters: int
    """Without multi-token prediction."""
    mtp_parameters: int
    active_parameters: int
    """That one token uses."""
    layout: str
    ranks: int
    tokens: int
    """Up to the end of the last step."""
    data: tuple[DataShare, ...]
    sequence: int
    batch: tuple[int, ...]
    """Sequences a step: one number, or every size of a ramp."""
    steps: int
    device: str
    """Found on this machine."""
    checkpoint_bytes: int
    checkpoints_kept: int
    folder: str
    resumes: str | None
    """The checkpoint that a start would go on from."""
    steps_left: int
    """From there."""
    arithmetic: str
    optimizer: str
    forecast: Forecast | None
    unknown: str
    """Why there is no forecast."""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: numbers in bytes and seconds, the forecast None where unknown."""
        plain = {n: v for n, v in asdict(self).items() if n != "forecast"}
        f = self.forecast
        plain["forecast"] = f and {
            "basis": f.basis,
            "step_seconds": f.step_seconds.as_dict(),
            "memory_bytes": f.memory_bytes.as_dict(),
            "capacity_bytes": f.capacity_bytes,
            "run_seconds": f.step_seconds.mid * self.tokens / f.tokens_per_step,
        }
        return plain

    def as_text(self) -> dict[str, str]:
        """Rows for people."""
        mtp = f" + {self.mtp_parameters:,} (MTP)" if self.mtp_parameters else ""
        sizes = " to ".join(dict.fromkeys((f"{self.batch[0]:,}", f"{self.batch[-1]:,}")))
        batch = f"of {sizes} sequences x {self.sequence:,} tokens"
        return {
            "model": self.model,
            "parameters": f"{self.parameters:,}{mtp}, {self.active_parameters:,} active",
            "layout": self.layout,
            "ranks": f"{self.ranks}{_start(self.ranks)}",
            "tokens": f"{self.tokens:,} ({format_count(self.tokens)})",
            "steps": f"{self.steps:,} {batch}",
            "data": "; ".join(x.as_text() for x in self.data),
            "arithmetic": f"{self.arithmetic}, {self.optimizer}",
            "device": self.device,
            "memory": self._memory(),
            "step time": self._time(),
            "checkpoint": f"{format_bytes(self.checkpoint_bytes)} each, {self.checkpoints_kept} "
            "newest kept",
            "folder": self.folder + self._resuming(),
        }

    def _resuming(self) -> str:
        if self.resumes is None:
            return ""
        if not self.steps_left:
            return f", nothing is left to train after {self.resumes}"
        left = "1 step" if self.steps_left == 1 else f"{self.steps_left:,} steps"
        return f", goes on from {self.resumes}, {left} left"

    def _memory(self) -> str:
        if self.forecast is None:
            return f"unknown: {self.unknown}"
        f = self.forecast
        low, mid, high = (format_bytes(getattr(f.memory_bytes, n), 3) for n in _INTERVAL)
        room = format_bytes(f.capacity_bytes, 3)
        much = "" if f.memory_bytes.mid <= f.capacity_bytes else ": it does not fit"
        return f"{mid} ({low} to {high}) of {room} on the fullest rank{much} ({f.basis})"

    def _time(self) -> str:
        if self.forecast is None:
            return "unknown, for the same reason"
        f = self.forecast
        low, mid, high = (format_seconds(getattr(f.step_seconds, n), 3) for n in _INTERVAL)
        whole = format_seconds(f.step_seconds.mid * self.tokens / f.tokens_per_step, 3)
        speed = f.tokens_per_step / f.step_seconds.mid
        return f"{mid} ({low} to {high}), {speed:,.0f} tokens/s, {whole} for the run"


def describe(run_file: Path, planner: Planner | None = None) -> Description:
    """Check the whole run and say what it would be; trains and writes nothing.

    The ranks of the layout need not be present.

    Raises:
        RunError: with every fault found.
        CheckpointError: the run has checkpoints, and none is good.
    """
    ready = checked(run_file, planner, here=False)
    settings, arch = ready.settings, ready.spec.arch
    counted = count(arch)
    tokens = settings.tokens_at(settings.last_sample)
    root = settings.folder / "checkpoints"
    found = newest_good(root, lambda folder, why: None)
    return Description(
        model=arch.name,
        parameters=counted.total,
        mtp_parameters=counted.mtp,
        active_parameters=counted.active,
        layout=str(ready.layout),
        ranks=ready.layout.devices,
        tokens=tokens,
        data=tuple(_data(settings, tokens - settings.begin)),
        sequence=settings.goal.sequence,
        batch=settings.batches.sizes,
        steps=settings.steps,
        device=find_device(settings.train.device).name,
        checkpoint_bytes=checkpoint_bytes(ready.spec, settings.goal.optimizer),
        checkpoints_kept=settings.checkpoint.keep_last,
        folder=str(settings.folder),
        resumes=None if found is None else found.name,
        steps_left=settings.batches.steps(_sample(found, settings), settings.samples),
        arithmetic=settings.goal.precision,
        optimizer=settings.goal.optimizer,
        forecast=ready.forecast,
        unknown=ready.unplanned,
    )


def checkpoint_bytes(spec: ModelSpec, optimizer: str) -> int:
    """Bytes of the tensors of one checkpoint: float32 weights and states, biases and tables."""
    with torch.device("meta"):
        model = Transformer(spec)
    total = sum(
        p.numel() * _FLOAT32 * (2 if optimizer == "muon" and is_matrix(name, p) else 3)
        for name, p in model.named_parameters()
    )
    kept = model.state_dict().keys() - dict(model.named_parameters()).keys()
    return total + sum(b.nbytes for name, b in model.named_buffers() if name in kept)


def _data(settings: TrainSettings, tokens: int) -> Iterator[DataShare]:
    """Each data set with its share of the run's ``tokens``."""
    weighed = weighed_folders(settings.data.path)
    total = sum(weighed.values())
    for path, weight in weighed.items():
        held = read_manifest(folder_of(settings.base, path)).splits[TRAIN].tokens
        yield DataShare(path=path, tokens=held, times=tokens * weight / total / held)


def _sample(checkpoint: Path | None, settings: TrainSettings) -> int:
    """The sample at which a start would go on."""
    meta = {} if checkpoint is None else load_meta(checkpoint)
    if int(meta.get("phase", settings.phase)) != settings.phase:
        return settings.first_sample
    past = max(0, int(meta.get("tokens", 0)) - settings.begin) // settings.goal.sequence
    return int(meta.get("sample", settings.first_sample + past))


def _start(ranks: int) -> str:
    """How to start them, where they are more than this process."""
    if ranks == 1 or "WORLD_SIZE" in os.environ:
        return ""
    return f" (torchrun --nproc-per-node {ranks} -m krzem.train ..., or over several hosts)"


def rows(described: Mapping[str, str]) -> str:
    """A line for each row, values in one column, wrapped at 100 characters."""
    width = max(map(len, described))
    lines: list[str] = []
    for name, value in described.items():
        lines += textwrap.wrap(
            value,
            _WIDTH,
            initial_indent=f"{name:<{width}}  ",
            subsequent_indent=" " * (width + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)
