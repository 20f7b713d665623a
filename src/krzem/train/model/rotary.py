"""Angles of rotary position embeddings: plain, linearly scaled, Llama 3's and yarn's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from krzem.train.config import Rope


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
