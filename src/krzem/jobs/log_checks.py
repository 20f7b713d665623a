"""Arithmetic inside one log: what it settles, and where two numbers cannot be of one job."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from krzem.jobs.job import JobBuilder
from krzem.jobs.log_arguments import Arguments
from krzem.jobs.log_formats import Format
from krzem.jobs.log_series import Step
from krzem.jobs.steady import FEW, WIDE, Steady, steady

CLOSE = 0.03
"""Relative difference up to which two sides of an equation are the same."""
_KINDS = ("tokens/device", "tokens/job", "tokens/process", "tokens/?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One equation over what the log prints."""

    name: str
    closes: bool
    text: str

    def __str__(self) -> str:
        return f"{'closes' if self.closes else 'does NOT close'}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """What :func:`examine` finds."""

    seconds: Steady | None
    tokens: Steady | None
    tokens_of: str
    tflops: Steady | None
    convention: str
    flop_per_token: float | None
    checks: tuple[Check, ...]


@dataclass(slots=True, kw_only=True)
class Known:
    """The numbers of the job that the equations need, so far as the log has them."""

    batch: float | None
    seq: float | None
    devices: float | None
    dp: float | None
    job: JobBuilder
    batch_tokens: float | None = None

    @classmethod
    def of(cls, steps: Sequence[Step], job: JobBuilder) -> Known:
        """From the steps first, then from the dumped arguments."""
        last = _last(steps, "batch")
        known = cls(
            batch=last or job.number("global_batch"),
            seq=_last(steps, "seq") or job.number("seq"),
            devices=_devices(job), dp=job.number("dp"), job=job,
        )  # fmt: skip
        known.batch_tokens = _tokens_of_step(steps, known)
        return known


def _devices(job: JobBuilder) -> float | None:
    if (stated := job.number("devices")) is not None:
        return stated
    parts = [job.number(name) for name in ("dp", "tp", "pp", "cp")]
    if parts[0] is None or None in parts[1:3]:
        return None
    product = 1
    for part in parts:
        product *= part or 1
    job.derive("devices", product, f"dp * tp * pp * cp = {product}")
    return product


def _last(steps: Sequence[Step], name: str) -> float | None:
    return next((s.values[name] for s in reversed(steps) if s.values.get(name)), None)


def _tokens_of_step(steps: Sequence[Step], known: Known) -> float | None:
    """Tokens of one optimizer step, from the batch or from the tokens consumed so far."""
    if known.batch and known.seq:
        return known.batch * known.seq
    for name in ("consumed_tokens", "consumed"):
        gain = _gain(steps, name)
        if gain and name == "consumed_tokens":
            return gain
        if gain and known.seq and not known.batch:
            known.batch = gain
            return gain * known.seq
    return None


def _gain(steps: Sequence[Step], name: str) -> float | None:
    """How much ``name`` grows in a step, where it always grows by the same (to rounding)."""
    gains = [
        (b.values[name] - a.values[name]) / (b.number - a.number)
        for a, b in pairwise(steps)
        if name in a.values and name in b.values and a.start == b.start and b.number > a.number
    ]
    if len(gains) < 2:
        return None
    middle = statistics.median(gains)
    same = sum(abs(g - middle) <= 0.001 * abs(middle) for g in gains)
    return middle if middle > 0 and same >= 0.9 * len(gains) else None


def examine(steps: Sequence[Step], known: Known, form: Format, arguments: Arguments) -> Speeds:
    """Steady speeds and the equations between them."""
    checks: list[Check] = []
    seconds = steady(steps, "seconds", "s")
    kind = next((k for k in _KINDS if _last(steps, k) is not None), None)
    tokens = None if kind is None else steady(steps, kind, "tokens/s")
    of = "" if kind is None else kind.partition("/")[2].strip("?")
    _batches(steps, known, checks)
    if kind is not None:
        _weights(steps, kind, known)
    if form.name == "nanotron":
        _nanotron(steps, known, seconds, tokens)
    if seconds is None:
        seconds = _seconds(steps, known, kind, of)
    elif kind is not None:
        of = _denominator(steps, kind, known, of, checks)
    elif known.batch_tokens and known.devices:
        why = "global batch * sequence / (seconds * devices)"
        factor = known.batch_tokens / known.devices
        tokens, of = _inverse(seconds, factor, "tokens/s", why), "device"
    rate = _of_device(tokens, of, known)
    _clock(steps, seconds, checks)
    _state(known)
    return Speeds(
        seconds=seconds, tokens=tokens, tokens_of=of,
        tflops=steady(steps, "tflops", "TFLOP/s") or steady(steps, "hardware_tflops", "TFLOP/s"),
        convention=_convention(form, known.job.engine, arguments, steps),
        flop_per_token=_flop_per_token(steps, kind, of, rate, known, seconds, checks),
        checks=tuple(checks),
    )  # fmt: skip


def _batches(steps: Sequence[Step], known: Known, checks: list[Check]) -> None:
    """The batch printed, the batch dumped and the samples consumed are one number."""
    gain = _gain(steps, "consumed")
    dumped = known.job.number("global_batch")
    if known.batch and gain:
        text = f"consumed samples grow by {gain:g} a step, global batch {known.batch:g}"
        _check(checks, "consumed samples", gain, known.batch, text)
    if dumped and _last(steps, "batch"):
        text = f"global batch {known.batch:g} in the lines, {dumped:g} in the arguments"
        _check(checks, "global batch", known.batch or 0, dumped, text)


def _check(checks: list[Check], name: str, a: float, b: float, text: str) -> bool:
    closes = abs(a - b) <= CLOSE * max(abs(a), abs(b))
    more = "" if closes else ": two jobs are mixed, or a number is not what it seems"
    checks.append(Check(name=name, closes=closes, text=text + more))
    return closes


def _weights(steps: Sequence[Step], kind: str, known: Known) -> None:
    """MaxText counts the targets of a step: its tokens, where none of them is padding.

    Taken for that only where they are a whole number of devices times the tokens of one.
    """
    weights = _last(steps, "weights")
    if known.batch_tokens is not None or weights is None:
        return
    known.batch_tokens = weights
    ratios = [r for s in steps if (r := _ratio(s, kind, known)) is not None]
    ratio = statistics.median(ratios) if ratios else 0.5
    if abs(ratio - max(1, round(ratio))) > min(0.1, CLOSE * ratio):
        known.batch_tokens = None


def _nanotron(
    steps: Sequence[Step], known: Known, seconds: Steady | None, tokens: Steady | None
) -> None:
    """nanotron's global batch is in tokens in later versions: the product decides."""
    printed, job_rate = _last(steps, "batch"), _last(steps, "tokens/?")
    if printed is None or not seconds or not seconds.value or not job_rate:
        return
    product = job_rate * seconds.value
    if abs(product - printed) <= CLOSE * product:
        known.batch, known.batch_tokens = None, printed
    elif known.batch_tokens is None:
        known.batch_tokens = product
    if tokens is not None and tokens.value:
        ratio = job_rate / tokens.value
        if known.devices is None and abs(ratio - round(ratio)) < 0.02 * ratio:
            known.devices = round(ratio)


