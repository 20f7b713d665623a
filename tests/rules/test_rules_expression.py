"""The language of the tests in the rules file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import DataError
from krzem.rules.ruleset import parse

NAMES = ("tpp", "io", "dram")


def comparisons() -> st.SearchStrategy[str]:
    side = st.sampled_from([*NAMES, "tpp + io", "dram + io + tpp"])
    operator = st.sampled_from(["<", "<=", ">", ">=", "=="])
    return st.builds("{} {} {}".format, side, operator, st.integers(0, 20))


TESTS = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=8,
)
FIGURES = st.fixed_dictionaries({name: st.integers(0, 20) for name in NAMES})


@given(TESTS, FIGURES)
def test_it_means_what_python_means(text: str, figures: dict[str, int]) -> None:
    values = {name: np.asarray(float(value)) for name, value in figures.items()}
    assert bool(parse(text).evaluate(values)) is bool(eval(text, {}, dict(figures)))


@given(TESTS, FIGURES, st.sampled_from(NAMES))
def test_an_array_answers_for_each_of_its_values(
    text: str, figures: dict[str, int], unknown: str
) -> None:
    known = {n: np.asarray(float(v)) for n, v in figures.items() if n != unknown}
    line = np.arange(0, 21, 0.5)
    together = np.broadcast_to(parse(text).evaluate({**known, unknown: line}), line.shape)
    alone = [bool(parse(text).evaluate({**known, unknown: np.asarray(x)})) for x in line]
    assert together.tolist() == alone


@given(TESTS, FIGURES, st.sampled_from(NAMES))
def test_outcomes_turn_only_at_thresholds(text: str, figures: dict[str, int], unknown: str) -> None:
    """Between two neighbouring thresholds the outcome never changes."""
    known = {n: np.asarray(float(v)) for n, v in figures.items() if n != unknown}
    test = parse(text)
    turns = {0.0, *test.thresholds(unknown, known)}
    line = np.arange(0.005, 30, 0.01)
    truth = np.broadcast_to(test.evaluate({**known, unknown: line}), line.shape)
    for before, after, place in zip(truth, truth[1:], line, strict=False):
        if before != after:
            assert any(place - 0.011 <= turn <= place + 0.011 for turn in turns)


def test_thresholds_take_known_terms_off() -> None:
    test = parse("dram >= 1400 or io >= 1100 or dram + io >= 1700")
    assert sorted(test.thresholds("io", {"dram": np.asarray(900.0)})) == [800, 1100]
    assert sorted(test.thresholds("dram", {"io": np.asarray(2000.0)})) == [1400]
    assert test.thresholds("tpp", {}) == ()


def test_names_are_listed() -> None:
    assert parse("tpp < 3 and not us_2022").names == {"tpp", "us_2022"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("tpp - 3 > 1", "tpp - 3"),
        ("f(tpp) > 1", "f(tpp)"),
        ("tpp > 1 > 0", "tpp > 1 > 0"),
        ("tpp != 1", "tpp != 1"),
        ("[1] > tpp", "[1]"),
        ("tpp if io else dram", "if"),
        ("-tpp > 1", "-tpp"),
        ("tpp > '4800'", "4800"),
        ("", "cannot be read"),
        ("tpp >= 4800 and", "cannot be read"),
        ("x = 3", "cannot be read"),
    ],
)
def test_what_is_refused_is_named(text: str, part: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(text)
    assert part in str(caught.value)
