"""One path at a time in plain Python, written out a second time, against the arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from krzem.outlook import shipped
from krzem.outlook.model import draw_chunk, path_rng, simulate

PATHS = 40
STEPS = 24
STEP = 0.25
A = shipped()


class Path:
    """The model for one path, in doubles and without arrays."""

    def __init__(self, d: dict[str, float]) -> None:
        self.d = d
        self.imported = d["legal_stock"] + d["smuggled_stock"]
        self.domestic, self.rented = d["domestic_stock"], d["rented_stock"]
        tight, now, loose = (d[f"legal_per_year_{x}"] for x in ("tight", "as_now", "loose"))
        self.legal_rate, self.decided_rate = now, (tight, now, loose)[int(d["export"])]
        self.smuggled_rate, self.domestic_rate = d["smuggled_per_year"], d["domestic_per_year"]
        self.stock = d["leader_stock"]
        self.research = d["follower_research_share"]
        self.bonus = 0.0  # OOM by which runs have outgrown stocks
        self.edge = 0.0
        self.level = d["leader_level"]
        self.years = 0.0
        self.memory: tuple[float, float, float] | None = None

    def faded(self, now: str, later: str, time_constant: str) -> float:
        d = self.d
        after = math.log10(d[later]) if later else 0.0
        left = math.exp(-self.years / d[time_constant])
        return after + (math.log10(d[now]) - after) * left

    def watts(self, years: float) -> float:
        return self.d["watts_per_h100e"] / self.d["efficiency_growth"] ** years

    def ceiling(self, years: float) -> float:
        """Power, money for five years of chips, and what fabs make until then."""
        d = self.d
        dollars = d["usd_per_h100e"] / d["price_performance"] ** years
        made = d["fab_h100e_per_year"] * (d["fab_growth"] ** years - 1) / math.log(d["fab_growth"])
        return min(
            d["power_ceiling_gw"] * 1e9 / self.watts(years),
            5 * d["spend_ceiling_usd"] / dollars,
            d["leader_stock"] + d["leader_chip_share"] * made,
        )

    def run(self, chips: float, research: float, top: float) -> float:
        d = self.d
        seconds = d["run_months"] * 365.25 / 12 * 86400
        flop = chips * research * top * d["run_share"] * seconds * d["mfu"] * d["h100_flops"]
        return min(math.log10(flop) + self.bonus, math.log10(d["ceiling_flop"]))

    def look(self, normals: list[float]) -> dict[str, float]:
        d = self.d
        leader = self.run(self.stock, d["leader_research_share"], d["leader_top_share"])
        useful = self.imported + self.domestic * d["domestic_usefulness"] + self.rented
        follower = self.run(useful, self.research, d["follower_top_share"])
        if self.memory is None:
            grown = math.log10(d["leader_stock_growth"] * d["run_growth"])
        else:
            grown = (leader - self.memory[0]) / STEP
        implied = (leader - follower - self.edge) / (math.log10(d["catch_up"]) + grown)
        first = implied if self.memory is None else self.memory[2]
        lag = first + d["compute_weight"] * (implied - first)
        slope = d["points_per_oom"] * (grown + math.log10(d["frontier_algorithms"]))
        if self.memory is None:
            luck = d["gap_points"] - slope * lag
        else:
            pull = d["reversion"]
            spread = math.sqrt((1 - math.exp(-2 * pull * STEP)) / (2 * pull))
            kept = self.memory[1] * math.exp(-pull * STEP)
            luck = kept + d["gap_drift_noise"] * spread * normals[0]
            self.level += slope * STEP + d["leader_noise"] * math.sqrt(STEP) * normals[2]
        self.memory = leader, luck, first
        trend = slope * lag + luck
        return {
            "trend_points": trend,
            "gap_points": trend + d["release_noise"] * normals[1],
            "leader_level": self.level,
            "leader_stock": math.log10(self.stock),
            "follower_stock": self.imported + self.domestic + self.rented,
            "leader_run": leader,
            "follower_run": follower,
        }

    def advance(self) -> None:
        d = self.d
        a = math.log10(d["frontier_algorithms"])
        theirs = (self.imported + self.domestic + self.rented) * self.research
        ratio = theirs / (self.stock * d["leader_research_share"])
        own = a * ratio ** d["returns_to_research"]
        self.edge += d["unpublished_share"] * (own - a) * STEP
        kept = (1 - d["wear"]) ** STEP
        decided = self.years >= d["export_decided_years"]
        legal = self.decided_rate if decided else self.legal_rate
        self.imported = self.imported * kept + (legal + self.smuggled_rate) * STEP
        self.domestic = self.domestic * kept + self.domestic_rate * STEP
        closed = d["rental"] == 1 and self.years >= d["rental_decided_years"]
        self.rented *= (
            math.exp(-STEP / d["rental_exit_years"]) if closed else d["rented_growth"] ** STEP
        )
        fed = d["follower_power_ceiling_gw"] * 1e9 / self.watts(self.years + STEP)
        left = min(1.0, fed / (self.imported + self.domestic + self.rented))
        self.imported, self.domestic, self.rented = (
            left * x for x in (self.imported, self.domestic, self.rented)
        )
        self.legal_rate *= d["legal_growth"] ** STEP
        self.decided_rate *= d["legal_growth"] ** STEP
        self.smuggled_rate *= d["smuggled_growth"] ** STEP
        growth = self.faded("domestic_growth", "domestic_growth_later", "slowdown_years")
        self.domestic_rate *= 10 ** (growth * STEP)
        growth = self.faded("leader_stock_growth", "leader_stock_growth_later", "slowdown_years")
        grown = self.stock * 10 ** (growth * STEP)
        self.stock = min(grown, max(self.ceiling(self.years + STEP), self.stock))
        self.bonus += self.faded("run_growth", "", "run_growth_years") * STEP
        self.research = min(self.research * d["follower_research_share_growth"] ** STEP, 0.95)
        self.years += STEP


@pytest.fixture(scope="module")
def both() -> tuple[list[dict[str, np.ndarray]], list[list[dict[str, float]]]]:
    drawn = draw_chunk(A, 0, PATHS).draws
    fast = [
        {name: np.asarray(getattr(state, name)) for name in NAMES}
        for state in simulate(drawn, STEPS, STEP, path_rng(A, 0))
    ]
    rng = path_rng(A, 0)
    normals = [rng.standard_normal((3, PATHS), dtype=np.float32) for _ in range(STEPS + 1)]
    slow = []
    for i in range(PATHS):
        path = Path({name: float(values[i]) for name, values in drawn.items()})
        states = []
        for k in range(STEPS + 1):
            if k:
                path.advance()
            states.append(path.look([float(x) for x in normals[k][:, i]]))
        slow.append(states)
    return fast, slow


NAMES = (
    "trend_points", "gap_points", "leader_level", "leader_stock", "follower_stock", "leader_run",
    "follower_run",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_path_at_every_step(
    name: str, both: tuple[list[dict[str, np.ndarray]], list[list[dict[str, float]]]]
) -> None:
    fast, slow = both
    arrays = np.array([state[name] for state in fast])
    plain = np.array([[state[name] for state in states] for states in slow]).T
    assert arrays == pytest.approx(plain, rel=2e-4, abs=5e-3)
