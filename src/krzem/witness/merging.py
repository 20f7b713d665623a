"""Puts together what the ranks saw."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from krzem.witness.tally import Tally

Partial = dict[str, Any]
"""Tallies by key, or plain values that one rank answers for."""


def merged(own: Partial) -> Partial:
    """The parts of all ranks, the same on every rank.

    Neighbours merge in pairs, so no rank ever holds more than two parts however many there are.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own
    rank, size, step = dist.get_rank(), dist.get_world_size(), 1
    while step < size:
        if rank % (2 * step) == step:
            dist.send_object_list([own], dst=rank - step)
            break
        if rank + step < size:
            received: list[Any] = [None]
            dist.recv_object_list(received, src=rank + step)
            _join(own, received[0])
        step *= 2
    whole = [own if rank == 0 else None]
    dist.broadcast_object_list(whole, src=0)
    assert whole[0] is not None
    return whole[0]


def _join(own: Partial, other: Partial) -> None:
    for key, value in other.items():
        mine = own.get(key)
        if isinstance(mine, Tally) and isinstance(value, Tally):
            mine.merge(value)
        else:
            own.setdefault(key, value)
