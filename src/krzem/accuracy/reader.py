"""Rows of a table of runs as cases, or the reason why a row cannot be asked."""

from __future__ import annotations

from krzem.accuracy.cards import device_of
from krzem.accuracy.case import Case, UnusableRowError
from krzem.accuracy.cells import Row, number, text, whole
from krzem.accuracy.conventions import seconds_per_step
from krzem.accuracy.dates import date_of
from krzem.accuracy.known_shapes import completed
from krzem.accuracy.layouts import read_layout
from krzem.accuracy.network import network_bytes_per_s
from krzem.accuracy.shapes import read_architecture
from krzem.accuracy.spellings import precision_of
from krzem.cost.engines import engine_of
from krzem.errors import KrzemError
from krzem.hardware.device import Device
from krzem.layout.layout import Recompute
from krzem.layout.precision import Precision

MEGATRON_CORE_SINCE = 2023.5
"""Year from which Megatron-LM is built on Megatron-Core."""

_TRAITS = {
    "ep-overlap": ("a2a overlap", "ep overlap", "overlap-moe", "comm overlap 1f1b"),
    "cuda-graph": ("cuda_graph=", "cuda graph", "_cg"),
    "full-graph": ("cuda_graph=full_iteration",),
    "no-overlap": ("no tp-comm overlap", "no overlap"),
    "async-tp": ("asynctp", "async tp", "use-mc2", "mc2 enabled"),
    "eager": (", eager",),
    "compile": ("torch.compile", "compile"),
    "capacity": ("token-drop", "tokendrop", "capacity factor", "dropped tokens"),
    "balanced": ("force-balanced", "force_load_balance", "fake-balanced", "fake-b"),
    "rowwise": ("rowwise",),
    "dedup": ("deepep", "hybridep", "hybrid-ep"),
    "adapters": ("lora", "adapter"),
    "pure": ("mode pure",),
}


def read_case(row: Row) -> Case:
    """One row as a case; raises UnusableRowError with the reason."""
    if text(row, "quality").startswith("exclude"):
        raise UnusableRowError("marked exclude by its table")
    row = completed(row)
    device = device_of(row)
    when, date_guesses = date_of(row, device)
    devices = _devices(row)
    precision = _precision(row, device)
    arch, sequence, shape_guesses = read_architecture(row)
    engine = _engine(row, when, device)
    node = whole(row, "devices_per_node") or device.devices_per_node or 8
    try:
        layout, batch, known, guesses = read_layout(
            row, arch, devices, when, sequence, engine, node
        )
    except KrzemError as error:
        raise UnusableRowError("row contradicts itself (values out of range)") from error
    seconds, column = seconds_per_step(
        row, arch, sequence, devices, batch, device, precision, layout.recompute is Recompute.FULL
    )
    memory = number(row, "metric_peak_mem_gb")
    if seconds is None and memory is None:
        raise UnusableRowError("no speed or memory published")
    notes = text(row, "notes")
    told = f"{notes} {text(row, 'model_name')}"
    return Case(
        id=row.get("id") or "?",
        source=row.get("source") or "?",
        family="moe" if arch.is_moe else "dense",
        date=when,
        architecture=arch,
        sequence=sequence,
        device=device,
        devices=devices,
        devices_per_node=whole(row, "devices_per_node"),
        network_bytes_per_s=network_bytes_per_s(row.get("notes") or "", node),
        layout=layout,
        global_batch=batch,
        precision=precision,
        engine=engine,
        recompute_known=known,
        traits=frozenset(t for t, words in _TRAITS.items() if any(w in told for w in words)),
        seconds=seconds,
        measured_by=column,
        peak_memory_bytes=None if memory is None else memory * 2**30,
        memory_kind=_memory_kind(notes),
        guesses=(*date_guesses, *shape_guesses, *guesses),
    )


_AT_HOME = {
    "google-tpu": "xla", "aws-neuron": "neuron", "intel-gaudi": "gaudi", "amd-cdna2": "primus",
    "amd-cdna3": "primus", "amd-cdna4": "primus", "huawei-ascend-910": "mindspeed",
    "huawei-ascend-910b": "mindspeed", "huawei-ascend-910c": "mindspeed",
}  # fmt: skip
"""The port of Megatron that a family's vendor keeps, or its own engine where there is none."""
_PORTED = ("other", "megatron-core", "megatron-lm")


def _engine(row: Row, when: float, device: Device) -> str:
    """What the source runs; where it speaks of Megatron, or of nothing, its port to the card."""
    origin = f"{row.get('source') or ''} {row.get('url_or_repo') or ''}"
    name = engine_of(origin, row.get("notes") or "")
    if name in _PORTED and device.family in _AT_HOME:
        return _AT_HOME[device.family]
    if name == "xla" and device.software == "cuda":
        return "xla-gpu"
    return "megatron-core" if name == "megatron-lm" and when >= MEGATRON_CORE_SINCE else name


def _memory_kind(notes: str) -> str:
    if any(word in notes for word in ("allocated", "real_alloc")):
        return "allocated"
    return "shown" if any(word in notes for word in ("nvidia-smi", "rocm-smi")) else "reserved"


_DEGREES = ("tp", "pp", "cp")


def _devices(row: Row) -> int:
    """Devices, or the product of the parallel degrees where all that exceed 1 are published."""
    devices = whole(row, "devices")
    if devices is None:
        if (dp := whole(row, "dp")) is None:
            raise UnusableRowError("number of devices not published")
        devices = dp
        for name in _DEGREES:
            devices *= whole(row, name) or 1
    if devices > 10_000_000:
        raise UnusableRowError("row contradicts itself (values out of range)")
    return devices


def _precision(row: Row, device: Device) -> Precision:
    raw = text(row, "precision")
    if not raw or raw in ("mixed", "mixed precision", "auto"):
        return Precision.BF16 if "bf16" in device.peak_flops else Precision.FP16
    found = precision_of(raw)
    if found is None:
        raise UnusableRowError(f"precision not modelled ({raw[:20]})")
    return found
