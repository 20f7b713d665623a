"""Sort the lines of a log into series of steps, memory, arguments and events."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from krzem.jobs import log_blocks as blocks
from krzem.jobs import log_formats as forms
from krzem.jobs.log_arguments import NEEDLES, Arguments
from krzem.jobs.log_blocks import Stream
from krzem.jobs.log_formats import Format, Read
from krzem.jobs.log_series import MIB_PER_GIB, Series, Values, plain, rank_of, source_of

FORMATS: tuple[Format, ...] = (
    Format(
        name="Megatron", engine="megatron-lm", reader=forms.megatron, convention="megatron",
        needles=(
            b"TFLOP/s/GPU: ", b"tokens per GPU (tokens/s/GPU): ",
            b"elapsed time per iteration", b"elapsed_time_per_iteration_ms=", b"Step Time : ",
            b"Tera Flops per GPU: ",
        ),
    ),
    Format(
        name="torchtitan", engine="torchtitan", reader=forms.torchtitan, convention="torchtitan",
        needles=(b"tps: ", b"wps: "),
    ),
    Format(
        name="MaxText", engine="maxtext", reader=forms.maxtext, convention="maxtext",
        needles=(b"completed step: ",),
    ),
    Format(
        name="nanotron", engine="other", reader=forms.nanotron, convention="nanotron",
        needles=(b"time_per_iteration_ms: ",),
    ),
    Format(
        name="NeMo 2", engine="megatron-bridge", reader=forms.nemo2, convention="nemo",
        needles=(b" | train_step_timing in s: ",),
    ),
    Format(
        name="NeMo 1", engine="megatron-bridge", reader=forms.nemo1, convention="nemo",
        needles=(b"train_step_timing in s=",),
    ),
    Format(
        name="MindFormers", engine="mindformers", reader=blocks.mindformers,
        convention="mindformers", needles=(b"per_step_time:", b" samples/s/p"),
    ),
    Format(
        name="InternEvo", engine="internevo", reader=forms.internevo, convention="internevo",
        needles=(b"tgs (tokens/gpu/second)=",),
    ),
    Format(name="Automodel", engine="fsdp", reader=forms.automodel, needles=(b"| tps ",)),
    Format(
        name="Composer", engine="fsdp", reader=blocks.blocks,
        needles=(b"[batch=", b"[step=", b"throughput/", b"memory/peak", b"loss/train/",
                 b"CrossEntropyLoss"),
    ),
    Format(
        name="JSON Lines", engine="other", reader=blocks.json_lines,
        needles=(
            b'"step":', b'"_step":', b'"global_step/max_steps"', b'"current_steps"',
            b'"perf/step_time_seconds"',
        ),
    ),
    Format(
        name="DeepSpeed", engine="deepspeed", reader=forms.deepspeed,
        needles=(b"CurrSamplesPerSec=", b"iter time (s): "),
    ),
    Format(
        name="DeepSpeed before 2022", engine="deepspeed", reader=forms.deepspeed_old,
        needles=(b", SamplesPerSec=",),
    ),
    Format(
        name="Trainer", engine="other", reader=blocks.trainer,
        needles=(b"it/s", b"s/it", b"'loss':", b"'train_runtime'"),
    ),
    Format(name="MLPerf", engine="other", reader=blocks.mllog, needles=(b":::MLL",)),
    Format(
        name="Step Time", engine="megatron-bridge", reader=forms.step_time, convention="nemo",
        needles=(b"Step Time : ",),
    ),
    Format(name="nanoGPT", engine="other", reader=forms.nanogpt, needles=(b": loss ",)),
    Format(
        name="key and value", engine="other", reader=forms.named,
        needles=(b"tok/s", b"step_time", b"tokens/s", b"tokens_per_s", b"iter_time"),
    ),
)  # fmt: skip
"""The forms that are read; where a log holds several, the first with a speed counts."""

EVENTS: tuple[tuple[bytes, str, str], ...] = (
    (b"[before the start of training step]", "start", ""),
    (b"Training starts at step", "start", ""),
    (b"Running training", "start", ""),
    (b"- arguments -", "start", ""),
    (b"alidat", "evaluation", r"alidation loss at|validate step|alidation(?: DataLoader|: iter)"),
    (b"valuat", "evaluation", r"(?i)\bevaluating\b|running evaluation"),
    (b"eval_loss", "evaluation", ""),
    (b"Completed eval", "evaluation", ""),
    (b"heckpoint", "save", r"(?i)\bsav(?:ing|ed)\b"),
    (b"aving weights", "save", ""),
    (b"aving model", "save", ""),
    (b"rofiler ", "profile", r"rofiler (?:session|activation)"),
    (b"Dumping ", "profile", r"Dumping (?:profiler|traces|memory)"),
)
"""Text in a line, the event it means, and what else must be in the line."""
_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"core attn ratio (%)", "mindspeed-llm"), (b"mindspeed", "mindspeed-llm"),
    (b"max_memory_allocated(GB)", "mindspeed-llm"),
    (b"MODEL_TFLOP/s/GPU", "megatron-bridge"), (b"megatron.bridge", "megatron-bridge"),
    (b"megatron/bridge", "megatron-bridge"),
    (b"approx flops per GPU", "megatron-deepspeed"), (b"elapsed_time_per_iteration_ms=",
    "megatron-deepspeed"), (b"tokens per gpu per second (tgs)", "megatron-deepspeed"),
    (b"[deepspeed", "deepspeed"), (b"DeepSpeed info", "deepspeed"), (b"[Patch:megatron", "primus"),
    (b"tokens/s/GPU inst/harmonic", "primus"), (b"compute per GPU (TFLOP/s/GPU)", "primus"),
    (b"tokens per GPU (tokens/s/GPU)", "primus"), (b"[titan]", "torchtitan"),
    (b"FullyShardedDataParallel", "fsdp"), (b"FSDP2", "fsdp"), (b"fsdp_config", "fsdp"),
    (b"[NeMo ", "megatron-bridge"), (b"nemo/lightning", "megatron-bridge"),
    (b"reduced_train_loss=", "megatron-bridge"),
    (b'"tokens_per_s": ', "krzem"),
)  # fmt: skip
"""Text that shows an engine beside the form of its steps."""
_MEMORY = (b"max reserved: ", b"Max_MA ", b"Using (GB) ", b"Peak reserved: ", b"-gigabytes: ",
           b"peak_reserved_mem", b"max_reserved")  # fmt: skip
_MOST_RANKS = 65_536
_MOST_TRACKS = 32
_ENOUGH = 50
"""Steps of a form after which forms that count less are no longer looked for."""

_REPORT = re.compile(
    r"\b(max allocated|max reserved|allocated|reserved|Max_MA|MA|Max_CA|CA|Peak allocated"
    r"|Peak reserved|mem-max-allocated-gigabytes|mem-max-reserved-gigabytes"
    r"|mem-allocated-gigabytes|mem-reserved-gigabytes|total device memory used)"
    r"[: ]+ ?([\d.]+) ?(MiB|GB)?"
)
_KIND = {
    "max allocated": "max_allocated", "Max_MA": "max_allocated", "Peak allocated": "max_allocated",
    "mem-max-allocated-gigabytes": "max_allocated", "max reserved": "max_reserved",
    "Max_CA": "max_reserved", "Peak reserved": "max_reserved",
    "mem-max-reserved-gigabytes": "max_reserved", "allocated": "allocated", "MA": "allocated",
    "mem-allocated-gigabytes": "allocated", "reserved": "reserved", "CA": "reserved",
    "mem-reserved-gigabytes": "reserved", "total device memory used": "used",
}  # fmt: skip
_DAY = re.compile(r"(?<!\d)(20[12]\d)[-/](\d\d)[-/](\d\d)[ T]\d\d:\d\d")
_USING = re.compile(r"Using \(GB\) ([\d.]+) / ([\d.]+)")


@dataclass(slots=True)
class Collected:
    """What the lines of one or more files hold."""

    series: dict[tuple[str, float], Series] = field(default_factory=dict)
    """By form, and by the length of the bar where several run in one log."""
    memory: dict[int | None, dict[str, float]] = field(default_factory=dict)
    """Largest GiB by rank (None: the line names none) and kind."""
    arguments: Arguments = field(default_factory=Arguments)
    marks: dict[str, int] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    lines: int = 0
    bytes: int = 0
    binary: bool = False
    day: dt.date | None = None
    """Of the first line with a step that tells one."""
    notes: list[str] = field(default_factory=list)

    def dated(self, text: str) -> None:
        """Keep the day of a line, where there is none yet and it tells one."""
        if self.day is None and (stamp := _DAY.search(text[:160])):
            with contextlib.suppress(ValueError):
                self.day = dt.date(*(int(part) for part in stamp.groups()))

    def remember(self, rank: int | None, values: Iterable[tuple[str, float]]) -> None:
        """Keep the largest of each kind of memory of a rank."""
        if rank not in self.memory and len(self.memory) >= _MOST_RANKS:
            return
        kept = self.memory.setdefault(rank, {})
        for kind, value in values:
            kept[kind] = max(value, kept.get(kind, 0.0))


@cache
def _routes() -> dict[bytes, tuple[int, ...]]:
    routes: dict[bytes, tuple[int, ...]] = {}
    for index, form in enumerate(FORMATS):
        for needle in form.needles:
            routes[needle] = (*routes.get(needle, ()), index)
    return routes


_EVENT_OF = {needle: (kind, re.compile(more)) for needle, kind, more in EVENTS}
_MARK_OF = dict(_MARKS)
_OF_THE_START = {*NEEDLES, *_MARK_OF} - {*_routes(), *_EVENT_OF, *_MEMORY}
"""What is not looked for any more once many steps are there."""
_ALL = {*_EVENT_OF, *_MARK_OF, *_MEMORY, *NEEDLES}


def collect(paths: Sequence[Path]) -> Collected:
    """Read all files, in order; a file that repeats the steps of those before is another rank."""
    whole = Collected()
    for path in paths:
        one = Collected(
            memory=whole.memory, arguments=whole.arguments, marks=whole.marks,
            summary=whole.summary, notes=whole.notes,
        )  # fmt: skip
        _read(path, one)
        whole.lines += one.lines
        whole.bytes += one.bytes
        whole.binary = whole.binary or one.binary
        whole.day = whole.day or one.day
        for key, series in one.series.items():
            if key in whole.series:
                whole.series[key].join(series)
            else:
                whole.series[key] = series
    return whole


def _read(path: Path, to: Collected) -> None:
    routes = _routes()
    stream = Stream(path, {*routes, *_ALL})
    readers = [form.reader() for form in FORMATS]
    seen_marks: dict[bytes, int] = {}
    for count, (line, raw, whole, needles) in enumerate(stream, 1):
        text = plain(raw) if whole else _whole_tokens(plain(raw))
        for needle in needles:
            if needle in _EVENT_OF and _EVENT_OF[needle][1].search(text):
                _happened(to, _EVENT_OF[needle][0])
            if needle in _MARK_OF:
                engine = _MARK_OF[needle]
                to.marks[engine] = to.marks.get(engine, 0) + 1
                seen_marks[needle] = seen_marks.get(needle, 0) + 1
                if seen_marks[needle] >= 3 and needle not in routes:
                    stream.needles.discard(needle)
        if not needles.isdisjoint(NEEDLES):
            to.arguments.read(text, line)
        if any(needle in _MEMORY for needle in needles):
            _report(to, text)
        _steps(to, text, line, needles, readers)
        if count % 256 == 0:
            _narrow(to, stream)
    to.lines, to.bytes, to.binary = stream.lines, stream.bytes, stream.binary
    if stream.cut:
        to.notes.append(f"{path.name}: the compressed file ends early; the rest is lost")


def _whole_tokens(text: str) -> str:
    """The last line of a file without an end: its last word may be cut, so it is left out."""
    text = text.rstrip()
    if not text or text[-1] in "|}])%":
        return text
    return text[: len(text) - len(re.split(r"[\s|,]", text)[-1])]


def _happened(to: Collected, kind: str) -> None:
    for series in to.series.values():
        series.event(kind)


def _steps(
    to: Collected, text: str, line: int, needles: frozenset[bytes], readers: list[Read]
) -> None:
    """Give the line to the readers of its forms."""
    routes = _routes()
    source: str | None = None
    for index in sorted({i for needle in needles for i in routes.get(needle, ())}):
        name = FORMATS[index].name
        for values in readers[index](text):
            if source is None:
                source = source_of(text[:120])
                to.dated(text)
            if values.pop("summary", None):
                to.summary.update(values)
            elif values.pop("amend", None):
                _amend(to, name, values)
            else:
                _add(to, name, values, source, line)


def _add(to: Collected, name: str, values: Values, source: str, line: int) -> None:
    memory = [(k[4:], v) for k, v in values.items() if k.startswith("mem.")]
    if memory:
        to.remember(rank_of(source) if "#" not in source else int(source.split("#")[1]), memory)
    key = (name, values.pop("track", 0.0))
    series = to.series.get(key)
    if series is None:
        if len(to.series) >= _MOST_TRACKS:
            return
        series = to.series[key] = Series()
    series.add(values, source, line)
    if key[1]:
        to.summary[f"latest {name}"] = key[1]


def _amend(to: Collected, name: str, values: Values) -> None:
    """A line about the step before, of the bar that was shown last."""
    key = (name, to.summary.get(f"latest {name}", 0.0))
    memory = [(k[4:], v) for k, v in values.items() if k.startswith("mem.")]
    if memory:
        to.remember(None, memory)
    if key in to.series:
        to.series[key].amend(values)


def _report(to: Collected, text: str) -> None:
    """A line that reports memory apart from the steps."""
    megabytes = "memory (MB)" in text
    found = []
    for kind, amount, unit in _REPORT.findall(text):
        try:
            value = float(amount)
        except ValueError:
            continue
        small = unit == "MiB" or (not unit and megabytes)
        found.append((_KIND[kind], value / MIB_PER_GIB if small else value))
    found += [("used", float(m[1])) for m in _USING.finditer(text) if m[1].count(".") < 2]
    if found:
        to.remember(rank_of(text), found)


def _narrow(to: Collected, stream: Stream) -> None:
    """Stop looking for forms that cannot count any more."""
    best = min(
        (
            index
            for index, form in enumerate(FORMATS)
            for key, series in to.series.items()
            if key[0] == form.name and series.seen >= _ENOUGH and _timed(series)
        ),
        default=len(FORMATS),
    )
    if best == len(FORMATS):
        return
    stream.needles -= _OF_THE_START
    keep = {needle for form in FORMATS[: best + 1] for needle in form.needles}
    for needle, indices in _routes().items():
        if needle not in keep and min(indices) > best and needle not in _ALL:
            stream.needles.discard(needle)


def _timed(series: Series) -> bool:
    return bool(series.steps) and bool(forms.TIMED & series.steps[-1].values.keys())