def _seconds(steps: Sequence[Step], known: Known, kind: str | None, of: str) -> Steady | None:
    """Seconds of a step where the log prints rates alone."""
    if _last(steps, "samples/job") and known.batch:
        rate = steady(steps, "samples/job", "samples/s")
        return _inverse(rate, known.batch, "s", "global batch / (samples/s)")
    if kind is None or not known.batch_tokens:
        return None
    rate = steady(steps, kind, "tokens/s")
    if of == "job":
        return _inverse(rate, known.batch_tokens, "s", "global batch * sequence / (tokens/s)")
    if of == "device" and known.devices:
        why = "global batch * sequence / (tokens/s of a device * devices)"
        return _inverse(rate, known.batch_tokens / known.devices, "s", why)
    return None


def _inverse(rate: Steady | None, amount: float, unit: str, why: str) -> Steady | None:
    """``amount`` over a steady value."""
    if rate is None:
        return None
    value = None if not rate.value else amount / rate.value
    relative = 0.0 if not rate.value else rate.error / rate.value
    scatter = 0.0 if not rate.value else rate.spread / rate.value
    return Steady(
        unit=unit, value=value, spread=scatter * (value or 0.0), error=relative * (value or 0.0),
        overall=amount / rate.overall if rate.overall else None, used=rate.used, seen=rate.seen,
        first=rate.first, last=rate.last, dropped=rate.dropped, refused=rate.refused, derived=why,
    )  # fmt: skip


def _denominator(
    steps: Sequence[Step], kind: str, known: Known, of: str, checks: list[Check]
) -> str:
    """Whose tokens/s they are: ``batch * sequence`` against ``tokens/s * seconds`` of a line."""
    ratios = [r for s in steps if (r := _ratio(s, kind, known)) is not None]
    if not ratios:
        return of
    ratio = statistics.median(ratios)
    scatter = statistics.median(abs(r - ratio) for r in ratios)
    near = max(1, round(ratio))
    exact = abs(ratio - near) <= 0.1 and scatter <= 0.1 and abs(ratio - near) <= CLOSE * near
    text = f"global batch * sequence is {ratio:.5g} times tokens/s * seconds of the same line"
    if of == "device" and known.devices is None and exact:
        known.devices = near
        known.job.derive("devices", near, f"{text}, and the tokens/s are of one device")
    sides = (("device", known.devices), ("replica", known.dp), ("job", 1.0))
    fits = [who for who, n in sides if n and abs(ratio - n) <= CLOSE * n]
    found = of if of in fits else fits[0] if fits else ""
    closes = bool(found) and (not of or found == of)
    more = f": they are of one {found}" if closes else ": two jobs are mixed, or it is open whose"
    checks.append(Check(name="tokens", closes=closes, text=text + more))
    return found or of


