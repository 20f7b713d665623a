"""Multi-token prediction: modules that each look one token further ahead.

Shape letters: B batch, S sequence, M streams, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from krzem.train.config import ModelSpec
from krzem.train.model.block import Block
from krzem.train.model.context import Context
from krzem.train.model.hyper import StreamHead
from krzem.train.model.weights import Linear, Norm
from krzem.train.parallel.axis import Axes


class MultiTokenPrediction(nn.Module):
    """Joins the hidden state before with the embedding of a later token, then one more layer.

    Without streams (DeepSeek-V3) the hidden state before is the one after the model's last norm,
    as vLLM and ``transformers`` take it when they draft; both parts are joined by one matrix.
    With streams (DeepSeek-V4) each stream is projected apart and the embedding added to all.
    """

    def __init__(self, spec: ModelSpec, axes: Axes) -> None:
        super().__init__()
        layer = spec.arch.mtp_layer
        assert layer is not None
        self.streams = spec.streams > 1
        self.enorm = Norm(spec.hidden, spec.norm_eps)
        self.hnorm = Norm(spec.hidden, spec.norm_eps)
        if self.streams:
            self.e_proj = Linear(spec.hidden, spec.hidden)
            self.h_proj = Linear(spec.hidden, spec.hidden)
            self.hc_head = StreamHead(spec)
        else:
            self.eh_proj = Linear(2 * spec.hidden, spec.hidden)
        self.block = Block(spec, layer, axes)
        self.norm = Norm(spec.hidden, spec.norm_eps)

    def forward(self, before: Tensor, embedded: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """``before`` (``[B, S, D]`` or streams) and ``embedded [B, S, D]`` to the state that the
        next module continues from and the normalised output ``[B, S, D]``."""
        if self.streams:
            joined = self.e_proj(self.enorm(embedded)).unsqueeze(2)
            streams = self.block(joined + self.h_proj(self.hnorm(before)), context)
            return streams, self.norm(self.hc_head(streams))
        joined = torch.cat((self.enorm(embedded), self.hnorm(before)), dim=-1)
        out = self.norm(self.block(self.eh_proj(joined), context))
        return out, out
