"""The assumptions of a forecast: the shipped file, with whatever a user's file changes."""

from __future__ import annotations

import datetime as dt
import enum
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError, QuantityError, UnknownNameError, shorten
from krzem.files import LARGEST_TOML, parse_toml, read_text
from krzem.keys import (
    REQUIRED,
    Key,
    Number,
    Whole,
    keys_of,
    read_keys,
    setting,
    shown,
    stop_at,
    text,
)

# An uncertain quantity of the assumptions: three points and a shape, drawn from a normal
# ---------------------------------------------------------------------------------------

Array = NDArray[np.float32]

_Z95 = NormalDist().inv_cdf(0.95)


class Shape(enum.StrEnum):
    """How a quantity spreads around its median."""

    LOG = "log"
    PLAIN = "plain"
    SHARE = "share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """``low``, ``mid`` and ``high`` are the 5, 50 and 95 % points; equal where it is fixed."""

    name: str
    low: float
    mid: float
    high: float
    shape: Shape = Shape.LOG
    unit: str = ""
    kind: str = "judgement"
    source: str = ""

    def __post_init__(self) -> None:
        points = (self.low, self.mid, self.high)
        shown = f"{self.name}: low {self.low:g}, mid {self.mid:g}, high {self.high:g}"
        if not all(math.isfinite(x) for x in points):
            raise DataError(f"{shown}; all three must be finite numbers.")
        if not (self.low <= self.mid <= self.high):
            raise DataError(f"{shown}; they must not decrease.")
        if self.shape is Shape.LOG and self.low <= 0:
            raise DataError(f"{shown}; a quantity of shape log must be above zero.")
        if self.shape is Shape.SHARE and not (self.low > 0 and self.high < 1):
            raise DataError(f"{shown}; a share must lie between 0 and 1, both excluded.")

    @property
    def fixed(self) -> bool:
        """Whether it has no uncertainty."""
        return self.low == self.high

    def draw(self, z: Array) -> Array:
        """The values at standard normal quantiles ``z``; each side has its own width."""
        if self.fixed:
            return np.full(z.shape, self.mid, dtype=np.float32)
        low, mid, high = (self._inner(x) for x in (self.low, self.mid, self.high))
        below, above = (mid - low) / _Z95, (high - mid) / _Z95
        inner = mid + z * np.where(z < 0, np.float32(below), np.float32(above))
        return self._outer(np.asarray(inner, dtype=np.float32))

    def at(self, z: float) -> float:
        """The value at one standard normal quantile."""
        return float(self.draw(np.asarray([z], dtype=np.float32))[0])

    def fixed_at(self, value: float) -> Quantity:
        """The same quantity without uncertainty."""
        return Quantity(
            name=self.name, low=value, mid=value, high=value, shape=self.shape, unit=self.unit,
            kind=self.kind, source=self.source,
        )  # fmt: skip

    def _inner(self, x: float) -> float:
        if self.shape is Shape.LOG:
            return math.log(x)
        return math.log(x / (1 - x)) if self.shape is Shape.SHARE else x

    def _outer(self, y: Array) -> Array:
        if self.shape is Shape.LOG:
            return np.asarray(np.exp(y), dtype=np.float32)
        return (
            np.asarray(1 / (1 + np.exp(-y)), dtype=np.float32) if self.shape is Shape.SHARE else y
        )


def read_quantity(name: str, table: Any, known: Quantity | None = None) -> Quantity:
    """A quantity from TOML: a table, or a number for a fixed one; gaps are filled from ``known``.

    Raises DataError.
    """
    if _is_number(table):
        table = {"low": table, "mid": table, "high": table, "kind": "given", "source": "given"}
    if not isinstance(table, dict):
        raise DataError(f"{name} must be a number or a table with low, mid and high.")
    keys = {"low", "mid", "high", "shape", "unit", "kind", "source"}
    if extra := sorted(set(table) - keys):
        raise DataError(f"{name} has {', '.join(extra)}; allowed: {', '.join(sorted(keys))}.")
    if any(k in table for k in ("low", "mid", "high")) and "mid" not in table:
        raise DataError(f"{name} gives an end of its range without mid: give low, mid and high.")
    mid = table.get("mid", known.mid if known else None)
    if mid is None:
        raise DataError(f"{name} has no mid: give low, mid and high.")
    own = "mid" in table or known is None
    low = _quantity_number(
        name, "low", table.get("low", mid if own or known is None else known.low)
    )
    high = _quantity_number(
        name, "high", table.get("high", mid if own or known is None else known.high)
    )
    shape = table.get("shape", known.shape.value if known else "log")
    if shape not in list(Shape):
        raise DataError(f"{name}.shape is {shape!r}; it must be one of {', '.join(Shape)}.")
    return Quantity(
        name=name,
        low=low,
        mid=_quantity_number(name, "mid", mid),
        high=high,
        shape=Shape(shape),
        unit=str(table.get("unit", known.unit if known else "")),
        kind=str(table.get("kind", known.kind if known else "given")),
        source=str(table.get("source", known.source if known else "given")),
    )


def _quantity_number(name: str, key: str, value: object) -> float:
    if _is_number(value):
        try:
            return float(value)
        except OverflowError:
            pass
    raise DataError(f"{name}.{key} must be a number, not {shorten(repr(value))}.")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


# The assumptions of a forecast: the shipped file, with whatever a user's file changes
# ------------------------------------------------------------------------------------

FILE = "outlook.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How the simulation is carried out; none of it changes what is assumed of the world."""

    paths: int = setting(REQUIRED, Whole(100, 20_000_000), "1_000_000", "futures that are drawn")
    seed: int = setting(REQUIRED, Whole(0, 2**63 - 1), "20261123", "of the draws")
    horizon_years: float = setting(REQUIRED, Number(0.25, 30.0), "10.0", "from the origin on")
    step_years: float = setting(
        REQUIRED, Number(1 / 52, 1.0), "0.25", "grid; a lead has to last about one step to be seen"
    )
    fan_paths: int = setting(REQUIRED, Whole(100, 500_000), "50_000", "futures behind fan charts")
    chunk_paths: int = setting(
        REQUIRED, Whole(100, 1_000_000), "32_768", "drawn at a time; bounds memory alone"
    )
    lever_paths: int = setting(
        REQUIRED, Whole(100, 5_000_000), "32_768", "behind every point of a lever"
    )

    @property
    def steps(self) -> int:
        """Steps from the origin to the horizon."""
        return round(self.horizon_years / self.step_years)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """An observation the draws are weighted by: normal around ``value``."""

    value: float
    deviation: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """Everything a forecast rests on."""

    title: str
    leader: str
    follower: str
    origin: dt.date
    run: Run
    evidence: Mapping[str, Evidence]
    scenarios: Mapping[str, Mapping[str, float]]
    """Chance of every option, by scenario; they add up to one."""
    scenario_source: Mapping[str, str]
    quantities: Mapping[str, Quantity]

    def with_quantity(self, quantity: Quantity) -> Assumptions:
        """The same with one quantity in place of another of the same name."""
        return self.with_quantities({quantity.name: quantity})

    def with_quantities(self, changed: Mapping[str, Quantity]) -> Assumptions:
        """The same with several quantities replaced."""
        return replace(self, quantities=MappingProxyType({**self.quantities, **changed}))

    def with_scenario(self, name: str, option: str) -> Assumptions:
        """The same with one option of a scenario certain."""
        options = {o: float(o == option) for o in self.scenarios[name]}
        return replace(self, scenarios=MappingProxyType({**self.scenarios, name: options}))

    def with_run(self, **changes: Any) -> Assumptions:
        """The same with other run settings; raises DataError where they are out of bounds."""
        faults: list[str] = []
        run = _run(changes, self.run, faults)
        stop_at(faults, "the run", DataError)
        return replace(self, run=run)


