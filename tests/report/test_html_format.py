"""Numbers on a page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.report.html_answer import amount, between, chance, day, days_between, ends, share
from krzem.report.text_table import energy, percent

PROBABILITIES = st.floats(0, 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0 %"), (0.001, "< 1 %"), (0.5, "50 %"), (0.9999, "> 99 %"), (1.0, "100 %")],
)
def test_chance(value: float, text: str) -> None:
    assert chance(value) == text


@given(PROBABILITIES)
def test_only_certainty_is_shown_as_certain(value: float) -> None:
    assert (chance(value) == "100 %") == (value == 1.0)


def test_share_has_a_sign() -> None:
    assert share(0.044) == "+4.4 %"
    assert share(-0.12) == "−12 %"


def test_amount_keeps_small_counts_whole() -> None:
    assert [amount(v) for v in (4096, 15_360, 14.8e12)] == ["4,096", "15,360", "14.8T"]


def test_a_common_unit_is_written_once() -> None:
    assert between({"low": 0.14, "mid": 0.16, "high": 0.19}, percent) == "14 – 19 %"
    assert between({"low": 900, "mid": 1e3, "high": 1200}, energy) == "900 MWh – 1.2 GWh"
    assert between({"low": 61.6, "mid": 71.8, "high": 84}) == "61.6 – 84"
    assert between(None) == ""


def test_unknown_is_said_once() -> None:
    assert ends(None) == {"low": "", "mid": "unknown", "high": ""}


def test_days() -> None:
    assert day("2027-02-01") == "1 Feb 2027"
    assert days_between("2027-02-01", "2027-02-23") == "1 Feb – 23 Feb 2027"
    assert days_between("2026-12-30", "2027-01-02") == "30 Dec 2026 – 2 Jan 2027"
