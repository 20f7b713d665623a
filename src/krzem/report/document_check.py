"""A judged job as plain data, schema ``krzem.check/1`` of ``docs/json.md``."""

from __future__ import annotations

import math
from typing import Any

from krzem.jobs.answer import Answer, Proved
from krzem.jobs.calibrate import Calibration
from krzem.jobs.check import Check, Counting, Speed, Verdict, conflict_text
from krzem.jobs.job import show
from krzem.jobs.question import asked_of
from krzem.jobs.steady import Steady
from krzem.report.document import cleaned, layout_plan, question
from krzem.report.document_run import facts, whole_run

CHECK = "krzem.check/1"


def check_document(answer: Answer) -> dict[str, Any]:
    """Everything that ``krzem check`` says."""
    found = answer.check
    asked = asked_of(answer.posed)
    return cleaned(
        {
            "schema": CHECK,
            "verdict": found.verdict,
            "sentence": sentence(found),
            "meaning": meaning(found),
            "ratio": found.ratio,
            "job": _job(answer),
            **question(asked),
            "layout_plan": layout_plan(found.plan),
            "open_switches": list(found.priced.unknown),
            "measured": _measured(found),
            "conflicts": [
                {"field": c.name, "files": show(c.files), "log": show(c.log), "place": c.place,
                 "text": conflict_text(c)}
                for c in found.conflicts
            ],
            "impossible": list(found.impossible),
            "explanations": list(answer.explanations),
            "suggestions": [_suggestion(proved) for proved in answer.suggestions],
            "whole_run": None if found.whole_run is None else whole_run(found.whole_run),
            "calibration": None if answer.calibration is None else _fitted(answer.calibration),
            "facts": facts(asked),
            "assumed": list(answer.posed.assumed),
            "doubts": list(answer.posed.doubts),
            "notes": list(answer.notes),
        }
    )  # fmt: skip


def sentence(found: Check) -> str:
    """The verdict in one sentence."""
    step = found.plan.step_seconds
    predicted = f"{_s(step.mid)} ({_s(step.low)}–{_s(step.high)}) s"
    speed = found.speed
    if found.verdict is Verdict.UNMEASURED:
        chance = found.plan.fits_probability
        return (
            f"A step of this job takes {predicted}, and it has a {chance:.0%} chance of fitting in"
            " memory"
        )
    if speed is None:
        return f"The log has no steady speed to judge; a step is predicted to take {predicted}"
    told = f"a step takes {_s(speed.seconds)} s, predicted {predicted}"
    off = f"{abs(math.expm1(math.log(found.ratio or 1.0))):.0%}"
    words = {
        Verdict.EXPECTED: f"This run is as fast as its settings allow on this silicon: {told}",
        Verdict.SLOWER: "This run is slower than its settings allow on this silicon:"
        f" {told}, {off} more",
        Verdict.FASTER: f"This run is faster than its files allow: {told}, {off} less",
        Verdict.MIXED: f"The files and the log are not of one job: in the log {told} for the files",
    }
    return words[found.verdict]


def meaning(found: Check) -> str:
    """What a verdict means, and what to look at."""
    tail = "one run in ten of such files lies beyond that end of the interval"
    return {
        Verdict.EXPECTED: "the time lies inside the 80 % interval: what is left to gain is below",
        Verdict.SLOWER: f"something that the files do not say takes time ({tail}): other jobs or a"
        " slow rank, the network, data loading, throttled chips, or a switch that did not take",
        Verdict.FASTER: f"something in the files is not what ran ({tail}): look at what would"
        " explain it, and at what was assumed",
        Verdict.MIXED: "no verdict: give the log of this job, or the files of that log",
        Verdict.UNSTEADY: "no verdict: give a longer log, without start and saves",
        Verdict.UNMEASURED: "give the run's log with --log to have it judged",
    }[found.verdict]