@cache
def shipped() -> Assumptions:
    """The assumptions krzem comes with."""
    data = tomllib.loads(shipped_text())
    run = Run(**data["run"])
    return Assumptions(
        title=data["title"],
        leader=data["leader"],
        follower=data["follower"],
        origin=data["origin"],
        run=run,
        evidence=MappingProxyType({k: Evidence(**v) for k, v in data["evidence"].items()}),
        scenarios=MappingProxyType(
            {k: MappingProxyType(dict(v)) for k, v in data["scenario"].items()}
        ),
        scenario_source=MappingProxyType(data["scenario_source"]),
        quantities=MappingProxyType(
            {k: read_quantity(k, _fill(v)) for k, v in data["quantity"].items()}
        ),
    )


def shipped_text() -> str:
    """The same as the file, with the manual and the sources."""
    return resources.files("krzem.facts").joinpath(FILE).read_text(encoding="utf-8")


def load(path: Path) -> Assumptions:
    """The shipped assumptions with the changes of a TOML file.

    Raises DataError for a file that cannot be read or holds what makes no sense, and
    UnknownNameError for a name that is not an assumption.
    """
    hint = "`krzem outlook --assumptions > mine.toml` writes one to start from"
    return changed(read_text(path, most=LARGEST_TOML, hint=hint), shorten(str(path)))


