"""The model in PyTorch: blocks chosen by configuration."""

from __future__ import annotations

from krzem.train.model.context import Context, LossWeights
from krzem.train.model.transformer import Part, Transformer

__all__ = ["Context", "LossWeights", "Part", "Transformer"]
