"""From a device, its links, a precision and an engine to a :class:`Machine`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from krzem.cost.coefficients import Coefficients
from krzem.cost.machine import Machine
from krzem.engine.conditions import Design
from krzem.errors import UnknownFactError
from krzem.hardware.catalogue import Device
from krzem.layout.layout import (
    Precision,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything about a run that is not its model or layout."""

    device: Device
    devices_per_node: int
    memory_bytes: float
    memory_bytes_per_s: float
    scale_up_domain: int
    scale_up_bytes_per_s: float
    scale_out_bytes_per_s: float
    precision: Precision
    design: Design
    """The engine under its switches."""
    year: float
    """Age of the software."""
    finetune: str = "none"
    """``lora`` and ``qlora``: only adapters beside the weights are trained."""
    adapted: tuple[float, float] = (4.0, 3.0)
    """Matrices of attention and of the dense network with adapters beside them."""


ADAPTERS = ("lora", "qlora")
"""Kinds of fine-tuning that leave the weights as they are."""
DEQUANTISED_BYTES = 16.0
"""4-bit weights are read, looked up block by block and written in 16 bits before each use, by
kernels far from memory bandwidth (QwenLM/Qwen README, 7B to 72B on A100: 11 to 13 ps a weight)."""
COMPUTE_UNITS = {
    "nvidia-volta": 80, "nvidia-ampere": 108, "nvidia-hopper": 132, "nvidia-blackwell": 148,
    "nvidia-blackwell-rtx": 188, "nvidia-ada": 142, "nvidia-rubin": 224,
    "amd-cdna2": 110, "amd-cdna3": 304, "amd-cdna4": 256,
    "huawei-ascend-910": 32, "huawei-ascend-910b": 24, "huawei-ascend-910c": 24,
    "intel-gaudi": 4, "intel-xpu": 128,
}  # fmt: skip
"""Units that work on tiles of one product side by side: streaming multiprocessors (NVIDIA
architecture white papers), compute units (AMD), AI cores (Huawei), matrix engines (Intel)."""
NEW_ATTENTION = frozenset({"nvidia-hopper", "nvidia-blackwell"})
"""Families whose tensor units FlashAttention-2 does not use as they are meant to be used."""
MESHED = frozenset({"huawei-ascend-910b", "amd-cdna3", "amd-cdna4", "intel-gaudi"})
"""Families whose eight cards of a node are joined pair by pair instead of by a switch: seven links
of 28 GB/s (HCCS), of 64 or 77 GB/s (xGMI), seven times three Ethernet ports (Gaudi)."""
BOARD = 4
"""Cards of a board without a switch: all pairs are joined directly (HGX boards of four, GH200)."""
BRIDGED = 2
"""Cards joined in pairs; the pairs talk over PCIe."""
HOST_BYTES_PER_S = 16e9
"""Per device, one direction, between pairs of bridged cards (PCIe 4.0 x16 shared through hosts)."""
TILE_AREA = 128 * 256
SMALL_FILL = 512 * 512
"""Output that fills a chip whose matrix units are few and large (TPU, Trainium, unknown)."""


