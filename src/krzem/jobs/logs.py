"""What a training log measured: speed in steady state, memory, and the job as the log tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from krzem.errors import DataError, shorten
from krzem.jobs.job import JobBuilder, Setting
from krzem.jobs.log_checks import Check, Known, examine
from krzem.jobs.log_collect import FORMATS, Collected, collect
from krzem.jobs.log_formats import TIMED, Format
from krzem.jobs.log_series import Series, Step
from krzem.jobs.reading import canonical
from krzem.jobs.steady import Steady

_SHOWN = "Megatron-LM, Megatron-DeepSpeed, GPT-NeoX, MindSpeed-LLM, NeMo, Megatron-Bridge, Primus,"
_SHOWN += " torchtitan, MaxText, DeepSpeed, Hugging Face Trainer, MindFormers, InternEvo, nanotron,"
_SHOWN += " Automodel, Composer, MLPerf, or JSON Lines with a step and seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The largest memory that one rank reported, in GiB."""

    rank: int | None
    """None: the lines name no rank."""
    allocated: float | None = None
    max_allocated: float | None = None
    reserved: float | None = None
    max_reserved: float | None = None
    used: float | None = None
    """Of the device as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A training log, read."""

    engine: str
    """Canonical name."""
    form: str
    """The form of line that the steps were read from."""
    files: tuple[str, ...]
    lines: int
    seen: int
    """Steps told, once each; ``steps`` may hold an even sample of them."""
    repeated: int
    """Lines of further ranks about steps told already."""
    first: int
    last: int
    starts: int
    """1, and one more for every restart."""
    skipped: int
    """Iterations that the optimizer left out."""
    seconds: Steady | None = None
    """Of one optimizer step."""
    tokens: Steady | None = None
    """Tokens per second of what ``tokens_of`` says."""
    tokens_of: str = ""
    """device, job, process or replica; '' where it stays open."""
    tflops: Steady | None = None
    """TFLOP/s of one device as the engine counts them, see ``convention``."""
    convention: str = ""
    flop_per_token: float | None = None
    """Printed FLOP/s over tokens/s of a device: what the engine counts for one token."""
    memory: tuple[Memory, ...] = ()
    """By rank; those that hold most first."""
    loss: tuple[float, float] | None = None
    """Of the first step told and the last."""
    fields: Mapping[str, Setting] = field(default_factory=dict)
    """What the log says of the job, by canonical field."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """The dump of arguments, as written."""
    summary: Mapping[str, float] = field(default_factory=dict)
    """Numbers printed at the end for the whole run, starts and saves included."""
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()


def read_log(source: str | Path | Sequence[str | Path], *, engine: str | None = None) -> Measured:
    """The speed, memory and job that a training log tells of.

    Several files are ranks of one job, or its restarts in order.  ``engine`` names the engine
    where lines alone would name another.  The steady state follows :data:`krzem.jobs.steady.RULE`.
    Files may be gzip and of any size; a fixed amount of memory is used.

    Raises DataError where a file cannot be read, is not text, or tells of no step.
    """
    paths = [Path(p) for p in ([source] if isinstance(source, str | Path) else source)]
    if not paths:
        raise DataError("no log was given: give the file that a training job printed to")
    named = None if engine is None else canonical(engine)
    found = collect(paths)
    form, series = _choose(found, paths)
    job = JobBuilder(named or _engine(form, found))
    found.arguments.settle(job)
    if found.day is not None:
        job.derive("date", found.day.isoformat(), "the day of its first step")
    return _measured(found, form, series, job, [str(p) for p in paths])


def _choose(found: Collected, paths: Sequence[Path]) -> tuple[Format, Series]:
    """The series of the first form with a speed; raises DataError."""
    for form in FORMATS:
        mine = {key[1]: s for key, s in found.series.items() if key[0] == form.name and _speed(s)}
        if mine:
            return form, _main(mine)
    if "train_steps_per_second" in found.summary or "train_runtime" in found.summary:
        series = _from_summary(found.summary)
        if series is not None:
            form = next(f for f in FORMATS if f.name == "Trainer")
            found.notes.append("only the summary of the whole run is there, its start included")
            return form, series
    raise _refusal(found, paths)


def _speed(series: Series) -> bool:
    return any(TIMED & step.values.keys() for step in series.steps)


def _main(tracks: Mapping[float, Series]) -> Series:
    """The bar of the training steps: the one that losses were printed beside, or the longest."""

    def weight(item: tuple[float, Series]) -> tuple[int, float]:
        losses = sum("loss" in step.values for step in item[1].steps)
        return losses, item[1].seen

    return max(tracks.items(), key=weight)[1]


def _from_summary(summary: Mapping[str, float]) -> Series | None:
    rate = summary.get("train_steps_per_second")
    if not rate:
        return None
    series = Series()
    steps = round(rate * summary.get("train_runtime", 1.0)) or 1
    series.add({"number": float(steps), "seconds": 1.0 / rate}, "", 0)
    return series


def _refusal(found: Collected, paths: Sequence[Path]) -> DataError:
    name = shorten(", ".join(str(p) for p in paths[:3]), 160)
    if found.binary:
        return DataError(f"{name} is not text: give what the training program printed")
    if not found.bytes:
        return DataError(f"{name} is empty: give what the training program printed")
    untimed = sum(s.seen for s in found.series.values())
    if untimed:
        return DataError(
            f"{name}: of {untimed:,} step reports none gives its time or tokens/s; print the"
            " throughput (Megatron: --log-throughput and --log-interval), or give the full log"
        )
    return DataError(
        f"{name}: none of {found.lines:,} lines reports a training step; the forms that are read"
        f" are those of {_SHOWN}"
    )


def _engine(form: Format, found: Collected) -> str:
    """The engine of the form, unless other lines show one that prints the same."""
    families = {
        "megatron-lm": ("primus", "mindspeed-llm", "megatron-bridge", "megatron-deepspeed"),
        "torchtitan": ("primus",),
        "other": ("krzem", "megatron-bridge", "primus", "deepspeed", "fsdp"),
    }
    raw = found.arguments.raw
    for engine in families.get(form.engine, ()):
        if found.marks.get(engine):
            return engine
    if form.engine == "megatron-lm" and ("deepspeed_config" in raw or "zero_stage" in raw):
        return "megatron-deepspeed"
    return form.engine


def _measured(
    found: Collected, form: Format, series: Series, job: JobBuilder, files: list[str]
) -> Measured:
    steps = tuple(series.steps)
    known = Known.of(steps, job)
    speeds = examine(steps, known, form, found.arguments)
    settled = job.job()
    losses = [s.values["loss"] for s in steps if "loss" in s.values]
    return Measured(
        engine=job.engine, form=form.name, files=tuple(files), lines=found.lines,
        seen=series.seen, repeated=series.repeated, first=series.first, last=series.last,
        starts=series.starts, skipped=series.skipped,
        seconds=speeds.seconds, tokens=speeds.tokens, tokens_of=speeds.tokens_of,
        tflops=speeds.tflops, convention=speeds.convention,
        flop_per_token=speeds.flop_per_token, memory=_memory(found),
        loss=(losses[0], losses[-1]) if losses else None,
        fields=settled.settings, arguments=MappingProxyType(found.arguments.raw),
        summary=MappingProxyType(
            {k: v for k, v in found.summary.items() if not k.startswith("latest ")}
        ),
        checks=speeds.checks,
        notes=(*found.notes, *settled.notes, *(str(fault) for fault in settled.faults)),
        steps=steps,
    )  # fmt: skip


def _memory(found: Collected) -> tuple[Memory, ...]:
    kinds = ("allocated", "max_allocated", "reserved", "max_reserved", "used")
    ranks = [
        Memory(rank=rank, **{k: v for k, v in values.items() if k in kinds})
        for rank, values in found.memory.items()
    ]
    return tuple(sorted(ranks, key=_most, reverse=True))


def _most(memory: Memory) -> float:
    return max(memory.max_reserved or 0.0, memory.max_allocated or 0.0, memory.used or 0.0)


def describe(log: Measured) -> tuple[str, ...]:
    """A log in a few lines for people."""
    restarts = f", {log.starts - 1} restarts" if log.starts > 1 else ""
    skipped = f", {log.skipped} skipped" if log.skipped else ""
    lines = [
        f"{log.engine} ({log.form} lines): {log.seen:,} lines with a step, {log.first:,} to"
        f" {log.last:,}{restarts}{skipped}"
    ]
    if log.seconds is not None:
        lines.append(f"step: {log.seconds}")
    if log.tokens is not None:
        lines.append(f"tokens/s ({log.tokens_of or 'of what is open'}): {log.tokens}")
    if log.tflops is not None:
        lines.append(f"TFLOP/s of a device ({log.convention or 'as printed'}): {log.tflops}")
    if log.memory:
        kinds = ("max_allocated", "max_reserved", "used")
        told = [(k, [v for m in log.memory if (v := getattr(m, k))]) for k in kinds]
        most = ", ".join(f"{k.replace('_', ' ')} {max(v):.2f}" for k, v in told if v)
        lines.append(f"memory: {most or 'no peak'} GiB, as {len(log.memory)} ranks reported")
    return (*lines, *(str(check) for check in log.checks), *log.notes)
