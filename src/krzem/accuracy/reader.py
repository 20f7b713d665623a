"""Rows of a table of runs as cases, or the reason why a row cannot be asked.

Columns alone decide: sources, notes and other free text are for people.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from krzem.accuracy.case import Case, Row, UnusableRowError, date_of, device_of, number, text, whole
from krzem.accuracy.conventions import seconds_per_step
from krzem.accuracy.shapes import read_architecture
from krzem.accuracy.spellings import (
    NODE,
    completed,
    earliest,
    engine_of,
    engine_run,
    finetune_of,
    from_the_maker,
    memory_kind_of,
    modules_of,
    network_of,
    offload_of,
    organisation_of,
    precision_of,
    recompute_of,
    sharding_of,
    states_of,
    switches_of,
    yes_or_no,
)
from krzem.engine.description import engines
from krzem.errors import KrzemError
from krzem.hardware.catalogue import Device
from krzem.layout.layout import ContextParallel, Layout, Precision, Recompute, Schedule
from krzem.model.architecture import Architecture

# The layout of a published row, from its columns
# -----------------------------------------------

UNKNOWN = "layout not published (tensor or pipeline parallel degree)"
TOKENS = 1e5
"""A batch of as many is one in tokens; the largest in sequences was a sixth of it."""
ROUNDED = 0.05
"""Largest part of the devices that a rounded count (``6K NPUs``) may be off a whole layout."""


def read_layout(
    row: Row,
    arch: Architecture,
    devices: int,
    year: float,
    sequence: int,
    engine: str,
    node: int,
) -> tuple[Layout, float, bool, tuple[str, ...]]:
    """(layout, global batch in sequences, whether recomputation is known, what was assumed)."""
    guesses: list[str] = []
    zero, shard = _zero(row, engine, guesses)
    shard = node if shard == NODE else shard
    tp, pp, cp = _degrees(row, devices, zero, guesses)
    dp = _replicas(devices, tp * pp * cp, guesses)
    ep, etp = _experts(row, arch, tp * cp * dp, tp, engine, guesses)
    batch, micro = _batch(row, devices, dp, pp, sequence, zero, guesses)
    vpp = whole(row, "vpp") or _chunks(row, arch, engine, pp, batch / (dp * micro), guesses)
    if batch < dp * 0.999:
        if not whole(row, "tp") and not whole(row, "cp"):
            # Sequences are cut somehow, and the row does not say how.
            raise UnusableRowError(UNKNOWN)
        raise UnusableRowError("row contradicts itself (fewer sequences than data-parallel ranks)")
    schedule = _schedule(row, pp, vpp)
    recompute, share, known = _recompute(row, engine, year)
    per_rank = max(1, round(arch.layers / pp))
    layout = Layout(
        tp=tp, cp=cp, pp=pp, vpp=1 if pp == 1 else vpp, ep=ep, etp=etp, dp=dp,
        micro_batch=micro, zero=zero, shard=min(shard, dp * cp), schedule=schedule,
        sequence_parallel=_sequence_parallel(row, tp, arch, year),
        recompute=recompute,
        recompute_layers=None if share is None else max(0, round(share * per_rank)),
        context_parallel=_context(row),
    )  # fmt: skip
    return layout, batch, known, tuple(guesses)


def _degrees(row: Row, devices: int, zero: int, guesses: list[str]) -> tuple[int, int, int]:
    """(tp, pp, cp); one that is blank is what the others leave, or 1 where that is a habit."""
    tp, pp, cp, dp = (whole(row, name) for name in ("tp", "pp", "cp", "dp"))
    if tp is None and pp is None and devices > 1 and zero != 3 and dp != devices:
        raise UnusableRowError(UNKNOWN)
    if (tp is None) != (pp is None) and zero != 3:
        known = (tp or pp or 1) * (cp or 1)
        left = devices // (known * dp) if dp and devices % (known * dp) == 0 else 1
        if dp is None:
            guesses.append("pipeline degree" if pp is None else "tensor degree")
        tp, pp = tp or left, pp or left
    return tp or 1, pp or 1, cp or 1


def _replicas(devices: int, model_ranks: int, guesses: list[str]) -> int:
    """Data-parallel ranks; a number of devices that the source rounded counts as the nearest."""
    nearest = max(1, round(devices / model_ranks))
    if devices % model_ranks == 0:
        return nearest
    if devices % 100 or abs(nearest * model_ranks / devices - 1.0) > ROUNDED:
        raise UnusableRowError(
            "row contradicts itself (devices are not a multiple of tp x pp x cp)"
        )
    guesses.append("devices rounded")
    return nearest


SENDING = ("alltoall", "deepep", "hybridep")
"""Dispatchers that are used only where experts are spread, whatever degree a row states."""
SHORT = 4.0
"""Micro-batches per stage up to which they are expected to have done so."""
IDLE = 0.05
"""Share of a step that is left idle then, if there are layers enough."""


def _chunks(
    row: Row, arch: Architecture, engine: str, pp: int, micro_batches: float, guesses: list[str]
) -> int:
    """Chunks of a stage where the row does not say: 1, unless the pipeline would hardly fill.

    Where the row says that stages are interleaved there are at least two.
    """
    stated = _stated_schedule(row)
    interleaved = stated is Schedule.INTERLEAVED
    if stated is Schedule.ONE_F_ONE_B or pp == 1:
        return 1
    short = engines()[engine].habits.interleaves and 1.0 <= micro_batches / pp <= SHORT
    if not (short or interleaved):
        return 1
    guesses.append("chunks")
    wanted = max((pp - 1) / (micro_batches * IDLE), 2.0 if interleaved else 1.0)
    most = max(1, round(arch.layers / pp))
    return next((v for v in range(1, most + 1) if v >= wanted and most % v == 0), most)


def _zero(row: Row, engine: str, guesses: list[str]) -> tuple[int, int]:
    stage, group = sharding_of(text(row, "zero_or_fsdp_stage"), text(row, "shard"))
    if stage is not None:
        return stage, group
    guesses.append("zero stage")
    if engines()[engine].habits.shards_weights and not whole(row, "tp"):
        return 3, 0
    return 1, 0


def _experts(
    row: Row, arch: Architecture, ranks: int, tp: int, engine: str, guesses: list[str]
) -> tuple[int, int]:
    if not arch.is_moe:
        return 1, 1
    experts = arch.runs[-1].layer.feed_forward.experts
    ep = whole(row, "ep")
    if ep is None or (ep == 1 and text(row, "dispatcher") in SENDING):
        guesses.append("ep")
        ep = next(e for e in (8, 4, 2, 1) if experts % e == 0 and ranks % e == 0)
    if experts % ep or ranks % ep:
        raise UnusableRowError("row contradicts itself (experts or ranks are not a multiple of ep)")
    known = engines()[engine]
    usual = known.habits.etp or known.runs.etp_default
    etp = whole(row, "etp") or (tp if usual == "tp" else 1)
    return ep, 1 if ranks % (ep * etp) else etp


def _batch(
    row: Row, devices: int, dp: int, pp: int, sequence: int, zero: int, guesses: list[str]
) -> tuple[float, int]:
    batch, micro = number(row, "global_batch"), whole(row, "micro_batch")
    step, rate = number(row, "metric_step_time_s"), number(row, "metric_tokens_per_s_per_device")
    if batch is not None and batch >= TOKENS:
        batch = batch / sequence
    if batch is None and step and rate:
        batch = rate * devices * step / sequence
    if batch is None:
        guesses.append("global batch")
        micro = micro or 1
        wanted = max(1.0, 4e6 / sequence / (dp * micro), 4.0 * pp)
        steps = round(wanted) if pp > 1 else max(1, min(round(wanted), 8))
        return float(dp * micro * steps), micro
    if micro is None:
        guesses.append("micro-batch")
        local = max(1, round(batch / dp))
        long = sequence >= 8192 or pp > 1
        # Sharded weights are gathered for every micro-batch, so nobody cuts the batch further.
        room = 32768 if zero == 3 and pp == 1 else 0 if long else 8192
        micro = min(local, max(1, room // sequence))
    if batch / (dp * micro) < 0.999:
        micro = max(1, int(batch / dp))
    return batch, micro


def _stated_schedule(row: Row) -> Schedule | None:
    cell = text(row, "schedule")
    return Schedule(cell) if cell in tuple(Schedule) else None


def _schedule(row: Row, pp: int, vpp: int) -> Schedule:
    stated = _stated_schedule(row)
    if pp == 1:
        return Schedule.ONE_F_ONE_B
    if stated in (None, Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED):
        return Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
    return stated or Schedule.ONE_F_ONE_B


def _sequence_parallel(row: Row, tp: int, arch: Architecture, year: float) -> bool:
    if tp == 1:
        return False
    stated = yes_or_no(text(row, "seq_parallel"))
    if stated is not None:
        return stated
    # Megatron-Core refuses experts with tensor parallelism but without sequence parallelism.
    return arch.is_moe or year >= 2022.8


def _recompute(row: Row, engine: str, year: float) -> tuple[Recompute, float | None, bool]:
    """(mode, share of layers recomputed or None for all, whether the row says it)."""
    kind, modules = recompute_of(text(row, "recompute")), text(row, "recompute_modules")
    if kind == "full":
        return Recompute.FULL, None, True
    if kind == "none":
        return Recompute.NONE, None, True
    if kind == "some":
        if engines()[engine].runs.selective == "half-layers":
            # Every second matrix product is saved, the rest of the layer is run again.
            return Recompute.FULL, 0.5, True
        return (Recompute.ATTENTION if year < 2023.0 else Recompute.MODULES), None, True
    if modules:
        return (Recompute.NONE if modules == "none" else Recompute.MODULES), None, True
    return Recompute.NONE, None, False


def _context(row: Row) -> ContextParallel:
    cell = text(row, "cp_kind")
    return ContextParallel(cell) if cell in tuple(ContextParallel) else ContextParallel.RING


# What a row leaves open that its step time or memory depends on
# --------------------------------------------------------------

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


# Rows of a table of runs as cases, or the reason why a row cannot be asked
# -------------------------------------------------------------------------


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
    when = max(when, earliest(engine, switches)) if date_guesses else when
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
        trained_ends=yes_or_no(text(row, "trained_ends")) or False,
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
