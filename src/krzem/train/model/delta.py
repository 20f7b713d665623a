"""The gated delta net (arXiv 2412.06464): attention's place taken by a state of fixed size.

Shape letters: B batch, S sequence, D hidden, G heads of keys, H heads of values, K width of a key,
V width of a value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.layout.layout import Recompute
from krzem.model import Recurrence
from krzem.train.config import ModelSpec
from krzem.train.model.context import Context, InParts
from krzem.train.model.recompute import recomputed_core
from krzem.train.model.weights import Cut, Linear, RowLinear, local, weight
from krzem.train.ops import gated_delta, rms_norm
from krzem.train.parallel.collectives import Axes, exchange, gather


class ShortConvolution(nn.Module):
    """A causal convolution of ``taps`` tokens, each channel by itself."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = weight(channels, 1, taps)

    def forward(self, x: Tensor, rows: Tensor, documents: Tensor | None) -> Tensor:
        """``x [B, S, C]`` of the channels ``rows [C]``; a token reads none of other documents."""
        taps = local(self.weight, x.dtype)[rows, 0]
        out = x * taps[:, -1]
        for back in range(1, taps.shape[1]):
            earlier = F.pad(x, (0, 0, back, 0))[:, : x.shape[1]]
            if documents is not None:
                same = documents == F.pad(documents, (back, 0), value=-1)[:, : x.shape[1]]
                earlier = earlier * same.unsqueeze(-1)
            out = out + earlier * taps[:, -1 - back]
        return out


class GatedDeltaNet(InParts):
    """Queries, keys and values through a short convolution, then the gated delta rule.

    Rows of the projections go by heads of keys, each with its query, key, values and gates, so
    that tensor and context parallelism cut them as they cut attention's heads.
    """

    def __init__(self, spec: ModelSpec, shape: Recurrence, axes: Axes) -> None:
        super().__init__()
        self.spec, self.shape, self.axes = spec, shape, axes
        self.recompute = Recompute.NONE
        self.each = shape.heads // shape.key_heads
        """Heads of values for a head of keys."""
        keys, values = shape.key_heads * shape.key_dim, shape.heads * shape.value_dim
        self.in_proj_qkvz = Linear(spec.hidden, 2 * keys + 2 * values, Cut.ROWS)
        self.in_proj_ba = Linear(spec.hidden, 2 * shape.heads, Cut.ROWS)
        self.conv1d = ShortConvolution(shape.conv_channels, shape.conv_taps)
        self.dt_bias, self.A_log = weight(shape.heads), weight(shape.heads)
        self.gain = weight(shape.value_dim)
        self.out_proj = RowLinear(values, spec.hidden, axes.tp)

    def inputs(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """What the core reads, by heads of keys ``[B, S, G, 2 K + n V + 2 n]`` with ``n = H / G``,
        and the gates of its output ``[B, S, H, V]``, of ``x [B, S/tp, D]``."""
        x = gather(x, self.axes.tp, 1)
        heads = (*x.shape[:2], self.shape.key_heads // self.axes.tp.size, -1)
        wide = self.each * self.shape.value_dim
        mixed, gate = (
            self.in_proj_qkvz(x).view(heads).split([2 * self.shape.key_dim + wide, wide], dim=-1)
        )
        read = torch.cat((mixed, self.in_proj_ba(x).view(heads)), dim=-1)
        return read, gate.reshape(*x.shape[:2], -1, self.shape.value_dim)

    def core(self, inputs: tuple[Tensor, Tensor], context: Context) -> Tensor:
        """``[B, S, H * V]``: the rule over the whole sequence with this rank's share of heads."""
        read = exchange(inputs[0], self.axes.cp, split=2, join=1)
        first = self._first_head(read.shape[2])

        def run(read: Tensor) -> Tensor:
            return self._mixed(read, first, context.documents)

        out = recomputed_core(run, self.recompute, read)
        return exchange(out, self.axes.cp, split=1, join=2).flatten(2)

    def output(self, out: Tensor, inputs: tuple[Tensor, Tensor], _: Context) -> Tensor:
        """``[B, S, H * V] -> [B, S/tp, D]``: normalised, gated and projected."""
        gate = inputs[1]
        plain = rms_norm(out.view_as(gate), local(self.gain, out.dtype), self.spec.norm_eps)
        gated = plain * F.silu(gate.float())
        return self.out_proj(gated.to(out.dtype).flatten(2))

    def _first_head(self, heads: int) -> int:
        """The first of this rank's ``heads`` heads of keys, tensor ranks first."""
        return (self.axes.tp.rank * self.axes.cp.size + self.axes.cp.rank) * heads

    def _mixed(self, read: Tensor, first: int, documents: Tensor | None) -> Tensor:
        """``read [B, S, g, …] -> [B, S, h, V]`` of the heads of keys from ``first`` on."""
        shape, each, heads = self.shape, self.each, read.shape[2]
        widths = [shape.key_dim, shape.key_dim, each * shape.value_dim, each, each]
        q, k, v, b, a = (t.flatten(2) for t in read.split(widths, dim=-1))
        rows = self._channels(first, heads, read.device)
        mixed = F.silu(self.conv1d(torch.cat((q, k, v), dim=-1), rows, documents))
        q, k, v = mixed.split([q.shape[-1], k.shape[-1], v.shape[-1]], dim=-1)
        own = slice(first * each, (first + heads) * each)
        steps = F.softplus(a.float() + local(self.dt_bias)[own].float())
        decay = -local(self.A_log)[own].float().exp() * steps
        parts = (t.unflatten(-1, (n, -1)) for t, n in ((q, heads), (k, heads), (v, heads * each)))
        q, k, v = (t.transpose(1, 2) for t in parts)
        q, k = (t.repeat_interleave(each, dim=1) for t in (q, k))
        out = gated_delta(q, k, v, decay.mT, b.sigmoid().mT, documents, shape.chunk)
        return out.transpose(1, 2)

    def _channels(self, first: int, heads: int, device: torch.device) -> Tensor:
        """Rows of the convolution: all queries come first there, then keys, then values."""
        shape = self.shape
        keys = shape.key_heads * shape.key_dim
        starts = (0, keys, 2 * keys)
        widths = (shape.key_dim, shape.key_dim, self.each * shape.value_dim)
        ranges = (
            torch.arange(start + first * w, start + (first + heads) * w, device=device)
            for start, w in zip(starts, widths, strict=True)
        )
        return torch.cat(list(ranges))