def machine(s: Situation, c: Coefficients) -> Machine:
    """The machine of one situation.

    Raises:
        UnknownFactError: the device has no published peak in the precision asked for.
    """
    family, e = s.device.family, s.design
    base = _peak16(s.device)
    share = c.common("matmul") * _power_term(s.device, base, c) * c.member("matmul", family)
    share = below_peak(share * _maturity(s, c))
    low, rate = _low(s, base, share, c)
    attention = c.common("attention") * c.member("attention", family) * _maturity(s, c)
    attention = base * _reached(s.device, attention)
    if e.flash2 and family in NEW_ATTENTION:
        attention *= c.common("flash2")
    host = e.host_us * 1e-6 * c.common("host")
    hidden_ep = c.common("ep-hide") if e.overlap_a2a else e.ep_overlap
    return Machine(
        matmul_flops=rate,
        matmul16_flops=base * _reached(s.device, share),
        attention_flops=attention,
        memory_bytes_per_s=s.memory_bytes_per_s
        * below_peak(c.common("memory") * c.member("memory", family)),
        memory_bytes=s.memory_bytes,
        fill=float(COMPUTE_UNITS[family] * TILE_AREA) if family in COMPUTE_UNITS else SMALL_FILL,
        depth=c.common("depth"),
        tail=c.common("tail"),
        slack=_slack(s.device, share),
        low_bytes=low,
        cast_bytes=0.0 if low == 2.0 else c.common("cast"),
        expert_cast_bytes=0.0 if low == 2.0 else e.expert_cast_bytes,
        node=float(s.devices_per_node),
        domain=float(s.scale_up_domain),
        up_bytes_per_s=s.scale_up_bytes_per_s
        * below_peak(c.common("up") * c.member("up", family)),
        mesh=float(_meshed(s)),
        out_bytes_per_s=_outside(s)
        * below_peak(c.common("out") * c.member("out", family)),
        rails=float(not _bridged(s)),
        up_latency=c.common("up-latency"),
        out_latency=c.common("out-latency"),
        up_start=c.common("up-start"),
        out_start=c.common("out-start"),
        exchange_out=c.common("exchange-out"),
        fetch_seconds=e.fetch_ms * 1e-3,
        beside=c.common("beside"),
        attention_half=c.common("attention-half") * c.member("attention-half", family),
        host_seconds=host * e.launch,
        expert_host_seconds=host * max(e.launch, e.expert_launch),
        moe_launches=c.common("moe-launches"),
        gap_seconds=e.gap_us * 1e-6 * e.launch,
        elementwise=e.elementwise * c.common("elementwise"),
        unfused_attention=e.unfused_attention,
        unfused_bytes=c.common("unfused"),
        tp_overlap=below_peak(e.tp_overlap * c.common("tp-hide")),
        tp_backward=e.tp_backward,
        reduce_overlap=e.reduce_overlap,
        gather_overlap=e.gather_overlap,
        whole_gradients=e.whole_gradients,
        ep_overlap=below_peak(hidden_ep),
        turn_seconds=e.turn_ms * 1e-3 * c.common("turn"),
        cut_turn_seconds=e.cut_turn_ms * 1e-3 * c.common("turn"),
        pp_exposed=below_peak(c.common("pp-exposed")),
        dedup=e.dedup,
        dispatch_all=e.dispatch_all,
        modules_dispatch=e.modules_dispatch,
        permute=e.permute,
        latent_rotary=e.latent_rotary,
        dispatch_bytes=2.0,
        gradient_bytes=e.gradient_bytes,
        accumulate_bytes=e.accumulate_bytes,
        grouped_share=c.common("grouped"),
        logit_bytes=e.loss_traffic or 4.0 + 6.0 * e.elementwise,
        pp_scatter=e.pp_scatter,
        imbalance=1.0 if e.even_routing else 1.0 + c.common("imbalance"),
        synchronised=e.host_waits,
        expert_pace=_expert_pace(s, c),
        trained=float(s.finetune not in ADAPTERS),
        adapted_attention=s.adapted[0],
        adapted_mlp=s.adapted[1],
        dequantised=DEQUANTISED_BYTES if s.finetune == "qlora" else 0.0,
        jitter=c.common("jitter"),
        overhead=c.engine_overhead(e.fits, s.year),
        fixed_seconds=c.common("fixed"),
    )  # fmt: skip


def below_peak(share: float) -> float:
    """``share`` held below 0.97, smoothly, so that calibration sees a slope everywhere."""
    return float(share * (1.0 + (share / 0.97) ** 12) ** (-1.0 / 12.0))


HALVED = frozenset({
    "nvidia-rtx-3090", "nvidia-rtx-3090-ti", "nvidia-rtx-4090", "nvidia-rtx-4090d",
    "nvidia-rtx-4070-ti-super", "nvidia-rtx-5090", "nvidia-rtx-5090d", "nvidia-rtx-5090d-v2",
})  # fmt: skip
"""Cards whose matrix units are held to half of their rate where they accumulate in 32 bits, which
is their published peak (white papers of GA102, AD102 and GB202: twice as much in 16 bits)."""
HALF = 2.0


