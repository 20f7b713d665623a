"""Routed experts, on one rank or spread over expert-parallel ranks.

Shape letters: M tokens, K choices, P rows grouped by expert, R rows received, E this rank's
experts, I expert width, D hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.layout.layout import Recompute
from krzem.model import FeedForward
from krzem.train.config import ModelSpec
from krzem.train.model.feed_forward import activated
from krzem.train.model.recompute import recomputed
from krzem.train.model.weights import Cut, local, weight
from krzem.train.ops import (
    Groups,
    combine,
    dispatch,
    float8_grouped_linear,
    grouped_linear,
    grouped_network,
    host_counts,
    permute,
    place,
)
from krzem.train.ops.float8 import BLOCK
from krzem.train.ops.grouped import ALIGN
from krzem.train.parallel.collectives import (
    Axes,
    exchange_counts,
    gather,
    gather_no_grad,
    max_over,
    reduce_scatter,
)


class Experts(nn.Module):
    """``experts`` gated networks; each row goes through the one it was routed to."""

    def __init__(self, spec: ModelSpec, shape: FeedForward, axes: Axes) -> None:
        super().__init__()
        self.axes, self.act = axes, spec.activation
        self.float8 = False
        """Whether products are rounded to float8 with block scales."""
        self.recompute = Recompute.NONE
        """What to compute again, where the layer around is compiled."""
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

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """``x [M, D], index [M, K], weights [M, K] -> [M, D]``."""
        return recomputed(self._routed, self.recompute, x, index, weights)

    def _routed(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        spread = self.axes.ep.size * self.axes.etp.size > 1
        flat = index.reshape(-1)
        position, groups = place(flat, self.experts, 1 if spread else self._align)
        position = position.view(index.shape)
        if spread:
            y = self._spread(x, position, groups)
        else:
            y = self._compute(permute(x, position, sum(groups.sizes)), groups)
        return combine(y, position, weights)

    @property
    def _align(self) -> int:
        """Rows of an expert are rounded up to this."""
        return BLOCK if self.float8 else ALIGN

    def _compute(self, rows: Tensor, groups: Groups) -> Tensor:
        """``[P, D] -> [P, D]`` through this rank's experts (a partial sum where width is cut)."""
        if self.woven:
            return self._compute_woven(rows, groups)
        up = local(self.gate_up_proj, rows.dtype).flatten(1, 2)
        down = local(self.down_proj, rows.dtype)
        if self.act.is_swiglu and not self.float8:
            return grouped_network(rows, up, down, groups, self.act.limit)
        multiply = float8_grouped_linear if self.float8 else grouped_linear
        gate, value = multiply(rows, up, groups).chunk(2, dim=-1)
        return multiply(activated(gate, value, self.act), down, groups)

    def _compute_woven(self, rows: Tensor, groups: Groups) -> Tensor:
        multiply = float8_grouped_linear if self.float8 else grouped_linear
        up, down = (local(w, rows.dtype).mT for w in (self.gate_up_proj, self.down_proj))
        biases = (local(b, rows.dtype) for b in (self.gate_up_proj_bias, self.down_proj_bias))
        row = torch.arange(len(rows), device=rows.device, dtype=groups.ends.dtype)
        expert = torch.searchsorted(groups.ends, row, right=True)
        before, after = (b.index_select(0, expert) for b in biases)
        inner = multiply(rows, up, groups) + before
        hidden = activated(inner[..., 0::2], inner[..., 1::2], self.act)
        return multiply(hidden, down, groups) + after

    def _spread(self, x: Tensor, position: Tensor, groups: Groups) -> Tensor:
        """Rows travel to the ranks of their experts, through them, and back.

        No name holds them on the way: each copy is as large as the activations of a layer.
        """
        ep, rows = self.axes.ep, sum(groups.sizes)
        counts = torch.diff(groups.ends, prepend=groups.ends.new_zeros(1)).view(ep.size, self.own)
        received = exchange_counts(counts, ep)
        send = [sum(groups.sizes[i : i + self.own]) for i in range(0, self.experts, self.own)]
        receive = host_counts(received.sum(1), rows, incoming=True)
        y = self._arrived(dispatch(permute(x, position, rows), ep, send, receive), received)
        return dispatch(y, ep, receive, send)

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
        position, groups = place(expert, self.own, self._align)
        rows = permute(rows, position.unsqueeze(1), sum(groups.sizes))
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
