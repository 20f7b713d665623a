"""From whatever a source publishes to seconds per step, through the source's own FLOP count."""

from __future__ import annotations

from krzem.accuracy.cells import Row, number, text
from krzem.hardware.device import Device
from krzem.layout.precision import Precision
from krzem.model.architecture import Architecture, Attention, FeedForward
from krzem.model.branches import branches
from krzem.model.table import projections


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
    """(seconds, column it comes from); None where the row publishes no speed."""
    step = number(row, "metric_step_time_s")
    if step is not None:
        return step, "metric_step_time_s"
    share = global_batch * sequence / devices
    rate = number(row, "metric_tokens_per_s_per_device")
    if rate is not None:
        return share / rate, "metric_tokens_per_s_per_device"
    convention = text(row, "flops_convention")
    per_token = published_flops(arch, sequence, convention, full_recompute)
    tflops = number(row, "metric_tflops_per_device")
    if tflops is not None:
        return share * per_token / (tflops * 1e12), "metric_tflops_per_device"
    mfu = number(row, "metric_mfu_pct")
    peak = _peak(device, precision, convention)
    if mfu is not None and mfu <= 100 and peak is not None:
        return share * per_token / (mfu / 100 * peak), "metric_mfu_pct"
    return None, ""


def _peak(device: Device, precision: Precision, convention: str) -> float | None:
    key = precision.arithmetic
    if "bf16 peak" in convention or key not in device.peak_flops:
        key = "bf16" if "bf16" in device.peak_flops else "fp16"
    return device.peak_flops.get(key)
