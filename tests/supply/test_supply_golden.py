"""Answers about small fleets as they are told: documents, texts and pages that are kept.

``python -m tests.supply.test_supply_golden`` writes them anew; read the difference before it is
kept.  Speeds are made up, so that no calibration moves a figure.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.supply.fleet_cases import (
    made_goal,
    made_grant,
    made_pool,
    made_slots,
    made_speed,
)

from krzem.errors import ClusterError
from krzem.estimate import Estimate
from krzem.supply.document import fleet_document
from krzem.supply.fleet import Fleet, solve
from krzem.supply.goal import Delivery
from krzem.supply.optimum import cheapest
from krzem.supply.page import fleet_page
from krzem.supply.speed import _within_power
from krzem.supply.text import dollars, fleet_text
from krzem.supply.verify import faults

KEPT = Path(__file__).with_name("texts")
PAID = replace(made_grant(1e3, 4e5), usd_per_node_hour=2.0, chance=0.8, late_days=10.0)


def rented_and_granted() -> Fleet:
    """A dear rented pool, a granted one that is paid by the node-hour, and months with a limit."""
    pools = [
        made_pool("rented", 3.0, country="US"),
        made_pool("granted", None, grants=(PAID,), country="DE", domestic=True),
    ]
    goal = made_goal(
        pools, days=240, budget_usd=9e6, domestic_share=0.3, sure=0.7,
        month_budgets={"2027-02": 1.5e6},
    )  # fmt: skip
    return solve(goal, made_slots(made_speed(90), made_speed(160, stack="rocm", family="g")))


def bought_and_delivered() -> Fleet:
    """Devices that are bought and come late, beside rented ones that are there until a day."""
    late = (Delivery(on=dt.date(2027, 3, 1), devices=2048),)
    pools = [
        made_pool("own", None, buy=Estimate(9e3, 1e4, 1.1e4), running=0.1, deliveries=late,
                  chance=0.9),
        made_pool("lent", 2.0, until=dt.date(2027, 4, 1)),
    ]  # fmt: skip
    return solve(made_goal(pools, days=200), made_slots(made_speed(80), made_speed(120)))


def free_of_charge() -> Fleet:
    """Nothing costs money: node-hours are what is saved."""
    pools = [made_pool("a", None, grants=(made_grant(1e3, 3e5),)), made_pool("b", None)]
    return solve(made_goal(pools, days=200), made_slots(made_speed(90), made_speed(120)))


def beyond_its_limits() -> Fleet:
    """No plan keeps the date, and the budget neither."""
    pools = [made_pool("slow", 1.0), made_pool("slower", 0.8)]
    goal = made_goal(pools, days=60, budget_usd=1e6)
    return solve(goal, made_slots(made_speed(100), made_speed(130)))


CASES: dict[str, Callable[[], Fleet]] = {
    f.__name__: f
    for f in (rented_and_granted, bought_and_delivered, free_of_charge, beyond_its_limits)
}


def rounded(value: Any) -> Any:
    """Numbers to three digits: solvers and libraries differ beyond."""
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, dict):
        return {
            k: rounded(v)
            for k, v in value.items()
            if k not in ("krzem", "plan_seconds", "solve_seconds")
        }
    return [rounded(v) for v in value] if isinstance(value, list) else value


@cache
def texts(case: str) -> dict[str, str]:
    """The document, the text and the page without its pictures."""
    document = fleet_document(CASES[case]())
    page = re.sub(
        r"<svg.*?</svg>|<style.*?</style>|<script.*?</script>",
        "",
        fleet_page(document),
        flags=re.DOTALL,
    )
    return {
        f"{case}.json": json.dumps(rounded(document), indent=1) + "\n",
        f"{case}.txt": fleet_text(document),
        f"{case}.html": page,
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["json", "txt", "html"])
def test_the_answer_is_told_as_kept(case: str, kind: str) -> None:
    name = f"{case}.{kind}"
    assert texts(case)[name] == (KEPT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_the_page_has_its_charts(case: str) -> None:
    page = fleet_page(fleet_document(CASES[case]()))
    feasible = case != "beyond_its_limits"
    assert ("Calendar of the plans" in page) is feasible


@pytest.mark.parametrize("case", CASES)
def test_no_plan_waits_for_what_nobody_asks(case: str) -> None:
    """The planned end lies inside the interval of the ends that are drawn, which never wait."""
    found = CASES[case]()
    for plan in (found.cheapest, found.fastest, found.most_certain, *found.front):
        if plan is not None and plan.odds.finish_days is not None:
            ends = plan.odds.finish_days
            assert ends.low - 1 <= plan.schedule.finish_day <= ends.high + 1, plan.label
            assert not faults(found.goal, plan.schedule)


def test_granted_hours_count_in_the_month_they_are_used() -> None:
    """$2 a node-hour of 128 nodes: $6,144 a day, and a month that has less is said."""
    pool = made_pool("granted", None, grants=(replace(PAID, least=0.0),))
    goal = made_goal([pool], days=240)
    found = cheapest(goal, made_slots(made_speed(100)))
    assert found is not None
    assert not faults(goal, found)
    day = 2.0 * 24 * 128
    whole = next(s for s in found.stages).first_day < 31
    assert whole
    for limit, broken in ((28.2 * day, False), (27.5 * day, True)):
        told = faults(replace(goal, month_budgets={"2027-02": limit}), found)
        assert any("2027-02" in fault for fault in told) is broken, (limit, told)


def test_a_site_without_the_power_says_the_arithmetic() -> None:
    pool = made_pool("a", site_power_w=1e6)
    speed = replace(made_speed(90), watts_per_device=Estimate(900.0, 1000.0, 1100.0))
    with pytest.raises(ClusterError, match=r"1,024 devices x 1,000 W = 1\.0 MW.* 1\.0 MW"):
        _within_power(pool, speed)
    _within_power(replace(pool, site_power_w=1.1e6), speed)


@pytest.mark.parametrize(
    ("usd", "told"),
    [
        (None, "–"), (0.0, "$0"), (0.004, "$0"), (0.006, "$0.01"), (0.5, "$0.50"), (9.99, "$9.99"),
        (42.0, "$42.0"), (999.4, "$999"), (999.6, "$1.00k"), (-1500.0, "-$1.50k"),
        (999_400, "$999k"), (999_600, "$1.00M"), (12_340_000, "$12.3M"), (2e9, "$2.00B"),
    ],
)  # fmt: skip
def test_money_has_three_digits_that_count(usd: float | None, told: str) -> None:
    assert dollars(usd) == told


if __name__ == "__main__":
    KEPT.mkdir(exist_ok=True)
    for case in CASES:
        for name, text in texts(case).items():
            (KEPT / name).write_text(text, encoding="utf-8")
