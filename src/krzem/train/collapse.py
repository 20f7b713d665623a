"""Notices routers that leave most of their experts idle, and go on doing so.

In the first steps of a run a router may send all tokens to a few experts until the balancing biases
have moved, and a single step of few tokens leaves experts out by chance.  So it is judged by what
its experts got over many steps together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

IDLE_SHARE = 0.01
"""Part of an even share of the choices below which an expert counts as idle."""
COLLAPSED = 0.5
"""Share of idle experts from which a router counts as collapsed."""


@dataclass(slots=True)
class CollapseWatch:
    """Adds up what the experts of each router got, to be judged every ``span`` steps."""

    span: int = 32
    """Steps that are judged together."""
    _steps: int = 0
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _collapsed: set[str] = field(default_factory=set)

    def add(self, loads: Mapping[str, Tensor]) -> None:
        """Take in a step's choices per expert of each router, over the global batch."""
        for name, load in loads.items():
            before = self._sums.get(name)
            self._sums[name] = load.float() if before is None else before + load
        self._steps += 1

    @property
    def due(self) -> bool:
        """Whether ``span`` steps have been seen since the last judgement."""
        return self._steps >= self.span

    def judge(self, step: int) -> list[tuple[str, str]]:
        """Events as kind and sentence, of the steps since the last judgement; ``step`` is the last.

        A router is reported when it collapses and when it has recovered, not in between.
        """
        found = [self._judged(step, name, total) for name, total in self._sums.items()]
        self._steps, self._sums = 0, {}
        return [event for event in found if event is not None]

    def _judged(self, step: int, name: str, total: Tensor) -> tuple[str, str] | None:
        shares = total / total.mean().clamp(min=1e-9)
        idle, peak = torch.stack([(shares < IDLE_SHARE).float().mean(), shares.max()]).tolist()
        collapsed, before = idle >= COLLAPSED, name in self._collapsed
        if collapsed == before:
            return None
        where = f"step {step}: router {name}"
        if not collapsed:
            self._collapsed.remove(name)
            return "recovered", f"{where} has recovered: {1 - idle:.0%} of its experts get tokens"
        self._collapsed.add(name)
        return "warning", (
            f"{where} has collapsed: in the last {self.span} steps {idle:.0%} of its experts got "
            f"less than {IDLE_SHARE:.0%} of an even share, the fullest {peak:.1f} times that share"
        )
