"""Process groups by role, as the modules of a model see them.

A module never asks for a rank or a world; it is given an :class:`Axes` and calls the collectives
of :mod:`krzem.train.parallel.collectives`, which do nothing on an axis of size one.  The same
model code therefore runs in one process without any process group.

Between layers every rank holds its own tokens: the sequence is cut over context and tensor
parallel ranks, ``sequence`` being the two together, context slow and tensor fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One kind of parallelism: its group, how many ranks it has and which one this is."""

    group: dist.ProcessGroup | None = None
    size: int = 1
    rank: int = 0


ALONE = Axis()


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The axes that a model computes over."""

    tp: Axis = ALONE
    cp: Axis = ALONE
    sequence: Axis = ALONE
    """``cp`` and ``tp`` together: the ranks that share one sequence."""
    ep: Axis = ALONE
    etp: Axis = ALONE


SINGLE = Axes()
"""Everything on one rank."""
