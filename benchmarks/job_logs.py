"""How well public training logs are read: step, tokens/s, TFLOP/s and memory by engine.

Used by ``benchmarks/jobs.py --logs``.  A log that is a whole file is read whole; of a page that
holds one (``.md``, ``.rst``, source code) only the lines that ``logs.csv`` names are read, as its
reader would copy them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from krzem.errors import KrzemError
from krzem.jobs.logs import Measured, read_log

LOGS_BEGIN, LOGS_END = "<!-- logs:begin -->", "<!-- logs:end -->"
CLOSE = 0.02
"""Relative distance within which a rate that a log prints is the one that a person reads."""
MEMORY = 0.005
_PAGES = (".md", ".rst", ".go")
_SPAN = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(slots=True)
class Found:
    """What was judged of logs, and what was not right."""

    logs: int = 0
    right: int = 0
    wrong: int = 0
    missed: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Add the counts of other logs."""
        self.logs += other.logs
        self.right += other.right
        self.wrong += other.wrong
        self.missed += other.missed


def stored(row: Mapping[str, str]) -> bool:
    """Whether a log lies as a file in a repository, and not in a thread."""
    return row["revision"] not in ("thread", "stored")


def log_text(row: Mapping[str, str], git: Path) -> bytes | None:
    """The log as a person would give it; None where the copy does not hold it."""
    shown = subprocess.run(
        ["git", "-C", str(git), "show", f"{row['revision']}:{row['path']}"],
        capture_output=True, check=False,
    )  # fmt: skip
    if shown.returncode:
        return None
    span = _SPAN.fullmatch(row["lines"].strip())
    if span is None or not row["path"].endswith(_PAGES):
        return shown.stdout
    first, last = int(span[1]), int(span[2] or span[1])
    return b"\n".join(shown.stdout.split(b"\n")[first - 1 : last]) + b"\n"


def read_text_of_log(content: bytes) -> tuple[Measured | None, str]:
    """The log, or why it cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.txt"
        path.write_bytes(content)
        try:
            return read_log(path), ""
        except KrzemError as error:
            return None, str(error)


def judge_log(log: Measured | None, row: Mapping[str, str]) -> Found:
    """Compare a log, or None where it was refused, with its labels."""
    score = Found(logs=1)
    _judge(score, "step", _step(log), _span(row))
    for name, value, slack in (
        ("tokens_per_s_per_device", _tokens(log), CLOSE),
        ("tflops_per_device", _value(None if log is None else log.tflops), CLOSE),
        ("memory_gib", _memory(log), MEMORY),
    ):
        if row[name]:
            label = float(row[name])
            _judge(score, name, value, (label * (1 - slack), label * (1 + slack)))
    return score


def _judge(score: Found, name: str, value: float | None, span: tuple[float, float] | None) -> None:
    """``span``: values that are right; None: no value is."""
    inside = (value is None) if span is None else (
        value is not None and span[0] <= value <= span[1]
    )  # fmt: skip
    score.right += inside
    if inside:
        return
    score.missed += value is None
    score.wrong += value is not None
    want = "none" if span is None else f"{span[0]:.6g} to {span[1]:.6g}"
    score.errors.append(f"{name}: {want} read as {value}")


def _span(row: Mapping[str, str]) -> tuple[float, float] | None:
    if row["step_seconds"] == "none":
        return None
    slack = 1e-4
    return float(row["step_low"]) * (1 - slack), float(row["step_high"]) * (1 + slack)


def _value(steady: object) -> float | None:
    found = getattr(steady, "value", None)
    return None if found is None else float(found)


def _step(log: Measured | None) -> float | None:
    return None if log is None else _value(log.seconds)


def _tokens(log: Measured | None) -> float | None:
    if log is None or log.tokens is None or log.tokens.value is None:
        return None
    if log.tokens_of == "device":
        return log.tokens.value
    devices = log.fields.get("devices")
    if log.tokens_of == "job" and devices is not None and isinstance(devices.value, int):
        return log.tokens.value / devices.value
    return None


def _memory(log: Measured | None) -> float | None:
    """The largest peak of all ranks; of the device as a whole only where no peak is told."""
    if log is None:
        return None
    for kinds in (("max_allocated",), ("max_reserved",), ("used", "allocated", "reserved")):
        told = [v for m in log.memory for kind in kinds if (v := getattr(m, kind)) is not None]
        if told:
            return max(told)
    return None


def logs_table(scores: Mapping[tuple[str, str], Found]) -> str:
    """The figures as a Markdown table, an engine and half a row."""
    lines = [
        "| engine | half | logs | values judged | right | wrong | left open |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    total: dict[str, Found] = defaultdict(Found)
    for (engine, half), score in sorted(scores.items()):
        total[half].add(score)
        lines.append(_row(engine, half, score))
    lines += [_row("all", half, score) for half, score in sorted(total.items())]
    return "\n".join(lines)


def _row(engine: str, half: str, score: Found) -> str:
    whole = score.right + score.wrong + score.missed
    shares = (100 * n / max(whole, 1) for n in (score.right, score.wrong, score.missed))
    return f"| {engine} | {half} | {score.logs} | {whole} | " + " | ".join(
        f"{share:.1f} %" for share in shares
    ) + " |"  # fmt: skip


def left_out(reasons: Counter[str]) -> str:
    """One sentence on the logs of the list that were not read."""
    told = ", ".join(f"{count} {why}" for why, count in sorted(reasons.items()))
    return f"Not read: {told}." if told else ""
