"""A job against what its silicon allows: what was measured, what is predicted, and the verdict."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

from krzem.accuracy.conventions import forward_flops
from krzem.cost.coefficients import Z80
from krzem.cost.memory import RankBytes
from krzem.estimate import Basis, Estimate
from krzem.jobs.job import Setting, Value, show
from krzem.jobs.logs import Measured
from krzem.jobs.priced import RANKS, Priced, price_all
from krzem.jobs.question import Posed
from krzem.model.parameters import count, flops_per_token
from krzem.plan.forecast import WholeRun, whole_run
from krzem.plan.plan import LayoutPlan, RankMemory
from krzem.plan.price import Pricer, memory_sigma, step_sigma

GIB = 2.0**30
DAY = 86_400.0


class Verdict(enum.StrEnum):
    """What a comparison of measured and predicted says."""

    EXPECTED = "as expected"
    SLOWER = "slower"
    FASTER = "faster"
    MIXED = "two jobs"
    """Files and log are not of one job."""
    UNSTEADY = "no steady state"
    UNMEASURED = "not measured"
    """No log was given: the prediction alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """What an engine's printed FLOP/s stand for."""

    printed_tflops: float
    per_token: float
    """FLOP that the engine counts for one token."""
    says: str
    """Which way of counting fits, in words; '' where none does within 5 %."""
    ratio: float
    """Printed FLOP/s over model FLOP/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a log measured of one step, in the units of a prediction."""

    seconds: float
    error: float
    """Standard error, seconds."""
    tokens_per_s_per_device: float
    mfu: float
    """Model FLOPs (causal attention once, nothing recomputed) over the dense peak."""
    by: str
    """How it was got."""
    counting: Counting | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryMeasured:
    """The largest memory that a log tells of, beside its prediction."""

    kind: str
    """``allocated`` (tensors), ``reserved`` or ``used``."""
    measured_gib: float
    predicted_gib: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A field of which the files and the log say different things."""

    name: str
    files: Value
    log: Value
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A job, priced, and its run, judged."""

    posed: Posed
    priced: Priced
    plan: LayoutPlan
    """The prediction in the form of every other answer."""
    sigma: float
    """Standard deviation of the logarithm of the predicted step time."""
    log: Measured | None
    speed: Speed | None
    memory: MemoryMeasured | None
    conflicts: tuple[Conflict, ...]
    impossible: tuple[str, ...]
    """Why the log cannot be of the job in the files, whatever it says of itself."""
    verdict: Verdict
    whole_run: WholeRun | None
    parameters: int
    active_parameters: int

    @property
    def ratio(self) -> float | None:
        """Measured step time over the middle of the prediction."""
        return None if self.speed is None else self.speed.seconds / self.plan.step_seconds.mid


def check(posed: Posed, log: Measured | None = None, pricer: Pricer | None = None) -> Check:
    """Price the job as it is and judge what its log measured."""
    pricer = pricer or posed.pricer()
    priced = price_all(pricer, [(posed.layout, posed.task.setup)])[0]
    sigma = sigma_of(posed, priced)
    plan = described(posed, pricer, priced, sigma)
    speed = None if log is None else speed_of(posed, pricer, log)
    conflicts = () if log is None else tuple(conflicts_of(posed, log))
    impossible = () if speed is None else tuple(_impossible(speed, plan))
    counted = count(posed.task.architecture)
    step = plan.step_seconds
    if speed is not None:
        away = max(speed.error / speed.seconds, 1e-3)
        step = Estimate.lognormal(speed.seconds, away, Basis.MEASURED)
    return Check(
        posed=posed, priced=priced, plan=plan, sigma=sigma, log=log, speed=speed,
        memory=None if log is None else _memory(priced, log), conflicts=conflicts,
        impossible=impossible,
        verdict=_verdict(log, speed, bool(conflicts or impossible), plan, sigma),
        whole_run=whole_run(posed.pricer(), posed.layout, step, parameters=float(counted.total),
                            given=True) if posed.whole else None,
        parameters=counted.total, active_parameters=counted.active,
    )  # fmt: skip


