"""Which assumption moves the odds, by how much, and what one has to believe for other odds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from krzem.outlook.assumptions import Assumptions, Quantity, Shape
from krzem.outlook.model import draw_chunk, path_rng, simulate
from krzem.outlook.simulate import forecast

_Z95 = 1.6448536269514722
_REACH = (-3.0, -_Z95, 0.0, _Z95, 3.0)
_FAR = (-6.0, *_REACH, 6.0)
"""Where a lever is put, in standard deviations of its own spread; further where it is not a factor
or a share, which would leave all sense there."""
_SHIFTS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """One assumption put at the ends of its range while all others stay uncertain."""

    name: str
    unit: str
    low: float
    high: float
    at_low: float
    at_high: float
    """Odds with the assumption at its 5 % and 95 % points."""
    rank_correlation: float
    """Spearman, of the drawn value with the least gap on the path; negative helps the follower."""

    @property
    def swing(self) -> float:
        """Odds at the high end less those at the low end."""
        return self.at_high - self.at_low


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """The odds if one option of a scenario were certain."""

    scenario: str
    option: str
    chance: float
    odds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Levers:
    """All levers, the strongest first."""

    within_years: float
    base: float
    levers: tuple[Lever, ...]
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """What would make the odds equal a target."""

    lever: str
    unit: str
    value: float | None
    """None: not within reach (three standard deviations, six for plain quantities)."""
    reached: float
    """The odds nearest to the target that this lever alone gives."""
    deviations: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beliefs:
    """Ways to a target, one lever at a time and all together."""

    target: float
    within_years: float
    base: float
    single: tuple[Belief, ...]
    together: float | None
    """Standard deviations by which all of these levers at once have to move the right way."""


Tick = Callable[[], None]


def _nothing() -> None:
    return None


def levers(assumptions: Assumptions, within_years: float, tick: Tick = _nothing) -> Levers:
    """Move every assumption alone; the same random numbers serve all."""
    base = _small(assumptions, within_years)
    correlations = rank_correlations(base)
    rows = []
    for quantity in assumptions.quantities.values():
        if quantity.fixed:
            continue
        odds = [_odds(base.with_quantity(quantity.fixed_at(x)))
                for x in (quantity.low, quantity.high)]  # fmt: skip
        rows.append(
            Lever(
                name=quantity.name,
                unit=quantity.unit,
                low=quantity.low,
                high=quantity.high,
                at_low=odds[0],
                at_high=odds[1],
                rank_correlation=correlations[quantity.name],
            )
        )
        tick()
    return Levers(
        within_years=within_years,
        base=_odds(base),
        levers=tuple(sorted(rows, key=lambda row: -abs(row.swing))),
        options=_options(base),
    )


def count_of_levers(assumptions: Assumptions) -> int:
    """How often ``levers`` calls its tick."""
    return sum(not q.fixed for q in assumptions.quantities.values())


def rank_correlations(assumptions: Assumptions) -> Mapping[str, float]:
    """Spearman's coefficient of every quantity with the least gap along the path."""
    run = assumptions.run
    drawn = draw_chunk(assumptions, 0, run.lever_paths)
    states = simulate(drawn.draws, run.steps, run.step_years, path_rng(assumptions, 0))
    least = np.minimum.reduce([state.gap_points for state in states])
    ranks = _ranks(least)
    return {
        name: float(np.corrcoef(_ranks(drawn.draws[name]), ranks)[0, 1])
        for name, quantity in assumptions.quantities.items()
        if not quantity.fixed
    }


def beliefs(
    assumptions: Assumptions,
    targets: Sequence[tuple[float, float]],
    names: Sequence[str],
    tick: Tick = _nothing,
) -> tuple[Beliefs, ...]:
    """For each target (odds, within years): the value of every named lever that gives it.

    Each lever is tried at five places and the odds between them are interpolated.
    """
    result = []
    for years in sorted({years for _, years in targets}):
        base = _small(assumptions, years)
        curves = {}
        for name in names:
            curves[name] = [_odds(_at(base, name, z)) for z in _reach(base, name)]
            tick()
        helps = {n: 1.0 if curve[-1] >= curve[0] else -1.0 for n, curve in curves.items()}
        joint = [_odds(_shifted(base, helps, shift)) for shift in _SHIFTS]
        tick()
        here = _odds(base)
        result += [
            Beliefs(
                target=target,
                within_years=years,
                base=here,
                single=tuple(_belief(base, name, curves[name], target) for name in names),
                together=_crossing(_SHIFTS, joint, target),
            )
            for target, y in targets
            if y == years
        ]
    return tuple(result)


def _small(assumptions: Assumptions, years: float) -> Assumptions:
    """Fewer paths, and a grid that ends at ``years``."""
    run = assumptions.run
    steps = math.ceil(years / run.step_years - 1e-9)
    paths = min(run.paths, run.lever_paths)
    return assumptions.with_run(
        paths=paths,
        lever_paths=paths,
        fan_paths=100,
        horizon_years=years,
        step_years=years / steps,
    )


def _odds(assumptions: Assumptions) -> float:
    return float(forecast(assumptions).ever[-1])


def _reach(assumptions: Assumptions, name: str) -> tuple[float, ...]:
    return _FAR if assumptions.quantities[name].shape is Shape.PLAIN else _REACH


def _at(assumptions: Assumptions, name: str, z: float) -> Assumptions:
    quantity = assumptions.quantities[name]
    return assumptions.with_quantity(quantity.fixed_at(quantity.at(z)))


def _shifted(assumptions: Assumptions, signs: Mapping[str, float], shift: float) -> Assumptions:
    moved = {n: _move(assumptions.quantities[n], sign * shift) for n, sign in signs.items()}
    return assumptions.with_quantities(moved)


def _move(quantity: Quantity, shift: float) -> Quantity:
    """The same spread around another median, ``shift`` standard deviations away."""
    low, mid, high = (quantity.at(z + shift) for z in (-_Z95, 0.0, _Z95))
    return replace(quantity, low=min(low, mid), mid=mid, high=max(mid, high))


def _options(base: Assumptions) -> tuple[Option, ...]:
    return tuple(
        Option(
            scenario=name,
            option=option,
            chance=chance,
            odds=_odds(base.with_scenario(name, option)),
        )
        for name, options in base.scenarios.items()
        for option, chance in options.items()
    )


def _belief(base: Assumptions, name: str, curve: list[float], target: float) -> Belief:
    quantity = base.quantities[name]
    z = _crossing(_reach(base, name), curve, target)
    nearest = min(curve, key=lambda odds: abs(odds - target))
    return Belief(
        lever=name,
        unit=quantity.unit,
        value=None if z is None else quantity.at(z),
        reached=target if z is not None else nearest,
        deviations=z,
    )


def _crossing(places: Sequence[float], curve: Sequence[float], target: float) -> float | None:
    """Where the curve takes the target, nearest to zero; None where it never does."""
    found = [
        a + (b - a) * (target - p) / (q - p)
        for a, b, p, q in zip(places, places[1:], curve, curve[1:], strict=False)
        if p != q and min(p, q) <= target <= max(p, q)
    ]
    return min(found, key=abs) if found else None


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])
