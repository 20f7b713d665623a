"""Scaled models, the fewest devices, the largest model, and what a run must have used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from krzem.errors import GoalError, InputError, ModelError
from krzem.estimate import Estimate
from krzem.model.catalogue import load_model
from krzem.model.parameters import count
from krzem.plan.goal import config_of
from krzem.plan.plan import plan
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.supply.goal_file import goal_of
from krzem.supply.infer import Evidence, infer
from krzem.supply.inverse import fewest, largest, scaled, within
from krzem.supply.judge import evidence_of, judged
from krzem.supply.kinds import common, obtainable, on_market, released
from krzem.supply.known import durations, known_runs, model_of, shortfalls
from krzem.supply.speed import speed_of
from krzem.supply.text import left_out_lines

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
    assert "chance of meeting the deadline" in less.words


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
    assert found.days.mid * 24 * found.cards.mid == pytest.approx(found.card_hours.mid)


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


def test_forty_known_runs_with_sources_and_models_that_can_be_built() -> None:
    rows = known_runs()
    assert len(rows) >= 40
    for row in rows:
        assert row["source"]
        assert row["done"]
        model = model_of(row)
        built = load_model(model) if isinstance(model, str) else model
        assert count(built).total > 1e8


@pytest.mark.parametrize(
    ("shape", "billions"), [("llama-65b", 65.2), ("bloom-176b", 176.2), ("pythia-12b", 11.8)]
)
def test_shapes_have_as_many_parameters_as_their_models(shape: str, billions: float) -> None:
    row = next(row for row in known_runs() if row["shape"] == shape)
    model = model_of(row)
    assert not isinstance(model, str)
    assert count(model).total / 1e9 == pytest.approx(billions, rel=0.02)


def test_a_run_is_judged_without_its_own_shortfall() -> None:
    assert len(shortfalls("llama-2-7b")) == len(shortfalls()) - 1
    row = next(row for row in known_runs() if row["id"] == "llama-2-7b")
    assert evidence_of(row).leave_out == "llama-2-7b"
    assert evidence_of(row).cards is None


def test_a_chip_counts_from_its_release_and_where_it_could_be_had() -> None:
    assert on_market("nvidia-h100-sxm", -1.0) == 0.0
    assert on_market("nvidia-h100-sxm", 3.0) < on_market("nvidia-h100-sxm", 12.0) == 1.0
    assert on_market("nvidia-h100-sxm", 80.0) < 0.2
    day = released("nvidia-h800-sxm").replace(year=2024)
    assert obtainable("nvidia-h100-sxm", "CN", day) < obtainable("nvidia-h800-sxm", "CN", day)
    assert obtainable("nvidia-h100-sxm", "US", day) == 1.0
    assert common("google-tpu-v4", "DeepMind") > common("google-tpu-v4", "Mosaic")
    assert common("huawei-ascend-910b", "Huawei") > 1


def test_a_slow_run_may_be_a_careless_one() -> None:
    """Twice the hours of a good run on H100 do not make it an A100 run by themselves."""
    told = replace(TOLD, done="2024-06", country="US", candidates=("a100-sxm-80", "h100"))
    good = infer(told)
    h100 = next(k for k in good.kinds if k.device == "nvidia-h100-sxm")
    slow = infer(replace(told, card_hours=h100.card_hours.mid * 1.8))
    assert next(k.probability for k in slow.kinds if k.device == "nvidia-h100-sxm") > 0.05


def test_what_starts_too_early_is_left_out_by_the_length_of_the_run() -> None:
    told = replace(TOLD, card_hours=None, done="2023-01", candidates=("a100-sxm-80", "h100"))
    short = infer(replace(told, days=(10.0, 20.0)))
    long = infer(replace(told, days=(200.0, 220.0)))
    assert {k.device for k in short.kinds} == {"nvidia-a100-sxm-80", "nvidia-h100-sxm"}
    assert "nvidia-h100-sxm" in long.left_out


def test_one_card_is_a_number_too() -> None:
    small = model_of(next(row for row in known_runs() if row["id"] == "tinyllama-1.1b"))
    run = {"tokens": 17_000_000_000, "batch_tokens": 2**19, "sequence": 2048}
    told = Evidence(model=small, run=run, card_hours=250.0, days=(9.0, 12.0),
                    candidates=("a100-sxm-80",))  # fmt: skip
    assert infer(told).cards.mid == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize("run", ["llama-2-7b", "pythia-6.9b"])
def test_published_runs_are_recognised(run: str) -> None:
    """The device that was used is among those that hold 80 % of the odds."""
    found = judged(next(row for row in known_runs() if row["id"] == run))
    assert found.in_credible
    assert found.probability > 0.05


def test_lengths_of_runs_fall_inside_their_intervals_as_often_as_is_said() -> None:
    """Each run with a known number of cards, left out: where no days are given, the number follows
    from how long runs of so many card-hours take.  80 % is claimed."""
    grid = np.linspace(-6.0, 6.0, 2401)
    inside = []
    for row in known_runs():
        if not (row["devices"] and row["device_hours"]):
            continue
        hours, cards = float(row["device_hours"]), float(row["devices"])
        usual = durations(row["id"])
        shares = np.cumsum(usual.chance(grid)) / usual.chance(grid).sum()
        low, high = np.interp([0.1, 0.9], shares, grid)
        inside.append(low <= np.log(hours / 24.0 / cards / usual.usual(hours)) <= high)
    assert len(inside) >= 30
    assert 0.7 <= np.mean(inside) <= 0.9


def test_what_is_left_out_for_one_reason_stands_in_one_point() -> None:
    lines = left_out_lines(
        {
            "h200": "released 2024-11, after the run had to start (2024-05)",
            "b200": "released 2025-01, after the run had to start (2024-05)",
            "t20": "t20:2048 needs the dense 16-bit peak of t20.\nIts notes: long",
            "s60": "s60:2048 needs the dense 16-bit peak of s60.\nOther notes",
            "l4": "rare there and then: 0.004 of the commonest",
        }
    )
    assert lines == [
        "- left out, released after the run had to start (2024-05): h200 (2024-11), b200 (2025-01)",
        "- left out, it needs the dense 16-bit peak of it: t20, s60",
        "- left out, rare there and then, by their share of the commonest: l4 (0.004)",
    ]
