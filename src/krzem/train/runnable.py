"""Which layouts the trainer runs: one answer for a start, a rehearsal and a planner's choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from krzem.errors import KrzemError, LayoutError
from krzem.layout.layout import Layout
from krzem.train.config import ModelSpec
from krzem.train.engine import check_layout
from krzem.train.loop import check_batch
from krzem.train.parallel.stages import parts
from krzem.train.settings import TrainSettings


def why_not(spec: ModelSpec, settings: TrainSettings, layout: Layout) -> list[str]:
    """Every reason for which the trainer does not run ``layout``; none where it does."""
    reasons = []
    for rule in (
        lambda: check_layout(spec, layout),
        lambda: parts(len(spec.layers), layout, spec.arch.mtp_layers),
        lambda: check_batch(settings, layout),
    ):
        try:
            rule()
        except KrzemError as error:
            reasons.append(str(error))
    return reasons


def first_runnable(choices: Sequence[Layout], spec: ModelSpec, settings: TrainSettings) -> Layout:
    """The first of ``choices`` that the trainer runs, if need be (within a batch ramp) with a
    smaller micro-batch.

    Raises:
        LayoutError: it runs none; with the reason of the first.
    """
    reasons: list[str] = []
    for choice in choices:
        mbs = choice.micro_batch
        for micro_batch in (m for m in range(mbs, 0, -1) if mbs % m == 0):
            layout = replace(choice, micro_batch=micro_batch)
            found = why_not(spec, settings, layout)
            if not found:
                return layout
            reasons += found
    raise LayoutError(
        f"the trainer runs none of the {len(choices)} fastest layouts of the planner; the fastest: "
        f"{reasons[0]}. State a layout"
    )
