"""Questions settled: what is given wins, what is not comes from the recipe, nothing is silent."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import GoalError, InputError, QuantityError, UnknownFactError, UnknownNameError
from krzem.layout.layout import Optimizer, Precision, Schedule
from krzem.model.catalogue import load_model
from krzem.plan.question import Question, _sequences
from krzem.plan.request import Asked, settle


def ask(model: Any = "deepseek-v3", on: str = "h800:2048", **given: Any) -> Asked:
    return settle(Question(model=model, on=on, **given))


def notes(asked: Asked) -> str:
    return "\n".join(asked.notes)


def test_everything_comes_from_the_recipe_and_is_said() -> None:
    asked = ask()
    goal = asked.task.goal
    assert (goal.tokens, goal.sequence, goal.global_batch) == (14.8e12, 4096, 15360)
    assert goal.precision is Precision.FP8_BLOCK
    assert goal.optimizer is Optimizer.ADAMW
    assert goal.states.moments == 4.0
    assert set(asked.from_recipe) == {
        "tokens", "sequence", "global_batch", "precision", "optimizer", "state_bytes", "ramp",
    }  # fmt: skip
    assert "arXiv 2412.19437" in notes(asked)


def test_what_is_given_wins_over_the_recipe() -> None:
    asked = ask(tokens="1T", sequence="8k", global_batch=1024, precision="bf16", optimizer="muon",
                state_bytes="weight=1,moments=2")  # fmt: skip
    goal = asked.task.goal
    assert (goal.tokens, goal.sequence, goal.global_batch) == (10**12, 8192, 1024)
    assert (goal.precision, goal.optimizer) == (Precision.BF16, Optimizer.MUON)
    assert (goal.states.weight, goal.states.moments, goal.states.master) == (1.0, 2.0, 4.0)
    assert asked.from_recipe == ()


def test_another_sequence_keeps_the_tokens_of_a_batch() -> None:
    assert ask(sequence="8k").task.goal.global_batch == 15360 // 2


def test_another_optimizer_leaves_the_states_of_the_recipe() -> None:
    assert ask(optimizer="muon").task.goal.states.moments == 4.0
    assert ask("deepseek-v4-pro", optimizer="adamw").task.goal.states.moments == 8.0


def test_precision_that_the_device_lacks_falls_back_and_says_so() -> None:
    asked = ask(on="910c:2048")
    assert asked.task.goal.precision is Precision.BF16
    assert "precision" not in asked.from_recipe
    assert "fp8-block is not in the published peaks of huawei-ascend-910c: bf16" in notes(asked)
    old = ask("llama-3.1-8b", "v100:16", global_batch=16)
    assert old.task.goal.precision is Precision.FP16


def test_precision_asked_for_is_never_replaced() -> None:
    with pytest.raises(GoalError, match="Published: bf16, fp16: give one of them with --precision"):
        ask(on="910c:2048", precision="fp8")


def test_what_is_neither_given_nor_published_is_asked_for_at_once() -> None:
    with pytest.raises(GoalError) as caught:
        ask("gpt-oss-20b", "h100:16")
    for option in ("--tokens", "--seq", "--batch"):
        assert option in str(caught.value)


def test_schedules_are_those_of_the_engine_unless_lifted() -> None:
    assert ask().space.schedules == (Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED)
    assert Schedule.DUALPIPE in ask(engine="deepseek").space.schedules
    assert ask(schedules="all").space.schedules == tuple(Schedule)


def test_the_engine_is_the_one_whose_files_are_wanted() -> None:
    assert ask(emits="torchtitan").task.engine == "torchtitan"
    assert ask(emits="krzem", engine="deepseek").task.engine == "deepseek"
    with pytest.raises(InputError, match="leave --engine out"):
        ask(emits="torchtitan", engine="megatron-core")


def test_a_step_alone_needs_no_tokens() -> None:
    asked = ask("gpt-oss-20b", "h100:16", step_alone=True, sequence=4096, global_batch=64,
                precision="bf16")  # fmt: skip
    assert not asked.whole
    assert ask(step_alone=True).whole


def test_offload_doubles_the_space() -> None:
    assert ask().space.offload == (False,)
    assert ask(offload=True).space.offload == (False, True)


def test_the_year_of_the_software() -> None:
    assert ask(date="2025-01-01").task.year == 2025.0
    assert ask().date == datetime.date.today()


def test_deadline_as_duration_and_as_date() -> None:
    assert ask(deadline="60d").task.goal.deadline_days == 60.0
    dated = ask(deadline="2027-03-02", start="2027-01-01")
    assert dated.task.goal.deadline_days == 60.0
    assert ask(budget="$5M").task.goal.budget_usd == 5e6


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"precision": "int3"}, UnknownNameError, "Known: bf16"),
        ({"optimizer": "lion"}, UnknownNameError, "Known: adamw, muon"),
        ({"engine": "megatorn"}, UnknownNameError, "megatron-lm"),
        ({"tokens": "-1"}, QuantityError, "negative"),
        ({"tokens": "1k"}, GoalError, "less than one batch"),
        ({"global_batch": 8, "batch_tokens": "1M"}, GoalError, "keep one"),
        ({"batch_tokens": 10}, GoalError, "less than one sequence"),
        ({"deadline": "2020-01-01"}, GoalError, "not after the start"),
        ({"deadline": "0d"}, GoalError, "60d"),
        ({"sure": 1.5}, GoalError, "between 0 and 1"),
        ({"sure": float("nan")}, GoalError, "between 0 and 1"),
        ({"state_bytes": "weight=nan"}, GoalError, "from 0 to 64"),
        ({"state_bytes": "weight=2,weight=2"}, GoalError, "at most once"),
        ({"state_bytes": "colour=2"}, GoalError, "weight, gradient, master, moments"),
    ],
)
def test_wrong_parts_are_refused(given: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ask(**given)


def test_learned_positions_end() -> None:
    with pytest.raises(GoalError, match="2,048 learned positions"):
        ask("gpt3-175b", "a100:64", sequence="4k")
    assert "longer than the" in notes(ask("llama-3.1-8b", "h100:16", sequence="1M",
                                          global_batch=16))  # fmt: skip


def test_a_device_without_any_training_peak() -> None:
    with pytest.raises(UnknownFactError, match="does not know"):
        ask(on="thead-ppu-v900:16")
    with pytest.raises(UnknownFactError, match="the dense 16-bit peak of microsoft-maia-200"):
        ask("llama-3.1-8b", "microsoft-maia-200:16", global_batch=16)
    with pytest.raises(GoalError, match="Published: bf16, fp16, fp32"):
        ask("llama-3.1-8b", "a100:16", global_batch=16, precision="fp8")


def test_a_config_that_bears_the_name_of_a_built_in_model_has_no_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "llama-2-7b"
    folder.mkdir()
    config = dict(ask("llama-2-7b", "h100:8").config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(GoalError, match="is not published: give --tokens"):
        ask(folder, "h100:8")
    given = ask(folder, "h100:8", tokens="1T", sequence="4k", global_batch=8, precision="bf16")
    assert given.config == config
    assert given.recipe is None
    assert "AdamW is planned" in notes(given)


def test_an_architecture_is_a_model_too() -> None:
    asked = ask(load_model("deepseek-v3"))
    assert asked.recipe is not None
    assert asked.config["model_type"] == "deepseek_v3"


@given(tokens=st.integers(1, 10**9), sequence=st.integers(1, 10**5))
def test_a_batch_in_tokens_is_near_and_round(tokens: int, sequence: int) -> None:
    said: list[str] = []
    if tokens < sequence:
        with pytest.raises(GoalError, match="less than one sequence"):
            _sequences(tokens, sequence, said)
        return
    batch = _sequences(tokens, sequence, said)
    exact = tokens / sequence
    assert abs(batch - exact) <= max(0.005 * exact, 0.5)
    assert bool(said) == (batch * sequence != tokens)


def test_the_published_batch_of_v4_is_found_from_its_tokens() -> None:
    assert _sequences(94_400_000, 4096, []) == 23040
    assert _sequences(75_500_000, 4096, []) == 18432
