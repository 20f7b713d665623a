"""A type of command-line options: a finite number within a range."""

from __future__ import annotations

import math
from typing import Any

import click


class Amount(click.FloatRange):
    """``click.FloatRange`` that also refuses ``nan`` and ``inf``, which compare as within it."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number; a usage error that shows the range where it is outside."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number
