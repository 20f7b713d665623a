"""Compressed key-value entries of DeepSeek V4: a gated mean over windows of tokens.

Shape letters: B batch, S the whole sequence, T entries, r tokens per entry, N width, D hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.train.config import ModelSpec
from krzem.train.model.context import Context
from krzem.train.model.weights import Linear, Norm, local, weight
from krzem.train.ops import rotate
from krzem.train.parallel.axis import Axes
from krzem.train.parallel.collectives import gather


class Compressor(nn.Module):
    """One entry per ``rate`` tokens; with ``overlap`` an entry also reads the window before.

    Overlapping windows use two series of projections: a token's second series goes to its own
    window's entry, its first series to the next window's.  Projections are computed on each rank's
    own tokens and gathered, since windows may straddle ranks.
    """

    def __init__(
        self, spec: ModelSpec, width: int, rate: int, axes: Axes, *, overlap: bool
    ) -> None:
        super().__init__()
        self.spec, self.rate, self.width, self.axes = spec, rate, width, axes
        self.overlap = overlap
        outputs = 2 * width if overlap else width
        self.kv_proj = Linear(spec.hidden, outputs)
        self.gate_proj = Linear(spec.hidden, outputs)
        self.position_bias = weight(rate, outputs)
        self.kv_norm = Norm(width, spec.norm_eps)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """This rank's ``x [B, S/n, D]`` to all entries ``[B, T, N]``, ``T = S // rate``."""
        joined = torch.cat((self.kv_proj(x), self.gate_proj(x)), dim=-1)
        joined = gather(joined, self.axes.sequence, 1)
        entries = context.length // self.rate
        windows = joined[:, : entries * self.rate].unflatten(1, (entries, self.rate))
        kv, gate = windows.chunk(2, dim=-1)
        gate = gate.float() + local(self.position_bias)
        if self.overlap:
            kv, gate = _with_window_before(kv, 0.0), _with_window_before(gate, -torch.inf)
        pooled = (kv * gate.softmax(2).to(kv.dtype)).sum(2)
        return rotate_tail(self.kv_norm(pooled), self._angles(context, entries))

    def _angles(self, context: Context, entries: int) -> tuple[Tensor, Tensor]:
        cos, sin = context.angles(self.spec.rope_compressed)
        used = slice(0, entries * self.rate, self.rate)
        return cos[used], sin[used]


def _with_window_before(x: Tensor, fill: float) -> Tensor:
    """``[B, T, r, 2N] -> [B, T, 2r, N]``: first series of the window before, then second series."""
    first, second = x.chunk(2, dim=-1)
    before = F.pad(first[:, :-1], (0, 0, 0, 0, 1, 0), value=fill)
    return torch.cat((before, second), dim=2)


def rotate_tail(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the last channels of ``x [B, S, N]`` or ``[B, S, H, N]``, pairs being neighbours."""
    cos, sin = angles
    width = 2 * cos.shape[-1]
    plain, turned = x.split([x.shape[-1] - width, width], dim=-1)
    if x.dim() == 3:
        turned = rotate(turned.unsqueeze(2), cos, sin, True).squeeze(2)
    else:
        turned = rotate(turned, cos, sin, True)
    return torch.cat((plain, turned), dim=-1)
