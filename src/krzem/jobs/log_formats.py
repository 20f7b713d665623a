"""The lines that training engines print about a step, and the readers of one-line forms.

A reader gives, for each step told in a line, a mapping of these names to numbers:

number, total            step and planned steps
seconds                  of one step; ``clock``: seconds since the start, where steps have none
tokens/device            tokens/s of one device; tokens/job, tokens/process, tokens/? (open)
samples/job              sequences/s of the job; samples/device of one device
tflops                   model TFLOP/s of one device as the engine counts
hardware_tflops, mfu     where printed
loss, batch, seq         loss; sequences of a step; tokens of a sequence
batch_tokens             tokens of a step
consumed                 sequences so far
skipped                  steps skipped since the line before
attention_percent        share of the score matrix that the engine counts
mem.KIND                 GiB: allocated, max_allocated, reserved, max_reserved, used

``amend`` marks a further line about the step before.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from krzem.jobs.log_series import KEYS, NUMBER, Values, number, units, values_of

Read = Callable[[str], Iterable[Values]]
"""Reads one line; may remember earlier ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One form of line."""

    name: str
    engine: str
    """Canonical name of the engine that prints it, unless other lines show another."""
    needles: tuple[bytes, ...]
    """A line of this form holds one of these."""
    reader: Callable[[], Read]
    convention: str = ""
    """How the engine counts the FLOP it prints."""


def _ends(marks: Sequence[re.Match[str]], text: str) -> list[int]:
    """Where the record of each mark ends: several may stand in one line."""
    return [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]


# -- Megatron-LM and everything that prints as it does

_ITERATION = re.compile(r"iteration\s*[:=]?\s*(\d+)\s*(?:/\s*(\d+))?\s*\|")
_SEPARATE = re.compile(r"samples/sec: *([\d.]+) *\| *$")
_FLOPS = re.compile(rf"({NUMBER}) *([KMGTPE])?FLOPS", re.IGNORECASE)
_TERA = re.compile(r"Tera Flops per GPU: ([\d.]+)(?=\s)")
_STEP_TIME = re.compile(r"Step Time : ([\d.]+)s GPU utilization: ([\d.]+)")
_MEGATRON: Mapping[str, str] = {
    "elapsed time per iteration (ms)": "ms",
    "elapsed_time_per_iteration_ms": "ms",
    "elapsed time per iteration (s)": "seconds",
    "throughput per GPU (TFLOP/s/GPU)": "tflops",
    "compute per GPU (TFLOP/s/GPU)": "tflops",
    "TFLOP/s/GPU": "tflops",
    "TFLOPs": "tflops",
    "TFLOPS": "tflops",
    "[LM]TFLOPs": "tflops",
    "[DS]TFLOPs": "hardware_tflops",
    "model TFLOPs": "tflops",
    "tokens per GPU (tokens/s/GPU)": "tokens/device",
    "tokens/s/GPU inst/harmonic mean": "tokens/device",
    "tokens per gpu per second (tgs)": "tokens/device",
    "tokens_per_gpu_per_second_tgs": "tokens/device",
    "tokens/gpu/s": "tokens/device",
    "tokens per second": "tokens/?",
    "tokens/s": "tokens/?",
    "tokens/sec": "tokens/?",
    "samples per second": "samples/job",
    "samples_per_second": "samples/job",
    "global batch size": "batch",
    "global_batch_size": "batch",
    "consumed samples": "consumed",
    "consumed_samples": "consumed",
    "consumed tokens": "consumed_tokens",
    "consumed_tokens": "consumed_tokens",
    "lm loss": "loss",
    "lm_loss": "loss",
    "loss": "loss",
    "reduced_train_loss": "loss",
    "actual seqlen": "seq",
    "actual_seqlen": "seq",
    "seq_length": "seq",
    "number of skipped iterations": "skipped",
    "number_of_skipped_iterations": "skipped",
    "core attn ratio (%)": "attention_percent",
    "MFU": "mfu",
    "mfu": "mfu",
    "HFU": "hfu",
    "max_memory_allocated(GB)": "mem.max_allocated",
    "max_memory_reserved(GB)": "mem.max_reserved",
    "hip mem usage/free/total/usage_ratio": "mem.used",
    "rocm mem usage/free/total/usage_ratio": "mem.used",
    "mem usages": "mem.used",
    "memory usage/free/total": "mem.used",
}


def megatron() -> Read:
    """``iteration 10/ 500 | … | elapsed time per iteration (ms): 812.3 | … |``, any generation.

    A record that a terminal broke goes on in the next line, which begins with a blank.
    A value counts only where its bar follows, so that a number cut short never does.
    """
    before: Values = {}
    broken = [False]

    def read(text: str) -> Iterator[Values]:
        if broken[0] and text[:1].isspace() and "|" in text and not _ITERATION.search(text):
            rest = _megatron_values(f"|{text.rstrip().rstrip('|')}|")
            yield from [{**rest, "amend": 1.0}] if rest else []
        broken[0] = text.rstrip().endswith("|")
        timed = _STEP_TIME.search(text) if "Step Time" in text else None
        if timed:
            before.update(seconds=float(timed[1]), tflops=float(timed[2]))
        for flops in _TERA.finditer(text):
            yield {"hardware_tflops": float(flops[1]), "amend": 1.0}
        marks = list(_ITERATION.finditer(text))
        for mark, end in zip(marks, _ends(marks, text), strict=True):
            body = text[mark.end() - 1 : end]
            found = _megatron_values(body)
            if "seconds" not in found:
                continue
            rate = _SEPARATE.search(text[: mark.start()])
            if rate:
                found["samples/job"] = float(rate[1])
            if "tflops" not in found and _near(before.get("seconds"), found["seconds"]):
                found["tflops"] = before["tflops"]
            before.clear()
            yield _numbered(found, mark[1], mark[2])

    return read


def _megatron_values(body: str) -> Values:
    pairs = [_pair(part) for part in body.split("|")[1:-1]]
    found = values_of(pairs, _MEGATRON)
    if "flops per GPU" in body:
        found.update(_approximate(pairs))
    if "ms" in found:
        found["seconds"] = found.pop("ms") / 1e3
    return found


def _pair(part: str) -> tuple[str, str]:
    """Key and value of what stands between two bars; early versions have no colon."""
    key, mark, value = part.partition(":")
    if not mark:
        key, mark, value = part.partition("=")
    if not mark:
        key, _, value = part.strip().rpartition(" ")
    return key.strip(), value.strip()


def _approximate(pairs: Iterable[tuple[str, str]]) -> Values:
    """GPT-NeoX's ``approx flops per GPU: 130.4TFLOPS``."""
    for key, text in pairs:
        flops = _FLOPS.match(text) if key.endswith("flops per GPU") else None
        value = number(flops[1]) if flops else None
        if flops and value is not None:
            unit = {"G": 1e-3, "T": 1.0, "P": 1e3}.get((flops[2] or "").upper(), 0.0)
            return {"hardware_tflops": value * unit}
    return {}


