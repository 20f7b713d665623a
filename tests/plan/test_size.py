"""The largest model for a budget: shapes, the budget kept, the laws' optimum."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.cli.size import budget
from krzem.errors import GoalError, UnknownNameError
from krzem.model.build import read_config
from krzem.model.parameters import count
from krzem.plan.goodput import loss_law
from krzem.plan.question import Question
from krzem.plan.size import CLOSE, Size, shape, size


@settings(max_examples=60, deadline=None)
@given(st.floats(math.log(1e8), math.log(5e12)))
def test_a_shape_has_the_parameters_asked_for(log: float) -> None:
    config = shape(math.exp(log))
    counted = count(read_config(config, "dense"))
    assert counted.total == pytest.approx(math.exp(log), rel=0.06)
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    assert 45 <= hidden / layers <= 260  # small models are wide: most of them is vocabulary
    assert hidden == 128 * config["num_attention_heads"]
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


def small(hours: float, ratio: float | None = None, law: str = "besiroglu_2024") -> Size:
    question = Question(model="", on="nvidia-h100-sxm:64", limits="tp<=2,pp<=2,cp=1,mbs<=2")
    return size("nvidia-h100-sxm:64", hours, tokens_per_parameter=ratio, law=law, question=question)


@pytest.mark.parametrize("hours", [2e3, 6e4])
def test_the_budget_is_what_the_run_takes(hours: float) -> None:
    found = small(hours)
    used = found.plan.whole_run.device_hours
    assert used is not None
    assert used.mid == pytest.approx(hours, rel=1.5 * CLOSE)
    n, d = count(found.asked.task.architecture).total, found.asked.task.goal.tokens
    best = loss_law("besiroglu_2024").best_size(found.flop)
    assert n == pytest.approx(best[0], rel=0.06)
    assert found.flop == pytest.approx(6.0 * n * d, rel=1e-6)


def test_more_tokens_per_parameter_make_a_smaller_model() -> None:
    wide, narrow = small(2e4, 20.0), small(2e4, 200.0)
    for found, ratio in ((wide, 20.0), (narrow, 200.0)):
        n = count(found.asked.task.architecture).total
        assert found.asked.task.goal.tokens / n == pytest.approx(ratio, rel=0.1)
    assert narrow.plan.parameters < wide.plan.parameters


def test_an_optimum_loses_least_by_its_own_law() -> None:
    splits = small(2e4).splits
    for split in splits:
        if not split.rule.startswith("optimum of "):
            continue
        law = split.rule.removeprefix("optimum of ")
        losses = {s.rule: next(x.low for x in s.losses if x.law == law) for s in splits}
        assert min(losses, key=lambda rule: losses[rule]) == split.rule


@pytest.mark.parametrize(
    ("hours", "ratio", "law", "says"),
    [
        (0.0, None, "besiroglu_2024", "more than none"),
        (1e-6, None, "besiroglu_2024", "outside"),
        (1e4, 0.0, "besiroglu_2024", "such as 20"),
        (1e4, float("nan"), "besiroglu_2024", "such as 20"),
    ],
)
def test_budgets_that_train_nothing_are_refused(
    hours: float, ratio: float | None, law: str, says: str
) -> None:
    with pytest.raises(GoalError) as caught:
        small(hours, ratio, law)
    assert says in str(caught.value)


def test_an_unknown_law_names_those_that_there_are() -> None:
    with pytest.raises(UnknownNameError, match="besiroglu_2024"):
        small(1e4, law="chinchilla")


def test_a_budget_is_given_once_and_in_any_unit() -> None:
    assert budget("500", None, None, 4, 64) == 2000
    assert budget(None, "2k", None, 4, 64) == 2000
    assert budget(None, None, 2.0, 4, 64) == 3072
    for several in ((None, None, None), ("1", "1", None), ("1", None, 1.0)):
        with pytest.raises(GoalError, match="give one of"):
            budget(*several, 4, 64)
