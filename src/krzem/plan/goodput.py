"""Goodput under interruptions; uncertain quantities as draws; energy, money and laws of loss.

Goodput is the share of the wall clock that ends up in kept steps.  Interruptions come at random and
independently (a Poisson process).  A run saves a checkpoint after every ``interval`` seconds of
steps, which stops it for ``write`` seconds; an interruption throws away what came after the last
complete checkpoint and costs ``recovery`` seconds, during which it may be interrupted again.  With
M the mean time between interruptions, the expected wall clock per kept interval has a closed form
(J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future
Generation Computer Systems 22, 2006, equation 13)::

    wall = M exp(recovery / M) (exp((interval + write) / M) - 1)

For interruptions that are rare (interval much below M) its loss is the rule of thumb ``write /
interval + (interval / 2 + recovery) / M``.  Not covered: failures that come in bursts, slow nodes
that do not fail, checkpoints that overlap with steps (give the time for which they stop it).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from krzem.errors import UnknownNameError
from krzem.estimate import Basis, Estimate
from krzem.facts.table import Fact
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_keys import KEYS

_LARGEST_EXPONENT = 60.0
"""exp(60) is 1e26: beyond it a run does not end, and numbers stay finite."""
_LARGEST_RATIO = 30.0
"""Of write time to mean time: beyond it the interval is the mean time to 13 digits."""
_SMALLEST_RATIO = 1e-8
"""Below it Daly's terms are exact and a Newton step would only add rounding."""


def goodput(
    interval: ArrayLike, write: ArrayLike, recovery: ArrayLike, mean_time: ArrayLike
) -> NDArray[np.float64]:
    """Kept step time over wall clock, between 0 and 1; all arguments in seconds, broadcast."""
    interval, write, recovery, mean_time = _arrays(interval, write, recovery, mean_time)
    segment = np.expm1(np.minimum((interval + write) / mean_time, _LARGEST_EXPONENT))
    again = np.exp(np.minimum(recovery / mean_time, _LARGEST_EXPONENT))
    return np.asarray((interval / mean_time) / (again * segment))


def optimal_interval(write: ArrayLike, mean_time: ArrayLike) -> NDArray[np.float64]:
    """The seconds of steps between checkpoints that make :func:`goodput` greatest.

    Daly's higher-order estimate, then Newton steps to the exact root of ``(1 - u) exp(u) =
    exp(-write / M)`` with ``u = interval / M``; the recovery time has no part in it.  Young's
    ``sqrt(2 write M)`` is its first term.
    """
    write, mean_time = _arrays(write, mean_time)
    ratio = np.minimum(write / mean_time, _LARGEST_RATIO)
    half = np.sqrt(np.minimum(ratio, 2.0) / 2.0)
    daly = 2.0 * half * (1.0 + half / 3.0 + half**2 / 9.0) - 2.0 * half**2
    u = np.where(ratio < 2.0, daly, 1.0 - np.exp(-1.0 - ratio))
    exact = ratio > _SMALLEST_RATIO
    for _ in range(4):
        # In logarithms the root is well conditioned: log(1 - u) + u + ratio = 0.
        slope = np.where(exact, u / (1.0 - u), 1.0)
        u = np.where(exact, u + (np.log1p(-u) + u + ratio) / slope, u)
    return np.asarray(u * mean_time)


def lost_variance(
    interval: ArrayLike, recovery: ArrayLike, interruptions: ArrayLike
) -> NDArray[np.float64]:
    """Variance, in seconds squared, of the wall clock that ``interruptions`` (expected) cost.

    A compound Poisson sum: each costs the recovery and a part of an interval, uniform in it.
    """
    interval, recovery, interruptions = _arrays(interval, recovery, interruptions)
    return np.asarray(interruptions * ((recovery + interval / 2.0) ** 2 + interval**2 / 12.0))


def _arrays(*values: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.asarray(value, dtype=np.float64) for value in values)


# Uncertain quantities as draws: a log-normal for each estimate, propagated by sampling
# -------------------------------------------------------------------------------------

COUNT = 4095
"""Draws per quantity: odd, so that the median is a draw."""

Draws = NDArray[np.float64]

_Z80 = NormalDist().inv_cdf(0.9)
_SOURCES = (
    "step_seconds",
    "failures_per_device_day",
    "restart_seconds",
    "checkpoint_write_bytes_per_s",
    "chance",
    "power_w",
    "system_power_ratio",
    "pue",
    "usd_per_device_hour",
    "evaluation_share",
    "slow_share",
    "rollback_share",
    "stop_share",
    "distance",
)


def draw(estimate: Estimate, source: str) -> Draws:
    """``COUNT`` values of a log-normal whose 10, 50 and 90 % points are ``estimate`` (all > 0).

    The two sides have their own width where ``estimate`` is not symmetric.  ``source`` names what
    varies: the same name gives the same quantiles again (full correlation), two names are
    independent.
    """
    if estimate.low == estimate.high:
        return np.full(COUNT, estimate.mid)
    z = normal(source)
    below = np.log(estimate.mid / estimate.low) / _Z80
    above = np.log(estimate.high / estimate.mid) / _Z80
    return np.asarray(estimate.mid * np.exp(z * np.where(z < 0, below, above)))


