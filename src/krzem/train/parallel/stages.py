"""Which part of the model sits on which pipeline stage."""

from __future__ import annotations

from krzem.layout.layout import V_SHAPED, Layout
from krzem.layout.stages import stage_layers
from krzem.train.model.transformer import Part

SPLIT_BACKWARD = V_SHAPED
"""Schedules that compute input and weight gradients apart."""


def parts(layers: int, layout: Layout, mtp: int = 0) -> tuple[Part, ...]:
    """The part of the model on each stage, in forward order; ``mtp`` modules follow the last.

    Raises:
        LayoutError: a stage would have no layer.
    """
    held = stage_layers(layers, layout, mtp)
    return tuple(
        Part(layers=span, first=i == 0, last=i == len(held) - 1) for i, span in enumerate(held)
    )