def changed(written: str, where: str = "the file", base: Assumptions | None = None) -> Assumptions:
    """``base`` (the shipped ones) with the changes that are ``written``."""
    data = parse_toml(written, where)
    base = base or shipped()
    _known("setting", data, (*NAMES, "run", "evidence", "scenario", "scenario_source", "quantity"))
    faults: list[str] = []
    said = read_keys({k: v for k, v in data.items() if k in NAMES}, NAMES, "", faults)
    run = _run(_table(data, "run"), base.run, faults)
    stop_at(faults, where, DataError)
    result = replace(
        base,
        **said,
        run=run,
        evidence=_evidence(_table(data, "evidence"), base.evidence),
        scenarios=_scenarios(_table(data, "scenario"), base.scenarios),
        scenario_source=MappingProxyType({**base.scenario_source, **_sources(data)}),
    )  # fmt: skip
    quantities = _table(data, "quantity")
    _known("quantity", quantities, tuple(base.quantities))
    return result.with_quantities(
        {k: read_quantity(k, v, base.quantities[k]) for k, v in quantities.items()}
    )


def _fill(table: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"low": table["mid"], "high": table["mid"], **table}


def _known(what: str, table: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in table:
        if name not in names:
            raise UnknownNameError(what, name, names, f"There are {', '.join(names)}.")


def _sources(data: Mapping[str, Any]) -> Mapping[str, str]:
    return {name: str(text) for name, text in _table(data, "scenario_source").items()}


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = data.get(name, {})
    if not isinstance(table, dict):
        raise DataError(f"[{name}] must be a table, not {shorten(repr(table))}.")
    return table


def _date(value: Any) -> dt.date:
    if isinstance(value, dt.datetime):
        value = value.date()
    if not isinstance(value, dt.date):
        raise QuantityError(f"it must be a date, not {shown(value)}.")
    if not 2000 <= value.year <= 2100:
        raise QuantityError(f"{value} lies outside 2000 to 2100.")
    return value


NAMES: Mapping[str, Key] = {
    "title": Key(text, '"mine"', "of reports"),
    "leader": Key(text, '"US frontier labs"', "who is ahead"),
    "follower": Key(text, '"Chinese labs"', "who follows"),
    "origin": Key(_date, "2026-09-10", "day from which the forecast counts"),
}


def _run(table: Mapping[str, Any], base: Run, faults: list[str]) -> Run:
    run = replace(base, **read_keys(table, keys_of(Run), "run", faults))
    if run.steps < 1:
        faults.append(
            f"run.horizon_years {run.horizon_years:g} / run.step_years {run.step_years:g} gives no "
            "step: make the horizon longer or the step shorter."
        )
    return run


def _evidence(table: Mapping[str, Any], base: Mapping[str, Evidence]) -> Mapping[str, Evidence]:
    _known("evidence", table, tuple(base))
    result = dict(base)
    for name, value in table.items():
        if not isinstance(value, dict):
            raise DataError(f"evidence.{name} must be a table with value and deviation.")
        _known(f"key of evidence.{name}", value, ("value", "deviation", "source"))
        for key in ("value", "deviation"):
            if key in value and not _is_finite(value[key]):
                raise DataError(f"evidence.{name}.{key} must be a number.")
        new = replace(result[name], **value)
        if not new.deviation > 0:
            raise DataError(f"evidence.{name}.deviation is {new.deviation:g}; it must be above 0.")
        result[name] = new
    return MappingProxyType(result)


def _scenarios(
    table: Mapping[str, Any], base: Mapping[str, Mapping[str, float]]
) -> Mapping[str, Mapping[str, float]]:
    _known("scenario", table, tuple(base))
    result = dict(base)
    for name, options in table.items():
        if not isinstance(options, dict):
            raise DataError(f"scenario.{name} must be a table of chances.")
        _known(f"option of scenario.{name}", options, tuple(base[name]))
        if not all(_is_finite(v) and 0 <= v <= 1 for v in options.values()):
            raise DataError(f"scenario.{name}: every chance must lie between 0 and 1.")
        chances = {option: float(options.get(option, 0.0)) for option in base[name]}
        total = math.fsum(chances.values())
        if abs(total - 1) > 1e-6:
            shown = " + ".join(f"{v:g}" for v in chances.values())
            raise DataError(
                f"scenario.{name}: {shown} = {total:g}; the chances must add up to 1 "
                "(an option that is not named has none)."
            )
        result[name] = MappingProxyType(chances)
    return MappingProxyType(result)


def _is_finite(value: object) -> bool:
    return _is_number(value) and math.isfinite(value)
