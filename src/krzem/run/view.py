"""A status as text: one screen for a terminal, and the live view of the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from krzem.run.clock import duration
from krzem.run.rows import FINAL
from krzem.run.status import RunStatus
from krzem.run.untrusted import printable

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 60


def sparkline(values: Sequence[float], width: int = _CURVE_WIDTH) -> str:
    """Values as a row of bars, thinned out to ``width``; gaps where a value is no number."""
    stride = max(1, -(-len(values) // width))
    points = values[::stride]
    finite = [v for v in points if math.isfinite(v)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((v - low) * scale)] if math.isfinite(v) else " " for v in points)


def count(value: float | None) -> str:
    """A number with a unit prefix."""
    if value is None:
        return "unknown"
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share."""
    return "unknown" if value is None else f"{value:.1%}"


def facts(status: RunStatus) -> list[tuple[str, str]]:
    """The lines of a status, as (what, value)."""
    speed = f"{count(status.tokens_per_s)} tokens/s"
    if status.planned_tokens_per_s and status.tokens_per_s:
        share = status.tokens_per_s / status.planned_tokens_per_s
        speed += f", {share:.0%} of the planned {count(status.planned_tokens_per_s)}"
    elif status.tokens_per_s:
        speed += " (no plan to compare with)"
    lost = sum(i.lost_steps for i in status.interruptions)
    at_work = "" if status.controlled or status.state in FINAL else (
        ", but no controller is at work: `krzem run` goes on with it"
    )  # fmt: skip
    return [
        ("state", f"{status.state}{f' on {status.pool}' if status.pool else ''}{at_work}"),
        ("tokens", f"{count(status.tokens)} of {count(status.goal_tokens)} ({status.share:.1%}), "
                   f"step {status.step:,}"),
        ("speed", speed if status.tokens_per_s else "no step yet"),
        ("loss", "no step yet" if status.loss is None else f"{status.loss:.4f}"),
        ("goodput", percent(status.goodput)),
        ("left", duration(status.left_seconds) if status.left_seconds is not None else "–"),
        ("stops", f"{len(status.interruptions)} faults, stops and moves; {lost} steps done again"),
        ("samples", "each trained once" if status.samples_exact else "; ".join(status.sample_gaps)),
        *(("limit", limit["message"]) for limit in status.limits),
        *(("unknown", text) for text in status.unknown),
        *([("metrics", f"{status.bad_lines:,} lines are no steps; {status.bad_quotes[-1]}")]
          if status.bad_lines else []),
        ("why", status.reason) if status.reason else ("last", status.last_event),
    ]  # fmt: skip


def progress_line(status: RunStatus) -> str:
    """Where a run is, in one line."""
    loss = "" if status.loss is None else f", loss {status.loss:.3f}"
    left = "" if status.left_seconds is None else f", {duration(status.left_seconds)} left"
    return (
        f"{status.pool}: step {status.step:,}, {status.share:.0%} of "
        f"{count(status.goal_tokens)} tokens, {count(status.tokens_per_s)} tokens/s{loss}{left}"
    )


def format_status(status: RunStatus) -> str:
    """A status as plain text."""
    lines = [f"{status.name}  {status.folder}"]
    lines += [f"{what:<8} {value}" for what, value in facts(status)]
    losses = sparkline([point[1] for point in status.curve])
    if losses:
        lines.append(f"{'curve':<8} {losses}")
    for pool in status.pools:
        lines.append(
            f"{'pool':<8} {pool.name}: {count(pool.tokens)} tokens in {pool.attempts} attempts, "
            f"{pool.faults} faults, {count(pool.tokens_per_s)} tokens/s"
        )
    lines += [f"{'gate':<8} {g['gate']} on {g['pool']}: {g['message']}" for g in status.gates[-5:]]
    lines.append(f"{'end':<8} {last_word(status)}")
    return "\n".join(printable(line) for line in lines)


def last_word(status: RunStatus) -> str:
    """How the run ended, or stands, and whether its limits were kept: one line."""
    missed = [limit["message"] for limit in status.limits if limit["kept"] is False]
    kept = [limit["message"] for limit in status.limits if limit["kept"]]
    by = " by a gate" if status.stopped_by_gate else ""
    fired = len(status.gates)
    gates = f"{fired} gates fired" if fired > 1 else "a gate fired" if fired else "no gate fired"
    told = missed + kept or ([gates] if status.state == "done" else [])
    why = [status.reason] if status.reason else []
    proof = [status.proof] if status.proof else []
    return "; ".join([f"{status.state}{by}", *proof, *told, *why])


def panel(status: RunStatus, said: Sequence[str] = ()) -> RenderableType:
    """A status as the live view shows it."""
    table = Table.grid(padding=(0, 2))
    for what, value in facts(status):
        table.add_row(Text(what, style="dim"), Text(printable(value)))
    table.add_row(Text("curve", style="dim"), Text(sparkline([p[1] for p in status.curve])))
    # A bar alone ends no line.
    bar = Padding(ProgressBar(total=1.0, completed=status.share), 0)
    log = Text("\n".join(printable(line) for line in said[-5:]), style="dim")
    return Panel(Group(bar, table, log), title=Text(printable(status.name)), title_align="left")
