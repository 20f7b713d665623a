"""How one training step is cut over devices: one layout as a value, many as arrays.

With the precision, the optimizer and the bytes of states that belong to it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from krzem.errors import LayoutError, nearest, shorten

Array = Any


class Schedule(enum.StrEnum):
    """Pipeline schedules, by the names their papers and PyTorch use."""

    ONE_F_ONE_B = "1f1b"
    INTERLEAVED = "interleaved"
    ZB_H1 = "zb-h1"
    ZB_V = "zb-v"
    DUALPIPE = "dualpipe"
    DUALPIPE_V = "dualpipev"


class Recompute(enum.StrEnum):
    """Activation recomputation.

    ``attention`` recomputes the attention core (scores, softmax, dropout);
    ``modules`` recomputes what is cheap: norms, activation functions, latent up-projections;
    ``full`` recomputes whole layers (``recompute_layers`` of each stage, all where None).
    """

    NONE = "none"
    ATTENTION = "attention"
    MODULES = "modules"
    FULL = "full"


class ContextParallel(enum.StrEnum):
    """How context-parallel ranks exchange keys and values."""

    RING = "ring"
    ALL_TO_ALL = "a2a"
    ALL_GATHER = "allgather"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Degrees of parallelism and memory policy of one run.

    ``tp * cp * pp * dp`` is the number of devices.  Experts are spread over ``ep`` ranks, each
    expert cut ``etp`` ways; what is left, ``tp * cp * dp / (ep * etp)``, is the expert
    data-parallel degree.  Ranks are ordered tensor, context, (expert), data, pipeline, as
    Megatron-Core does by default.
    """

    tp: int = 1
    cp: int = 1
    pp: int = 1
    vpp: int = 1
    """Model chunks per pipeline rank (2 for the V-shaped schedules)."""
    ep: int = 1
    etp: int = 1
    dp: int = 1
    micro_batch: int = 1
    """Sequences per micro-batch and data-parallel rank."""
    zero: int = 1
    """0: replicated, 1: optimizer states, 2: and gradients, 3: and weights sharded (FSDP)."""
    shard: int = 0
    """Ranks over which ZeRO shards; 0 means all data-parallel ranks, fewer means hybrid (HSDP)."""
    sequence_parallel: bool = True
    """Norms and residuals cut along the sequence over the tensor-parallel ranks."""
    schedule: Schedule = Schedule.ONE_F_ONE_B
    first_stage_layers: int | None = None
    """Layers on the first pipeline rank; None: spread as evenly as the schedule allows."""
    last_stage_layers: int | None = None
    recompute: Recompute = Recompute.NONE
    recompute_layers: int | None = None
    """Layers per pipeline rank recomputed whole (with ``full``); None: all of them."""
    context_parallel: ContextParallel = ContextParallel.RING
    offload_optimizer: bool = False
    """Optimizer states and their update live in host memory."""

    def __post_init__(self) -> None:
        for name in ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "micro_batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**7:
                raise LayoutError(
                    f"{name}={value!r}: a whole number from 1 to 10,000,000 is needed"
                )
        if self.zero not in (0, 1, 2, 3):
            raise LayoutError(f"zero={self.zero!r}: the ZeRO stage is 0, 1, 2 or 3")
        if not 0 <= self.shard <= self.dp * self.cp:
            raise LayoutError(
                f"shard={self.shard}: sharding spans at most dp*cp = {self.dp}*{self.cp} ranks"
            )

    @property
    def devices(self) -> int:
        """Devices the layout occupies."""
        return self.tp * self.cp * self.pp * self.dp

    def __str__(self) -> str:
        """The short form that :func:`parse_layout` reads back; defaults are left out."""
        parts = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in _ALWAYS or value != item.default:
                text = int(value) if isinstance(value, bool) else value
                parts.append(f"{_SHORT.get(item.name, item.name)}={text}")
        return ",".join(parts)


