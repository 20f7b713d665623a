"""From settings to what runs: the constants of each part, and layouts that share out a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from krzem.errors import DataError, KrzemError, LayoutError
from krzem.layout.layout import Layout
from krzem.train.config import ModelSpec
from krzem.train.engine import check_layout
from krzem.train.model.context import LossWeights
from krzem.train.optim import OptimizerConfig, Schedule
from krzem.train.parallel.pipeline import check_micro_batches
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


def loss_weights(settings: TrainSettings) -> LossWeights:
    """The weights of the losses beside next-token prediction."""
    t = settings.train
    return LossWeights(mtp=t.mtp, balance=t.balance, z=t.z, router_z=t.router_z, indexer=t.indexer)


def optimizer_config(settings: TrainSettings) -> OptimizerConfig:
    """The optimizer's constants."""
    o = settings.optimizer
    return OptimizerConfig(
        kind=settings.goal.optimizer,
        beta1=o.beta1,
        beta2=o.beta2,
        eps=o.eps,
        weight_decay=o.weight_decay,
        momentum=o.momentum,
        clip=o.clip,
    )


def schedule_of(settings: TrainSettings) -> Schedule:
    """The learning rate over the run."""
    s = settings.schedule
    own = settings.since > 0
    end = settings.until if own and settings.until else settings.goal.tokens
    return Schedule(
        tokens=end - settings.since,
        since=settings.since,
        peak=settings.optimizer.rate,
        kind=s.kind,
        warmup_tokens=s.warmup,
        decay_share=s.decay_share,
        final_share=s.final_share,
    )


def check_batch(settings: TrainSettings, layout: Layout) -> None:
    """Refuse a batch that the layout cannot share out.

    Raises:
        DataError: with the arithmetic.
    """
    goal, each = settings.goal, layout.dp * layout.micro_batch
    sizes = settings.batches.sizes
    for size in sizes:
        name = "goal.global_batch" if size == sizes[-1] else "a batch of the ramp"
        if size % each:
            raise DataError(
                f"{name} = {size} is not a multiple of dp*mbs = "
                f"{layout.dp}*{layout.micro_batch} = {each}"
            )
        check_micro_batches(layout, size // each, f"{name} = {size}")
    parts = layout.cp * layout.tp
    if goal.sequence % parts:
        raise DataError(
            f"goal.sequence = {goal.sequence} is not a multiple of cp*tp = {layout.cp}*{layout.tp}"
            f" = {parts}"
        )
