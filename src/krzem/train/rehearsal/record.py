"""What a rank's step asked for, in order: storages, collectives, host reads, products."""

from __future__ import annotations

import enum
import functools
import traceback
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry

_GRAIN = 512
"""Bytes to which the caching allocator of CUDA rounds (c10/cuda/CUDACachingAllocator.cpp)."""
_READ = torch.ops.aten._local_scalar_dense.default
_resolve: Any = torch._C._distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
_OUTSIDE = ("c10d", "_c10d_functional")


class Kind(enum.StrEnum):
    """What memory holds."""

    WEIGHTS = "weights"
    GRADIENTS = "gradients"
    STATES = "states"
    ACTIVATIONS = "activations"
    TRANSIENT = "transient"


@dataclass(frozen=True, slots=True)
class Phase:
    """The part of a step that a rank is in."""

    what: str
    """``forward``, ``backward``, ``weights`` (their gradients apart), ``loss`` (apart from passes),
    ``update``, ``begin`` or ``between`` (what a schedule sends)."""
    chunk: int = 0
    """Which of the rank's stages."""
    micro_batch: int = 0


@dataclass(slots=True)
class Storage:
    """Memory from the operator that made it to the one after which it was let go."""

    size: int
    born: int
    """Index of the operator."""
    origin: str
    """Name of the operator."""
    phase: int
    """Index of the phase in which it was made."""
    shape: str = ""
    """Type and shape of the tensor that it was made for."""
    died: int | None = None
    died_phase: int | None = None
    kind: Kind | None = None
    """None: by its life (:func:`krzem.train.rehearsal.stages.kind_of`)."""
    gathered: bool = False
    """Whole weights that sharding gathered for a while."""


@dataclass(frozen=True, slots=True)
class Communication:
    """One collective, or one message between two ranks."""

    operation: str
    """all-reduce, all-gather, reduce-scatter, all-to-all, broadcast, send, receive, barrier."""
    group: str
    """Role of the group: the mesh axis that it belongs to."""
    ranks: tuple[int, ...]
    """Its members."""
    size: int
    """Bytes of the larger side on this rank."""
    dtype: str
    at: int
    """Index of the operator before it."""
    phase: int
    peer: int | None = None
    """The other global rank of a message."""
    batch: int | None = None
    """Messages that are given to the library together."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The rank waits here for the messages of a batch."""

    batch: int
    at: int


@dataclass(slots=True)
class Record:
    """A rank's step, in order."""

    storages: list[Storage] = field(default_factory=list)
    communications: list[Communication | Wait] = field(default_factory=list)
    reads: list[tuple[int, int, str]] = field(default_factory=list)
    """Host reads: operator index, phase, and where in krzem's or torch's code."""
    phases: list[Phase] = field(default_factory=lambda: [Phase("begin")])
    starts: list[int] = field(default_factory=lambda: [0])
    """Index of each phase's first operator."""
    flops: list[float] = field(default_factory=lambda: [0.0])
    """By phase."""
    traffic: list[float] = field(default_factory=lambda: [0.0])
    """Bytes that operators read and wrote, by phase."""
    operators: int = 0


