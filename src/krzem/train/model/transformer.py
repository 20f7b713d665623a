"""The language model, or the part of it that one pipeline stage holds.

Shape letters: B batch, S sequence, M streams, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.model import AttentionKind
from krzem.train.config import ModelSpec
from krzem.train.model.block import Block
from krzem.train.model.context import Context, KeysValues, LossWeights
from krzem.train.model.embedding import Embedding
from krzem.train.model.hyper import StreamHead
from krzem.train.model.loss import IGNORE, token_losses
from krzem.train.model.mtp import MultiTokenPrediction
from krzem.train.model.weights import Cut, Linear, Norm, local
from krzem.train.ops import linear
from krzem.train.parallel.axis import SINGLE, Axes
from krzem.train.parallel.collectives import gather


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
        self.losses: dict[str, Tensor] = {}
        """Sums of this rank's parts of the mean losses since last cleared."""
        tied, mtp = spec.arch.tied_embeddings, spec.arch.mtp_layers
        if self.part.first or (self.part.last and (tied or mtp)):
            self.embed_tokens = Embedding(spec.vocab, spec.hidden, axes.tp)
        self.layers = nn.ModuleDict(
            {str(i): Block(spec, spec.layers[i], axes) for i in self.part.layers}
        )
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
        """Whether keys and values of earlier tokens can be kept: not compressed, nor indexed."""
        return all(
            layer.attention.kind is not AttentionKind.SHARED_KV and layer.attention.indexer is None
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
