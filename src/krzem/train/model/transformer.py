"""The language model, or the part of it that one pipeline stage holds.

Shape letters: B batch, S sequence, M streams, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from krzem.model import AttentionKind
from krzem.train.config import ModelSpec
from krzem.train.model.block import Block, reuse_choices
from krzem.train.model.context import Context, KeysValues, LossWeights
from krzem.train.model.hyper import StreamHead
from krzem.train.model.weights import Cut, Linear, Norm, local, weight
from krzem.train.ops import linear
from krzem.train.ops.attention import document_spans
from krzem.train.ops.portable import logit_gradient, logit_sums
from krzem.train.ops.products import add_transposed_product, product
from krzem.train.parallel.collectives import (
    SINGLE,
    Axes,
    Axis,
    gather,
    max_over,
    reduce_scatter,
    sum_over,
)

# Token embedding whose rows may be cut over tensor-parallel ranks
# ----------------------------------------------------------------


class Embedding(nn.Module):
    """A row per token id; ids of other ranks' rows give zero, and the ranks' results are summed."""

    def __init__(self, vocab: int, hidden: int, axis: Axis) -> None:
        super().__init__()
        self.axis = axis
        self.weight = weight(vocab, hidden, cut=Cut.ROWS)

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """``[B, S] -> [B, S/tp, D]`` in ``dtype``."""
        rows = local(self.weight)
        if self.axis.size == 1:
            return F.embedding(tokens, rows).to(dtype)
        own = tokens - self.axis.rank * rows.shape[0]
        here = (own >= 0) & (own < rows.shape[0])
        found = F.embedding(own.clamp(0, rows.shape[0] - 1), rows).to(dtype)
        return reduce_scatter(found * here.unsqueeze(-1), self.axis, 1)


# Next-token loss over a vocabulary that may be cut over tensor-parallel ranks
# ----------------------------------------------------------------------------

IGNORE = -100
"""Target of tokens that have none."""
_LOGITS = {"cpu": 2**20}
"""Float32 logits of a piece: on a processor as many as its caches hold, elsewhere 128 MiB."""
_ROWS = 256
"""Tokens of a piece at least, so that reading the output matrix is worth it."""


def token_losses(
    x: Tensor, matrix: Tensor, target: Tensor, axis: Axis, z_weight: float, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of ``x [M, D]``, and ``share`` of it with ``z_weight *
    logsumexp^2`` added.

    ``matrix [V, D]`` holds this rank's rows of the output matrix.  Every rank of ``axis`` gets the
    same values, and the gradient of its own rows.  The first value has no gradient.

    Logits exist for a piece of the tokens at a time: their gradient is known once they are, so
    that of ``x`` and ``matrix`` is computed on the way and no logits are kept or computed twice.
    It waits for the backward pass in the type of ``matrix``, ``share`` included: where the loss is
    not scaled further, it is rounded once.
    """
    plain, full = _TokenLosses.apply(x, matrix, target, axis, z_weight, share)
    return plain, full


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        matrix: Tensor,
        target: Tensor,
        axis: Axis,
        z_weight: float,
        share: float,
    ) -> tuple[Tensor, Tensor]:
        needed = any(ctx.needs_input_grad)
        plain, full = x.new_zeros(2, dtype=torch.float32).unbind()
        dx, dm = torch.empty_like(x) if needed else None, None
        for rows in _pieces(len(x), matrix):
            piece = _Piece.of(x[rows], matrix, target[rows], axis)
            own = piece.losses(z_weight)
            plain, full = plain + own[0], full + own[1]
            if dx is not None:
                g = piece.gradient(z_weight)
                dx[rows] = product(g, matrix.t())
                dm = add_transposed_product(dm, g, x[rows])
        if dx is not None and dm is not None:
            ctx.save_for_backward(dx, dm.mul_(share).to(matrix.dtype))
            ctx.share = share
        ctx.mark_non_differentiable(plain)
        return plain, full * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, g: Tensor) -> tuple[Tensor | None, ...]:
        dx, dm = ctx.saved_tensors
        # A number without axes does not widen the type, but is not rounded to it either.
        return dx * (g * ctx.share), dm * g, None, None, None, None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Some tokens: what their loss and its gradient are made of."""

    logits: Tensor
    """[m, V] of this rank's vocabulary."""
    own: Tensor
    """[m] the target's place among them, -1 where it is not here."""
    chosen: Tensor
    """[m] logit of the target."""
    partition: Tensor
    """[m] the logarithm of the sum of exponentials over all ranks' vocabulary."""
    kept: Tensor
    """[m] whether the token has a target."""

    @classmethod
    def of(cls, x: Tensor, matrix: Tensor, target: Tensor, axis: Axis) -> _Piece:
        """Logits of ``x [m, D]``, and what the ranks of ``axis`` have to know of each other's."""
        logits, kept = product(x, matrix), target != IGNORE
        own = target - axis.rank * len(matrix)
        own = own.masked_fill(~kept | (own < 0) | (own >= len(matrix)), -1)
        part, chosen = logit_sums(logits, own)
        return cls(
            logits=logits,
            own=own,
            chosen=sum_over(chosen, axis),
            partition=_log_sum(part, axis),
            kept=kept,
        )

    def losses(self, z_weight: float) -> tuple[Tensor, Tensor]:
        """The summed cross-entropy, without and with z-loss."""
        plain = ((self.partition - self.chosen) * self.kept).sum()
        if not z_weight:
            return plain, plain
        return plain, plain + z_weight * (self.partition.square() * self.kept).sum()

    def gradient(self, z_weight: float) -> Tensor:
        """[m, V] of the loss with z-loss, with respect to the logits, whose place it may take."""
        factor = self.kept * (1 + 2 * z_weight * self.partition)
        return logit_gradient(self.logits, self.own, self.partition, factor)


