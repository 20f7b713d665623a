"""The whole forecast: chunks of paths in parallel, reduced to odds and fans."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krzem.errors import InputError
from krzem.outlook.assumptions import Array, Assumptions
from krzem.outlook.model import State, draw_chunk, path_rng, simulate

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
FANS = (
    "gap_points", "lag_months", "leader_level", "follower_level", "leader_stock",
    "follower_stock", "leader_run", "follower_run", "run_ratio", "leader_gw",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Odds and fans; times are years since the origin."""

    assumptions: Assumptions
    years: NDArray[np.float64]
    """[steps + 1]"""
    ever: NDArray[np.float64]
    """[steps + 1]: chance that the follower has been ahead on the index at some step until then."""
    ahead: NDArray[np.float64]
    """[steps + 1]: chance that it is ahead in trend, without the luck of release dates."""
    larger_run: NDArray[np.float64]
    """[steps + 1]: chance that its largest run is the larger one."""
    by_option: Mapping[tuple[str, str], NDArray[np.float64]]
    """``ever`` by option of a scenario; NaN where the option was never drawn."""
    paths: int
    effective: float
    """Independent draws of the assumptions that the evidence leaves."""
    fans: Mapping[str, NDArray[np.float64]]
    """[steps + 1, len(QUANTILES)] by name of FANS; runs as log10 FLOP, run_ratio leader over
    follower."""

    def odds(self, within_years: float) -> float:
        """The chance of having been ahead within so many years (linear between steps).

        Raises InputError beyond the horizon.
        """
        if not 0 <= within_years <= self.years[-1]:
            raise InputError(
                f"{within_years:g} years lie beyond the horizon of {self.years[-1]:g} "
                "(run.horizon_years)."
            )
        return float(np.interp(within_years, self.years, self.ever))

    def error(self, within_years: float) -> float:
        """Standard error of the odds, from the number of independent draws."""
        p = self.odds(within_years)
        return float(np.sqrt(p * (1 - p) / self.effective))


@dataclass(slots=True, kw_only=True)
class _Tally:
    """Counts over one chunk."""

    ever: NDArray[np.int64]
    ahead: NDArray[np.int64]
    larger_run: NDArray[np.int64]
    options: dict[tuple[str, str], tuple[int, NDArray[np.int64]]]
    fans: dict[str, list[Array]]
    effective: float
    paths: int


def forecast(
    assumptions: Assumptions,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Forecast:
    """Run the simulation; ``progress`` is called with the paths that are finished.

    The result depends on the assumptions alone, not on ``workers``.
    """
    run = assumptions.run
    sizes = [run.chunk_paths] * (run.paths // run.chunk_paths)
    if rest := run.paths % run.chunk_paths:
        sizes.append(rest)
    kept = np.cumsum([0, *sizes])
    jobs = [
        (chunk, size, max(0, min(size, run.fan_paths - int(before))))
        for chunk, (size, before) in enumerate(zip(sizes, kept, strict=False))
    ]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        tallies = []
        for tally in pool.map(lambda job: _chunk(assumptions, *job), jobs):
            tallies.append(tally)
            if progress is not None:
                progress(tally.paths)
    return _reduce(assumptions, tallies)


def _chunk(assumptions: Assumptions, chunk: int, paths: int, fan: int) -> _Tally:
    run = assumptions.run
    drawn = draw_chunk(assumptions, chunk, paths)
    masks = {
        (name, option): drawn.draws[name] == i
        for name, options in assumptions.scenarios.items()
        for i, option in enumerate(options)
    }
    ever = np.zeros(paths, dtype=np.bool_)
    counts: list[list[int]] = []
    by_option: dict[tuple[str, str], list[int]] = {key: [] for key in masks}
    fans: dict[str, list[Array]] = {name: [] for name in FANS} if fan else {}
    states = simulate(drawn.draws, run.steps, run.step_years, path_rng(assumptions, chunk))
    for state in states:
        if state.years > 0:  # that the follower is behind at the origin is known
            ever |= state.gap_points <= 0
        counts.append([
            int(ever.sum()),
            int((state.trend_points <= 0).sum()),
            int((state.follower_run > state.leader_run).sum()),
        ])  # fmt: skip
        for key, mask in masks.items():
            by_option[key].append(int((ever & mask).sum()))
        for name, array in (_fan_values(state, fan) if fan else {}).items():
            fans[name].append(array)
    table = np.array(counts, dtype=np.int64).T
    return _Tally(
        ever=table[0],
        ahead=table[1],
        larger_run=table[2],
        options={key: (int(masks[key].sum()), np.array(c)) for key, c in by_option.items()},
        fans=fans,
        effective=drawn.effective,
        paths=paths,
    )


def _fan_values(state: State, count: int) -> dict[str, Array]:
    first = slice(0, count)
    return {
        "gap_points": state.gap_points[first],
        "lag_months": state.lag_months[first],
        "leader_level": state.leader_level[first],
        "follower_level": (state.leader_level - state.gap_points)[first],
        "leader_stock": np.float32(10) ** state.leader_stock[first],
        "follower_stock": state.follower_stock[first],
        "leader_run": state.leader_run[first],
        "follower_run": state.follower_run[first],
        "leader_gw": state.leader_gw[first],
        "run_ratio": np.float32(10) ** (state.leader_run - state.follower_run)[first],
    }


def _reduce(assumptions: Assumptions, tallies: list[_Tally]) -> Forecast:
    run = assumptions.run
    paths = sum(t.paths for t in tallies)
    years = np.arange(run.steps + 1, dtype=np.float64) * run.step_years
    by_option: dict[tuple[str, str], NDArray[np.float64]] = {}
    for key in tallies[0].options:
        held = sum(t.options[key][0] for t in tallies)
        met = np.sum([t.options[key][1] for t in tallies], axis=0)
        by_option[key] = met / held if held else np.full(len(years), np.nan)
    fans = {
        name: np.array([
            np.quantile(np.concatenate([t.fans[name][k] for t in tallies if t.fans]), QUANTILES)
            for k in range(len(years))
        ])
        for name in FANS
    }  # fmt: skip
    return Forecast(
        assumptions=assumptions,
        years=years,
        ever=np.sum([t.ever for t in tallies], axis=0) / paths,
        ahead=np.sum([t.ahead for t in tallies], axis=0) / paths,
        larger_run=np.sum([t.larger_run for t in tallies], axis=0) / paths,
        by_option=by_option,
        paths=paths,
        effective=sum(t.effective for t in tallies),
        fans=fans,
    )