_ALWAYS = frozenset({"tp", "pp", "dp", "micro_batch", "zero"})
_SHORT = {
    "micro_batch": "mbs",
    "sequence_parallel": "sp",
    "first_stage_layers": "first",
    "last_stage_layers": "last",
    "recompute_layers": "rlayers",
    "context_parallel": "cpkind",
    "offload_optimizer": "offload",
}
_LONG = {short: long for long, short in _SHORT.items()}
NAMES = tuple(_SHORT.get(item.name, item.name) for item in fields(Layout))
"""What a layout is written with, the short form of each."""
_ENUMS: dict[str, type[Schedule] | type[Recompute] | type[ContextParallel]] = {
    "schedule": Schedule,
    "recompute": Recompute,
    "context_parallel": ContextParallel,
}


def parse_layout(text: str) -> Layout:
    """Read ``tp=1,pp=16,ep=64,mbs=1,...``; names are those of :class:`Layout` or its short forms.

    Raises:
        LayoutError: an unknown name, a value of the wrong kind, or the same name twice.
    """
    known = [item.name for item in fields(Layout)]
    values: dict[str, object] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, sep, raw = part.partition("=")
        name = _LONG.get(key.strip().lower(), key.strip().lower().replace("-", "_"))
        if not sep or name not in known:
            near = nearest(name, [*known, *_LONG])
            offer = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(NAMES)}"
            raise LayoutError(
                f"layout: {shorten(part)!r} is not name=value with a known name; {offer}"
            )
        if name in values:
            raise LayoutError(f"layout: {key.strip()!r} is given twice")
        values[name] = _value(name, raw.strip().lower())
    return replace(Layout(), **values)  # type: ignore[arg-type]


def _value(name: str, raw: str) -> object:
    if name in _ENUMS:
        choices = [member.value for member in _ENUMS[name]]
        if raw not in choices:
            raise LayoutError(f"layout: {name}={shorten(raw)!r} is not one of {', '.join(choices)}")
        return _ENUMS[name](raw)
    if name in ("sequence_parallel", "offload_optimizer"):
        if raw not in ("0", "1", "true", "false"):
            raise LayoutError(f"layout: {name}={shorten(raw)!r} is not 0 or 1")
        return raw in ("1", "true")
    if not raw.isascii() or not raw.isdigit() or len(raw) > 8:
        raise LayoutError(
            f"layout: {name}={shorten(raw, 40)}: a whole number up to 10,000,000 is needed"
        )
    return int(raw)


V_SHAPED = frozenset({Schedule.ZB_V, Schedule.DUALPIPE_V})
"""Schedules whose second chunk runs through the ranks backwards."""


def chunks_per_rank(layout: Layout) -> int:
    """Stages (model chunks) that one rank holds: ``vpp``, 2 for the V-shaped schedules."""
    return 2 if layout.schedule in V_SHAPED else layout.vpp


def stage_ranks(layout: Layout) -> tuple[int, ...]:
    """The pipeline rank of each stage, in forward order."""
    down = range(layout.pp)
    if layout.schedule in V_SHAPED:
        return (*down, *reversed(down))
    return tuple(down) * layout.vpp


# Arithmetic, optimizer and what is kept per parameter: the part of a layout that is bytes
# ----------------------------------------------------------------------------------------