def _ratio(step: Step, kind: str, known: Known) -> float | None:
    """Tokens of a step over ``tokens/s * seconds``, of one line."""
    values = step.values
    product = values.get(kind, 0.0) * values.get("seconds", 0.0)
    batch, seq = values.get("batch", known.batch), values.get("seq", known.seq)
    total = known.batch_tokens if not batch or not seq else batch * seq
    return total / product if product and total else None


def _of_device(tokens: Steady | None, of: str, known: Known) -> float | None:
    """Tokens/s of one device."""
    if tokens is None or not tokens.value:
        return None
    if of == "device":
        return tokens.value
    if of == "job" and known.devices:
        return tokens.value / known.devices
    if of == "replica" and known.devices and known.dp:
        return tokens.value * known.dp / known.devices
    return None


def _flop_per_token(
    steps: Sequence[Step], kind: str | None, of: str, rate: float | None, known: Known,
    seconds: Steady | None, checks: list[Check],
) -> float | None:  # fmt: skip
    """Printed FLOP/s over tokens/s; line by line it must be one number."""
    name = "tflops" if _last(steps, "tflops") else "hardware_tflops"
    pairs = [_work(s, name, kind if of == "device" else None) for s in steps]
    works = [w for w in pairs if w is not None]
    if len(works) >= 3:
        _constant(works, checks, "tokens/s" if kind and of == "device" else "1 / seconds")
    if not works or rate is None:
        return None
    if kind and of == "device":
        return statistics.median(works) * 1e12
    value = steady(steps, name, "TFLOP/s")
    if value is None or not value.value or not known.batch_tokens or seconds is None:
        return None
    return value.value * 1e12 / rate


def _work(step: Step, name: str, kind: str | None) -> float | None:
    """TFLOP/s over tokens/s, or times seconds, of one line."""
    flops, seconds = step.values.get(name), step.values.get("seconds")
    if not flops:
        return None
    if kind is not None:
        return flops / step.values[kind] if step.values.get(kind) else None
    batch = step.values.get("batch", 1.0) * step.values.get("seq", 1.0)
    return flops * seconds / batch if seconds else None


def _constant(works: Sequence[float], checks: list[Check], what: str) -> None:
    middle = statistics.median(works)
    off = sum(abs(w - middle) > CLOSE * middle for w in works)
    closes = off <= 0.1 * len(works)
    text = f"FLOP/s over {what} is one number in {len(works) - off} of {len(works)} lines"
    more = "" if closes else ": two jobs are mixed, or the batch changes"
    checks.append(Check(name="FLOP a token", closes=closes, text=text + more))


def _clock(steps: Sequence[Step], seconds: Steady | None, checks: list[Check]) -> None:
    """The clock of a progress bar against the rates printed beside it."""
    if seconds is None or not seconds.value:
        return
    timed = [s for s in steps if "clock" in s.values and seconds.first <= s.number <= seconds.last]
    timed = [s for s in timed if s.start == timed[-1].start]
    if len(timed) < FEW:
        return
    a, b = timed[0], timed[-1]
    passed = b.values["clock"] - a.values["clock"]
    if passed < 60 or b.number <= a.number:
        return
    mean = passed / (b.number - a.number)
    closes = abs(mean - seconds.value) <= max(WIDE, 2 / passed) * seconds.value
    text = f"the clock gives {mean:.4g} s a step, the rates {seconds.value:.4g} s"
    more = "" if closes else ": evaluations, saves or waits are in the clock"
    checks.append(Check(name="clock", closes=closes, text=text + more))


def _state(known: Known) -> None:
    """Write what the steps told into the job."""
    for name, value in (
        ("global_batch", known.batch), ("seq", known.seq), ("devices", known.devices),
    ):  # fmt: skip
        if value and float(value).is_integer() and known.job.get(name) is None:
            known.job.derive(name, int(value), "from the lines of the steps")


_COUNTED = {
    "megatron-deepspeed": "megatron-deepspeed: recomputed work counted, attention whole",
    "torchtitan": "torchtitan: 6 * parameters without the embedding, attention whole",
    "megatron-bridge": "megatron-bridge: model FLOP, attention halved (causal)",
}


def _convention(form: Format, engine: str, arguments: Arguments, steps: Sequence[Step]) -> str:
    """The engine's way of counting FLOP, with what the log settles about it."""
    raw = arguments.raw
    if _last(steps, "tflops") is None:
        if _last(steps, "seconds") and engine == "megatron-deepspeed" and "zero_stage" in raw:
            return _COUNTED[engine]
        neox = "gpt-neox: recomputed work counted, attention whole, inner width 4 h"
        return neox if _last(steps, "hardware_tflops") is not None else ""
    share = _last(steps, "attention_percent")
    if share is not None:
        return f"mindspeed: model FLOP, {share:g} % of the attention"
    if form.convention == "megatron" and engine in ("megatron-lm", "primus") and arguments.raw:
        half = "moe_router_dtype" in arguments.raw
        return f"megatron: model FLOP, attention {'halved (causal)' if half else 'whole'}"
    return _COUNTED.get(engine, form.convention)