def sigma_of(posed: Posed, priced: Priced) -> float:
    """Standard deviation of the logarithm of a step: of the model, and of what is open."""
    model = step_sigma(posed.task, posed.layout, priced.step, float(posed.guesses))
    return math.hypot(model, math.sqrt(priced.variance))


def described(posed: Posed, pricer: Pricer, priced: Priced, sigma: float) -> LayoutPlan:
    """A price as the layout plan of every other answer."""
    task, layout = posed.task, posed.layout
    seconds = Estimate.lognormal(priced.seconds, sigma, Basis.CALIBRATED)
    peak = float(priced.memory.peak)
    reserve = max(peak - float(priced.memory.tensors), 0.0)
    flops = pricer.step_flops() / task.cluster.devices / pricer.peak_flops()
    return LayoutPlan(
        layout=layout, step_seconds=seconds,
        tokens_per_s_per_device=seconds.inverse(task.goal.tokens_per_step / task.cluster.devices),
        mfu=seconds.inverse(flops),
        memory_bytes=Estimate.lognormal(
            peak, math.hypot(memory_sigma(peak), math.sqrt(priced.memory_variance)),
            Basis.CALIBRATED,
        ),
        fits_probability=priced.fits, terms=priced.terms,
        ranks=tuple(
            RankMemory(
                rank=name, reserve=reserve,
                **{f.name: float(getattr(getattr(priced.memory, name), f.name))
                   for f in fields(RankBytes)},
            )
            for name in RANKS
            if layout.pp > 2 or (layout.pp == 2 and name != "middle") or name == "first"
        ),
        micro_batches=round(float(priced.step.micro_batches)), switches=priced.choices,
    )  # fmt: skip


# -- what was measured


def speed_of(posed: Posed, pricer: Pricer, log: Measured) -> Speed | None:
    """The steady step of a log; None where it has none."""
    task = posed.task
    tokens, devices = task.goal.tokens_per_step, task.cluster.devices
    seconds, error, by = _seconds(log, float(tokens), float(devices), posed.layout.dp)
    if seconds is None or seconds <= 0:
        return None
    rate = tokens / seconds / devices
    return Speed(
        seconds=seconds, error=error, tokens_per_s_per_device=rate,
        mfu=rate * flops_per_token(task.architecture, task.goal.sequence) / pricer.peak_flops(),
        by=by, counting=_counting(posed, log, rate),
    )  # fmt: skip


def _seconds(
    log: Measured, tokens: float, devices: float, dp: int
) -> tuple[float | None, float, str]:
    """(seconds of a step, their error, how they were got)."""
    if log.seconds is not None and log.seconds.value:
        how = log.seconds.derived or "seconds per step as the log prints them"
        return log.seconds.value, log.seconds.error, how
    rate = log.tokens
    shares = {"device": devices, "process": devices, "job": 1.0, "replica": float(dp)}
    if rate is None or not rate.value or log.tokens_of not in shares:
        return None, 0.0, ""
    seconds = tokens / (rate.value * shares[log.tokens_of])
    return seconds, seconds * rate.error / rate.value, f"tokens/s of one {log.tokens_of}"


WAYS = tuple(
    (f"{words}{again}", attention, times)
    for words, attention in (
        ("causal attention counted once", "causal"), ("attention counted whole", "full"),
        ("attention left out", "none"),
    )
    for again, times in (("", 3.0), (", and recomputed work counted too", 4.0))
)  # fmt: skip
"""How engines count: in words, attention, passes of the forward work."""
CLOSE = 0.05