def normal(source: str) -> Draws:
    """The standard normal quantiles of one source of chance, shuffled."""
    return _hypercube()[source]


def summary(values: Draws, basis: Basis = Basis.ESTIMATED) -> Estimate:
    """The 10, 50 and 90 % points of ``values``."""
    low, mid, high = np.quantile(values, (0.1, 0.5, 0.9))
    return Estimate(float(low), float(mid), float(high), basis)


@lru_cache(maxsize=1)
def _hypercube() -> dict[str, Draws]:
    inverse = NormalDist().inv_cdf
    quantiles = np.array([inverse((i + 0.5) / COUNT) for i in range(COUNT)])
    rng = np.random.default_rng(20261123)
    table = {source: rng.permutation(quantiles) for source in _SOURCES}
    for column in table.values():
        column.setflags(write=False)
    return table


# What a cluster says about its operation: quantities as estimates, or what is missing
# ------------------------------------------------------------------------------------

KEY_OF = {
    "failures_per_device_day": "device_days_between_interruptions",
    "restart_seconds": "restart_time",
    "checkpoint_write_bytes_per_s": "storage_bandwidth",
    "power_w": "power",
    "system_power_ratio": "system_power_ratio",
    "pue": "pue",
    "usd_per_device_hour": "price",
}
"""Optional fields of :class:`krzem.hardware.cluster.Cluster`: the key of a cluster file."""


def quantity(cluster: Cluster, name: str) -> Estimate | None:
    """``cluster.<name>`` with the range of the fact behind it; None where nobody published it."""
    mid: float | None = getattr(cluster, name)
    if mid is None:
        return None
    fact = cluster.facts.get(name)
    if fact is None or not 0 < fact.low <= mid <= fact.high:
        return Estimate(mid, mid, mid, Basis.MEASURED)
    return Estimate(fact.low, mid, fact.high, Basis.ESTIMATED)


def by_class(cluster: Cluster, names: tuple[str, ...]) -> tuple[str, ...]:
    """One sentence for each of ``names`` that nobody published for such devices.

    The range that systems of the kind span stands in for it.
    """
    return tuple(
        _borrowed(cluster, name, cluster.facts[name])
        for name in names
        if name in cluster.facts and cluster.facts[name].basis == "class"
    )


def _borrowed(cluster: Cluster, name: str, fact: Fact) -> str:
    low, high = fact.low, fact.high
    if name == "failures_per_device_day":
        low, high = 1.0 / fact.high, 1.0 / fact.low
    key = KEYS[KEY_OF[name]]
    kind = fact.notes.removeprefix("class. ").partition(";")[0].rstrip(".").lower()
    return (
        f"nobody has published {key.means} for {cluster.device.id}: {low:,.0f} to {high:,.0f}, the"
        f" range of its kind ({kind}), is taken; {KEY_OF[name]} = {key.example} in a cluster file"
        " says otherwise"
    )


def missing(cluster: Cluster, names: tuple[str, ...], answers: str) -> str | None:
    """One sentence: which of ``names`` are unknown, that ``answers`` wait for them, what to do."""
    keys = [KEY_OF[name] for name in names if getattr(cluster, name) is None]
    if not keys:
        return None
    wanted = " and ".join(f"{key} ({KEYS[key].means})" for key in keys)
    lines = " ; ".join(f"{key} = {KEYS[key].example}" for key in keys)
    return (
        f"{answers} not known: nobody has published {wanted} for {cluster.device.id}."
        f" Give it in the cluster file, for example {lines}"
    )


# Energy and money of a run, from its device-hours
# ------------------------------------------------

ENERGY_FIELDS = ("power_w", "system_power_ratio", "pue")
PRICE_FIELDS = ("usd_per_device_hour",)


def energy_mwh(device_hours: Draws, cluster: Cluster) -> Draws | None:
    """Megawatt-hours at the facility's meter: hours x watts x system ratio x PUE.

    ``power_w`` is a device's power limit, and ``system_power_ratio`` what nodes and links draw
    while they train over the sum of those limits: so devices below their limit are in the ratio,
    and its range.  None where one of ``ENERGY_FIELDS`` is unknown.
    """
    watts = _product(cluster, ENERGY_FIELDS)
    return None if watts is None else np.asarray(device_hours * watts / 1e6)


def cost_usd(device_hours: Draws, cluster: Cluster) -> Draws | None:
    """Device-hours times their price; None where the price is unknown.

    Not covered: storage, egress and people, and hardware bought instead of rented.
    """
    price = _product(cluster, PRICE_FIELDS)
    return None if price is None else np.asarray(device_hours * price)


def _product(cluster: Cluster, names: tuple[str, ...]) -> Draws | None:
    result: Draws | None = None
    for name in names:
        estimate = quantity(cluster, name)
        if estimate is None:
            return None
        values = draw(estimate, name)
        result = values if result is None else np.asarray(result * values)
    return result


# From training compute to loss: the laws of form ``L = E + A/N^alpha + B/D^beta``
# --------------------------------------------------------------------------------

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
