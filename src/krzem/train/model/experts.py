"""Routed experts, on one rank or spread over expert-parallel ranks.

Shape letters: M tokens, K choices, P rows grouped by expert, R rows received, E this rank's
experts, I expert width, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.layout.layout import Recompute
from krzem.model import FeedForward
from krzem.train.config import ModelSpec
from krzem.train.model.feed_forward import activated
from krzem.train.model.recompute import recomputed, recomputing
from krzem.train.model.weights import Cut, local, weight
from krzem.train.ops import (
    Groups,
    combine,
    dispatch,
    float8_grouped_linear,
    float8_rows_linear,
    grouped_linear,
    grouped_network,
    host_counts,
    permute,
    place,
    place_unread,
    slots,
)
from krzem.train.ops.float8 import BLOCK
from krzem.train.ops.grouped import ALIGN
from krzem.train.parallel.collectives import (
    Axes,
    Exchange,
    exchange_counts,
    gather,
    gather_no_grad,
    max_over,
    reduce_scatter,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """How rows get to their experts."""

    capacity: float | None = None
    """Rows that a rank may send another, over an even share.  None: exactly those that go there,
    for which the host waits until the device has counted them.  With a capacity all sizes are known
    beforehand and the host reads nothing; rows beyond it are counted, and the step is taken again
    exactly (:meth:`krzem.train.engine.Engine.step`)."""
    beside: bool = False
    """Whether rows travel beside the shared expert."""

    def room(self, tokens: int, choices: int, experts: int, ranks: int) -> int:
        """Rows for each of ``ranks`` that share ``experts``: no more than could ever go there."""
        most = tokens * min(choices, experts // ranks)
        assert self.capacity is not None
        return max(1, min(most, math.ceil(self.capacity * tokens * choices / ranks)))


EXACT = Dispatch()
Meanwhile = Callable[[], None]
"""What is computed while rows travel."""
_ALIGN = 8
"""Rows of an expert are rounded up to this where the host does not know them: 16 bytes of
bfloat16, which grouped products ask for."""


class Experts(nn.Module):
    """``experts`` gated networks; each row goes through the one it was routed to.

    ``beyond`` counts choices that a capacity had no room for since it was last cleared, ``needed``
    is the capacity that would have held them.  Neither is part of a checkpoint.
    """

    beyond: Tensor
    needed: Tensor

    def __init__(self, spec: ModelSpec, shape: FeedForward, axes: Axes) -> None:
        super().__init__()
        self.axes, self.act = axes, spec.activation
        self.float8 = False
        """Whether products are rounded to float8 with block scales."""
        self.by_rows = False
        """Whether these are scales of whole rows, and of all tokens of an expert."""
        self.recompute = Recompute.NONE
        """What to compute again, where the layer around is compiled."""
        self.dispatch = EXACT
        self.register_buffer("beyond", torch.zeros(()), persistent=False)
        self.register_buffer("needed", torch.zeros(()), persistent=False)
        self.experts = shape.experts
        self.own = shape.experts // axes.ep.size
        E, D, width = shape.experts, spec.hidden, shape.width
        self.woven = spec.woven
        if self.woven:
            self.gate_up_proj = weight(E, D, 2 * width, cut=Cut.EXPERT_ROWS)
            self.down_proj = weight(E, width, D, cut=Cut.EXPERT_ROWS)
            self.gate_up_proj_bias = weight(E, 2 * width, cut=Cut.EXPERT_ROWS)
            self.down_proj_bias = weight(E, D, cut=Cut.EXPERT_ROWS)
        else:
            self.gate_up_proj = weight(E, 2, width, D, cut=Cut.EXPERT_ROWS)
            self.down_proj = weight(E, D, width, cut=Cut.EXPERT_COLUMNS)

    def forward(
        self, x: Tensor, index: Tensor, weights: Tensor, beside: Sequence[Meanwhile] = ()
    ) -> Tensor:
        """``x [M, D], index [M, K], weights [M, K] -> [M, D]``.

        Of ``beside`` the first is called while rows travel to their experts, the second while they
        travel back; one after the other where they do not travel.
        """
        return recomputed(self._routed, self.recompute, x, index, weights, beside)

    def _routed(
        self, x: Tensor, index: Tensor, weights: Tensor, beside: Sequence[Meanwhile]
    ) -> Tensor:
        spread = self.axes.ep.size * self.axes.etp.size > 1
        flat = index.reshape(-1)
        if not spread:
            position, groups = self._place(flat, self.experts)
            position = position.view(index.shape)
            for meanwhile in beside:
                meanwhile()
            y = self._compute(permute(x, position, groups.rows), groups)
        elif self.dispatch.capacity is None:
            position, groups = place(flat, self.experts, 1)
            position = position.view(index.shape)
            y = self._spread(x, position, groups, beside)
        else:
            tokens, choices = index.shape
            room = self.dispatch.room(tokens, choices, self.experts, self.axes.ep.size)
            position, filled, most = slots(flat, self.experts, self.axes.ep.size, room)
            self._count(most, room, flat.numel() / self.axes.ep.size)
            position = position.view(index.shape)
            y = self._spread_evenly(x, position, filled, room, beside)
        return combine(y, position, weights)

    @property
    def _align(self) -> int:
        """Rows of an expert are rounded up to this."""
        known = self.dispatch.capacity is None
        return BLOCK if self.float8 else (ALIGN if known else _ALIGN)

    def _place(self, expert: Tensor, experts: int) -> tuple[Tensor, Groups]:
        """Rows grouped by expert, those of ``experts`` itself behind all others."""
        by = place if self.dispatch.capacity is None else place_unread
        return by(expert, experts, self._align, filled=self.float8 and self.by_rows)

    @torch.no_grad()
    def _count(self, most: Tensor, room: int, even: float) -> None:
        """What a rank was to be sent at ``most``, where there was ``room``; once for a step."""
        if not recomputing():
            self.beyond += (most - room).clamp(min=0)
            torch.maximum(self.needed, most / even, out=self.needed)

    def _compute(self, rows: Tensor, groups: Groups) -> Tensor:
        """``[P, D] -> [P, D]`` through this rank's experts (a partial sum where width is cut)."""
        if self.woven:
            return self._compute_woven(rows, groups)
        up = local(self.gate_up_proj, rows.dtype).flatten(1, 2)
        down = local(self.down_proj, rows.dtype)
        if self.act.is_swiglu and not self.float8:
            return grouped_network(rows, up, down, groups, self.act.limit)
        multiply = self._multiply
        gate, value = multiply(rows, up, groups).chunk(2, dim=-1)
        return multiply(activated(gate, value, self.act), down, groups)

    @property
    def _multiply(self) -> Callable[[Tensor, Tensor, Groups], Tensor]:
        if not self.float8:
            return grouped_linear
        return float8_rows_linear if self.by_rows else float8_grouped_linear

    def _compute_woven(self, rows: Tensor, groups: Groups) -> Tensor:
        multiply = self._multiply
        up, down = (local(w, rows.dtype).mT for w in (self.gate_up_proj, self.down_proj))
        biases = (local(b, rows.dtype) for b in (self.gate_up_proj_bias, self.down_proj_bias))
        row = torch.arange(len(rows), device=rows.device, dtype=groups.ends.dtype)
        expert = torch.searchsorted(groups.ends, row, right=True)
        if groups.sizes is None:  # Rows behind all groups get a bias that nobody learns.
            biases = (F.pad(b, (0, 0, 0, 1)) for b in biases)
        before, after = (b.index_select(0, expert) for b in biases)
        inner = multiply(rows, up, groups) + before
        hidden = activated(inner[..., 0::2], inner[..., 1::2], self.act)
        return multiply(hidden, down, groups) + after

    def _sent(
        self, rows: Tensor, send: list[int], receive: list[int], meanwhile: Sequence[Meanwhile]
    ) -> Tensor:
        """All-to-all of ``rows``, with what there is to do ``meanwhile``."""
        if not meanwhile:
            return dispatch(rows, self.axes.ep, send, receive)
        under_way = Exchange(rows, self.axes.ep, send, receive)
        del rows
        for do in meanwhile:
            do()
        return under_way.arrived()

    def _spread(
        self, x: Tensor, position: Tensor, groups: Groups, beside: Sequence[Meanwhile]
    ) -> Tensor:
        """Rows travel to the ranks of their experts, through them, and back.

        No name holds them on the way: each copy is as large as the activations of a layer.
        """
        ep, sizes = self.axes.ep, groups.known
        assert sizes is not None
        counts = torch.diff(groups.ends, prepend=groups.ends.new_zeros(1)).view(ep.size, self.own)
        received = exchange_counts(counts, ep)
        send = [sum(sizes[i : i + self.own]) for i in range(0, self.experts, self.own)]
        receive = host_counts(received.sum(1), groups.rows, incoming=True)
        y = self._arrived(
            self._sent(permute(x, position, groups.rows), send, receive, beside[:1]), received
        )
        return self._sent(y, receive, send, beside[1:])

    def _spread_evenly(
        self,
        x: Tensor,
        position: Tensor,
        filled: Tensor,
        room: int,
        beside: Sequence[Meanwhile],
    ) -> Tensor:
        """As :meth:`_spread`, ``room`` rows to every rank, of which ``filled [n, E]`` are used."""
        ep = self.axes.ep
        received = gather_no_grad(exchange_counts(filled, ep), self.axes.etp, 0)
        parts = [room] * ep.size
        rows = self._sent(permute(x, position, room * ep.size), parts, parts, beside[:1])
        rows = gather(rows, self.axes.etp, 0)
        slot = torch.arange(room, device=rows.device).repeat(len(received), 1)
        expert = torch.searchsorted(received.cumsum(1), slot, right=True).reshape(-1)
        position, groups = self._place(expert, self.own)
        rows = permute(rows, position.unsqueeze(1), groups.rows)
        y = self._compute(rows, groups).index_select(0, position)
        return self._sent(reduce_scatter(y, self.axes.etp, 0), parts, parts, beside[1:])

    def _arrived(self, rows: Tensor, received: Tensor) -> Tensor:
        """Group received rows ``[R, D]`` by expert, compute, and restore their order.

        With expert-tensor parallelism the ranks that share an expert first put their rows
        together, padded to the longest, and afterwards sum their parts of the result.
        """
        etp, count = self.axes.etp, len(rows)
        longest = self._longest(rows)
        if etp.size > 1:
            rows = gather(F.pad(rows, (0, 0, 0, longest - count)), etp, 0)
        tables = gather_no_grad(received.unsqueeze(0), etp, 0)
        expert = torch.cat([self._expert_of_rows(table, longest) for table in tables])
        position, groups = self._place(expert, self.own)
        rows = permute(rows, position.unsqueeze(1), groups.rows)
        y = self._compute(rows, groups).index_select(0, position)
        return y if etp.size == 1 else reduce_scatter(y, etp, 0)[:count]

    def _longest(self, rows: Tensor) -> int:
        """The most rows that a rank which shares these experts received."""
        etp, count = self.axes.etp, len(rows)
        if etp.size == 1:
            return count
        most = max_over(torch.tensor([count], device=rows.device), etp)
        return host_counts(most, count)[0]

    def _expert_of_rows(self, received: Tensor, rows: int) -> Tensor:
        """[rows] the expert of each row: by source rank, then expert; padding goes to expert 0."""
        ends = received.reshape(-1).cumsum(0)
        place = torch.arange(rows, device=received.device)
        part = torch.searchsorted(ends, place, right=True)
        return torch.where(part < len(ends), part % self.own, 0)
