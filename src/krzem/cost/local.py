"""Local factors: what the measured runs of one cluster say, over the calibration that is shipped.

A few logarithms, each with its standard deviation, shrunk towards 0 (the shipped coefficients).
They are kept in a small TOML file, belong to one kind of device and one engine, and are used where
that device is planned for (``--calibration FILE``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from krzem.cost.coefficients import COMMON, GROUPED, Coefficients
from krzem.errors import DataError, InputError, shorten
from krzem.files import read_toml

SCHEMA = "krzem.calibration/1"
HINT = "give a file that `krzem check --calibrate` wrote"
FACTORS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "compute": ("matmul/{family}", "attention/{family}"),
    "memory": ("memory/{family}",),
    "scale-up": ("up/{family}",),
    "scale-out": ("out/{family}",),
    "host": ("host",),
    "engine": ("engine/{engine}",),
})  # fmt: skip
"""The coefficients that each factor moves together."""
OF_ENGINE = ("host", "engine")
"""Factors that are not carried over to another engine."""
MOST = 2.0
"""Largest logarithm that a file may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One factor as a logarithm: above 0 a rate is higher (of ``host`` and ``engine``: a time)."""

    log: float
    sigma: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """The factors of one cluster."""

    cluster: str
    device: str
    family: str
    engine: str
    """Key of the engine's own coefficient (``Design.fits``)."""
    factors: Mapping[str, Factor]
    runs: int
    narrowed: float
    """Spread that is left of the shipped one, for this device and engine."""
    source: str = ""
    notes: tuple[str, ...] = field(default=())

    def offsets(self, engine: str) -> dict[str, float]:
        """What is added to the logarithms of coefficients, by name, under an engine."""
        found: dict[str, float] = {}
        for name, factor in self.factors.items():
            if name in OF_ENGINE and engine != self.engine:
                continue
            for coefficient in FACTORS[name]:
                found[coefficient.format(family=self.family, engine=engine)] = factor.log
        return found

    def applied(self, base: Coefficients, engine: str) -> Coefficients:
        """``base`` moved by the factors."""
        return moved(base, self.offsets(engine))

    @property
    def note(self) -> str:
        """That an answer rests on these factors."""
        return (
            f"calibrated by {self.source} on {self.runs} runs of {self.cluster}: for {self.engine}"
            f" intervals are {self.narrowed:.0%} as wide as without"
        )

    def narrowing(self, engine: str) -> float:
        """Factor on the standard deviation of a step time."""
        if engine == self.engine:
            return self.narrowed
        return math.sqrt((1.0 + self.narrowed**2) / 2.0)


def prior_sigma(name: str) -> float:
    """What is believed of a factor before a run is seen: the spread of the shipped coefficient."""
    kind, _, member = FACTORS[name][0].partition("/")
    return (GROUPED if member else COMMON)[kind].sigma


def moved(base: Coefficients, offsets: Mapping[str, float]) -> Coefficients:
    """Coefficients with some logarithms moved."""
    logs = base.as_dict()
    for name, offset in offsets.items():
        logs[name] = logs.get(name, 0.0) + offset
    return Coefficients(logs, base._years)


def read_local(path: str | Path, device: str | None = None) -> Local:
    """The factors in a file; with ``device``, refused where they are of another one.

    Raises DataError, InputError.
    """
    where = shorten(str(path), 80)
    raw = read_toml(Path(path), hint=HINT)
    if raw.get("schema") != SCHEMA:
        raise DataError(f"{where} is no calibration (schema {SCHEMA!r} is missing): {HINT}.")
    try:
        found = Local(
            cluster=str(raw["cluster"]), device=str(raw["device"]), family=str(raw["family"]),
            engine=str(raw["engine"]), runs=int(raw["runs"]), narrowed=float(raw["narrowed"]),
            factors=MappingProxyType({n: _factor(n, v) for n, v in raw["factor"].items()}),
            source=where,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where} is no whole calibration ({error}): {HINT}.") from None
    if not 0.05 <= found.narrowed <= 1.0:
        raise DataError(f"{where}: narrowed = {found.narrowed:g} is not between 0.05 and 1.")
    if device is not None and device != found.device:
        raise InputError(
            f"the calibration {where} is of {found.device}, and {device} is planned for: leave"
            " --calibration out, or calibrate on runs of that device"
        )
    return found


def _factor(name: str, raw: Any) -> Factor:
    if name not in FACTORS:
        raise ValueError(f"factor {shorten(name, 30)!r} is none of {', '.join(FACTORS)}")
    log, sigma = float(raw["log"]), float(raw["sigma"])
    if not (abs(log) <= MOST and 0.0 <= sigma <= MOST):
        raise ValueError(f"factor {name} is out of range")
    return Factor(log=log, sigma=sigma)
