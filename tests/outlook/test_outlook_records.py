"""Published figures come out of the published inputs."""

from __future__ import annotations

import datetime as dt
from itertools import pairwise

import pytest

from krzem.outlook import records, shipped
from krzem.outlook.backtest import assumptions_at
from krzem.outlook.reproduce import Reproduced, reproduce

ROWS = reproduce()


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.what} {r.unit}")
def test_published_figures(row: Reproduced) -> None:
    """To the digits that were published: half a unit of the last one, or 4 % where that is less."""
    for ours, published in zip(row.ours, row.published, strict=True):
        assert ours == pytest.approx(published, rel=0.04, abs=0.06)


def test_lag_of_a_day_by_hand() -> None:
    """On 1 June 2026 China's best stood at 153.74; the US first had that on 11 December 2025."""
    day = dt.date(2026, 6, 1)
    gap = records.daily_gap().within(day, day)
    assert gap.months[0] == pytest.approx((day - dt.date(2025, 12, 11)).days / (365.25 / 12))
    assert gap.points[0] == pytest.approx(162.45 - 153.74)


def test_records_only_rise() -> None:
    for group in ("US", "CN"):
        line = records.records(group)
        assert all(a.eci < b.eci and a.date <= b.date for a, b in pairwise(line))


def test_a_lag_uses_nothing_later_than_its_day() -> None:
    early = records.daily_gap(last=dt.date(2024, 12, 31))
    whole = records.daily_gap().within(early.days[0], early.days[-1])
    assert (early.months == whole.months).all()


@pytest.mark.parametrize("end", [dt.date(2024, 12, 31), records.LAST_DAY])
def test_the_assumptions_are_what_the_data_say(end: dt.date) -> None:
    """The fitted entries, by the same rules, from data up to their origin only."""
    a = shipped() if end == records.LAST_DAY else assumptions_at(end)
    assert a.origin == end
    gap = records.daily_gap(last=end)
    half_year = gap.within(end - dt.timedelta(182), end)
    assert a.quantities["gap_points"].mid == pytest.approx(half_year.points.mean(), abs=0.06)
    assert a.quantities["leader_level"].mid == pytest.approx(records.level("US", end), abs=0.06)
    slope = records.record_slope("US", end - dt.timedelta(730), end)
    assert a.evidence["frontier_points_per_year"].value == pytest.approx(slope.per_year, abs=0.1)
    this_year = gap.within(dt.date(end.year, 1, 1), end)
    assert a.evidence["lag_months"].value == pytest.approx(this_year.months.mean(), abs=0.06)


def test_stocks_of_the_assumptions() -> None:
    q = shipped().quantities
    five_labs = records.total("used", 2025)
    assert q["leader_stock"].mid == pytest.approx(five_labs * 3.4**0.7, rel=0.01)
    nvidia, amd = (records.stock("held", f"China {x}", 2025) for x in ("NVIDIA", "AMD"))
    assert nvidia is not None
    assert amd is not None
    assert q["legal_stock"].mid == pytest.approx(nvidia[1] + amd[1], rel=0.01)
    before = assumptions_at(dt.date(2024, 12, 31)).quantities
    assert before["leader_stock"].mid == pytest.approx(records.total("used", 2024), rel=0.01)
    assert before["legal_stock"].mid == pytest.approx(322257, rel=0.01)
    assert records.stock("held", "China AMD", 2023) is None
