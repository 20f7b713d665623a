"""Quantities: their three points come back, the rest is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import DataError
from krzem.outlook.assumptions import Quantity, Shape, read_quantity

_Z95 = 1.6448536269514722


@pytest.mark.parametrize("shape", list(Shape))
def test_the_three_points_are_quantiles(shape: Shape) -> None:
    q = Quantity(name="x", low=0.1, mid=0.3, high=0.7, shape=shape)
    z = np.random.default_rng(1).standard_normal(200_000, dtype=np.float32)
    drawn = np.quantile(q.draw(z), (0.05, 0.5, 0.95))
    assert drawn == pytest.approx([0.1, 0.3, 0.7], abs=0.004)
    assert [q.at(x) for x in (-_Z95, 0.0, _Z95)] == pytest.approx([0.1, 0.3, 0.7], rel=1e-5)


@given(
    st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3).map(sorted),
    st.sampled_from(list(Shape)),
    st.floats(-4, 4),
    st.floats(0, 2),
)
def test_a_larger_quantile_is_never_smaller(
    points: list[float], shape: Shape, z: float, more: float
) -> None:
    q = Quantity(name="x", low=points[0], mid=points[1], high=points[2], shape=shape)
    assert q.at(z) <= q.at(z + more) + 1e-5


def test_shapes_keep_their_bounds() -> None:
    z = np.linspace(-6, 6, 101, dtype=np.float32)
    share = Quantity(name="x", low=0.1, mid=0.5, high=0.9, shape=Shape.SHARE).draw(z)
    assert ((share > 0) & (share < 1)).all()
    assert (Quantity(name="x", low=0.1, mid=5, high=90).draw(z) > 0).all()


def test_a_number_is_certain() -> None:
    q = read_quantity("catch_up", 20)
    assert q.fixed
    assert q.at(3.0) == pytest.approx(20)


def test_a_table_fills_up_from_what_is_known() -> None:
    known = Quantity(name="x", low=1, mid=2, high=3, unit="m", source="s")
    assert read_quantity("x", {"source": "better"}, known).high == 3
    changed = read_quantity("x", {"mid": 9.0}, known)
    assert (changed.low, changed.mid, changed.high, changed.unit) == (9, 9, 9, "m")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("ten", "number or a table"),
        (True, "number or a table"),
        ({"mid": "ten"}, "must be a number"),
        ({"low": 1}, "without mid"),
        ({"low": 3, "mid": 2, "high": 1}, "must not decrease"),
        ({"low": 0, "mid": 2, "high": 3}, "above zero"),
        ({"low": 0.1, "mid": 0.2, "high": 1.0, "shape": "share"}, "between 0 and 1"),
        ({"mid": 1, "shape": "round"}, "must be one of log, plain, share"),
        ({"mid": 1, "median": 2}, "median"),
        ({"mid": float("nan")}, "finite"),
        ({"mid": float("inf")}, "finite"),
        ({"mid": 10**400}, "must be a number"),
        ({}, "has no mid"),
    ],
)
def test_nonsense_is_refused_with_the_reason(table: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_quantity("x", table)
