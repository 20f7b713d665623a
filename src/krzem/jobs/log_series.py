"""What lines of a log hold: keys, numbers, clocks, ranks; and its steps in order, one of each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Values = dict[str, float]
"""What one line says, by the names in :mod:`krzem.jobs.log_formats`."""

MOST_STEPS = 20_000
"""Steps kept of one log; beyond it every second one is left out, again and again."""
_RECENT = 1024
_LONG = 50.0
"""Seconds between two readings of a clock of whole seconds that make a rate of 2 %."""
_TICK = 1.0
"""Seconds by which the difference of two such readings may be off."""
_CLOCKS = 2.0
"""Seconds by which the clocks of two ranks may differ at one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of a log that tells of a step, or of the mean of the steps since the last line."""

    number: int
    line: int
    """Line of the file, from 1."""
    start: int
    """Which start of the job it belongs to, from 0."""
    position: int
    """Lines with a step since that start, from 0."""
    interval: int
    """Steps that the line speaks for; 1 where it is the first of its start."""
    near: tuple[str, ...] = ()
    """What the log reports between the line before and this one: evaluation, save, profile."""
    values: Mapping[str, float] = field(default_factory=dict)

    def get(self, name: str) -> float | None:
        """A value of the line, or None."""
        return self.values.get(name)


@dataclass(slots=True, kw_only=True)
class Series:
    """Collects the steps of one form of line; a step printed by many ranks counts once."""

    steps: list[Step] = field(default_factory=list)
    seen: int = 0
    """Steps, once each."""
    repeated: int = 0
    """Lines of further ranks."""
    starts: int = 0
    skipped: int = 0
    first: int = 0
    last: int = 0
    _near: set[str] = field(default_factory=set)
    _marked: bool = False
    _recent: dict[int, tuple[str, float | None, float | None]] = field(default_factory=dict)
    _position: int = 0
    _clock: tuple[int, float] | None = None
    _stride: int = 1

    def event(self, kind: str) -> None:
        """Something beside the steps is reported: ``start`` of a job, or what disturbs a step."""
        if kind == "start":
            self._marked = True
        else:
            self._near.add(kind)

    def amend(self, values: Values) -> None:
        """A further line about the step before."""
        if self.steps and self.seen:
            last = self.steps[-1]
            if last.number == self.last:
                merged = {**last.values, **values}
                self.steps[-1] = _replace(last, merged)

    def add(self, values: Values, source: str, line: int) -> bool:
        """A line about a step; False: another rank said the same before."""
        step = int(values["number"])
        loss = values.get("loss")
        restart = self._restart(step, source, loss, values.get("clock"))
        if restart is None:
            self.repeated += 1
            return False
        if restart:
            self._begin()
        elif not self.seen:
            self.starts = 1
        interval = 1 if restart or not self.seen else max(1, step - self.last)
        if not self.seen:
            self.first = step
        self._timed(values, step)
        self._keep(
            Step(
                number=step, line=line, start=self.starts - 1, position=self._position,
                interval=interval, near=tuple(sorted(self._near)), values=values,
            )
        )  # fmt: skip
        self.seen += 1
        self.skipped += int(values.get("skipped", 0))
        self.last = step
        self._position += 1
        self._marked = False
        self._near.clear()
        self._remember(step, (source, loss, values.get("clock")))
        return True

    def _restart(
        self, step: int, source: str, loss: float | None, clock: float | None
    ) -> bool | None:
        """True: the job started again; False: it goes on; None: the step was told already."""
        if not self.seen:
            return False
        known = self._recent.get(step)
        if step == self.last and not self._marked:
            return None
        if known is not None:
            other = source != known[0]
            same = loss is not None and loss == known[1]
            if clock is not None and known[2] is not None:
                same = same or abs(clock - known[2]) <= _CLOCKS
            if other or (same and not self._marked):
                return None
            return True
        if step > self.last:
            return self._marked
        return True if self._marked or not source or self._led(source) else None

    def _led(self, source: str) -> bool:
        """Whether the last step was told by this source."""
        last = self._recent.get(self.last)
        return last is not None and last[0] == source

    def _begin(self) -> None:
        self.starts += 1
        self._position = 0
        self._recent.clear()
        self._clock = None

    def _timed(self, values: Values, step: int) -> None:
        """Seconds a step from a clock that runs since the start.

        Used where no line gives them, and where the running mean that a progress bar prints
        cannot be what a clock of whole seconds shows beside it.
        """
        now = values.get("clock")
        if now is None:
            return
        before, self._clock = self._clock, (step, now)
        if before is None or step <= before[0] or now <= before[1]:
            return
        steps, passed = step - before[0], now - before[1]
        told = values.get("seconds")
        if told is None or (passed >= _LONG and abs(told * steps - passed) > _TICK):
            values["seconds"] = passed / steps

    def _remember(self, step: int, said: tuple[str, float | None, float | None]) -> None:
        self._recent[step] = said
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]

    def _keep(self, step: Step) -> None:
        if self.seen % self._stride == 0:
            self.steps.append(step)
        if len(self.steps) > MOST_STEPS:
            self.steps = self.steps[::2]
            self._stride *= 2

    def join(self, other: Series) -> None:
        """Go on with the steps of a further file, unless it is another rank of the same job."""
        known = {(s.number, s.values.get("loss")) for s in self.steps}
        twice = sum((s.number, s.values.get("loss")) in known for s in other.steps)
        if not other.steps or twice * 2 > len(other.steps):
            self.repeated += other.seen
            return
        shift = self.starts
        self.steps += [_replace(s, s.values, shift) for s in other.steps]
        self.steps = self.steps[:: -(-len(self.steps) // MOST_STEPS)]
        self.seen += other.seen
        self.starts += other.starts
        self.skipped += other.skipped
        self.repeated += other.repeated
        self.last = other.last


def _replace(step: Step, values: Mapping[str, float], shift: int = 0) -> Step:
    return Step(
        number=step.number, line=step.line, start=step.start + shift, position=step.position,
        interval=step.interval, near=step.near, values=values,
    )  # fmt: skip


# -- what stands in a line

NUMBER = r"[-+]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
"""A number in text: thousands commas and exponents included."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00\ufeff]")
_WRITTEN = re.compile(rf"\s*({NUMBER})\s*([KkMGBTPE](?![A-Za-z]))?")
_SIMPLE = re.compile(r" *\d{1,17}(?:\.\d{0,17})?(?:E[+-]\d\d)? *")
_SCALE = {"K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_CLOCK = re.compile(r"(?:(\d+) ?d(?:ays?,)? ?)?(?:(\d+) ?h ?)?(?:(\d+) ?m ?)?(?:([\d.]+) ?s)?$")
_RANK = re.compile(
    r"\[\d+,(\d+)\]<std(?:out|err)>:?"
    r"|\[?\b(?:default|rank|Rank|RANK|worker|local_rank)[ _:=-]?(\d+)\b\]?:?"
    r"|(?<![\w.:])(\d{1,6}): "
)
_HOST = re.compile(r"\s*([A-Za-z][\w.-]*\d[\w.-]*): ")


def plain(raw: bytes) -> str:
    """The text of a line without colour codes; bytes that are not UTF-8 become a mark."""
    text = raw.decode("utf-8", errors="replace")
    return _ANSI.sub("", text) if "\x1b" in text or "\x00" in text or "\ufeff" in text else text


def number(text: str) -> float | None:
    """The number that ``text`` begins with: ``7,123``, ``11.5K``, ``9.6E+00``; None: none, or NaN.

    K, M, G (or B), T and P are powers of 1,000.
    """
    if _SIMPLE.fullmatch(text):
        return float(text)
    match = _WRITTEN.match(text)
    if match is None or not any(c.isdigit() for c in match[1]):
        return None
    try:
        value = float(match[1].replace(",", "").replace("_", ""))
    except ValueError:
        return None
    value *= _SCALE.get(match[2] or "", 1.0)
    return value if math.isfinite(value) else None


def clock(text: str) -> float | None:
    """Seconds of ``1:02:03``, ``02:03``, ``1 day, 1:02:03`` or ``1h 2m 3s``; None: no time."""
    text = text.strip()
    day, comma, rest = text.partition(",")
    if comma and "day" in day:
        after = clock(rest)
        count = number(day)
        return None if after is None or count is None else count * 86400 + after
    parts = text.split(":")
    if 2 <= len(parts) <= 4 and all(p.replace(".", "", 1).isdigit() for p in parts):
        units = (1, 60, 3600, 86400)
        return sum(float(p) * u for p, u in zip(reversed(parts), units, strict=False))
    match = _CLOCK.match(text)
    if match is None or not any(match.groups()):
        return None
    days, hours, minutes, seconds = (float(g or 0) for g in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


def rank_of(head: str) -> int | None:
    """The rank named in ``head``, what stands before a line's own text; None: no rank."""
    match = _RANK.search(head[:200])
    return None if match is None else int(next(g for g in match.groups() if g is not None))


def source_of(head: str) -> str:
    """Who printed a line: host and rank as far as the head names them, else ''."""
    if ": " not in head and ":" not in head and "rank" not in head.lower():
        return ""
    host = _HOST.match(head)
    rank = rank_of(head[host.end() :] if host else head)
    return f"{host[1] if host else ''}{'' if rank is None else f'#{rank}'}"


GIB = 2.0**30


MIB_PER_GIB = 1024.0


def values_of(pairs: Iterable[tuple[str, str]], names: Mapping[str, str]) -> Values:
    """The numbers of the pairs whose key is known."""
    found: Values = {}
    for key, text in pairs:
        name = names.get(key)
        if name is not None and name not in found:
            value = number(text)
            if value is not None:
                found[name] = value
    return found


KEYS: Mapping[str, str] = {
    "step": "number", "global_step": "number", "iteration": "number", "iter": "number",
    "current_steps": "number", "total_steps": "total",
    "seconds": "seconds", "step_time": "seconds", "step_time_s": "seconds",
    "iter_time": "seconds", "time_per_step": "seconds", "train_step_timing in s": "seconds",
    "perf/step_time_seconds": "seconds", "iter time (s)": "seconds", "timing/step": "seconds",
    "time_per_iteration_ms": "ms", "elapsed_time_per_iteration_ms": "ms",
    "step_time_ms": "ms", "per_step_time_ms": "ms", "ms_per_step": "ms",
    "tokens_per_s": "tokens/job", "tokens_global_per_sec": "tokens/job",
    "tokens_per_gpu_per_sec": "tokens/device", "tps_per_gpu": "tokens/device",
    "perf/per_device_tokens_per_sec": "tokens/device", "Tokens/s/device": "tokens/device",
    "tokens_per_sec_per_gpu": "tokens/device", "tgs (tokens/gpu/second)": "tokens/device",
    "throughput/device/tokens_per_sec": "tokens/device",
    "throughput/device/tokens_per_second": "tokens/device",
    "throughput/tokens_per_sec": "tokens/job", "throughput/tokens_per_second": "tokens/job",
    "tok/s": "tokens/?", "tokens/s": "tokens/?", "tokens_per_second": "tokens/?",
    "tokens_per_sec": "tokens/?", "tok_per_sec": "tokens/?", "tps": "tokens/?",
    "samples/sec": "samples/job", "CurrSamplesPerSec": "samples/job",
    "throughput/batches_per_sec": "steps_per_s", "throughput/device/batches_per_second":
    "steps_per_s", "throughput/samples_per_sec": "samples/job",
    "TFLOP/s/device": "tflops", "TFLOP/s": "tflops", "perf/per_device_tflops_per_sec": "tflops",
    "model_tflops_per_gpu": "tflops", "hardware_tflops_per_gpu": "hardware_tflops",
    "TFLOPS_per_GPU": "tflops", "tflops": "tflops",
    "loss": "loss", "lm_loss": "loss", "reduced_train_loss": "loss", "learning/loss": "loss",
    "train/loss": "loss", "train/CrossEntropyLoss": "loss", "loss/train/total": "loss",
    "total_weights": "weights", "global_batch_size": "batch", "consumed_samples": "consumed",
    "num_consumed_tokens": "consumed_tokens", "consumed_tokens": "consumed_tokens",
    "memory(GiB)": "mem.max_reserved", "mem": "mem.max_allocated",
    "MemAllocated": "mem.allocated", "MaxMemAllocated": "mem.max_allocated",
    "memory/peak_reserved_mem": "mem.max_reserved_gb", "peak_memory_usage": "mem.max_bytes",
    "cuda_max_memory_reserved": "mem.max_reserved_bytes", "max_memory_reserved":
    "mem.max_reserved_bytes", "cuda_memory_allocated": "mem.bytes",
    "memory_bytes": "mem.max_bytes", "memory_allocated": "mem.bytes", "mfu": "mfu",
}  # fmt: skip
"""Keys that programs print, whatever the separator."""


def units(found: Values) -> Values:
    """Milliseconds, bytes and rates of steps put into the names that are used."""
    if "ms" in found:
        found.setdefault("seconds", found.pop("ms") / 1e3)
    if found.get("steps_per_s"):
        found.setdefault("seconds", 1.0 / found.pop("steps_per_s"))
    for name, kind, unit in (
        ("mem.max_bytes", "mem.max_allocated", GIB),
        ("mem.bytes", "mem.allocated", GIB),
        ("mem.max_reserved_bytes", "mem.max_reserved", GIB),
        ("mem.max_reserved_gb", "mem.max_reserved", GIB / 1e9),
    ):
        if name in found:
            found[kind] = found.pop(name) / unit
    return found
