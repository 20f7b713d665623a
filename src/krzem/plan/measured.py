"""What was measured on a cluster takes the place of what the calibrated model assumes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from krzem.cost.machine import Machine

_RATES = {
    "memory_bytes_per_s": "memory_bytes_per_s",
    "scale_up_bytes_per_s": "up_bytes_per_s",
    "scale_out_bytes_per_s": "out_bytes_per_s",
    "scale_up_latency_seconds": "up_latency",
    "scale_out_latency_seconds": "out_latency",
}
"""Name in ``Cluster.measured``: field of Machine that means the same."""


def as_measured(machine: Machine, measured: Mapping[str, float], arithmetic: str) -> Machine:
    """``machine`` with the rates, latencies and launch time that probes found.

    ``arithmetic`` is that of the matrix products (``bf16``, ``fp8``, ...).  Attention kernels run
    in 16 bits and scale with its products.  A launch never takes less than was measured of a bare
    kernel; an engine adds to that.
    """
    changes = {field: measured[name] for name, field in _RATES.items() if name in measured}
    wide = next((kind for kind in (arithmetic, "bf16", "fp16")
                 if kind in ("bf16", "fp16") and f"{kind}_flops" in measured), None)  # fmt: skip
    if wide is not None:
        rate = measured[f"{wide}_flops"]
        changes["matmul16_flops"] = rate
        changes["attention_flops"] = machine.attention_flops * rate / machine.matmul16_flops
    if f"{arithmetic}_flops" in measured:
        changes["matmul_flops"] = measured[f"{arithmetic}_flops"]
    if "launch_seconds" in measured:
        changes["host_seconds"] = max(machine.host_seconds, measured["launch_seconds"])
    return replace(machine, **changes)
