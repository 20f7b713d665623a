"""Answers to settled questions: one layout, several clusters, launch scripts."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import ClusterError, LayoutError, UnknownNameError
from krzem.layout.layout import Layout, parse_layout
from krzem.plan.answer import (
    candidates_of,
    complete,
    explanation_of,
    fitting_batch,
    plan_of,
    script_of,
)
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle


def asked(on: str = "h100:16", model: str = "qwen3-0.6b", batch: int = 64) -> Asked:
    return settle(Question(model=model, on=on, global_batch=batch))


def test_the_data_parallel_degree_follows_from_the_devices() -> None:
    notes: list[str] = []
    assert complete("tp=2,pp=4,mbs=2", 64, notes) == Layout(tp=2, pp=4, dp=8, micro_batch=2)
    assert notes == ["dp=8 follows from 64 devices / (tp=2 * cp=1 * pp=4)"]


def test_a_degree_that_is_given_is_kept() -> None:
    notes: list[str] = []
    assert complete("tp=2,dp=3", 64, notes).dp == 3
    assert notes == []


def test_shards_are_checked_against_the_derived_degree() -> None:
    assert complete("zero=3,shard=8", 16, []).shard == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("tp=3", "= 3 does not divide the 16 devices"),
        ("tp=3,foo=1", "not name=value"),
        ("tp=x", "a whole number up to"),
        ("tp=0", "from 1 to"),
        ("tp=2,tp=2", "given twice"),
        ("pp=99999999999", "a whole number up to"),
    ],
)
def test_malformed_layouts(text: str, says: str) -> None:
    with pytest.raises(LayoutError, match=says):
        complete(text, 16, [])


@given(st.text("tpcvedmbszrokul=,0123456789-. ", max_size=30))
def test_any_text_is_a_layout_or_a_layout_error(text: str) -> None:
    with contextlib.suppress(LayoutError):
        assert complete(text, 16, []).devices > 0


def test_an_explanation_says_what_was_derived() -> None:
    found = explanation_of(asked(), "tp=2")
    assert found.notes[0].startswith("dp=8 follows")
    assert found.plan.layout.dp == 8


def test_a_cluster_that_is_too_small_keeps_its_reason() -> None:
    small, large = asked("h100:1", "llama-3.1-8b", 8), asked("h100:8", "llama-3.1-8b", 8)
    none, some = candidates_of([small, large], alternatives=1)
    assert none.plan is None
    assert none.error is not None
    assert "times too little" in none.error
    assert some.plan is not None
    with pytest.raises(ClusterError, match="times too little"):
        candidates_of([small])


def test_nothing_to_compare() -> None:
    with pytest.raises(ClusterError, match="at least one"):
        candidates_of([])


def test_a_script_holds_the_layout() -> None:
    question = asked()
    found = explanation_of(question, "tp=2,mbs=2,recompute=full")
    assert "--tensor-model-parallel-size 2" in script_of(question, found, "megatron-lm")
    with pytest.raises(UnknownNameError, match="megatron-lm"):
        script_of(question, found, "megatron")


def test_a_batch_that_no_layout_divides_gives_way_to_the_nearest() -> None:
    question = Question(model="llama-3.1-8b", on="h100:64", sequence="4k", tokens="1T",
                        global_batch=1009, limits="dp>=8")  # fmt: skip
    asked = settle(question)
    found = fitting_batch(asked)
    assert found.task.goal.global_batch == 1008
    assert "1,008" in found.batch_notes[0]
    assert fitting_batch(found) == found
    assert plan_of(asked, alternatives=0).notes[0] == found.batch_notes[0]


@pytest.mark.parametrize(("batch", "taken"), [(1000, 992), (1009, 1024), (1024, 1024), (3, 3)])
def test_explaining_takes_the_nearest_whole_number_of_micro_batches(batch: int, taken: int) -> None:
    asked = settle(Question(model="llama-3.1-8b", on="h100:64", sequence="4k", tokens="1T",
                            global_batch=batch))  # fmt: skip
    layout = parse_layout("tp=2,dp=32")
    if taken == batch == 3:
        with pytest.raises(LayoutError):
            explanation_of(asked, layout)
        return
    found = explanation_of(asked, layout)
    assert found.task.goal.global_batch == taken
    assert any("instead" in note for note in found.notes) == (taken != batch)
