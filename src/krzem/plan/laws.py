"""From training compute to loss: the laws of form ``L = E + A/N^alpha + B/D^beta``.

``N`` are parameters and ``D`` tokens of a dense model, ``L`` nats per token.  Each law was fitted
on its own text and tokenizer: losses of two laws are never comparable, and neither is the loss of a
run on other text.  What the laws agree and disagree on is how the loss moves with size and tokens,
and which size is best for a budget; their range is shown, none is called the right one.

A loss law and a capability index order two groups in the same way, because both rise with
effective compute; the law only says how large a gap is in nats.
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
    doubt: str = ""
    """Why it should not be used, where others found it wanting."""

    def loss(self, n: float, d: float) -> float:
        """``E + A/N^alpha + B/D^beta``."""
        return float(self.floor + self.a * n**-self.alpha + self.b * d**-self.beta)

    def best_size(self, flop: float) -> tuple[float, float]:
        """Parameters and tokens that minimise the loss under ``6 N D = flop``."""
        budget = flop / FLOP_PER_PARAMETER_TOKEN
        ratio = self.alpha * self.a / (self.beta * self.b)
        n = (ratio * budget**self.beta) ** (1 / (self.alpha + self.beta))
        return n, budget / n

    def size_with(self, flop: float, tokens_per_parameter: float) -> tuple[float, float]:
        """Parameters and tokens with that many tokens per parameter under ``6 N D = flop``."""
        n = (flop / FLOP_PER_PARAMETER_TOKEN / tokens_per_parameter) ** 0.5
        return n, tokens_per_parameter * n

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
    usable = dense_laws()
    if name not in usable:
        raise UnknownNameError("loss law", name, usable, f"There are {', '.join(usable)}.")
    return usable[name]


@cache
def dense_laws() -> Mapping[str, LossLaw]:
    """The laws of dense models in the form above, by name."""
    found = {}
    for name, law in scaling_laws().items():
        constants = law.get("rounded") or law.get("dense") or law
        upper = {key.upper() if len(key) == 1 else key: v for key, v in constants.items()}
        upper.setdefault("E", upper.get("C"))
        if (
            {"A", "B", "alpha", "beta"} <= set(upper)
            and upper["E"]
            and not {"n_w", "omega"} & set(law)
        ):
            found[name] = LossLaw(
                name=name, floor=upper["E"], a=upper["A"], alpha=upper["alpha"], b=upper["B"],
                beta=upper["beta"], source=law["source"], doubt=law.get("warning", ""),
            )  # fmt: skip
    return MappingProxyType(found)
