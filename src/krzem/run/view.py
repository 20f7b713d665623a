"""A story as text: one screen for a terminal, and the live view of the same."""

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
from krzem.run.story import Story
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


def facts(story: Story) -> list[tuple[str, str]]:
    """The lines of a status, as (what, value)."""
    speed = f"{count(story.tokens_per_s)} tokens/s"
    if story.planned_tokens_per_s and story.tokens_per_s:
        share = story.tokens_per_s / story.planned_tokens_per_s
        speed += f", {share:.0%} of the planned {count(story.planned_tokens_per_s)}"
    elif story.tokens_per_s:
        speed += " (no plan to compare with)"
    lost = sum(i.lost_steps for i in story.interruptions)
    at_work = "" if story.controlled or story.state in ("done", "stopped", "failed") else (
        ", but no controller is at work: `krzem run` goes on with it"
    )  # fmt: skip
    return [
        ("state", f"{story.state}{f' on {story.pool}' if story.pool else ''}{at_work}"),
        ("tokens", f"{count(story.tokens)} of {count(story.goal_tokens)} ({story.share:.1%}), "
                   f"step {story.step:,}"),
        ("speed", speed if story.tokens_per_s else "no step yet"),
        ("loss", "no step yet" if story.loss is None else f"{story.loss:.4f}"),
        ("goodput", percent(story.goodput)),
        ("left", duration(story.left_seconds) if story.left_seconds is not None else "–"),
        ("stops", f"{len(story.interruptions)} faults, stops and moves; {lost} steps done again"),
        ("samples", "each trained once" if story.samples_exact else "; ".join(story.sample_gaps)),
        *(("limit", limit["message"]) for limit in story.limits),
        *(("unknown", text) for text in story.unknown),
        *([("metrics", f"{story.bad_lines:,} lines are no steps; {story.bad_quotes[-1]}")]
          if story.bad_lines else []),
        ("why", story.reason) if story.reason else ("last", story.last_event),
    ]  # fmt: skip


def progress_line(story: Story) -> str:
    """Where a run is, in one line."""
    loss = "" if story.loss is None else f", loss {story.loss:.3f}"
    left = "" if story.left_seconds is None else f", {duration(story.left_seconds)} left"
    return (
        f"{story.pool}: step {story.step:,}, {story.share:.0%} of "
        f"{count(story.goal_tokens)} tokens, {count(story.tokens_per_s)} tokens/s{loss}{left}"
    )


def format_story(story: Story) -> str:
    """A status as plain text."""
    lines = [f"{story.name}  {story.folder}"]
    lines += [f"{what:<8} {value}" for what, value in facts(story)]
    losses = sparkline([point[1] for point in story.curve])
    if losses:
        lines.append(f"{'curve':<8} {losses}")
    for pool in story.pools:
        lines.append(
            f"{'pool':<8} {pool.name}: {count(pool.tokens)} tokens in {pool.attempts} attempts, "
            f"{pool.faults} faults, {count(pool.tokens_per_s)} tokens/s"
        )
    lines += [f"{'gate':<8} {g['gate']} on {g['pool']}: {g['message']}" for g in story.gates[-5:]]
    lines.append(f"{'end':<8} {last_word(story)}")
    return "\n".join(printable(line) for line in lines)


def last_word(story: Story) -> str:
    """How the run ended, or stands, and whether its limits were kept: one line."""
    missed = [limit["message"] for limit in story.limits if limit["kept"] is False]
    kept = [limit["message"] for limit in story.limits if limit["kept"]]
    by = " by a gate" if story.stopped_by_gate else ""
    fired = len(story.gates)
    gates = f"{fired} gates fired" if fired > 1 else "a gate fired" if fired else "no gate fired"
    told = missed + kept or ([gates] if story.state == "done" else [])
    why = [story.reason] if story.reason else []
    proof = [story.proof] if story.proof else []
    return "; ".join([f"{story.state}{by}", *proof, *told, *why])


def panel(story: Story, said: Sequence[str] = ()) -> RenderableType:
    """A status as the live view shows it."""
    table = Table.grid(padding=(0, 2))
    for what, value in facts(story):
        table.add_row(Text(what, style="dim"), Text(printable(value)))
    table.add_row(Text("curve", style="dim"), Text(sparkline([p[1] for p in story.curve])))
    # A bar alone ends no line.
    bar = Padding(ProgressBar(total=1.0, completed=story.share), 0)
    log = Text("\n".join(printable(line) for line in said[-5:]), style="dim")
    return Panel(Group(bar, table, log), title=Text(printable(story.name)), title_align="left")
