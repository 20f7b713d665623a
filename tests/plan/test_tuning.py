"""Fine-tuning: what adapters hold, cost and save, against counts that can be done by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from krzem.errors import GoalError, KrzemError, UnknownNameError
from krzem.layout.layout import pack, parse_layout
from krzem.model.catalogue import load_model, model_ids
from krzem.model.parameters import count
from krzem.plan.goal import Tuning
from krzem.plan.plan import trained
from krzem.plan.price import Pricer, Task
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.plan.tuning import (
    EVERYWHERE,
    ON_ATTENTION,
    ON_MLP,
    adapted,
    adapter_parameters,
    check_targets,
    left_out,
    read_tuning,
    shares,
    trained_flops,
)

LLAMA = load_model("llama-3.1-8b")
LAYOUT = pack([parse_layout("tp=1,pp=1,dp=1,mbs=2,zero=2")])


def ask(**more: Any) -> Task:
    given = {"model": "llama-3.1-8b", "on": "nvidia-a100-sxm-80:1", "tokens": "10M",
             "sequence": 2048, "global_batch": 16}  # fmt: skip
    return settle(Question(**given | more)).task


def peak(task: Task) -> float:
    return float(np.ravel(Pricer(task).memory(LAYOUT).peak)[0])


def seconds(task: Task) -> float:
    return float(np.ravel(Pricer(task).step(LAYOUT).total)[0])


@pytest.mark.parametrize(
    ("targets", "each"),
    [
        # q and o are 4,096 x 4,096, k and v 4,096 x 1,024, the network's 4,096 x 14,336.
        (EVERYWHERE, 2 * 8192 + 2 * 5120 + 3 * 18_432),
        (("attention",), 2 * 8192 + 2 * 5120),
        (("q_proj", "v_proj"), 8192 + 5120),
        (("mlp",), 3 * 18_432),
        (("gate_proj", "down_proj"), 2 * 18_432),
    ],
)
@pytest.mark.parametrize("rank", [1, 8, 64])
def test_adapters_are_rank_times_inputs_and_outputs(
    targets: tuple[str, ...], each: int, rank: int
) -> None:
    tuning = Tuning(kind="lora", rank=rank, targets=targets)
    assert adapter_parameters(tuning, LLAMA) == 32 * rank * each


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3", "gpt3-175b"])
def test_named_matrices_are_parts_of_the_whole(model: str) -> None:
    architecture = load_model(model)
    whole = Tuning(kind="lora", rank=16, targets=EVERYWHERE)
    assert shares(whole, architecture) == (1.0, 1.0)
    assert 0 < adapter_parameters(whole, architecture) < 0.02 * 175e9
    assert adapted(whole) == (4.0, 3.0)


def test_all_names_of_a_group_are_the_group() -> None:
    for word, names in (("attention", ON_ATTENTION), ("mlp", ON_MLP)):
        group = Tuning(kind="lora", rank=4, targets=(word,))
        listed = replace(group, targets=names)
        assert adapter_parameters(group, LLAMA) == adapter_parameters(listed, LLAMA)
        assert adapted(group) == adapted(listed)


def test_frozen_weights_cost_two_thirds_of_the_products() -> None:
    full, lora = ask(finetune="full"), ask(finetune="lora")
    share = trained_flops(lora.goal, LLAMA) / trained_flops(full.goal, LLAMA)
    assert 2 / 3 < share < 0.7  # attention scores have no weights: all of theirs stays
    assert 0.6 < seconds(lora) / seconds(full) < 0.9


def test_memory_falls_from_full_to_adapters_to_a_base_in_four_bits() -> None:
    full, lora, qlora = (peak(ask(finetune=kind)) for kind in ("full", "lora", "qlora"))
    weights = trained(ask(finetune="full"), 8_030_261_248)
    assert full - lora > 5 * weights  # gradients and moments in 16 bits: 6 bytes a parameter
    assert lora - qlora == pytest.approx(1.45 * 6.98e9, rel=0.1)  # the layers' 16 bits against 4
    assert qlora < lora < full


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_more_rank_and_more_targets_never_take_less(kind: str) -> None:
    def asked(rank: int, targets: str) -> Task:
        return ask(finetune=kind, lora_rank=rank, lora_targets=targets)

    assert peak(asked(8, "all")) < peak(asked(64, "all")) < peak(asked(512, "all"))
    assert peak(asked(64, "q_proj")) < peak(asked(64, "attention")) < peak(asked(64, "all"))
    assert seconds(asked(8, "q_proj")) <= seconds(asked(8, "all"))


def test_a_checkpoint_of_adapters_holds_adapters() -> None:
    task = ask(finetune="lora", lora_rank=16)
    assert trained(task, 8_030_261_248) == 41_943_040
    assert trained(ask(), 8_030_261_248) == 8_030_261_248


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"finetune": "dora"}, UnknownNameError, "full, lora, qlora"),
        ({"finetune": "lora", "lora_targets": "w1"}, UnknownNameError, "q_proj"),
        ({"finetune": "lora", "lora_rank": 5000}, GoalError, "from 1 to 4,096"),
        ({"lora_rank": 8}, GoalError, "add --finetune lora"),
        ({"finetune": "full", "lora_targets": "all"}, GoalError, "are of adapters"),
        ({"finetune": "lora", "state_bytes": "moments=4"}, GoalError, "leave it out"),
        ({"finetune": "lora", "engine": "megatron-lm"}, GoalError, "another --engine"),
        ({"finetune": "lora", "emits": "fsdp"}, GoalError, "plan without --emit"),
        (
            {"model": "deepseek-v3", "on": "h200:64", "finetune": "lora", "lora_targets": "q_proj"},
            GoalError,
            "write attention, mlp or all",
        ),
        (
            {"model": "qwen3-30b-a3b", "finetune": "lora", "lora_targets": "mlp"},
            GoalError,
            "experts",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused_with_the_way_out(
    asked: dict[str, Any], error: type[KrzemError], says: str
) -> None:
    with pytest.raises(error) as caught:
        ask(**asked)
    assert says in str(caught.value)


def test_choices_that_nobody_stated_are_said() -> None:
    notes: list[str] = []
    read_tuning("lora", None, "attention", notes)
    assert notes == ["rank 16: usual, and not stated (--lora-rank, --lora-targets)"]
    notes.clear()
    read_tuning("qlora", "64", "q_proj,v_proj", notes)
    assert notes == []


def test_a_published_recipe_is_of_pre_training_and_not_of_tuning() -> None:
    with pytest.raises(GoalError, match=r"fine-tuning llama-3.1-8b .* give --tokens .*--batch"):
        settle(Question(model="llama-3.1-8b", on="nvidia-h100-sxm:8", finetune="lora"))
    assert settle(Question(model="llama-3.1-8b", on="nvidia-h100-sxm:8", global_batch=64)).whole


@pytest.mark.parametrize("model", model_ids())
def test_every_model_has_adapters_and_says_what_has_none(model: str) -> None:
    architecture = load_model(model)
    whole = Tuning(kind="lora", rank=8, targets=EVERYWHERE)
    check_targets(whole, architecture)
    few = adapter_parameters(whole, architecture)
    assert 0 <= few < 0.05 * count(architecture).total
    assert adapter_parameters(replace(whole, rank=16), architecture) == pytest.approx(2 * few)
    said = left_out(whole, architecture)
    odd = architecture.is_moe or any(run.layer.recurrence for run in architecture.runs)
    assert (said is not None) == odd
    assert few > 0 or odd