class Precision(enum.StrEnum):
    """Arithmetic of the matrix products; master weights and reductions as :class:`StateBytes`."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    """Tensor-wise (current or delayed) scaling, as Transformer Engine and torchao do."""
    FP8_BLOCK = "fp8-block"
    """DeepSeek's 1x128 and 128x128 block scaling."""
    MXFP8 = "mxfp8"
    NVFP4 = "nvfp4"
    FP32 = "fp32"

    @property
    def arithmetic(self) -> str:
        """The key of ``Device.peak_flops`` that matrix products use."""
        return {"fp8-block": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"}.get(self.value, self.value)


class Optimizer(enum.StrEnum):
    """Optimizers whose states and time are modelled."""

    ADAMW = "adamw"
    MUON = "muon"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes per parameter of what training keeps."""

    weight: float = 2.0
    gradient: float = 4.0
    master: float = 4.0
    moments: float = 8.0
    """All optimiser moments together (AdamW: two, Muon: one on matrices)."""


# What decides the time of one micro-batch on one device: the cell of a layout
# ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Arrays ``[U]`` (or floats) of what layer times depend on."""

    tp: Array
    cp: Array
    ep: Array
    etp: Array
    micro_batch: Array
    sequence_parallel: Array
    """1 or 0."""
    ring: Array
    """1 where context parallelism passes keys around a ring, else 0."""
    gather: Array
    """1 where it gathers all keys first, else 0 (neither: all-to-all)."""


# Many layouts at once: a struct of arrays with one entry per layout
# ------------------------------------------------------------------

SCHEDULES = tuple(Schedule)
RECOMPUTES = tuple(Recompute)
CONTEXTS = tuple(ContextParallel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """Arrays ``[N]``; see :class:`krzem.layout.layout.Layout` for the meaning of each field.

    ``schedule``, ``recompute`` and ``context_parallel`` are indices into ``SCHEDULES``,
    ``RECOMPUTES`` and ``CONTEXTS``; -1 in ``first_stage_layers``, ``last_stage_layers`` and
    ``recompute_layers`` stands for None.
    """

    tp: Array
    cp: Array
    pp: Array
    vpp: Array
    ep: Array
    etp: Array
    dp: Array
    micro_batch: Array
    zero: Array
    shard: Array
    sequence_parallel: Array
    schedule: Array
    first_stage_layers: Array
    last_stage_layers: Array
    recompute: Array
    recompute_layers: Array
    context_parallel: Array
    offload_optimizer: Array

    def __len__(self) -> int:
        return int(np.size(self.tp))

    def take(self, index: Array) -> Layouts:
        """The layouts at ``index`` (integers, a mask or a slice)."""
        return Layouts(**{f.name: getattr(self, f.name)[index] for f in fields(Layouts)})

    def at(self, index: int) -> Layout:
        """One layout as a value."""
        v = {f.name: int(getattr(self, f.name)[index]) for f in fields(Layouts)}
        return Layout(
            tp=v["tp"], cp=v["cp"], pp=v["pp"], vpp=v["vpp"], ep=v["ep"], etp=v["etp"],
            dp=v["dp"], micro_batch=v["micro_batch"], zero=v["zero"], shard=v["shard"],
            sequence_parallel=bool(v["sequence_parallel"]),
            schedule=SCHEDULES[v["schedule"]],
            first_stage_layers=_optional(v["first_stage_layers"]),
            last_stage_layers=_optional(v["last_stage_layers"]),
            recompute=RECOMPUTES[v["recompute"]],
            recompute_layers=_optional(v["recompute_layers"]),
            context_parallel=CONTEXTS[v["context_parallel"]],
            offload_optimizer=bool(v["offload_optimizer"]),
        )  # fmt: skip


def _optional(value: int) -> int | None:
    return None if value < 0 else value


def _code(layout: Layout, name: str) -> int:
    value = getattr(layout, name)
    if value is None:
        return -1
    for names in (SCHEDULES, RECOMPUTES, CONTEXTS):
        if value in names:
            return names.index(value)
    return int(value)


def pack(layouts: Sequence[Layout]) -> Layouts:
    """Layouts as arrays."""
    return Layouts(
        **{
            f.name: np.array([_code(x, f.name) for x in layouts], dtype=np.int64)
            for f in fields(Layouts)
        }
    )


def join(parts: Sequence[Layouts]) -> Layouts:
    """Several blocks of layouts as one."""
    return Layouts(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Layouts)}
    )


def cells(layouts: Layouts) -> Cells:
    """The cell of every layout, one to one."""
    return Cells(
        tp=layouts.tp.astype(float),
        cp=layouts.cp.astype(float),
        ep=layouts.ep.astype(float),
        etp=layouts.etp.astype(float),
        micro_batch=layouts.micro_batch.astype(float),
        sequence_parallel=layouts.sequence_parallel.astype(float),
        ring=(layouts.context_parallel == 0).astype(float),
        gather=(layouts.context_parallel == 2).astype(float),
    )


def unique_cells(layouts: Layouts, which: Array = 0) -> tuple[Cells, np.ndarray, np.ndarray]:
    """The distinct cells; for every layout the index of its cell; for every cell a layout.

    ``which`` keeps layouts apart that are run under other switches (an index each, or one for all).
    """
    key = np.zeros(len(layouts), dtype=np.int64) + which
    for name in ("tp", "cp", "ep", "etp", "micro_batch", "sequence_parallel", "context_parallel"):
        values, codes = np.unique(getattr(layouts, name), return_inverse=True)
        key = key * len(values) + codes
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return cells(layouts.take(first)), inverse, first
