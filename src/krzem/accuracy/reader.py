"""Rows of a table of runs as cases, or the reason why a row cannot be asked."""

from __future__ import annotations

import re

from krzem.accuracy.case import Case, UnusableRowError
from krzem.accuracy.cells import Row, number, text, whole, year
from krzem.accuracy.conventions import seconds_per_step
from krzem.accuracy.layouts import read_layout
from krzem.accuracy.network import network_bytes_per_s
from krzem.accuracy.shapes import read_architecture
from krzem.cost.engines import engine_of
from krzem.errors import KrzemError
from krzem.hardware.catalogue import load_device
from krzem.hardware.device import Device
from krzem.layout.layout import Recompute
from krzem.layout.precision import Precision

MEGATRON_CORE_SINCE = 2023.5
"""Year from which Megatron-LM is built on Megatron-Core."""

_PRECISIONS = {
    "bf16": Precision.BF16, "fp16": Precision.FP16, "fp16 amp": Precision.FP16,
    "fp8": Precision.FP8, "mxfp8": Precision.MXFP8, "nvfp4": Precision.NVFP4,
    "fp32": Precision.FP32, "tf32": Precision.FP32, "fp8-block": Precision.FP8_BLOCK,
}  # fmt: skip

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
    "pure": ("mode pure",),
}


def read_case(row: Row) -> Case:
    """One row as a case; raises UnusableRowError with the reason."""
    if text(row, "quality") == "exclude":
        raise UnusableRowError("marked exclude by its table")
    if (when := year(row)) is None:
        raise UnusableRowError("no date")
    device = _device(row)
    devices = _devices(row)
    precision = _precision(row, device)
    arch, sequence, shape_guesses = read_architecture(row)
    engine = _engine(row, when)
    try:
        layout, batch, known, guesses = read_layout(row, arch, devices, when, sequence, engine)
    except KrzemError as error:
        raise UnusableRowError("row contradicts itself (values out of range)") from error
    node = whole(row, "devices_per_node") or device.devices_per_node or 8
    seconds, column = seconds_per_step(
        row, arch, sequence, devices, batch, device, precision, layout.recompute is Recompute.FULL
    )
    memory = number(row, "metric_peak_mem_gb")
    if seconds is None and memory is None:
        raise UnusableRowError("no speed or memory published")
    notes = text(row, "notes")
    return Case(
        id=row.get("id") or "?",
        source=row.get("source") or "?",
        family=text(row, "family") or "?",
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
        traits=frozenset(t for t, words in _TRAITS.items() if any(w in notes for w in words)),
        seconds=seconds,
        measured_by=column,
        peak_memory_bytes=None if memory is None else memory * 2**30,
        memory_kind=_memory_kind(notes),
        guesses=(*shape_guesses, *guesses),
    )


def _engine(row: Row, when: float) -> str:
    origin = f"{row.get('source') or ''} {row.get('url_or_repo') or ''}"
    name = engine_of(origin, row.get("notes") or "")
    return "megatron-core" if name == "megatron-lm" and when >= MEGATRON_CORE_SINCE else name


def _memory_kind(notes: str) -> str:
    if any(word in notes for word in ("allocated", "real_alloc")):
        return "allocated"
    return "shown" if any(word in notes for word in ("nvidia-smi", "rocm-smi")) else "reserved"


def _device(row: Row) -> Device:
    name = (row.get("accelerator_id") or "").strip()
    if not name:
        raise UnusableRowError("accelerator not named, or mixed")
    try:
        return load_device(name, number(row, "device_fraction") or 1.0)
    except KrzemError as error:
        raise UnusableRowError("accelerator not in the catalogue") from error


def _devices(row: Row) -> int:
    devices = whole(row, "devices")
    if devices is not None:
        if devices > 10_000_000:
            raise UnusableRowError("row contradicts itself (values out of range)")
        return devices
    degrees = [whole(row, name) for name in ("tp", "pp", "dp")]
    if any(d is None for d in degrees):
        raise UnusableRowError("number of devices not published")
    product = whole(row, "cp") or 1
    for d in degrees:
        product *= d or 1
    return product


def _precision(row: Row, device: Device) -> Precision:
    raw = re.sub(r"\s+", " ", text(row, "precision"))
    if not raw:
        return Precision.BF16 if "bf16" in device.peak_flops else Precision.FP16
    if raw not in _PRECISIONS:
        raise UnusableRowError(f"precision not modelled ({raw[:20]})")
    return _PRECISIONS[raw]
