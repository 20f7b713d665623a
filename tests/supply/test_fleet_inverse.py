"""Scaled models, the fewest devices, the largest model, and what a run must have used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from krzem.errors import GoalError, InputError, ModelError
from krzem.estimate import Estimate
from krzem.model.catalogue import load_model
from krzem.model.parameters import count
from krzem.plan.plan import plan
from krzem.plan.request import Question, settle
from krzem.plan.source import config_of
from krzem.supply.goal_file import goal_of
from krzem.supply.infer import Evidence, evidence_of, infer, known_runs
from krzem.supply.inverse import fewest, largest, within
from krzem.supply.scale import scaled
from krzem.supply.speed import speed_of

SMALL = {
    "model": "llama-2-7b", "tokens": "200B", "start": "2027-01-01", "deadline": "40d",
    "pool": [{"on": "a100-80:256", "sizes": [256]}],
}  # fmt: skip


@pytest.mark.parametrize("name", ["llama-2-70b", "deepseek-v3", "deepseek-v4-pro", "glm-4.5"])
@pytest.mark.parametrize("factor", [0.1, 0.5, 1.3, 8.0])
def test_a_scaled_model_has_about_that_many_parameters(name: str, factor: float) -> None:
    base = load_model(name)
    grown = scaled(config_of(name, base), factor, name)
    assert count(grown).total / count(base).total == pytest.approx(factor, rel=0.2)


def test_scaling_by_one_changes_nothing() -> None:
    base = load_model("deepseek-v3")
    assert count(scaled(config_of("deepseek-v3", base), 1.0, "x")).total == count(base).total


def test_a_config_that_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(ModelError, match="num_hidden_layers"):
        scaled({"n_layer": 4}, 2.0, "gpt")


def test_chance_of_keeping_a_date() -> None:
    days = Estimate.lognormal(100.0, 0.1)
    assert within(days, 100.0) == pytest.approx(0.5)
    assert within(days, days.high) == pytest.approx(0.9, abs=1e-6)
    assert within(days, 0.0) == 0.0
    assert within(Estimate(5.0, 5.0, 5.0), 6.0) == 1.0


def test_the_fewest_devices_are_enough_and_fewer_are_not() -> None:
    goal = goal_of(SMALL)
    (found,) = fewest(goal)
    assert found.devices is not None
    assert found.chance is not None
    assert found.chance >= goal.sure
    assert found.devices < 256
    tighter = replace(goal, pools=(replace(goal.pools[0], sizes=(found.devices // 2,)),))
    (less,) = fewest(tighter)
    assert less.devices is None
    assert "in time with" in less.words


def test_the_largest_model_meets_the_date_with_the_chance_asked_for() -> None:
    goal = goal_of(SMALL)
    found = largest(goal)
    assert found.odds.meets_date >= goal.sure
    assert found.parameters > count(load_model("llama-2-7b")).total
    sooner = largest(replace(goal, deadline=goal.deadline.replace(day=1)))
    assert sooner.parameters <= found.parameters


def test_tokens_may_follow_the_model() -> None:
    found = largest(goal_of(SMALL), tokens_per_parameter=20)
    assert found.tokens == pytest.approx(20 * found.active_parameters, rel=1e-6)


def test_no_model_at_all_is_said() -> None:
    with pytest.raises(GoalError, match="no model of the family"):
        largest(goal_of(SMALL | {"deadline": "2d"}))


@pytest.mark.parametrize(
    ("model", "on"), [("deepseek-v3", "h800:2048"), ("llama-3.1-405b", "h100:16384")]
)
def test_the_lean_search_loses_little(model: str, on: str) -> None:
    asked = settle(Question(model=model, on=on, date="2026-11-01"))
    whole = plan(asked.task, space=asked.space, alternatives=0).best.step_seconds.mid
    assert speed_of(asked).step_seconds.mid <= whole * 1.04


TOLD = Evidence(model="llama-2-7b", card_hours=184_320, done="2023-07",
                candidates=("a100-sxm-80", "h100", "v100-sxm2-32"))  # fmt: skip


def test_odds_add_up_and_more_evidence_narrows_them() -> None:
    loose = infer(replace(TOLD, days=(10.0, 400.0)))
    assert sum(kind.probability for kind in loose.kinds) == pytest.approx(1.0)
    assert sum(loose.families.values()) == pytest.approx(1.0)
    tight = infer(replace(TOLD, days=(20.0, 25.0)))
    for before, after in zip(
        sorted(loose.kinds, key=lambda k: k.device), sorted(tight.kinds, key=lambda k: k.device),
        strict=True,
    ):  # fmt: skip
        assert after.cards.high / after.cards.low < before.cards.high / before.cards.low


def test_hours_and_days_fix_the_number() -> None:
    found = infer(replace(TOLD, days=(28.0, 32.0))).kinds[0]
    assert found.cards.mid == pytest.approx(184_320 / 24 / 30, rel=0.2)


def test_a_stock_makes_larger_fleets_improbable() -> None:
    free = infer(replace(TOLD, card_hours=None, days=(20.0, 30.0)))
    held = infer(
        replace(TOLD, card_hours=None, days=(20.0, 30.0), stock={"nvidia-a100-sxm-80": 50})
    )
    name = "nvidia-a100-sxm-80"
    before = next(k.probability for k in free.kinds if k.device == name)
    assert next(k.probability for k in held.kinds if k.device == name) < before


def test_later_devices_and_contradictions() -> None:
    found = infer(replace(TOLD, candidates=("a100-sxm-80", "b200-sxm")))
    assert "after the run" in found.left_out["nvidia-b200-sxm"]
    with pytest.raises(InputError, match="contradicts"):
        infer(replace(TOLD, card_hours=1.0))
    with pytest.raises(InputError, match="nothing to infer"):
        infer(Evidence(model="llama-2-7b"))
    with pytest.raises(InputError, match="days 5 to 2"):
        infer(replace(TOLD, days=(5.0, 2.0)))


@pytest.mark.parametrize("run", ["deepseek-v3", "llama-3.1-405b", "llama-2-70b", "llama-2-7b"])
def test_published_runs_are_recognised(run: str) -> None:
    """The family of the device that was used has at least a third of the odds."""
    row = next(row for row in known_runs() if row["id"] == run)
    found = infer(evidence_of(row))
    true = next(k for k in found.kinds if k.device == row["device"])
    assert found.families[true.speed.family] >= 1 / 3
    assert np.isfinite(true.card_hours.mid)
