"""What all layers of one forward pass share: positions, documents, axes, attention's parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from krzem.train.config import Rope
from krzem.train.parallel.collectives import Axes

# Angles of rotary position embeddings: plain, linearly scaled, Llama 3's and yarn's
# ----------------------------------------------------------------------------------


def frequencies(rope: Rope) -> Tensor:
    """Radians per position of each channel pair, ``[dim / 2]`` float32, on the CPU."""
    powers = torch.arange(0, rope.dim, 2, dtype=torch.float32, device="cpu") / rope.dim
    plain = 1.0 / (rope.theta**powers)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, plain)
    return plain


def angles(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[S, dim / 2]`` of ``positions [S]``, float32."""
    turns = positions[:, None].float() * frequencies(rope).to(positions.device)
    return turns.cos() * rope.amplitude, turns.sin() * rope.amplitude


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Long waves are stretched by ``factor``, short ones kept, those between blended."""
    turns = rope.original_positions * plain / (2 * math.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = blend.clamp(0, 1)
    return (1 - keep) * plain / rope.factor + keep * plain


def _yarn(rope: Rope, plain: Tensor) -> Tensor:
    """Channels that turn fewer than ``beta_slow`` times are stretched, fast ones kept."""

    def channel(turns: float) -> float:
        span = rope.original_positions / (turns * 2 * math.pi)
        return rope.dim * math.log(span) / (2 * math.log(rope.theta))

    low, high = channel(rope.beta_fast), channel(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    index = torch.arange(rope.dim // 2, dtype=torch.float32, device="cpu")
    stretch = ((index - low) / (high - low)).clamp(0, 1)
    return plain / rope.factor * stretch + plain * (1 - stretch)


# What all layers of one forward pass share: positions, documents, tokens, axes
# -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """Weights of the losses beside next-token prediction."""

    mtp: float = 0.3
    """Multi-token prediction, mean over its modules (DeepSeek-V3 4.2: 0.3, later 0.1)."""
    balance: float = 1e-4
    """Sequence-wise balance of expert load (DeepSeek-V3 4.2)."""
    z: float = 0.0
    """Squared log-partition of the output (PaLM, section 5: 1e-4)."""
    router_z: float = 0.0
    """Squared log-partition of routers (ST-MoE: 1e-3)."""
    indexer: float = 1e-2
    """Divergence of an indexer's scores from the attention, mean over tokens.  It acts on the
    indexer's weights alone: its size matters for clipping only, so it is small."""


class KeysValues:
    """Keys and values of the tokens before, by attention module: of one rank, for generation."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens that they are of."""
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def extended(self, module: object, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``k`` and ``v [B, G, S, N]`` of the next tokens, joined to those of ``module`` before."""
        before = self._held.get(id(module))
        if before is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(before, (k, v), strict=True))
        self._held[id(module)] = k, v
        return k, v


@dataclass(slots=True, kw_only=True)
class Context:
    """One micro-batch, seen from one rank.

    ``S`` is the whole sequence.  ``own`` are the tokens this rank holds between layers, ``chunk``
    those of its context-parallel part (what tensor-parallel ranks gather).
    """

    axes: Axes
    length: int
    """S."""
    device: torch.device
    tokens: Tensor | None = None
    """[B, S] input ids."""
    documents: Tensor | None = None
    """[B, S] an id per token; attention stays within a document."""
    spans: Tensor | None = None
    """[N + 1] where documents begin in the row of all tokens."""
    sequences: int = 1
    """Sequences in the global batch, over which losses are averaged."""
    weights: LossWeights = LossWeights()
    cache: KeysValues | None = None
    """Where tokens went before these."""
    choices: dict[int, Tensor] = field(default_factory=dict)
    """[B, S, S] the keys that an indexer picked, by its attention, for layers that reuse them."""
    _tables: dict[Rope, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def own(self) -> slice:
        """This rank's tokens between layers."""
        part = self.length // self.axes.sequence.size
        return slice(self.axes.sequence.rank * part, (self.axes.sequence.rank + 1) * part)

    @property
    def chunk(self) -> slice:
        """The tokens of this rank's context-parallel part."""
        part = self.length // self.axes.cp.size
        return slice(self.axes.cp.rank * part, (self.axes.cp.rank + 1) * part)

    def angles(self, rope: Rope, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions in ``part``; the table is computed once."""
        self.prepare(rope)
        cos, sin = self._tables[rope]
        before = self.before
        return cos[before:][part], sin[before:][part]

    @property
    def before(self) -> int:
        """Tokens that went before these."""
        return 0 if self.cache is None else self.cache.tokens

    def prepare(self, rope: Rope) -> None:
        """Compute the table of ``rope``: done early, all layers are alike to a compiler."""
        if rope not in self._tables:
            positions = torch.arange(self.before + self.length, device=self.device)
            self._tables[rope] = angles(rope, positions)

    def own_tokens(self) -> Tensor:
        """[B, S/n] input ids of this rank's tokens."""
        assert self.tokens is not None
        return self.tokens[:, self.own]


class InParts(nn.Module):
    """What the core reads, the core, and what follows it."""

    def inputs(self, x: Tensor, context: Context) -> Any:
        """What the core reads, of ``x [B, S/tp, D]``."""
        raise NotImplementedError

    def core(self, inputs: Any, context: Context) -> Tensor:
        """Attention over the whole sequence with this rank's share of heads."""
        raise NotImplementedError

    def output(self, out: Tensor, inputs: Any, context: Context) -> Tensor:
        """``[B, S/tp, D]`` of what the core gave."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """``[B, S/tp, D] -> [B, S/tp, D]``."""
        inputs = self.inputs(x, context)
        return self.output(self.core(inputs, context), inputs, context)
