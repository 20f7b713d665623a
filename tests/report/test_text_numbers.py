"""Numbers as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.report.text_table import energy, interval, money, percent, plain
from krzem.report.text_table import given as shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00042, "4.2e-04"), (1.5, "1.5"), (22.36, "22.4"), (99.96, "100"),
     (1234.5, "1,234"), (50.0, "50")],
)  # fmt: skip
def test_three_digits(value: float, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0312, "3.1 %"), (0.4, "40 %"), (0.0999, "10 %"), (-0.019, "-1.9 %")]
)
def test_per_cent(value: float, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "500 kWh"), (1, "1 MWh"), (5713, "5.71 GWh"), (2e6, "2 TWh")]
)
def test_energy(value: float, text: str) -> None:
    assert energy(value) == text


def test_intervals_write_a_shared_unit_once() -> None:
    value = {"low": 0.29, "mid": 0.34, "high": 0.4}
    assert interval(value, percent) == "34 (29–40) %"
    assert interval({"low": 61.6, "mid": 71.8, "high": 84.0}) == "71.8 (61.6–84)"
    assert interval({"low": 9e5, "mid": 1e6, "high": 2e6}, money) == "$1M ($900k–$2M)"
    assert interval({"low": 2.0, "mid": 2.0, "high": 2.0}, money) == "$2"


def test_unknown_is_said() -> None:
    assert interval(None) == "unknown"
    assert shown(None) == "unknown"
    assert shown(0.0) == "0"


@given(st.floats(-1e30, 1e30))
def test_no_number_is_wide(value: float) -> None:
    assert len(plain(value)) <= 45
    assert "nan" not in percent(value)


def test_what_rounding_left_of_a_zero_is_a_zero() -> None:
    assert plain(-7.1e-16) == "0"
    assert plain(3.2e-4) == "3.2e-04"
