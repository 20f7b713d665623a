"""The equations of the forecast, over a chunk of paths.

With ``G`` the gap between the largest runs in OOM (factors of ten), ``c`` the catch-up rate and
``g`` the growth of the leader's largest run, both in OOM per year, a level that the leader reached
with compute T costs a follower T x 10^(-c l) after l years.  The follower is where the leader was l
years ago when its own run pays for that:

    G - e - g l = c l        so        l = (G - e) / (c + g)

``e`` is what the follower finds by itself and the leader does not have.  Compute alone has not
predicted the lag so far, so only a share w (``compute_weight``) of a change of l since the origin
counts.  In points the gap is the leader's slope times that lag, plus a random part that is pulled
back to zero; a release saw-tooth lies on top of it.  Shapes: every array is [paths], float32.
Times are years since the origin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from krzem.outlook.assumptions import Array, Assumptions

Draws = Mapping[str, Array]
"""Values of all quantities and the option index of all scenarios, by name."""

TIGHT, AS_NOW, LOOSE = 0, 1, 2
OPEN, CLOSED = 0, 1

_MONTH_SECONDS = 365.25 / 12 * 86400
_MOST_SHARE = np.float32(0.95)
_CHIP_YEARS = 5.0
"""How long a chip is in use: what is spent in a year keeps so many years' chips running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where both groups stand at one time; one value per path."""

    years: float
    gap_points: Array
    """Leader minus follower on the capability index, release saw-tooth included."""
    trend_points: Array
    """The same without the saw-tooth."""
    lag_months: Array
    """The gap in points over the leader's points per month."""
    leader_level: Array
    leader_stock: Array
    follower_stock: Array
    """H100e at full count, whatever they are worth in training."""
    leader_run: Array
    """log10 of the FLOP of the largest run."""
    follower_run: Array
    leader_gw: Array
    """Power that the leader's chips draw with their buildings, GW."""


@dataclass(slots=True, kw_only=True)
class _Follower:
    """The follower's chips by origin, H100e, moved forward step by step."""

    draws: Draws
    step: float
    imported: Array = field(init=False)
    domestic: Array = field(init=False)
    rented: Array = field(init=False)
    legal_rate: Array = field(init=False)
    decided_rate: Array = field(init=False)
    """The legal rate once the drawn export scenario has come."""
    smuggled_rate: Array = field(init=False)
    domestic_rate: Array = field(init=False)

    def __post_init__(self) -> None:
        d = self.draws
        self.imported = d["legal_stock"] + d["smuggled_stock"]
        self.domestic, self.rented = d["domestic_stock"], d["rented_stock"]
        self.legal_rate = d["legal_per_year_as_now"]
        self.decided_rate = np.choose(d["export"].astype(np.int8), [
            d["legal_per_year_tight"], d["legal_per_year_as_now"], d["legal_per_year_loose"],
        ])  # fmt: skip
        self.smuggled_rate, self.domestic_rate = d["smuggled_per_year"], d["domestic_per_year"]

    def advance(
        self, years: float, domestic_growth: Array, kept: Array, rent: Array, most: Array
    ) -> None:
        """One step from ``years`` on: wear, additions at the rates of its start, their growth.

        ``most`` is the number of chips (log10) that there is power for.
        """
        d, h = self.draws, np.float32(self.step)
        legal = np.where(years < d["export_decided_years"], self.legal_rate, self.decided_rate)
        self.imported = self.imported * kept + (legal + self.smuggled_rate) * h
        self.domestic = self.domestic * kept + self.domestic_rate * h
        self.rented = self.rented * rent
        left = np.minimum(1, np.float32(10) ** most / self.count)
        self.imported, self.domestic = self.imported * left, self.domestic * left
        self.rented = self.rented * left
        self.legal_rate = self.legal_rate * _power(d["legal_growth"], h)
        self.decided_rate = self.decided_rate * _power(d["legal_growth"], h)
        self.smuggled_rate = self.smuggled_rate * _power(d["smuggled_growth"], h)
        self.domestic_rate = self.domestic_rate * domestic_growth

    @property
    def count(self) -> Array:
        """All chips."""
        return self.imported + self.domestic + self.rented

    @property
    def useful(self) -> Array:
        """All chips at their value in training."""
        return self.imported + self.domestic * self.draws["domestic_usefulness"] + self.rented