def _reached(device: Device, share: float) -> float:
    """Share of the published peak that a product reaches, where it would reach ``share`` of a
    whole one: of half a peak more, since registers, caches and clocks are made for twice.

    8192 x 8192 x 8192 on an RTX 4090: 162.6 of 165.2 TFLOP/s (JustAResearcher/gpu-unlock-ada,
    docs/evidence).
    """
    return below_peak(HALF * share) if device.id in HALVED else share


def _slack(device: Device, share: float) -> float:
    """What the limiter of a halved card leaves of the rate that it would reach without."""
    return _reached(device, share) / (HALF * share) if device.id in HALVED else 1.0


def _outside(s: Situation) -> float:
    """Bandwidth beyond the scale-up domain: the network, or the host's PCIe inside a node."""
    if _bridged(s):
        # Without links of its own a card's bus is what the catalogue gives; pairs share the host's.
        bus = 0.5 * s.scale_up_bytes_per_s if s.scale_up_domain == 1 else HOST_BYTES_PER_S
        return min(s.scale_out_bytes_per_s, bus)
    return s.scale_out_bytes_per_s


def _meshed(s: Situation) -> bool:
    board = s.device.software == "cuda" and BRIDGED < s.scale_up_domain <= BOARD
    return s.device.family in MESHED or board


def _bridged(s: Situation) -> bool:
    return s.scale_up_domain <= BRIDGED and s.scale_up_domain < s.devices_per_node


RIPENS = 1.0
"""Years in which what young kernels lack falls to a third (measured runs of one chip over time)."""
OLDEST = 6.0
"""Age of a chip, in years, whose release is not known."""


def _maturity(s: Situation, c: Coefficients) -> float:
    """Share of a chip's later rates that software of the day reaches: kernels ripen with age."""
    year, _, month = s.device.released.partition("-")
    born = float(year) + (float(month or 6) - 1.0) / 12.0 if year.isdigit() else s.year - OLDEST
    age = max(s.year - born, 0.0)
    return float(1.0 - min(c.common("young"), 0.6) * math.exp(-age / RIPENS))


MOE_YEARS = (2024.5, 2026.5)
"""Years between which expert layers are known to have got faster; constant beyond."""


def _expert_pace(s: Situation, c: Coefficients) -> float:
    """Kernels for experts (permutation, grouped products, quantisation) are young and improve."""
    since = min(max(s.year, MOE_YEARS[0]), MOE_YEARS[1]) - 2025.5
    return float(c.common("moe-year") ** since)


def _peak16(device: Device) -> float:
    for kind in ("bf16", "fp16"):
        if kind in device.peak_flops:
            return device.peak_flops[kind]
    raise UnknownFactError(
        f"{device.id}: no 16-bit peak is published, so no step can be timed;"
        ' give it in the cluster file: [measured] bf16 = "... TFLOP/s"'
    )


def _power_term(device: Device, peak: float, c: Coefficients) -> float:
    """Chips with few watts per TFLOP/s cannot hold their clock: a power law, 1 at 1 W/TFLOP/s."""
    if device.power_w is None:
        return 1.0
    exponent = 0.15 + c.log("matmul-power")
    return float(min((device.power_w / (peak / 1e12)) ** exponent, 1.15))


def _low(s: Situation, base: float, share: float, c: Coefficients) -> tuple[float, float]:
    """(bytes per operand element, FLOP/s) of the products in the precision in use."""
    kind = s.precision.arithmetic
    # Scales per row leave the fast accumulation path: no gain over 16 bits was ever published.
    if kind in ("bf16", "fp16") or s.design.rowwise:
        return 2.0, base * _reached(s.device, share)
    peak = s.device.peak_flops.get("tf32" if kind == "fp32" else kind)
    if peak is None:
        known = ", ".join(k for k in s.device.peak_flops)
        raise UnknownFactError(
            f"{s.device.id}: no peak is published for {s.precision.value}; known: {known}."
            " Plan in one of these, or give the rate under [measured] in the cluster file."
        )
    if kind == "fp32":
        return 4.0, peak * _reached(s.device, share)
    if kind == "fp4":
        return 0.5, peak * share * c.common("low4") * c.member("low", s.device.family)
    share *= c.common("low") * c.member("low", s.device.family)
    return 1.0, peak * _reached(s.device, share)


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
