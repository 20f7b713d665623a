"""The language of conditions: what it says is what Python says, for one layout or for many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.engine.conditions import compiled, holds, names_in
from krzem.engine.description import engines
from krzem.engine.switches import Coded, switches
from krzem.errors import DataError

NAMES = ("tp", "pp", "ep", "zero")
numbers = st.integers(0, 9)
terms = st.one_of(
    st.sampled_from(NAMES),
    numbers.map(str),
    st.tuples(st.sampled_from(NAMES), st.sampled_from("+-*"), numbers).map(
        lambda t: f"({t[0]} {t[1]} {t[2]})"
    ),
    st.tuples(st.sampled_from(NAMES), st.sampled_from(("//", "%")), st.integers(1, 9)).map(
        lambda t: f"({t[0]} {t[1]} {t[2]})"
    ),
)
comparisons = st.tuples(terms, st.sampled_from(("==", "!=", "<", "<=", ">", ">=")), terms).map(
    " ".join
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(("and", "or")), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        inner.map(lambda c: f"not ({c})"),
    ),
    max_leaves=6,
)


@given(conditions, st.lists(st.tuples(*[numbers] * 4), min_size=1, max_size=6))
def test_arrays_are_judged_as_python_judges_each(text: str, rows: list[tuple[int, ...]]) -> None:
    values = {name: np.array([row[i] for row in rows]) for i, name in enumerate(NAMES)}
    found = np.broadcast_to(np.asarray(holds(text, values)), len(rows))
    expected = [eval(text, {}, dict(zip(NAMES, row, strict=True))) for row in rows]
    assert found.tolist() == [bool(e) for e in expected]
    alone = [bool(holds(text, dict(zip(NAMES, row, strict=True)))) for row in rows]
    assert alone == found.tolist()


def test_words_compare_with_coded_arrays() -> None:
    kind = Coded(np.array([0, 1, 2]), ("none", "modules", "full"))
    assert holds("recompute == 'full'", {"recompute": kind}).tolist() == [False, False, True]
    assert holds("recompute != 'full'", {"recompute": kind}).tolist() == [True, True, False]
    inside = holds("recompute in ('none', 'full')", {"recompute": kind})
    assert inside.tolist() == [True, False, True]
    assert holds("recompute not in ('none', 'full')", {"recompute": kind}).tolist() == [
        False, True, False,
    ]  # fmt: skip
    assert not holds("recompute == 'unheard'", {"recompute": kind}).any()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "open('x')", "tp.real", "[t for t in tp]", "lambda: 1", "tp[0]",
        "f'{tp}'", "tp if pp else ep", "tp ** 99", "x := 3", "tp / 2", "", "tp >", "1" * 3000,
    ],
)  # fmt: skip
def test_nothing_else_is_in_the_language(text: str) -> None:
    with pytest.raises(DataError):
        compiled(text)({"tp": 1, "pp": 1, "ep": 1})


def test_a_name_without_a_value_is_said() -> None:
    with pytest.raises(DataError, match="no value is known for 'tp'"):
        holds("tp > 1", {})


def test_every_condition_of_every_engine_is_about_names_that_have_values() -> None:
    from krzem.plan.price import Pricer
    from krzem.plan.question import Question
    from krzem.plan.request import settle

    words = {s.word for s in switches().values()}
    pricer = Pricer(settle(Question(model="deepseek-v3", on="h800:64")).task)
    from krzem.engine.switches import layout_values
    from krzem.layout.layout import Layout, pack

    known = set(pricer.values) | set(layout_values(pack([Layout()]), pricer.task.problem)) | words
    for engine in engines().values():
        texts = [r.when for r in engine.refuses]
        texts += [when for s in engine.switches.values() for _, when, _ in s.needs]
        for text in texts:
            assert names_in(text) <= known, (engine.name, text, names_in(text) - known)