def start(draws: Draws) -> tuple[Array, Array, Array]:
    """The lag (years), the leader's slope (points per year) and the run gap (OOM) at the origin.

    These are what the evidence is compared with; growth of the follower does not enter.
    """
    growth = np.log10(draws["leader_stock_growth"] * draws["run_growth"])
    gap = _gap_at_start(draws)
    lag = gap / (np.log10(draws["catch_up"]) + growth)
    slope = draws["points_per_oom"] * (growth + np.log10(draws["frontier_algorithms"]))
    return lag, slope, gap


def simulate(draws: Draws, steps: int, step: float, rng: np.random.Generator) -> Iterator[State]:
    """The states at 0, ``step``, ..., ``steps`` x ``step`` years.

    The random numbers used do not depend on the draws, so that two sets of assumptions can be
    compared path by path.
    """
    world = _World(draws, step)
    paths = len(draws["gap_points"])
    for k in range(steps + 1):
        if k:
            world.advance()
        yield world.look(k * step, rng.standard_normal((3, paths), dtype=np.float32))


class _World:
    """Both groups at one time, moved forward step by step."""

    def __init__(self, draws: Draws, step: float) -> None:
        self._d = d = draws
        self._h = h = np.float32(step)
        self._pace = _Pace(d, step)
        self._chips = _Follower(draws=d, step=step)
        self._research = d["follower_research_share"]
        self._research_growth = _power(d["follower_research_share_growth"], h)
        self._kept = _power(1 - d["wear"], h)
        self._rent_left = np.exp(-h / d["rental_exit_years"])
        self._rent_grown = _power(d["rented_growth"], h)
        self._ceilings = _Ceilings(d)
        self._years = 0.0
        self._stock = np.log10(d["leader_stock"])
        self._leader_part = np.log10(d["leader_research_share"] * d["leader_top_share"])
        self._follower_part = np.log10(d["follower_top_share"])
        self._both = _log_run(d)
        self._ceiling = np.log10(d["ceiling_flop"])
        self._catch_up = np.log10(d["catch_up"])
        self._algorithms = np.log10(d["frontier_algorithms"])
        self._pull = np.exp(-d["reversion"] * h)
        spread = -np.expm1(-2 * d["reversion"] * h) / (2 * d["reversion"])
        self._shock = d["gap_drift_noise"] * np.sqrt(spread)
        self._edge: Array = np.zeros_like(d["gap_points"])
        self._level = d["leader_level"]
        self._before: tuple[Array, Array, Array] | None = None
        """The leader's run and the random part one step ago, and the implied lag at the origin."""

    def look(self, years: float, normals: Array) -> State:
        """The state now; ``normals`` [3, paths] are this step's chance."""
        d = self._d
        leader = np.minimum(self._stock + self._leader_part + self._both, self._ceiling)
        useful = np.log10(self._chips.useful * self._research)
        follower = np.minimum(useful + self._follower_part + self._both, self._ceiling)
        grown = self._pace.run_growth_now()
        if self._before is not None:
            grown = (leader - self._before[0]) / self._h
        implied = (leader - follower - self._edge) / (self._catch_up + grown)
        first = implied if self._before is None else self._before[2]
        slope = d["points_per_oom"] * (grown + self._algorithms)
        structure = slope * (first + d["compute_weight"] * (implied - first))
        if self._before is None:
            luck = d["gap_points"] - structure
        else:
            luck = self._before[1] * self._pull + self._shock * normals[0]
            noise = d["leader_noise"] * np.sqrt(self._h) * normals[2]
            self._level = self._level + slope * self._h + noise
        self._before = leader, luck, first
        observed = structure + luck + d["release_noise"] * normals[1]
        return State(
            years=years,
            gap_points=observed,
            trend_points=structure + luck,
            lag_months=12 * observed / slope,
            leader_level=self._level,
            leader_stock=self._stock,
            follower_stock=self._chips.count,
            leader_run=leader,
            follower_run=follower,
            leader_gw=np.float32(10) ** (self._stock + self._ceilings.log_watts(years) - 9),
        )

    def advance(self) -> None:
        """One step later: what the follower found, chips, shares and growth rates."""
        d = self._d
        theirs = np.log10(self._chips.count * self._research)
        ratio = theirs - self._stock - np.log10(d["leader_research_share"])
        own = self._algorithms * _power(np.float32(10), d["returns_to_research"] * ratio)
        self._edge = self._edge + d["unpublished_share"] * (own - self._algorithms) * self._h
        kept_open = (d["rental"] == OPEN) | (self._years < d["rental_decided_years"])
        rent = _array(np.where(kept_open, self._rent_grown, self._rent_left))
        then = self._years + float(self._h)
        grown = self._stock + self._pace.stock_step()
        self._stock = np.minimum(grown, np.maximum(self._ceilings.leader(then), self._stock))
        self._both = self._both + self._pace.both_step()
        most = self._ceilings.follower(then)
        self._chips.advance(self._years, self._pace.domestic_step(), self._kept, rent, most)
        self._years = then
        self._pace.advance()
        self._research = np.minimum(self._research * self._research_growth, _MOST_SHARE)


