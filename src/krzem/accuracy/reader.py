"""Rows of a table of runs as cases, or the reason why a row cannot be asked.

Columns alone decide: sources, notes and other free text are for people.
"""

from __future__ import annotations

from dataclasses import replace

from krzem.accuracy.cards import device_of
from krzem.accuracy.case import Case, UnusableRowError
from krzem.accuracy.cells import Row, number, text, whole
from krzem.accuracy.conventions import seconds_per_step
from krzem.accuracy.dates import date_of
from krzem.accuracy.known_shapes import completed
from krzem.accuracy.layouts import read_layout
from krzem.accuracy.shapes import read_architecture
from krzem.accuracy.spellings import precision_of, yes_or_no
from krzem.accuracy.stated import (
    engine_of,
    engine_run,
    finetune_of,
    from_the_maker,
    memory_kind_of,
    modules_of,
    network_of,
    offload_of,
    organisation_of,
    states_of,
    switches_of,
)
from krzem.accuracy.unknown import MIXED, unknown_of
from krzem.errors import KrzemError
from krzem.hardware.catalogue import Device
from krzem.layout.layout import Precision, Recompute


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
    switches, named = switches_of(row), engine_of(row)
    engine, guessed = engine_run(row, device)
    node = whole(row, "devices_per_node") or device.devices_per_node or 8
    try:
        layout, batch, known, guesses = read_layout(
            row, arch, devices, when, sequence, engine, node
        )
    except KrzemError as error:
        raise UnusableRowError("row contradicts itself (values out of range)") from error
    layout = replace(layout, offload_optimizer=text(row, "offload") != "paged" and offload_of(row))
    seconds, column = seconds_per_step(
        row, arch, sequence, devices, batch, device, precision, layout.recompute is Recompute.FULL
    )
    memory = number(row, "metric_peak_mem_gb")
    ran = text(row, "status") != "oom"
    if seconds is None and memory is None and ran:
        raise UnusableRowError("no speed or memory published")
    return Case(
        id=row.get("id") or "?",
        source=row.get("source") or "?",
        organisation=organisation_of(row),
        by_maker=from_the_maker(row, device),
        family="moe" if arch.is_moe else "dense",
        date=when,
        architecture=arch,
        sequence=sequence,
        device=device,
        devices=devices,
        devices_per_node=whole(row, "devices_per_node"),
        network_bytes_per_s=network_of(row),
        layout=layout,
        global_batch=batch,
        precision=precision,
        engine=engine,
        named_engine=named,
        engine_version=text(row, "engine_version"),
        switches=switches,
        finetune=finetune_of(row),
        lora_rank=whole(row, "lora_rank"),
        optimizer=text(row, "optimizer"),
        states=states_of(row),
        step_in_backward=yes_or_no(text(row, "step_in_backward")) or False,
        offload=offload_of(row),
        ran=ran,
        recompute_known=known,
        recompute_modules=modules_of(row),
        seconds=seconds,
        measured_by=column,
        peak_memory_bytes=None if memory is None else memory * 2**30,
        memory_kind=memory_kind_of(row),
        guesses=(*date_guesses, *shape_guesses, *guesses, *(["engine"] if guessed else [])),
        unknown=unknown_of(row, named, switches, layout, precision, arch.is_moe),
    )


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
    if not raw or raw in MIXED:
        return Precision.BF16 if "bf16" in device.peak_flops else Precision.FP16
    found = precision_of(raw)
    if found is None:
        raise UnusableRowError(f"precision not modelled ({raw[:20]})")
    return found