class Recorder:
    """Writes a :class:`Record` while a program runs."""

    def __init__(self) -> None:
        self.record = Record()
        self._live: dict[int, Storage] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._gathering = False
        self._batches = 0
        self._batch: int | None = None

    def seen(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """One operator that the program called."""
        record = self.record
        record.operators += 1
        if func is _READ:
            record.reads.append((record.operators, len(record.phases) - 1, _caller()))
            return
        about = _about(func)
        if about.outside:
            self._communication(func, args)
        if about.fresh:
            for tensor in _tensors(out):
                self.keep(tensor, about.name)
            record.traffic[-1] += _bytes(args) + _bytes(out)
            if about.flops is not None:
                record.flops[-1] += about.flops(*args, **kwargs, out_val=out)

    def keep(self, tensor: Tensor, origin: str, kind: Kind | None = None) -> None:
        """Count the storage of ``tensor`` from now on, if it is new; with ``kind`` if given."""
        tensor = getattr(tensor, "_local_tensor", tensor)
        if tensor.device.type in ("meta", "cpu") or not isinstance(tensor, FakeTensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        found = self._live.get(key)
        if found is None:
            size = -(-storage.nbytes() // _GRAIN) * _GRAIN
            found = self._begin(key, size, origin)
            found.shape = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            self._watched[key] = weakref.ref(storage, lambda _: self._end(key))
        if kind is not None:
            found.kind = kind

    def resized(self, tensor: Tensor, size: int) -> None:
        """The storage of ``tensor`` was given ``size`` bytes, or none."""
        key = tensor.untyped_storage()._cdata
        if key in self._live:
            self._end(key)
        if size:
            self._begin(key, -(-size // _GRAIN) * _GRAIN, "gathered weights").gathered = True

    def _begin(self, key: int, size: int, origin: str) -> Storage:
        record = self.record
        found = Storage(size, record.operators, origin, len(record.phases) - 1)
        found.gathered = self._gathering
        self._live[key] = found
        record.storages.append(found)
        return found

    def _end(self, key: int) -> None:
        found = self._live.pop(key, None)
        if found is not None:
            found.died, found.died_phase = self.record.operators, len(self.record.phases) - 1

    def begin(self, phase: Phase) -> None:
        """From here on the rank is in ``phase``."""
        record = self.record
        record.phases.append(phase)
        record.starts.append(record.operators)
        record.flops.append(0.0)
        record.traffic.append(0.0)

    @contextmanager
    def within(self, phase: Phase) -> Iterator[None]:
        """Inside it is ``phase``, afterwards between two."""
        self.begin(phase)
        yield
        self.begin(Phase("between"))

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """What is made inside are weights, gathered from the ranks that hold parts of them."""
        before, self._gathering = self._gathering, True
        try:
            yield
        finally:
            self._gathering = before

    @contextmanager
    def batch(self) -> Iterator[int]:
        """Messages inside are given to the library together; yields their batch."""
        self._batches += 1
        self._batch = self._batches
        try:
            yield self._batches
        finally:
            self._batch = None

    def waited(self, batch: int) -> None:
        """The rank waits for the messages of ``batch``."""
        self.record.communications.append(Wait(batch, self.record.operators))

    def _communication(self, func: Any, args: Any) -> None:
        name = func._schema.name.partition("::")[2].strip("_")
        operation = _OPERATIONS.get(name)
        group = _group(args)
        if operation is None or group is None:
            return
        ranks, role = _ranks(group), group.group_desc or group.group_name
        role = "world" if role == "default_pg" else role
        tensors = list(_tensors(args))
        peer = ranks[args[2]] if operation in ("send", "receive") else None
        batch = self._batch
        alone = peer is not None and batch is None
        if alone:
            self._batches += 1
            batch = self._batches
        self.record.communications.append(
            Communication(
                operation,
                role.removeprefix("mesh_"),
                ranks,
                max((t.numel() * t.element_size() for t in tensors), default=0),
                str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
                self.record.operators,
                len(self.record.phases) - 1,
                peer,
                batch,
            )
        )
        if alone and batch is not None:
            self.waited(batch)


_OPERATIONS = {
    "allreduce": "all-reduce",
    "all_reduce": "all-reduce",
    "allgather": "all-gather",
    "allgather_base": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "all_gather_into_tensor_out": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "reduce_scatter_base": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "alltoall_base": "all-to-all",
    "alltoall": "all-to-all",
    "all_to_all_single": "all-to-all",
    "broadcast": "broadcast",
    "allreduce_coalesced": "all-reduce",
    "allgather_into_tensor_coalesced": "all-gather",
    "reduce_scatter_tensor_coalesced": "reduce-scatter",
    "barrier": "barrier",
    "send": "send",
    "recv": "receive",
}


@dataclass(frozen=True, slots=True)
class _About:
    name: str
    fresh: bool
    """Whether an output has a storage of its own."""
    outside: bool
    """Whether it is a collective."""
    flops: Any


@functools.cache
def _about(func: Any) -> _About:
    schema = func._schema
    namespace, _, name = schema.name.partition("::")
    fresh = any(r.alias_info is None for r in schema.returns)
    outside = namespace in _OUTSIDE
    return _About(
        name=name,
        fresh=fresh and bool(schema.returns) and namespace != "c10d",
        outside=outside and name != "wait_tensor",
        flops=_FLOPS.get(name) or flop_registry.get(getattr(func, "_overloadpacket", None)),
    )


def _product_flops(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Of ``a [M, K]`` with a matrix of ``N`` columns a row, or with ``[K, N]``: ``2 M K N``."""
    return 2 * a.numel() * b.shape[-1]


def _row_flops(*args: Any, **more: Any) -> int:
    """Of queries ``[T, H, N]`` in sequences of equal length, as torch counts them without
    documents: torch's count would have the host read where documents end."""
    query, value, length = args[0], args[2], args[5]
    rows, heads, width = query.shape
    return int(2 * rows * length * heads * (width + value.shape[2]))


def _row_backward_flops(*args: Any, **more: Any) -> int:
    query, value, length = args[1], args[3], args[8]
    rows, heads, width = query.shape
    return int(2 * rows * length * heads * (3 * width + 2 * value.shape[2]))


_FLOPS: dict[str, Any] = {
    **dict.fromkeys(("_grouped_mm", "_scaled_grouped_mm", "_scaled_mm_v2"), _product_flops),
    "_varlen_attn": _row_flops,
    "_varlen_attn_backward": _row_backward_flops,
}
"""Of operators that torch 2.13 has no count for, or none that keeps the host from reading."""


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _bytes(value: Any) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(value))


def _group(args: Sequence[Any]) -> Any:
    """The process group among the arguments of a collective."""
    for value in args:
        if isinstance(value, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(value)
            except RuntimeError:
                continue
        if isinstance(value, str):
            try:
                return _resolve(value)
            except (RuntimeError, ValueError):
                continue
    return None


def _ranks(group: Any) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(group))


def _caller() -> str:
    """The innermost line of krzem's own code that is not of the rehearsal."""
    for frame in reversed(traceback.extract_stack(limit=40)):
        path = frame.filename.replace("\\", "/")
        if "/krzem/" in path and "/rehearsal/" not in path:
            return f"{path.rpartition('/krzem/')[2]}:{frame.lineno}"
    return "torch"