class _Ceilings:
    """The most chips there can be, log10 H100e, for want of power, money or wafers.

    power   GW / watts per H100e, with chips that need less each year
    money   dollars a year x years of use / dollars per H100e, with chips that cost less
    fabs    the stock there is, and the group's share of all that fabs can make until then
    """

    def __init__(self, draws: Draws) -> None:
        self._d = draws
        self._stock = draws["leader_stock"]
        self._per_watt = np.log10(draws["efficiency_growth"])
        self._per_dollar = np.log10(draws["price_performance"])

    def log_watts(self, years: float) -> Array:
        """log10 of the watts that one H100e takes with its share of the building."""
        return _array(np.log10(self._d["watts_per_h100e"]) - self._per_watt * years)

    def power(self, gw: Array, years: float) -> Array:
        """The chips that so many GW can feed."""
        return _array(np.log10(gw) + 9 - self.log_watts(years))

    def leader(self, years: float) -> Array:
        """The least of the three for the leader."""
        d = self._d
        price = np.log10(d["usd_per_h100e"]) - self._per_dollar * years
        money = np.log10(d["spend_ceiling_usd"] * np.float32(_CHIP_YEARS)) - price
        made = d["fab_h100e_per_year"] * np.expm1(np.log(d["fab_growth"]) * np.float32(years))
        fabs = np.log10(self._stock + d["leader_chip_share"] * made / np.log(d["fab_growth"]))
        least = np.minimum(self.power(d["power_ceiling_gw"], years), np.minimum(money, fabs))
        return _array(least)

    def follower(self, years: float) -> Array:
        """Power alone: its chips are counted by where they come from."""
        return self.power(self._d["follower_power_ceiling_gw"], years)


class _Pace:
    """Growth rates that fade from now to the long run, in OOM per year."""

    def __init__(self, draws: Draws, step: float) -> None:
        self._h = np.float32(step)
        self._fade = np.exp(-self._h / draws["slowdown_years"])
        self._run_fade = np.exp(-self._h / draws["run_growth_years"])
        self._stock_later = np.log10(draws["leader_stock_growth_later"])
        self._stock_more = np.log10(draws["leader_stock_growth"]) - self._stock_later
        self._run_more = np.log10(draws["run_growth"])
        self._domestic_later = np.log10(draws["domestic_growth_later"])
        self._domestic_more = np.log10(draws["domestic_growth"]) - self._domestic_later

    def run_growth_now(self) -> Array:
        """Growth of the leader's largest run at this moment."""
        return _array(self._stock_later + self._stock_more + self._run_more)

    def stock_step(self) -> Array:
        """OOM by which the leader's stock grows over the next step."""
        return _array(self._h * (self._stock_later + self._stock_more))

    def both_step(self) -> Array:
        """OOM by which runs grow faster than stocks over the next step."""
        return _array(self._h * self._run_more)

    def domestic_step(self) -> Array:
        """Factor by which domestic production grows over the next step."""
        return _array(np.float32(10) ** (self._h * (self._domestic_later + self._domestic_more)))

    def advance(self) -> None:
        """One step later."""
        self._stock_more = self._stock_more * self._fade
        self._domestic_more = self._domestic_more * self._fade
        self._run_more = self._run_more * self._run_fade


