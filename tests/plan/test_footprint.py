"""What a run amounts to: compute against thresholds, carbon, loss, failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from krzem.errors import GoalError, KrzemError, UnknownNameError
from krzem.hardware.cluster_reader import read_cluster
from krzem.hardware.machines import machines
from krzem.plan.answer import plan_of
from krzem.plan.footprint import Footprint, footprint_of, grids, read_grid, thresholds
from krzem.plan.forecast import WholeRun
from krzem.plan.goodput import dense_laws
from krzem.plan.question import Question
from krzem.plan.request import settle

H100 = read_cluster("nvidia-h100-sxm:8")


def found(**more: Any) -> tuple[WholeRun, Footprint]:
    given = {"model": "llama-3.1-8b", "on": "nvidia-h100-sxm:64", "tokens": "15T",
             "global_batch": 1024, "limits": "tp=1,pp=1,mbs=1"}  # fmt: skip
    asked = settle(Question(**given | more))
    plan = plan_of(asked, alternatives=1)
    assert plan.footprint is not None
    return plan.whole_run, plan.footprint


@pytest.mark.parametrize(
    ("model", "on", "tokens", "published"),
    [
        # Published training compute: model cards and reports, 6 N D without attention.
        ("llama-3.1-8b", "nvidia-h100-sxm:64", "15T", 7.2e23),
        ("llama-3.1-70b", "nvidia-h100-sxm:512", "15T", 6.4e24),
        ("llama-3.1-405b", "nvidia-h100-sxm:8192", "15.6T", 3.8e25),
    ],
)
def test_compute_is_that_which_is_published(
    model: str, on: str, tokens: str, published: float
) -> None:
    asked = settle(Question(model=model, on=on, tokens=tokens, global_batch=2048)).task
    run, _ = found()
    amount = footprint_of(asked, run, None)
    assert amount.flop == pytest.approx(published, rel=0.15)
    above = {t.id for t in amount.thresholds if amount.flop > t.flop}
    assert ("eu-systemic" in above) == (published > 1e25)
    assert "eu-gpai" in above


def test_every_threshold_has_its_law_status_and_source() -> None:
    assert {t.flop for t in thresholds()} == {1e23, 1e25, 1e26}
    for t in thresholds():
        assert t.law
        assert t.duty
        assert t.source
        assert t.status in {"in force", "not in force yet", "repealed", "guideline"}
        assert len(t.date) == 10


def test_carbon_is_energy_times_the_grid() -> None:
    run, amount = found(grid="pl")
    assert run.energy_mwh is not None
    assert amount.co2_tonnes is not None
    assert amount.co2_tonnes.mid == pytest.approx(run.energy_mwh.mid * 662 / 1000)
    other = found(grid="331")[1]
    assert other.co2_tonnes is not None
    assert other.co2_tonnes.mid == pytest.approx(amount.co2_tonnes.mid / 2)


def test_without_a_grid_carbon_is_unknown_and_the_way_to_give_it_is_said() -> None:
    amount = found()[1]
    assert amount.co2_tonnes is None
    assert any("--grid fr" in note for note in amount.notes)


@pytest.mark.parametrize(
    ("text", "name"),
    [("fr", "France"), ("France", "France"), ("UK", "United Kingdom"), ("usa", "United States"),
     ("world", "World"), ("56", "as given"), ("56g", "as given")],
)  # fmt: skip
def test_grids_are_named_as_people_name_them(text: str, name: str) -> None:
    grid = read_grid(text, H100)
    assert grid is not None
    assert grid.name == name


@pytest.mark.parametrize(
    ("text", "error"), [("atlantis", UnknownNameError), ("2000", GoalError), ("-1", GoalError),
                        ("nan", GoalError), ("inf", GoalError), ("", UnknownNameError)]
)  # fmt: skip
def test_a_grid_that_is_none_is_refused(text: str, error: type[KrzemError]) -> None:
    with pytest.raises(error):
        read_grid(text, H100)


def test_every_public_machine_has_a_grid() -> None:
    assert {m.country.lower() for m in machines().values()} <= set(grids())


def test_a_public_machine_is_on_its_country_s_grid() -> None:
    grid = read_grid(None, read_cluster("leonardo:64"))
    assert grid is not None
    assert grid.id == "it"


def test_losses_of_a_dense_model_are_one_number_a_law() -> None:
    losses = found()[1].losses
    assert {x.law for x in losses} == {n for n, law in dense_laws().items() if not law.doubt}
    assert len(losses) >= 3
    assert all(x.low == x.high for x in losses)


def test_more_tokens_expect_less_loss_and_a_mixture_a_range() -> None:
    few, many = found(tokens="1T")[1].losses, found(tokens="15T")[1].losses
    assert all(a.low > b.low for a, b in zip(few, many, strict=True))
    mixed = found(model="qwen3-30b-a3b", tokens="1T")[1].losses
    assert all(x.low < x.high for x in mixed)


def test_fine_tuning_expects_no_loss_and_says_what_is_not_counted() -> None:
    amount = found(tokens="100M", finetune="full", global_batch=64, sequence=4096)[1]
    assert amount.losses == ()
    assert any("tuning alone" in note for note in amount.notes)


def test_failures_bound_what_chance_brings_beyond_their_expectation() -> None:
    run = found()[0]
    assert run.failures is not None
    assert run.interruptions is not None
    assert run.failures.low <= run.interruptions.low
    assert run.failures.high >= run.interruptions.high
    assert all(float(x).is_integer() for x in (run.failures.low, run.failures.high))
    assert np.isclose(run.failures.mid, run.interruptions.mid, rtol=0.2)