def _log_sum(part: Tensor, axis: Axis) -> Tensor:
    """The logarithm of the ranks' summed ``exp(part)``."""
    if axis.size == 1:
        return part
    peak = max_over(part, axis)
    return sum_over((part - peak).exp(), axis).log() + peak


def _pieces(tokens: int, matrix: Tensor) -> list[slice]:
    rows = max(_ROWS, _LOGITS.get(matrix.device.type, 2**25) // len(matrix))
    return [slice(start, start + rows) for start in range(0, tokens, rows)]


# Multi-token prediction: modules that each look one token further ahead
# ----------------------------------------------------------------------


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


# The language model, or the part of it that one pipeline stage holds
# -------------------------------------------------------------------


def plain_ids(tokens: Tensor) -> Tensor:
    """Token ids, where those that are not to be predicted are ``-1 - id``."""
    return torch.where(tokens < 0, -1 - tokens, tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which layers a stage holds, and whether it begins or ends the model."""

    layers: range
    first: bool = True
    last: bool = True


class Transformer(nn.Module):
    """Embedding, layers, output; build it on the meta device and initialise it afterwards.

    ``forward`` takes token ids ``[B, S + 1]`` (the target of a token is the next one; a token that
    is not to be predicted is ``-1 - id``) and gives
    the loss on the last stage, the residual on others.  The loss is this rank's part of the mean
    over the global batch: the sum over ranks, divided by the tensor-parallel size, is the mean.
    """

    def __init__(
        self,
        spec: ModelSpec,
        part: Part | None = None,
        axes: Axes = SINGLE,
        *,
        dtype: torch.dtype = torch.float32,
        weights: LossWeights | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.axes, self.dtype = spec, axes, dtype
        self.part = part or Part(layers=range(len(spec.layers)))
        self.weights = weights or LossWeights()
        self.sequences = 0
        """Sequences in the global batch; 0 means those of the micro-batch."""
        self.targets = 0
        """Tokens to be predicted in the global batch; 0 means all but the first of a sequence."""
        self.most_documents = 0
        """That a sequence has at most; 0 where the host is to look."""
        self.losses: dict[str, Tensor] = {}
        """Sums of this rank's parts of the mean losses since last cleared."""
        tied, mtp = spec.arch.tied_embeddings, spec.arch.mtp_layers
        if self.part.first or (self.part.last and (tied or mtp)):
            self.embed_tokens = Embedding(spec.vocab, spec.hidden, axes.tp)
        self.layers = nn.ModuleDict(
            {str(i): Block(spec, spec.layers[i], axes) for i in self.part.layers}
        )
        reuse_choices(list(self.layers.values()))
        if self.part.last:
            self.norm = Norm(spec.hidden, spec.norm_eps, spec.norm_offset)
            self.hc_head = StreamHead(spec) if spec.streams > 1 else None
            self.lm_head = None if tied else Linear(spec.hidden, spec.vocab, Cut.ROWS)
            self.mtp = nn.ModuleList(MultiTokenPrediction(spec, axes) for _ in range(mtp))

    def forward(
        self, x: Tensor, tokens: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """Run this stage on ``x``: token ids ``[B, S + 1]`` on the first stage, else the residual.

        ``tokens [B, S + 1]`` are needed on later stages; ``documents [B, S]`` everywhere or
        nowhere.
        """
        tokens = x if tokens is None else tokens
        context = self._context(tokens, documents)
        x = self._embed(context) if self.part.first else x
        for block in self.layers.values():
            x = block(x, context)
        return self._loss(x, tokens, context) if self.part.last else x

    def logits(
        self, tokens: Tensor, documents: Tensor | None = None, cache: KeysValues | None = None
    ) -> Tensor:
        """``[B, S] -> [B, S, V]`` of the whole model, on one rank.

        With a ``cache`` (where :attr:`remembers`) the tokens follow those that it is of.
        """
        context = self._context(F.pad(tokens, (0, 1)), documents, cache)
        x = self._embed(context)
        for block in self.layers.values():
            x = block(x, context)
        if cache is not None:
            cache.tokens += tokens.shape[1]
        return linear(self._output(x), self._head(x.dtype))

    @property
    def remembers(self) -> bool:
        """Whether keys and values of earlier tokens can be kept: not compressed, indexed or in a
        recurrence's state."""
        return all(
            layer.attention.kind is not AttentionKind.SHARED_KV
            and layer.attention.indexer is None
            and layer.recurrence is None
            for layer in self.spec.layers
        )

    def _context(
        self, tokens: Tensor, documents: Tensor | None, cache: KeysValues | None = None
    ) -> Context:
        context = Context(
            axes=self.axes,
            length=tokens.shape[1] - 1,
            device=tokens.device,
            tokens=plain_ids(tokens[:, :-1]),
            documents=documents,
            spans=document_spans(documents, self.most_documents),
            sequences=self.sequences or len(tokens),
            weights=self.weights,
            cache=cache,
        )
        for rope in (self.spec.rope, self.spec.rope_windowed, self.spec.rope_compressed):
            context.prepare(rope)
        return context

    def _embed(self, context: Context) -> Tensor:
        assert context.tokens is not None
        x = self.embed_tokens(context.tokens[:, context.chunk], self.dtype)
        if self.spec.embedding_scale != 1.0:
            x = x * torch.tensor(self.spec.embedding_scale, dtype=self.dtype, device="cpu")
        if self.spec.streams > 1:
            return x.unsqueeze(2).expand(-1, -1, self.spec.streams, -1)
        return x

    def _output(self, x: Tensor) -> Tensor:
        """The residual, collapsed and normalised: ``[B, S/n, D]``."""
        return self.norm(x if self.hc_head is None else self.hc_head(x))

    def _head(self, dtype: torch.dtype) -> Tensor:
        source = self.embed_tokens if self.lm_head is None else self.lm_head
        return local(source.weight, dtype)

    def _loss(self, x: Tensor, tokens: Tensor, context: Context) -> Tensor:
        """Next-token loss, and the weighted mean of the further predictions."""
        out = self._output(x)
        total = self._predict(out, tokens, context, ahead=0, name="loss", weight=1.0)
        if not self.training or not self.weights.mtp:
            return total
        before = x if self.spec.streams > 1 else out
        for ahead, module in enumerate(self.mtp, start=1):
            later = F.pad(tokens, (0, ahead))[:, ahead : ahead + context.length]
            embedded = self.embed_tokens(plain_ids(later[:, context.chunk]), self.dtype)
            before, out = module(before, embedded, context)
            weight = self.weights.mtp / len(self.mtp)
            name = f"mtp_{ahead}"
            total = total + self._predict(
                out, tokens, context, ahead=ahead, name=name, weight=weight
            )
        return total

    def _predict(
        self,
        out: Tensor,
        tokens: Tensor,
        context: Context,
        *,
        ahead: int,
        name: str,
        weight: float,
    ) -> Tensor:
        """``weight`` times the mean loss of the token ``ahead + 1`` places after each."""
        length, tp = context.length, self.axes.tp
        target = F.pad(tokens, (0, ahead), value=IGNORE)[:, ahead + 1 : ahead + 1 + length]
        target = target[:, context.chunk].reshape(-1)
        target = target.masked_fill(target < 0, IGNORE)
        x = gather(out, tp, 1).flatten(0, 1)
        count = self.targets or context.sequences * (length - ahead)
        head, z = self._head(x.dtype), self.weights.z
        plain, full = token_losses(x, head, target, tp, z, weight / count)
        value = plain.detach() / (count * tp.size)
        self.losses[name] = self.losses[name] + value if name in self.losses else value
        return full