def _log_run(d: Draws) -> Array:
    """log10 FLOP of the largest run per H100e of research compute of the lab that makes it."""
    seconds = d["run_months"] * np.float32(_MONTH_SECONDS)
    return _array(np.log10(d["run_share"] * d["mfu"]) + np.log10(seconds * d["h100_flops"]))


def _gap_at_start(d: Draws) -> Array:
    domestic = d["domestic_stock"] * d["domestic_usefulness"]
    useful = d["legal_stock"] + d["smuggled_stock"] + domestic + d["rented_stock"]
    ours = d["leader_stock"] * d["leader_research_share"] * d["leader_top_share"]
    theirs = useful * d["follower_research_share"] * d["follower_top_share"]
    both = _log_run(d)
    ceiling = np.log10(d["ceiling_flop"])
    leader = np.minimum(np.log10(ours) + both, ceiling)
    return _array(leader - np.minimum(np.log10(theirs) + both, ceiling))


def _power(base: Array | np.float32, exponent: Array | np.float32) -> Array:
    return _array(base**exponent)


def _array(values: object) -> Array:
    array: Array = np.asarray(values, dtype=np.float32)
    return array


# Draws of the assumptions, weighted by what is observed
# ------------------------------------------------------

_DRAW, _PATH = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A set of equally likely draws."""

    draws: Draws
    effective: float
    """How many independent draws the weighting leaves."""


def path_rng(assumptions: Assumptions, chunk: int) -> np.random.Generator:
    """The stream for what happens along the paths of a chunk."""
    return _rng(assumptions.run.seed, chunk, _PATH)


def draw_chunk(assumptions: Assumptions, chunk: int, paths: int) -> Chunk:
    """``paths`` draws of everything, resampled in proportion to the evidence.

    Scenarios are drawn after the evidence: the past does not tell which rule will come.
    """
    rng = _rng(assumptions.run.seed, chunk, _DRAW)
    normals = rng.standard_normal((len(assumptions.quantities), paths), dtype=np.float32)
    prior = {
        name: quantity.draw(z)
        for (name, quantity), z in zip(assumptions.quantities.items(), normals, strict=True)
    }
    offset = rng.random()
    weights = _weights(assumptions, prior)
    picked = _systematic(weights, offset)
    draws = {name: values[picked] for name, values in prior.items()}
    for name, options in assumptions.scenarios.items():
        edges = np.cumsum(list(options.values()))[:-1]
        draws[name] = np.searchsorted(edges, rng.random(paths), side="right").astype(np.float32)
    return Chunk(draws=draws, effective=float(1 / (weights**2).sum()))


def _rng(seed: int, chunk: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, chunk, purpose])))


def _weights(assumptions: Assumptions, draws: Draws) -> NDArray[np.float64]:
    """Likelihood of the evidence under each draw, summing to one."""
    lag, slope, _ = start(draws)
    seen = {"lag_months": 12 * lag, "frontier_points_per_year": slope}
    log = np.zeros(len(lag))
    for name, evidence in assumptions.evidence.items():
        log -= 0.5 * ((seen[name].astype(np.float64) - evidence.value) / evidence.deviation) ** 2
    weights = np.exp(log - log.max())
    return np.asarray(weights / weights.sum())


def _systematic(weights: NDArray[np.float64], offset: float) -> NDArray[np.intp]:
    """Indices drawn in proportion to ``weights`` with one random number (least variance)."""
    count = len(weights)
    positions = (np.arange(count) + offset) / count
    return np.minimum(np.searchsorted(np.cumsum(weights), positions), count - 1)
