"""From whatever a source publishes to seconds per step, through the source's own FLOP count."""

from __future__ import annotations

import math

from krzem.accuracy.case import Row, UnusableRowError, number, text
from krzem.hardware.catalogue import Device
from krzem.layout.layout import Precision
from krzem.model.architecture import Architecture, Attention, FeedForward
from krzem.model.table import projections
from krzem.model.weights import branches


def forward_flops(arch: Architecture, sequence: int, attention: str, logits: bool = True) -> float:
    """Forward FLOPs per token; ``attention`` is ``causal``, ``full`` or ``none``."""
    total = 2.0 * arch.vocab * arch.hidden if logits else 0.0
    for run in arch.runs:
        total += run.count * _layer(arch, run.layer.attention, run.layer.feed_forward, sequence,
                                    attention)  # fmt: skip
    for _ in range(arch.mtp_layers):
        last = arch.runs[-1].layer
        total += _layer(arch, last.attention, last.feed_forward, sequence, attention)
        total += 2.0 * arch.hidden * (2 * arch.hidden + (arch.vocab if logits else 0))
    return total


def _layer(
    arch: Architecture, a: Attention, ff: FeedForward, sequence: int, attention: str
) -> float:
    h = arch.hidden
    total = 2.0 * sum(c * k * n for c, k, n, _ in projections(a, h))
    for b in branches(a, sequence):
        keys = {"causal": b.keys, "full": min(2.0 * b.keys, b.span), "none": 0.0}[attention]
        total += 2.0 * b.heads * (b.qk_dim + b.v_dim) * keys
    wide = 3 if ff.gated else 2
    if not ff.is_moe:
        return total + 2.0 * wide * h * ff.width
    routed = ff.experts_per_token * ff.width + ff.shared_width
    return total + 2.0 * wide * h * routed + 2.0 * h * ff.experts


def published_flops(arch: Architecture, sequence: int, convention: str, full: bool) -> float:
    """FLOPs per token as a source counts them; ``full`` says whether it recomputes whole layers."""
    c = convention
    attention = "full"
    if "causal" in c and "non-causal" not in c:
        attention = "causal"
    if "sliding window" in c:
        attention = "causal"
    if any(s in c for s in ("no attention", "6n without", "no attention term", "6n, no attention")):
        attention = "none"
    hardware = any(s in c for s in ("hardware", "hfu", "8n", "4x fwd", "4/3", "recompute counted"))
    times = 4.0 if hardware and (full or "4/3" in c or "4x fwd" in c or "8n" in c) else 3.0
    return times * forward_flops(arch, sequence, attention)


IMPOSSIBLE = 1.1
"""Share of the peak that no published speed can stand for (the least FLOPs, over the peak)."""


def seconds_per_step(
    row: Row,
    arch: Architecture,
    sequence: int,
    devices: int,
    global_batch: float,
    device: Device,
    precision: Precision,
    full_recompute: bool,
) -> tuple[float | None, str]:
    """(seconds, column it comes from); None where the row publishes no speed.

    A column that would mean more than the peak is passed over: rates of the whole machine in a
    column for one device are the usual reason.  Where no column is left the row contradicts itself.

    Raises UnusableRowError.
    """
    share = global_batch * sequence / devices
    convention = text(row, "flops_convention")
    counted = share * published_flops(arch, sequence, convention, full_recompute)
    peak = _peak(device, precision, convention)
    step, rate, tflops, mfu = (number(row, name) for name in SPEEDS)
    found = (
        step,
        share / rate if rate else None,
        counted / (tflops * 1e12) if tflops else None,
        counted / (_fraction(mfu) * peak) if mfu and mfu <= 100 and peak else None,
    )
    if not any(found):
        return None, ""
    least = share * 3.0 * forward_flops(arch, sequence, "none", logits=False)
    fastest = least / (IMPOSSIBLE * max(device.peak_flops.values(), default=math.inf))
    for seconds, column in zip(found, SPEEDS, strict=True):
        if seconds is not None and seconds >= fastest:
            return seconds, column
    raise UnusableRowError("row contradicts itself (faster than the accelerator's peak)")


SPEEDS = (
    "metric_step_time_s", "metric_tokens_per_s_per_device", "metric_tflops_per_device",
    "metric_mfu_pct",
)  # fmt: skip
"""Columns that publish a speed, the safest first."""


def _fraction(mfu: float) -> float:
    """Utilisation as a fraction, whether written in per cent or as one (nobody publishes 1 %)."""
    return mfu if mfu <= 1.0 else mfu / 100.0


def _peak(device: Device, precision: Precision, convention: str) -> float | None:
    key = precision.arithmetic
    if "bf16 peak" in convention or key not in device.peak_flops:
        key = "bf16" if "bf16" in device.peak_flops else "fp16"
    return device.peak_flops.get(key)
