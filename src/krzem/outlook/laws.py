"""From training compute to loss: the laws of form ``L = E + A/N^alpha + B/D^beta``.

A loss law and a capability index order two groups in the same way, because both rise with
effective compute; the law only says how large a gap is in nats.  Losses of different laws are not
comparable.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from krzem.errors import UnknownNameError

FILE = "scaling_laws.toml"

FLOP_PER_PARAMETER_TOKEN = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossLaw:
    """Loss in nats per token of a model of ``n`` parameters trained on ``d`` tokens."""

    name: str
    floor: float
    a: float
    alpha: float
    b: float
    beta: float
    source: str

    def loss(self, n: float, d: float) -> float:
        """``E + A/N^alpha + B/D^beta``."""
        return float(self.floor + self.a * n**-self.alpha + self.b * d**-self.beta)

    def best_size(self, flop: float) -> tuple[float, float]:
        """Parameters and tokens that minimise the loss under ``6 N D = flop``."""
        budget = flop / FLOP_PER_PARAMETER_TOKEN
        ratio = self.alpha * self.a / (self.beta * self.b)
        n = (ratio * budget**self.beta) ** (1 / (self.alpha + self.beta))
        return n, budget / n

    def best_loss(self, flop: float) -> float:
        """The loss of the best model for a budget of training compute."""
        return self.loss(*self.best_size(flop))


@cache
def scaling_laws() -> Mapping[str, Mapping[str, Any]]:
    """Every law of the file with its coefficients, source and check."""
    text = resources.files("krzem.facts").joinpath(FILE).read_text(encoding="utf-8")
    return MappingProxyType(tomllib.loads(text))


def loss_law(name: str) -> LossLaw:
    """A law of the form above by its name in the file; raises UnknownNameError."""
    usable = {
        k: v for k, v in scaling_laws().items() if {"E", "A", "B"} <= set(v) and "n_w" not in v
    }
    if name not in usable:
        raise UnknownNameError("loss law", name, usable, f"There are {', '.join(usable)}.")
    law = usable[name]
    return LossLaw(
        name=name, floor=law["E"], a=law["A"], alpha=law["alpha"], b=law["B"], beta=law["beta"],
        source=law["source"],
    )  # fmt: skip
