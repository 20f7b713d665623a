"""Agreement among ranks, with or without torch.distributed set up."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException

from krzem.errors import CheckpointError, KrzemError

Result = TypeVar("Result")


def distributed() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized()


def rank_and_size(group: ProcessGroup | None) -> tuple[int, int]:
    """This rank's number and how many there are."""
    return (dist.get_rank(group), dist.get_world_size(group)) if distributed() else (0, 1)


def host_group() -> ProcessGroup | None:
    """A group of all ranks that talks over the host: what checkpoints need beside training.

    Every rank must call it, in the same order as its other group creations.
    """
    return dist.new_group(backend="gloo") if distributed() else None


def together(group: ProcessGroup | None, action: Callable[[], Result]) -> Result:
    """``action`` on every rank; if it fails on any, all raise that rank's error."""
    result, error = None, None
    try:
        result = action()
    except KrzemError as failure:
        error = failure
    if distributed():
        errors: list[KrzemError | None] = [None] * dist.get_world_size(group)
        dist.all_gather_object(errors, error, group=group)
        first = next(((r, e) for r, e in enumerate(errors) if e is not None), None)
        if first is not None:
            raise _from_rank(*first)
    elif error is not None:
        raise error
    return result  # type: ignore[return-value]


def any_rank(group: ProcessGroup | None, flags: list[bool]) -> list[bool]:
    """For each flag, whether it is set on any rank."""
    if not distributed() or not flags:
        return flags
    packed: list[bytes] = [b""] * dist.get_world_size(group)
    dist.all_gather_object(packed, np.packbits(flags).tobytes(), group=group)
    together = np.bitwise_or.reduce([np.frombuffer(p, dtype=np.uint8) for p in packed])
    return [bool(bit) for bit in np.unpackbits(together, count=len(flags))]


@contextmanager
def first_cause() -> Iterator[None]:
    """Raise the error that made a distributed checkpoint operation fail, not a bundle of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            yield
        except CheckpointException as bundle:
            rank, (error, _) = min(bundle.failures.items())
            if isinstance(error, KrzemError):
                raise _from_rank(rank, error) from bundle
            raise CheckpointError(f"rank {rank}: {type(error).__name__}: {error}") from bundle


def _from_rank(rank: int, error: KrzemError) -> KrzemError:
    text = str(error)
    return error if rank == 0 or text.startswith("rank ") else type(error)(f"rank {rank}: {text}")