def _near(a: float | None, b: float) -> bool:
    return a is not None and abs(a - b) <= 0.006 + 0.001 * b


def _numbered(found: Values, step: str, total: str | None) -> Values:
    found["number"] = float(step)
    if total:
        found["total"] = float(total)
    return found


def step_time() -> Read:
    """``Step Time : 3.21s GPU utilization: 512.3MODEL_TFLOP/s/GPU``, where no iteration follows."""
    count = 0

    def read(text: str) -> Iterator[Values]:
        nonlocal count
        for match in _STEP_TIME.finditer(text):
            count += 1
            yield {"number": count, "seconds": float(match[1]), "tflops": float(match[2])}

    return read


# -- torchtitan

_TITAN = re.compile(
    r"(?<!validate )step: *(\d+) +(?P<rest>.{0,300}?\b(?:tps|wps): *(?P<rate>[\d,]+))"
)
_STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d),(\d{3})")
_TITAN_LOSS = re.compile(rf"loss: *({NUMBER})")
_TITAN_MEMORY = re.compile(r"memory: *([\d.]+)GiB")
_TITAN_TFLOPS = re.compile(r"tflops: *([\d,.]+\d)")
_TITAN_MFU = re.compile(r"mfu: *([\d.]+)%")


def _seconds_of(stamp: Sequence[str]) -> float:
    """Seconds since the year 0 of a date and time with milliseconds; 0 where there is no such."""
    year, month, day, *time = (int(part) for part in stamp)
    try:
        days = dt.date(year, month, day).toordinal()
    except ValueError:
        return 0.0
    return days * 86400.0 + time[0] * 3600 + time[1] * 60 + time[2] + time[3] / 1e3


def torchtitan() -> Read:
    """``step: 10  loss: 7.1  memory: 40.2GiB(42%)  tps: 7,123  tflops: 409.1  mfu: 41.4%``.

    tokens/s are those of the time since the line before, which the time stamps give as well.
    """

    def read(text: str) -> Iterator[Values]:
        for match in _TITAN.finditer(text):
            found: Values = {"number": float(match[1])}
            rate = number(match["rate"])
            if rate is None:
                continue
            found["tokens/device"] = rate
            stamp = _STAMP.findall(text[max(0, match.start() - 120) : match.start()])
            if stamp:
                found["clock"] = _seconds_of(stamp[-1])
            tail = text[match.end() : match.end() + 120].partition("step:")[0]
            for name, pattern, part in (
                ("loss", _TITAN_LOSS, match["rest"]),
                ("mem.max_reserved", _TITAN_MEMORY, match["rest"]),
                ("tflops", _TITAN_TFLOPS, tail),
                ("mfu", _TITAN_MFU, tail),
            ):
                value = pattern.search(part)
                read_value = number(value[1]) if value else None
                if read_value is not None:
                    found[name] = read_value
            yield found

    return read


# -- forms of key and value