def _counting(posed: Posed, log: Measured, rate: float) -> Counting | None:
    """The engine's FLOP/s against model FLOP/s of the same speed."""
    printed = log.tflops.value if log.tflops is not None else None
    if not printed or rate <= 0:
        return None
    task = posed.task
    per_token = printed * 1e12 / rate
    model = flops_per_token(task.architecture, task.goal.sequence)
    ways = {
        words: times * forward_flops(task.architecture, task.goal.sequence, attention)
        for words, attention, times in WAYS
    }
    embedding = task.architecture.vocab * task.architecture.hidden
    ways["6 per parameter, attention counted whole"] = (
        3.0 * forward_flops(task.architecture, task.goal.sequence, "full") + 6.0 * embedding
    )
    best = min(ways, key=lambda w: abs(math.log(ways[w] / per_token)))
    close = abs(ways[best] / per_token - 1.0) <= CLOSE
    return Counting(
        printed_tflops=printed, per_token=per_token, says=best if close else "",
        ratio=per_token / model,
    )  # fmt: skip


_KINDS = (("max_reserved", "reserved"), ("used", "used"), ("max_allocated", "allocated"))


def _memory(priced: Priced, log: Measured) -> MemoryMeasured | None:
    """The measured peak that says most, and the prediction of the same thing."""
    for name, kind in _KINDS:
        values = [v for m in log.memory if (v := getattr(m, name)) is not None and v > 0]
        if not values:
            continue
        found = priced.memory
        low = {"reserved": found.peak, "used": found.peak, "allocated": found.tensors}[kind]
        high = {"reserved": found.reserved, "used": found.shown, "allocated": found.tensors}[kind]
        mid = math.sqrt(float(low) * float(high))
        sigma = math.hypot(memory_sigma(mid), math.log(float(high) / float(low)) / 2 / Z80)
        return MemoryMeasured(
            kind=kind, measured_gib=max(values),
            predicted_gib=Estimate.lognormal(mid / GIB, sigma, Basis.CALIBRATED),
        )  # fmt: skip
    return None


# -- judging

ONE_JOB = (
    "model.layers", "model.hidden", "model.heads", "model.experts", "seq", "global_batch", "mbs",
    "tp", "pp", "cp", "ep", "devices", "precision",
)  # fmt: skip
"""Fields in which the files and the log of one run agree."""


def conflicts_of(posed: Posed, log: Measured) -> Iterator[Conflict]:
    """What the files and the log say differently."""
    for name in ONE_JOB:
        told: Setting | None = log.fields.get(name)
        mine = posed.job.settings.get(name)
        if told is None or mine is None or told.value == mine.value:
            continue
        yield Conflict(name=name, files=mine.value, log=told.value, place=str(mine.place))


MOST_MFU = 1.0
FAR_FLOPS = 1.8
"""Printed FLOP/s over model FLOP/s that no way of counting gives."""


def _impossible(speed: Speed, plan: LayoutPlan) -> Iterator[str]:
    """What the log's numbers would mean for the model in the files, where that cannot be."""
    if speed.mfu > MOST_MFU:
        yield (
            f"its speed would be {speed.mfu:.0%} of the peak for the model, batch and devices in"
            " the files"
        )
    counting = speed.counting
    if counting is not None and not counting.says:
        times = max(counting.ratio, 1.0 / counting.ratio)
        if times > FAR_FLOPS:
            yield (
                f"its FLOP/s over its tokens/s are {counting.ratio:.2g} times the FLOPs of a token"
                " of the model in the files"
            )
    if speed.seconds > 20.0 * plan.step_seconds.high:
        yield f"its steps take {speed.seconds / plan.step_seconds.mid:.0f} times as long"


def _verdict(
    log: Measured | None, speed: Speed | None, mixed: bool, plan: LayoutPlan, sigma: float
) -> Verdict:
    if log is None:
        return Verdict.UNMEASURED
    if mixed:
        return Verdict.MIXED
    if speed is None:
        return Verdict.UNSTEADY
    away = math.log(speed.seconds / plan.step_seconds.mid)
    limit = Z80 * math.hypot(sigma, speed.error / speed.seconds)
    if abs(away) <= limit:
        return Verdict.EXPECTED
    return Verdict.SLOWER if away > 0 else Verdict.FASTER


def conflict_text(conflict: Conflict) -> str:
    """One conflict in words."""
    at = f" ({conflict.place})" if conflict.place else ""
    files, log = show(conflict.files), show(conflict.log)
    return f"{conflict.name} is {files} in the files{at} and {log} in the log"
