"""The TOML file: what may be changed, and what bad files get."""

from __future__ import annotations

import datetime as dt
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.errors import DataError, KrzemError, UnknownNameError
from krzem.outlook import changed, load, shipped
from krzem.outlook.assumptions import shipped_text


def test_every_shipped_number_says_where_it_comes_from() -> None:
    a = shipped()
    assert len(a.quantities) > 40
    for q in a.quantities.values():
        assert len(q.source) > 15, q.name
        assert q.unit
        assert q.kind in {"published", "computed", "judgement"}
    assert all(len(e.source) > 15 for e in a.evidence.values())
    assert set(a.scenario_source) == set(a.scenarios)
    assert all(abs(sum(options.values()) - 1) < 1e-9 for options in a.scenarios.values())


def test_the_model_uses_every_shipped_quantity() -> None:
    """No assumption that moves nothing, and no number the file does not hold."""
    from krzem.outlook import model

    text = Path(model.__file__).read_text(encoding="utf-8")
    for name in shipped().quantities:
        assert f'["{name}"]' in text, name


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'title = "mine"\norigin = 2027-01-01\n[run]\npaths = 5000\n[quantity]\ncatch_up = 20\n'
        "[quantity.gap_points]\nlow = 1\nmid = 2\nhigh = 3\n"
        "[scenario.export]\ntight = 1.0\n[evidence.lag_months]\nvalue = 4\n",
        encoding="utf-8",
    )
    a, base = load(file), shipped()
    assert (a.title, a.origin, a.run.paths) == ("mine", dt.date(2027, 1, 1), 5000)
    assert a.quantities["catch_up"].fixed
    assert a.quantities["gap_points"].high == 3
    assert a.scenarios["export"] == {"tight": 1.0, "as_now": 0.0, "loose": 0.0}
    assert a.evidence["lag_months"].value == 4
    assert a.evidence["lag_months"].deviation == base.evidence["lag_months"].deviation
    same = set(base.quantities) - {"catch_up", "gap_points"}
    assert all(a.quantities[n] == base.quantities[n] for n in same)


def test_the_shipped_file_given_back_changes_nothing() -> None:
    assert changed(shipped_text()) == shipped()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("= 3", "not valid TOML"),
        ("[quantity]\ncatchup = 3", "catch_up"),
        ("[quantities]\ncatch_up = 3", "quantity"),
        ("quantity = 3", "must be a table"),
        ("[run]\npaths = 1.5", "whole number"),
        ("[run]\npaths = 5", "from 100 to 20,000,000, not 5"),
        ("[run]\npaths = 10000000000", "from 100 to 20,000,000"),
        ("[run]\nhorizon_years = 0.25\nstep_years = 1.0", "no step"),
        ("[run]\nhorizon_years = nan", "must be a number"),
        ("origin = 3", "must be a date"),
        ("origin = 1900-01-01", "outside"),
        ("title = 3", "must be text of 1 to"),
        ("[scenario.export]\ntight = 0.5", "add up to 1"),
        ("[scenario.export]\ntight = 2.0\nloose = -1.0", "between 0 and 1"),
        ("[scenario.export]\nfree = 1.0", "There are tight"),
        ("[evidence.lag_months]\ndeviation = 0", "above 0"),
        ("[evidence.lag_months]\nvalue = 'x'", "must be a number"),
        ("[evidence]\nlag_months = 3", "table with value"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(KrzemError, match=words) as caught:
        changed(text)
    assert isinstance(caught.value, DataError | UnknownNameError)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "x.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match="writes one to start from"):
        load(file)


_VALUES = st.one_of(
    st.floats().map(repr), st.integers().map(str), st.booleans().map(lambda b: str(b).lower()),
    st.sampled_from(["'text'", "[]", "{}", "[1, 2]", "{ mid = 1 }",
                     "{ low = 1, mid = 0, high = 2 }",
                     "2026-01-01", "{ mid = { } }", "1e999", "-inf"]),
)  # fmt: skip
_KEYS = st.sampled_from(
    ["title", "origin", "run.paths", "run.seed", "run.step_years", "quantity.catch_up", "quantity",
     "quantity.gap_points.mid", "scenario.export.tight", "scenario.export", "evidence",
     "evidence.lag_months.value", "evidence.lag_months", "scenario_source.export", "nonsense",
     "quantity.wear.shape", "quantity.leader_stock.high"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.tuples(_KEYS, _VALUES), max_size=4))
def test_fuzzed_files_are_taken_or_refused(lines: list[tuple[str, str]]) -> None:
    text = "\n".join(f"{key} = {value}" for key, value in lines)
    with suppress(DataError, UnknownNameError):
        changed(text)


@given(st.text(max_size=300))
def test_random_text_is_taken_or_refused(text: str) -> None:
    with suppress(DataError, UnknownNameError):
        changed(text)