def _s(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _job(answer: Answer) -> dict[str, Any]:
    job = answer.posed.job
    return {
        "engine": job.engine,
        "engine_version": str(job.get("engine_version") or job.engine_version),
        "files": [str(path) for path in answer.asking.files],
        "fields": {
            name: {"value": list(s.value) if isinstance(s.value, tuple) else s.value,
                   "basis": s.basis, "file": s.file, "line": s.line, "text": s.text}
            for name, s in job.settings.items()
        },
        "ignored_lines": len(job.ignored),
        "not_understood": [
            {"file": n.file, "line": n.line, "text": n.text, "why": n.why}
            for n in job.not_understood
        ],
    }  # fmt: skip


def _measured(found: Check) -> dict[str, Any] | None:
    log = found.log
    if log is None:
        return None
    return {
        "files": list(log.files),
        "form": log.form,
        "lines_with_a_step": log.seen,
        "first_step": log.first,
        "last_step": log.last,
        "restarts": log.starts - 1,
        "seconds": _steady(log.seconds),
        "tokens": _steady(log.tokens),
        "tokens_of": log.tokens_of,
        "step_time_s": None if found.speed is None else found.speed.seconds,
        "step_error_s": None if found.speed is None else found.speed.error,
        "by": "" if found.speed is None else found.speed.by,
        **_rates(found.speed),
        "counting": None if found.speed is None else _counting(found.speed.counting),
        "memory": None
        if found.memory is None
        else {
            "kind": found.memory.kind,
            "measured_gib": found.memory.measured_gib,
            "predicted_gib": found.memory.predicted_gib,
        },
        "checks": [{"name": c.name, "closes": c.closes, "text": c.text} for c in log.checks],
    }


def _rates(speed: Speed | None) -> dict[str, Any]:
    if speed is None:
        return {"tokens_per_s_per_device": None, "mfu": None}
    return {"tokens_per_s_per_device": speed.tokens_per_s_per_device, "mfu": speed.mfu}


def _counting(counting: Counting | None) -> dict[str, Any] | None:
    if counting is None:
        return None
    return {
        "printed_tflops": counting.printed_tflops,
        "flop_per_token": counting.per_token,
        "counts": counting.says,
        "printed_over_model": counting.ratio,
    }


def _steady(value: Steady | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {
        "value": value.value, "error": value.error, "spread": value.spread, "unit": value.unit,
        "overall": value.overall, "used": value.used, "seen": value.seen,
        "dropped": dict(value.dropped), "refused": value.refused, "derived": value.derived,
    }  # fmt: skip


def _suggestion(proved: Proved) -> dict[str, Any]:
    s = proved.suggestion
    return {
        "change": s.change.words,
        "kind": s.change.kind,
        "fields": {n: list(v) if isinstance(v, tuple) else v for n, v in s.change.fields.items()},
        "gain": s.gain,
        "chance_of_gain": s.chance,
        "step_time_s": s.priced.seconds,
        "memory_gib": s.memory_gib,
        "fits_probability": s.fits,
        "layout_text": str(s.change.layout),
        "flags": proved.flags,
        "place": proved.place,
        "edits": [
            {"file": e.file, "line": e.line, "old": e.old, "new": e.new} for e in proved.edits
        ],
        "proved": bool(proved.edits),
    }


def _fitted(found: Calibration) -> dict[str, Any]:
    rows = zip(found.runs, found.fit.before, found.fit.after, found.fit.left_out, strict=True)
    return {
        "cluster": found.local.cluster,
        "device": found.local.device,
        "engine": found.local.engine,
        "narrowed": found.local.narrowed,
        "factors": {
            name: {"log": f.log, "sigma": f.sigma} for name, f in found.local.factors.items()
        },
        "runs": [
            {"name": run.name, "step_time_s": run.seconds, "as_shipped": math.exp(before),
             "calibrated": math.exp(after), "left_out": math.exp(left)}
            for run, before, after, left in rows
        ],
    }  # fmt: skip
