"""Planted faults are found where they are; honest changes pass."""

from __future__ import annotations

from typing import Any

import pytest
from tests.witness.fault_list import FAULTS
from tests.witness.models import batches, subject
from tests.witness.plants import HONEST, PLANTS, Plant

from krzem.witness.checking import check
from krzem.witness.quantity import Kind

CASES = [(p, model) for p in PLANTS for model in p.models]
SAMPLE = [(p, p.models[0]) for p in FAULTS[len(PLANTS) :: 4]]
"""benchmarks/witness.py tries all of them, in every model."""
Recorded = dict[tuple[str, str], tuple[Any, Any]]


@pytest.mark.parametrize(("plant", "model"), CASES, ids=[f"{m}-{p.name}" for p, m in CASES])
def test_a_planted_fault_is_found_where_it_is(plant: Plant, model: str, recorded: Recorded) -> None:
    witness, there = recorded[model, "float32"]
    with plant.plant(there):
        verdict = check(witness, there)
    assert not verdict.passed
    assert verdict.first is not None
    assert verdict.first.direction == plant.direction, verdict.message
    assert verdict.first.name.startswith(plant.at), verdict.message
    assert check(witness, there).passed  # and nothing is left of the plant


@pytest.mark.parametrize(("plant", "model"), SAMPLE, ids=[p.name for p, _ in SAMPLE])
def test_later_faults_are_found_on_the_way_that_a_run_takes(
    plant: Plant, model: str, recorded: Recorded
) -> None:
    """Recorded and checked in float32 and in bfloat16, moments and next step included."""
    witness, there = recorded[model, "both"]
    with plant.plant(there):
        verdict = check(witness, there)
    assert plant.is_found_by(verdict.first), verdict.message


def test_nothing_is_left_of_a_plant(recorded: Recorded) -> None:
    for model in ("deepseek_v3", "llama"):
        witness, there = recorded[model, "both"]
        verdict = check(witness, there)
        assert verdict.passed, verdict.message
        assert verdict.dtypes == ("float32", "bfloat16")
        assert verdict.not_compared == (
            "the settings of the run: no run file was given on both sides",
        )


def test_all_faults_are_told_apart_by_name() -> None:
    assert len({p.name for p in FAULTS}) == len(FAULTS) >= 70
    assert sum(bool(p.source) for p in FAULTS) >= 15


BLUNT = {"wrong epsilon in norms (x10)", "RoPE base 50,000 for 10,000"}
"""Smaller than what bfloat16 rounds away in a model this small: float32 sees them."""
COARSE = [(p, "llama") for p in PLANTS if "llama" in p.models and "bfloat16" in p.dtypes]
COARSE = [(p, model) for p, model in COARSE if p.name not in BLUNT]


@pytest.mark.parametrize(("plant", "model"), COARSE, ids=[f"{m}-{p.name}" for p, m in COARSE])
def test_most_faults_show_in_bfloat16_too(plant: Plant, model: str, recorded: Recorded) -> None:
    witness, there = recorded[model, "bfloat16"]
    with plant.plant(there):
        verdict = check(witness, there)
    assert verdict.first is not None
    assert verdict.first.direction == plant.direction, verdict.message
    assert verdict.first.name.startswith(plant.at), verdict.message


RUNS = [("deepseek_v3", "float32"), ("llama", "bfloat16")]


@pytest.mark.parametrize(("model", "dtype"), RUNS)
@pytest.mark.parametrize("change", HONEST)
def test_an_honest_change_passes(model: str, dtype: str, change: str, recorded: Recorded) -> None:
    witness, there = recorded[model, dtype]
    with HONEST[change](there):
        verdict = check(witness, there)
    assert verdict.passed, [
        (f.quantity.name, f.signal, f.error, f.tolerance) for f in verdict.departures
    ]
    assert not any("settings" not in what for what in verdict.not_compared)


def test_exchanged_experts_are_named(recorded: Recorded) -> None:
    witness, there = recorded["deepseek_v3", "float32"]
    plant = next(p for p in PLANTS if p.name == "two experts exchanged")
    with plant.plant(there):
        verdict = check(witness, there)
    assert any("0 holds 1, 1 holds 0" in note for note in verdict.notes)


def test_a_loss_alone_hides_wrong_gradients(recorded: Recorded) -> None:
    """A layer's gradients a tenth off move neither the loss nor the global norm much."""
    witness, there = recorded["deepseek_v3", "float32"]
    plant = next(p for p in PLANTS if "gradients x1.1" in p.name)
    with plant.plant(there):
        verdict = check(witness, there)
    departing = {f.quantity.kind for f in verdict.departures}
    assert Kind.LOSS not in departing
    whole = [f.error for f in verdict.findings if f.quantity.kind is Kind.GRADIENT_NORM]
    assert max(whole) < 0.1, "within what is usually tolerated of the norm"
    assert {Kind.GRADIENT, Kind.LAYER_GRADIENT} <= departing


def test_backward_faults_leave_the_forward_pass_alone(recorded: Recorded) -> None:
    witness, there = recorded["llama", "float32"]
    plant = next(p for p in PLANTS if "backward x1.2" in p.name)
    with plant.plant(there):
        verdict = check(witness, there)
    kinds = {f.quantity.kind for f in verdict.departures}
    assert Kind.ACTIVATION not in kinds
    layers = {f.quantity.layer for f in verdict.departures if f.quantity.layer.startswith("layers")}
    assert layers == {"layers.0", "layers.1", "layers.2"}  # the fault goes on towards the input


def test_other_data_gives_another_reading(recorded: Recorded) -> None:
    """The check can fail: the same model on other tokens is another step."""
    from dataclasses import replace

    witness, there = recorded["llama", "float32"]
    other = tuple(replace(b, tokens=b.tokens[:, ::-1].copy()) for b in batches())
    verdict = check(replace(witness, batches=other), there)
    assert verdict.first is not None
    assert verdict.first.name == "embed_tokens"


def test_all_families_agree_with_themselves() -> None:
    from tests.witness.models import QUICK

    from krzem.witness.recording import record

    for family in ("qwen3", "qwen3_moe", "deepseek_v4"):
        witness = record(subject(family), batches(2), settings=QUICK)
        assert check(witness, subject(family)).passed