def keyed(
    pattern: str, *, step: str, join: str, ends: str, needs: frozenset[str], shift: int = 0
) -> Callable[[], Read]:
    """The reader of lines ``STEP SEP key JOIN value SEP key JOIN value``.

    ``step`` finds the step (and the total); ``pattern`` a key, ``join`` what stands before its
    value and ``ends`` what may follow it; one of ``needs`` must be there; ``shift`` is added to
    the step where an engine counts from 0.
    """
    find = re.compile(step)
    pair = re.compile(rf"(?:^|(?<=[\s|,(\[{{])){pattern}{join}({NUMBER} ?[kKMGBTP]?)(?={ends})")

    def read(text: str) -> Iterator[Values]:
        marks = list(find.finditer(text))
        for mark, end in zip(marks, _ends(marks, text), strict=True):
            body = text[mark.start() : end]
            found = units(values_of((m.groups() for m in pair.finditer(body)), KEYS))  # type: ignore[misc]
            if needs & found.keys():
                total = mark[2] if find.groups > 1 else None
                values = _numbered(found, mark[1], total)
                values["number"] += shift
                yield values

    return lambda: read


TIMED = frozenset({"seconds", "tokens/device", "tokens/job", "tokens/?", "samples/job"})
_COLON = r"([A-Za-z][\w/() ]{0,50}?)"

maxtext = keyed(
    r"([A-Za-z_][\w/]*)", step=r"completed step: (\d+)", join=r": ", ends=r",|$|\s",
    needs=frozenset({"seconds"}),
)  # fmt: skip
nanotron = keyed(
    r"([A-Za-z_]\w*)", step=r"iteration: (\d+) / (\d+)", join=r": ", ends=r" \||$| *\[", needs=TIMED
)
nemo2 = keyed(
    _COLON, step=r"iteration (\d+)/(\d+)(?= \|)", join=r": ", ends=r" \||$",
    needs=frozenset({"seconds"}),
)  # fmt: skip
nemo1 = keyed(
    r"([A-Za-z_]\w*(?: in s)?)", step=r"(?<=[| ])(\d+)/(\d+) \[", join=r"=", ends=r",|\]",
    needs=frozenset({"seconds"}),
)  # fmt: skip
internevo = keyed(
    r"(tgs \(tokens/gpu/second\)|[A-Za-z_]\w*)", step=r"(?:\btflops=\S+ )?\bstep=(\d+)\b",
    join=r"=", ends=r"\s|,|$",
    needs=frozenset({"tokens/device"}),
)  # fmt: skip
deepspeed = keyed(
    r"([A-Za-z]\w*|iter time \(s\)|samples/sec)", step=r"(?:global_step=|\bsteps: )(\d+)",
    join=r"(?:=|: )", ends=r"[,\s]|GB|$", needs=frozenset({"seconds", "samples/job"}),
)  # fmt: skip
named = keyed(
    r"([A-Za-z]\w*(?:/\w+)*)",
    step=r"(?<![\w.])[\[(]?(?:global_)?(?:step|iter|iteration|Step|Iter)[ =:#]+(\d+)(?:/(\d+))?",
    join=r" ?[=:] ?", ends=r" ?s\b|[,\s|\])/]|$", needs=TIMED,
)  # fmt: skip

_OLD_DEEPSPEED = re.compile(r"\b\d+/(\d+), SamplesPerSec=([\d.]+)")
_AUTOMODEL = re.compile(r"\bstep (\d+) \|")
_TPS = re.compile(r"([\d.,]+)(?:\(([\d.,]+)/gpu\))?")


def deepspeed_old() -> Read:
    """``0/100, SamplesPerSec=12.3``: micro-batches, and a mean since the start."""

    def read(text: str) -> Iterator[Values]:
        for match in _OLD_DEEPSPEED.finditer(text):
            yield {"number": float(match[1]), "samples/job": float(match[2])}

    return read


def automodel() -> Read:
    """``step 10 | epoch 0 | loss 2.1 | … | mem 50.2 GiB | tps 9876.5(1234.6/gpu) | …``."""

    def read(text: str) -> Iterator[Values]:
        marks = list(_AUTOMODEL.finditer(text))
        for mark, end in zip(marks, _ends(marks, text), strict=True):
            parts = [part.split() for part in text[mark.end() : end].split("|")]
            pairs = [(part[0], part[1]) for part in parts if len(part) > 1]
            found = values_of(pairs, {"loss": "loss", "mem": "mem.max_allocated"})
            rates = _TPS.match(dict(pairs).get("tps", ""))
            told = [number(rate) for rate in rates.groups() if rate] if rates else []
            names = ("tokens/job", "tokens/device") if len(told) == 2 else ("tokens/?",)
            found.update({n: v for n, v in zip(names, told, strict=False) if v is not None})
            if told:
                yield _numbered(found, mark[1], None)

    return read


_NANO = re.compile(r"\biter (\d+): loss ([\d.]+), time ([\d.]+)ms")


def nanogpt() -> Read:
    """``iter 1631: loss 4.0863, time 561.94ms, mfu 35.1%``."""

    def read(text: str) -> Iterator[Values]:
        for match in _NANO.finditer(text):
            step, loss, time = (number(part) or 0.0 for part in match.groups())
            yield {"number": step, "loss": loss, "seconds": time / 1e3}

    return read
