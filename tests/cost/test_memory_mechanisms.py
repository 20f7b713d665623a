"""What engines really hold: each mechanism has a sign, a size and a case where it does nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import gpt

from krzem.cost.memory import MemoryBytes, memory_bytes
from krzem.cost.memory_error import (
    MemorySpread,
    MemoryStanding,
    fits_probability,
    student_cdf,
)
from krzem.cost.sizes import (
    ENDS_BYTES,
    FOUR_BITS,
    MOMENT_BYTES,
    Kept,
    StateSizes,
    sizes_of,
    usual_states,
)
from krzem.engine.description import engines
from krzem.layout.layout import Layout, Precision, Recompute, StateBytes, pack
from krzem.model.table import tabulate

TABLE = tabulate(gpt(4096, 32, 32), 2048)
PURE = StateSizes(weight=2.0, gradient=2.0, optimizer=4.0, scratch=0.0)
"""Weights, gradients and two moments in 16 bits."""
FULL = Recompute.FULL


def memory(layout: Layout, sizes: StateSizes, batch: float) -> MemoryBytes:
    return memory_bytes(TABLE, pack([layout]), sizes, 2.0, batch, 0.0)


def peak(layout: Layout, sizes: StateSizes, batch: float = 64.0) -> float:
    return float(memory(layout, sizes, batch).tensors[0])


def parameters() -> float:
    found = memory(Layout(), PURE, 64.0).first
    return float(found.weights[0]) / 2.0


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
@pytest.mark.parametrize("width", [1.0, 2.0])
def test_the_optimizers_step_sets_the_peak_of_small_batches(micro_batch: int, width: float) -> None:
    # 2 + 2 + 4 and one moment-sized temporary: 10.0 bytes a parameter, 20.0 in 32 bits.
    sizes = StateSizes(
        weight=2.0 * width, gradient=2.0 * width, optimizer=4.0 * width, step=2.0 * width,
        lazy=1.0, logit=1.0, scratch=0.0,
    )  # fmt: skip
    one = Layout(micro_batch=micro_batch, zero=0, recompute=FULL)
    assert peak(one, sizes, micro_batch) == pytest.approx(10.0 * width * parameters())


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 4, 16]))
def test_gradients_and_activations_share_memory_once(micro_batch: int, dp: int) -> None:
    layout = Layout(dp=dp, micro_batch=micro_batch, zero=3, recompute=FULL)
    lazy = replace(PURE, lazy=1.0)
    batch = float(dp * micro_batch)
    once, several = peak(layout, lazy, batch), peak(layout, lazy, 2.0 * batch)
    assert once <= several == pytest.approx(peak(layout, PURE, 2.0 * batch))
    found = memory(layout, lazy, batch).first
    assert float(found.gradients[0]) == 0.0 or float(found.activations[0]) == 0.0


@given(st.sampled_from([2, 4, 8]), st.sampled_from([2, 3]))
def test_gradients_kept_whole_cost_memory_where_there_are_several(dp: int, zero: int) -> None:
    layout = Layout(dp=dp, zero=zero)
    whole = replace(PURE, whole=1.0, held=4.0)
    assert peak(layout, whole, float(dp)) == peak(layout, PURE, float(dp))
    more = peak(layout, whole, 4.0 * dp) - peak(layout, PURE, 4.0 * dp)
    assert more == pytest.approx((4.0 - 2.0 / dp) * parameters(), rel=1e-6)


@given(st.sampled_from([2, 4, 8]))
def test_whole_logits_do_not_shrink_with_tensor_parallelism(tp: int) -> None:
    layout = Layout(tp=tp, micro_batch=8, recompute=FULL)
    cut, whole = (memory(layout, replace(PURE, logit=14.0, whole_logits=w), 64.0).first.transient[0]
                  for w in (0.0, 1.0))  # fmt: skip
    half = memory(layout, replace(PURE, logit=14.0, whole_logits=0.5), 64.0).first.transient[0]
    assert cut < half < whole
    one = memory(replace(layout, tp=1), replace(PURE, logit=14.0), 64.0).first.transient[0]
    assert whole == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("recompute", list(Recompute))
def test_eager_code_never_saves_less(recompute: Recompute) -> None:
    layout = Layout(micro_batch=4, recompute=recompute)
    eager = replace(PURE, norm=6.0, gate=2.0, wide=1.0)
    assert peak(layout, eager) >= peak(layout, PURE)


@given(st.sampled_from([1, 8]))
def test_deepspeeds_bf16_optimizer_cuts_states_at_stage_0(dp: int) -> None:
    plain, least = (memory(Layout(dp=dp, zero=z), replace(PURE, least_stage=s), 64.0).first
                    for z, s in ((1, 0.0), (0, 1.0)))  # fmt: skip
    assert float(least.optimizer[0]) == float(plain.optimizer[0])


def test_eight_bit_copies_come_on_top_of_weights() -> None:
    more = peak(Layout(), replace(PURE, copies=2.0)) - peak(Layout(), PURE)
    ends = float(np.sum(TABLE.embedding_params + TABLE.head_params))
    assert more == pytest.approx(2.0 * (parameters() - ends), rel=1e-9)


def test_sharded_weights_stay_gathered_between_micro_batches_of_a_pipeline() -> None:
    stays = replace(PURE, stay=1.0)
    for layout, there in ((Layout(dp=4, zero=3), False), (Layout(dp=4, pp=2, zero=3), True),
                          (Layout(pp=2, zero=3), False)):  # fmt: skip
        more = memory(layout, stays, 64.0).first.weights - memory(layout, PURE, 64.0).first.weights
        assert (float(more[0]) > 0.0) is there


@given(st.sampled_from([8.0, 16.0, 64.0]))
def test_adapters_grow_with_their_rank_and_hold_no_gradients_of_the_base(rank: float) -> None:
    fsdp = engines()["fsdp"].design_at(2025.0)
    sizes = sizes_of(fsdp, Precision.BF16, Kept(finetune="lora", rank=rank))
    one = sizes_of(fsdp, Precision.BF16, Kept(finetune="lora", rank=1.0))
    assert sizes.gradient == sizes.step == 0.0
    layout = Layout(zero=0)
    states = [float(memory(layout, s, 64.0).first.optimizer[0]) for s in (sizes, one)]
    assert states[0] == pytest.approx(rank * states[1])


def test_a_base_in_four_bits() -> None:
    fsdp = engines()["fsdp"].design_at(2025.0)
    lora, qlora = (sizes_of(fsdp, Precision.BF16, Kept(finetune=f)) for f in ("lora", "qlora"))
    saved = (
        memory(Layout(zero=0), lora, 8.0).first.weights
        - memory(Layout(zero=0), qlora, 8.0).first.weights
    )
    ends = float(np.sum(TABLE.embedding_params + TABLE.head_params))
    assert float(saved[0]) == pytest.approx((2.0 - FOUR_BITS) * (parameters() - ends), rel=1e-9)


@pytest.mark.parametrize("name", sorted(engines()))
@pytest.mark.parametrize("optimizer", ["adamw", *MOMENT_BYTES])
@pytest.mark.parametrize("finetune", ["none", "full"])
def test_usual_states_are_of_a_plausible_size(name: str, optimizer: str, finetune: str) -> None:
    design = engines()[name].design_at(2026.0)
    found = usual_states(design, Kept(finetune=finetune, optimizer=optimizer))
    total = found.weight + found.gradient + found.master + found.moments
    assert 4.0 <= total <= 20.0
    assert found.moments <= usual_states(design, Kept(finetune=finetune)).moments + 1e-9


def test_states_in_host_memory_and_steps_inside_the_backward_pass() -> None:
    for name in ("fsdp", "deepspeed", "torchtitan"):
        design = engines()[name].design_at(2025.0)
        plain = sizes_of(design, Precision.BF16, Kept(states=StateBytes()))
        host = sizes_of(design, Precision.BF16, Kept(states=StateBytes(), offload=True))
        inside = sizes_of(design, Precision.BF16, Kept(states=StateBytes(), in_backward=True))
        assert host.optimizer == host.step == inside.gradient == inside.step == 0.0
        assert inside.optimizer == plain.optimizer > 0.0


SPREAD = MemorySpread()


@given(st.floats(1e9, 1e12), st.floats(1.01, 4.0))
def test_nothing_is_certain_and_more_memory_helps(capacity: float, times: float) -> None:
    found = memory(Layout(recompute=FULL), PURE, 64.0)
    less, more = (float(fits_probability(found, c)[0]) for c in (capacity, times * capacity))
    assert 0.0 < less < more < 1.0


@pytest.mark.parametrize("field", ["unseen_engine", "states", "loss", "recompute", "experts",
                                   "adapters", "guesses", "shown"])  # fmt: skip
def test_what_is_not_known_widens(field: str) -> None:
    found = memory(Layout(), PURE, 64.0)
    plain = SPREAD.scale(found, MemoryStanding())
    assert SPREAD.scale(found, MemoryStanding(**{field: 1.0})) >= plain


def test_activations_are_less_certain_than_states() -> None:
    small, large = (memory(Layout(micro_batch=b), PURE, 64.0) for b in (1, 16))
    assert SPREAD.scale(large, MemoryStanding()) > SPREAD.scale(small, MemoryStanding())


@given(st.floats(-50.0, 50.0))
def test_tails_are_heavy_and_even(t: float) -> None:
    assert student_cdf(np.array(t)) + student_cdf(np.array(-t)) == pytest.approx(1.0)
    assert student_cdf(np.array(-5.0)) > 0.003


def test_an_eager_gate_saves_more_and_a_plain_activation_does_not() -> None:
    # gpt() has no gate: its norm is one kernel, and what the activation makes is kept anyway.
    gated = replace(TABLE, dense_up=2.0 * np.asarray(TABLE.dense_width))
    eager = replace(PURE, norm=4.0, gate=2.0)
    layout = pack([Layout(micro_batch=4)])
    for table, more in ((TABLE, False), (gated, True)):
        plain, slow = (memory_bytes(table, layout, sizes, 2.0, 64.0, 0.0).tensors[0]
                       for sizes in (PURE, eager))  # fmt: skip
        assert bool(slow > plain) is more


@given(st.sampled_from([2, 8]), st.booleans())
def test_an_offloaded_step_takes_along_what_its_engine_gives_it(dp: int, weights: bool) -> None:
    layout = Layout(dp=dp, zero=3, offload_optimizer=True)
    sizes = replace(PURE, off_gradients=1.0, off_weights=float(weights))
    found = memory(layout, sizes, 64.0).first
    assert float(found.optimizer[0]) == float(found.gradients[0]) == 0.0
    assert (float(found.weights[0]) == 0.0) is weights
    kept = memory(layout, PURE, 64.0).first
    assert float(kept.gradients[0]) > 0.0 < float(kept.weights[0])


def test_ends_trained_beside_adapters_have_states_of_their_own() -> None:
    fsdp = engines()["fsdp"].design_at(2025.0)
    plain, both = (
        memory(Layout(), sizes_of(fsdp, Precision.BF16, Kept(finetune="lora", trained_ends=t)), 8.0)
        for t in (False, True)
    )
    ends = float(np.sum(TABLE.embedding_params + TABLE.head_params))
    more = float((both.first.optimizer - plain.first.optimizer)[0])
    assert more == pytest.approx(ENDS_BYTES * ends)


def test_internevos_step_flattens_gradients_and_copies_them_in_32_bits() -> None:
    # 2 + 2 + 12 kept; 2 + 4 of the step, and 8 of AdamW's plain form before 2024-03.
    old, new = (engines()["internevo"].design_at(date) for date in (2023.9, 2024.5))
    for design, each in ((old, 30.0), (new, 22.0)):
        sizes = sizes_of(design, Precision.BF16, Kept())
        one = memory(Layout(zero=1, recompute=FULL), sizes, 1.0).first
        assert float(one.total[0]) == pytest.approx(each * parameters())
