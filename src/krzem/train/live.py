"""A run as people watch it: one line a step, or a panel that stays in place."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.box import ROUNDED
from rich.console import Console
from rich.live import Live
from rich.panel import Panel as Box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from krzem.quantity import format_bytes, format_flops, format_seconds
from krzem.train.forecast import Forecast

_WIDTH = 100
_EACH = 0.1
"""Seconds between two drawings of the panel."""


@dataclass(slots=True)
class Progress:
    """The last step, and how fast the run goes; sentences about both."""

    tokens: int
    """Tokens of the whole run."""
    plan: Forecast | None = None
    peak: float | None = None
    """FLOP/s of one device that MFU is measured against."""
    values: dict[str, float] = field(default_factory=dict)
    """Measurements beside the steps, such as the held-out loss."""
    record: Mapping[str, Any] = field(default_factory=dict)
    left: int = 0
    """Steps to come."""
    _seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=50))

    def saw(self, record: Mapping[str, Any], left: int) -> None:
        """Take in a step's record."""
        if not self._seen:
            before = record["tokens"] - round(record["tokens_per_s"] * record["seconds"])
            self._seen.append((time.monotonic() - record["seconds"], before))
        self.record, self.left = record, left
        self._seen.append((time.monotonic(), record["tokens"]))

    @property
    def share(self) -> float:
        """Part of the run that is done."""
        return min(1.0, self.record["tokens"] / self.tokens)

    @property
    def seconds_left(self) -> float:
        """At the pace of the last steps, evaluations and stalls included."""
        (begun, first), (now, last) = self._seen[0], self._seen[-1]
        return (self.tokens - last) * (now - begun) / max(last - first, 1) if self.left else 0.0

    def against_plan(self) -> float | None:
        """Speed of the last step over the planned one; None without a plan, or within a ramp."""
        if self.plan is None:
            return None
        planned = self.plan.tokens_per_step / self.plan.step_seconds.mid
        own = round(self.record["tokens_per_s"] * self.record["seconds"])
        if own != self.plan.tokens_per_step:
            return None
        return float(self.record["tokens_per_s"] / planned)

    def line(self) -> str:
        """The step in one line."""
        r = self.record
        parts = [
            f"step {r['step']:>6}/{r['step'] + self.left}",
            f"loss {r['loss']:.4f}",
            f"norm {r['grad_norm']:.2f}",
            f"rate {r['rate']:.2e}",
            f"{r['tokens_per_s']:,.0f} tokens/s",
        ]
        if r.get("mfu") is not None:
            parts.append(f"MFU {r['mfu']:.1%}")
        if r.get("memory_bytes"):
            parts.append(f"{r['memory_bytes'] / 2**30:.1f} GiB")
        speed = self.against_plan()
        if speed is not None:
            parts.append(f"{speed:.0%} of plan")
        return "  ".join([*parts, f"{format_seconds(self.seconds_left, 3)} left"])

    def rows(self) -> list[str]:
        """The panel's lines."""
        r = self.record
        losses = [f"loss {r['loss']:.4f}"]
        losses += [f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.values.items()]
        losses += [f"norm {r['grad_norm']:.2f}", f"rate {r['rate']:.2e}"]
        speed = [f"{r['tokens_per_s']:,.0f} tokens/s", f"{format_seconds(r['seconds'], 3)} a step"]
        if r.get("mfu") is not None:
            of = "" if self.peak is None else f" of {format_flops(self.peak, 3)} each"
            speed.append(f"MFU {r['mfu']:.1%}{of}")
        if r.get("memory_bytes"):
            speed.append(f"memory {format_bytes(r['memory_bytes'], 3)}")
        return ["   ".join(losses), "   ".join(speed), *self._plan_rows()]

    def _plan_rows(self) -> list[str]:
        if self.plan is None:
            return []
        low, mid, high = (
            format_seconds(getattr(self.plan.step_seconds, at), 3) for at in ("low", "mid", "high")
        )
        speed = self.against_plan()
        actual = "" if speed is None else f", runs at {speed:.0%} of it"
        memory = format_bytes(self.plan.memory_bytes.mid, 3)
        return [f"plan {mid} ({low} to {high}) a step{actual}   memory {memory}"]


class Panel:
    """The panel on a terminal."""

    def __init__(self, console: Console, name: str) -> None:
        self.name = name
        self._live = Live(console=console, auto_refresh=False)
        self._drawn = 0.0

    def start(self) -> None:
        """Take the place below what is printed."""
        self._live.start()

    def stop(self) -> None:
        """Leave the last picture."""
        self._live.refresh()
        self._live.stop()

    def show(self, progress: Progress) -> None:
        """Draw anew, at most ten times a second and always at the end."""
        now = time.monotonic()
        drawn = now - self._drawn >= _EACH or not progress.left
        self._live.update(self.picture(progress), refresh=drawn)
        self._drawn = now if drawn else self._drawn

    def picture(self, progress: Progress) -> Box:
        """Progress bar, numbers, plan."""
        step = progress.record["step"]
        left = f"{progress.share:.0%}, {format_seconds(progress.seconds_left, 3)} left"
        inside = Table.grid(expand=True)  # a bar by itself does not end its line
        inside.add_row(ProgressBar(total=1.0, completed=progress.share))
        for row in progress.rows():
            inside.add_row(Text(row))
        return Box(
            inside,
            title=f"{self.name}: step {step:,} of {step + progress.left:,}",
            subtitle=left,
            box=ROUNDED,
            width=min(_WIDTH, self._live.console.width),
        )
