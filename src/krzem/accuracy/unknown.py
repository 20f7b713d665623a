"""What a row leaves open that its step time or memory depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from krzem.accuracy.cells import Row, text, whole
from krzem.layout.layout import Layout, Precision

MIXED = ("mixed", "mixed precision", "auto")
"""Words in ``precision`` that name none."""


def unknown_of(
    row: Row,
    engine: str,
    switches: Mapping[str, str],
    layout: Layout,
    precision: Precision,
    experts: bool,
) -> tuple[str, ...]:
    """Names of what is not stated, of that only which matters for this layout and precision."""
    return tuple(dict.fromkeys(_open(row, engine, switches, layout, precision, experts)))


def _open(
    row: Row,
    engine: str,
    switches: Mapping[str, str],
    layout: Layout,
    precision: Precision,
    experts: bool,
) -> Iterator[str]:
    if not engine:
        yield "engine"
    if text(row, "precision") in ("", *MIXED):
        yield "precision"
    if not text(row, "recompute") and not text(row, "recompute_modules"):
        yield "recomputation"
    if experts and layout.tp > 1 and whole(row, "etp") is None:
        yield "etp"
    yield from (name for name in _matters(layout, precision, experts) if name not in switches)
    for column, name in (("optimizer", "optimizer"), ("state_bytes", "state bytes")):
        if not text(row, column):
            yield name


def _matters(layout: Layout, precision: Precision, experts: bool) -> Iterator[str]:
    """Switches that change the price of such a run."""
    if experts:
        yield "routing"
    if experts and layout.ep > 1:
        yield from ("dispatcher", "overlap-a2a")
    if layout.tp > 1:
        yield from ("overlap-tp", "partition-activations")
    if layout.dp * layout.cp > 1:
        yield "overlap-grad-reduce"
        if layout.zero > 0:
            yield "overlap-param-gather"
        if layout.zero >= 2:
            yield "grad-sync"
    if precision is Precision.FP8:
        yield "fp8-scaling"
    if precision in (Precision.FP8, Precision.FP8_BLOCK, Precision.MXFP8):
        yield "fp8-params"
    yield from ("cuda-graphs", "loss", "fused-accumulation", "compile", "offload-activations")
