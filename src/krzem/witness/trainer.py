"""A model of krzem's trainer under witness, in any layout."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from krzem.errors import InputError, LayoutError
from krzem.layout.layout import Layout, parse_layout
from krzem.model import count
from krzem.train.engine import Engine
from krzem.train.model.block import Block
from krzem.train.model.transformer import Transformer
from krzem.train.optim import Optimizer
from krzem.train.parallel.held import Held
from krzem.witness.batches import WitnessBatch
from krzem.witness.quantity import Kind
from krzem.witness.rule import RATE, UpdateRule
from krzem.witness.subject import HeldTensor, Identity, Rows, Setting, Share, Site, Stepped

Build = Callable[[Layout, torch.dtype], tuple[Engine, Optimizer | None]]
"""Builds the same model, with the same weights and moments, in another layout or arithmetic."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(name: str) -> torch.dtype:
    """The type called ``name``.

    Raises:
        InputError: another name.
    """
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


class TrainerSubject:
    """An engine of the trainer with ``config``; ``build`` makes it anew for other layouts.

    ``optimizer`` holds the moments as loaded; ``rate`` is the learning rate of the next step, None
    where no schedule is known.
    """

    def __init__(
        self,
        engine: Engine,
        config: Mapping[str, Any],
        *,
        rule: UpdateRule | None = None,
        build: Build | None = None,
        optimizer: Optimizer | None = None,
        rate: float | None = None,
        name: str = "",
    ) -> None:
        self.engine, self.rule, self.build = engine, rule, build
        self.optimizer, self.rate = optimizer, rate
        counted = count(engine.spec.arch)
        self.identity = Identity(
            kind="krzem",
            name=name or str(config.get("model_type", engine.spec.arch.name)),
            config=dict(config),
            parameters=counted.total + counted.mtp,
        )

    @property
    def device_type(self) -> str:
        """As torch calls it."""
        return self.engine.device.type

    @property
    def dtype(self) -> str:
        """Arithmetic of activations."""
        return dtype_name(self.engine.dtype)

    @property
    def micro_batch(self) -> int:
        """Sequences at a time on a data-parallel rank."""
        return self.engine.layout.micro_batch

    @contextlib.contextmanager
    def under(self, setting: Setting) -> Iterator[None]:
        """Set up for ``setting`` within, and as before afterwards."""
        layout, dtype = self.engine.layout, self.engine.dtype
        self._become(*_wanted(setting, layout, dtype))
        try:
            yield
        finally:
            self._become(layout, dtype)

    def _become(self, layout: Layout, dtype: torch.dtype) -> None:
        engine = self.engine
        if layout == engine.layout and dtype == engine.dtype:
            return
        light = replace(layout, micro_batch=engine.layout.micro_batch) == engine.layout
        if light and (dtype == engine.dtype or engine.meshes is None):
            engine.layout, engine.dtype = layout, dtype
            for stage in engine.stages:
                stage.dtype = dtype
            return
        if self.build is None:
            raise InputError(
                f"another layout or type ({layout}, {dtype_name(dtype)}) needs the model built "
                "anew: give build, or record from a checkpoint"
            )
        del engine, self.engine, self.optimizer  # two models may not fit
        self.engine, self.optimizer = self.build(layout, dtype)

    def share(self, batch: WitnessBatch) -> Share:
        """Which sequences and tokens of the batch this rank computes.

        In the layout's own micro-batch, with all pipeline stages busy.  Few sequences are enough
        for any number of ranks: they are gone through again until every rank has its part, each
        equally often.
        """
        (n, length), data, axis = batch.shape, self.engine.data, self._sequence()
        if length % axis[1]:
            raise LayoutError(
                f"a witness of sequences of {length} tokens does not divide over cp*tp = {axis[1]}"
            )
        pp = self.engine.layout.pp
        least = self.micro_batch * (2 * pp if pp > 1 else 1)
        own = least * (n // math.gcd(n, data.size * least))
        first, part = data.rank * own, length // axis[1]
        return Share(
            rows=np.arange(first, first + own, dtype=np.int64) % n,
            copies=own * data.size // n,
            tokens=(axis[0] * part, (axis[0] + 1) * part),
        )

    def _sequence(self) -> tuple[int, int]:
        """Rank and size of the axis that cuts sequences."""
        axis = self.engine.stages[0].axes.sequence
        return axis.rank, axis.size

    def step(self, batch: WitnessBatch, rows: Rows) -> Stepped:
        """Forward and backward of the sequences ``rows``; then the tensors have gradients."""
        device = self.engine.device
        tokens = torch.from_numpy(batch.tokens[rows].copy()).to(device)
        documents = batch.documents
        result = self.engine.step(
            tokens,
            sequences=len(rows) * self.engine.data.size,
            documents=None
            if documents is None
            else torch.from_numpy(documents[rows].copy()).to(device),
        )
        loads = self.engine.loads()
        return Stepped(
            losses=result.losses,
            gradient_norm=result.gradient_norm,
            loads=loads if self._answers() else {},
        )

    def _answers(self) -> bool:
        """Whether this rank speaks for what all ranks of its stage hold."""
        return self.engine.meshes is None or self.engine.meshes.holders.rank == 0

    def sites(self) -> Iterator[Site]:
        """Embedding, blocks and their parts, the last norm, in every stage."""
        for stage in self.engine.stages:
            if stage.part.first:
                yield Site(name="embed_tokens", module=stage.embed_tokens, root=stage)
            if stage.part.last:
                yield Site(name="norm", module=stage.norm, root=stage)
            yield from _blocks(stage)

    def tensors(self) -> Iterator[HeldTensor]:
        """Every parameter part that this rank answers for."""
        for h in self.engine.held:
            if h.primary and h.placement.first_copy:
                yield _held(h, h.name, h.part, h.grad)

    @contextlib.contextmanager
    def updated(self, norm: float) -> Iterator[Iterable[HeldTensor]]:
        """The optimizer's next step: what it adds to each parameter; undone afterwards.

        Parameters and moments wait in host memory meanwhile.
        """
        optimizer = self.optimizer
        if optimizer is None:
            yield ()
            return
        parts = [h.part for h in self.engine.held]
        states = [t for tensors in optimizer.state.values() for t in tensors.values()]
        kept = [t.detach().to("cpu", copy=True) for t in (*parts, *states)]
        steps = optimizer.steps
        optimizer.step(RATE if self.rate is None else self.rate, norm)
        try:
            yield self._changes(kept)
        finally:
            optimizer.steps = steps
            with torch.no_grad():
                for tensor, before in zip((*parts, *states), kept, strict=True):
                    tensor.copy_(before)

    def _changes(self, before: list[Tensor]) -> Iterator[HeldTensor]:
        for h, old in zip(self.engine.held, before, strict=False):
            if h.primary and h.placement.first_copy:
                new = h.part.detach()
                yield _held(h, h.name, new - old.to(new.device), spacing=spacing(new))

    def moments(self) -> Iterator[HeldTensor]:
        """The optimizer's state, under the names ``parameter:kind``."""
        if self.optimizer is None:
            return
        for key, h in self.optimizer.items():
            if h.primary and h.placement.first_copy:
                for kind, tensor in self.optimizer.state[key].items():
                    yield _held(h, f"{h.name}:{kind}", tensor)

    def numbers(self) -> Iterator[tuple[Kind, str, float]]:
        """Updates that the optimizer has counted, and the learning rate of the next step."""
        if self.optimizer is not None:
            yield Kind.LOADED, "optimizer steps", float(self.optimizer.steps)
        if self.rate is not None:
            yield Kind.RATE, "learning rate", self.rate

    def biases(self) -> dict[str, Tensor]:
        """Balancing biases of routers by name."""
        routers = self.engine.routers() if self._answers() else {}
        return {n: r.e_score_correction_bias for n, r in routers.items() if r.shape.router_bias}

    def tensor_count(self) -> int:
        """Parameter tensors of the whole model."""
        with torch.device("meta"):
            return sum(1 for _ in Transformer(self.engine.spec).parameters())

    def software(self) -> dict[str, Any]:
        """Versions, device, layout."""
        return {
            **machine(self.engine.device),
            "layout": str(self.engine.layout),
            "ranks": dist.get_world_size() if dist.is_initialized() else 1,
        }


def spacing(x: Tensor) -> Tensor:
    """From each element's size to the next larger number of its type."""
    size = x.detach().abs()
    return torch.nextafter(size, torch.full_like(size, torch.inf)) - size


def _held(
    held: Held, name: str, part: Tensor, grad: Tensor | None = None, spacing: Tensor | None = None
) -> HeldTensor:
    shape = tuple(held.placement.shape)
    region = held.placement.region if shape else ()
    return HeldTensor(name=name, shape=shape, region=region, part=part, grad=grad, spacing=spacing)


def _wanted(setting: Setting, layout: Layout, dtype: torch.dtype) -> tuple[Layout, torch.dtype]:
    if setting.layout is not None:
        layout = parse_layout(setting.layout)
    if setting.micro_batch is not None:
        layout = replace(layout, micro_batch=setting.micro_batch)
    return layout, dtype if setting.dtype is None else dtype_of(setting.dtype)


def _blocks(stage: Transformer) -> Iterator[Site]:
    for name, module in stage.named_modules():
        if isinstance(module, Block):
            for child, part in module.named_children():
                if type(part).forward is not nn.Module.forward:
                    yield Site(name=f"{name}.{child}", module=part, root=stage)
            yield Site(name=name, module=module, root=stage)


def machine(device: torch.device) -> dict[str, Any]:
    """Software and device, for people who compare two records."""
    module = None if device.type == "cpu" else torch.get_device_module(device)
    named = getattr(module, "get_device_name", None)
    return {
        "krzem": version("krzem"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type if named is None else str(named(device)),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "libraries": {
            name: value
            for name, value in (("cuda", torch.version.cuda), ("hip", torch.version.hip))
            if value
        },
    }
