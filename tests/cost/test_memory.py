"""Bytes per device: what is cut adds up to the whole, and more memory never hurts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import gpt

from krzem.cost.memory import (
    MemoryBytes,
    low_bytes,
    memory_bytes,
)
from krzem.cost.memory_error import fits_probability, student_cdf
from krzem.cost.sizes import StateSizes, stored_bytes
from krzem.layout.layout import Layout, Precision, Recompute, Schedule, pack
from krzem.model.table import tabulate

SIZES = StateSizes(weight=2.0, gradient=4.0, optimizer=12.0, scratch=0.0)
MODEL = gpt(4096, 32, 32)


def memory(layout: Layout, sizes: StateSizes = SIZES, batch: float = 4096.0) -> MemoryBytes:
    return memory_bytes(tabulate(MODEL, 2048), pack([layout]), sizes, 2.0, batch, 0.0)


def states(layout: Layout) -> float:
    found = memory(layout).first
    return float((found.weights + found.gradients + found.optimizer)[0])


@given(st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([0, 1, 2, 3]))
def test_sharded_states_add_up_to_the_whole(dp: int, zero: int) -> None:
    per_parameter = {0: 18.0, 1: 6.0, 2: 2.0, 3: 0.0}[zero]
    parameters = states(Layout(dp=1, zero=0)) / 18.0
    cut = states(Layout(dp=dp, zero=zero)) - per_parameter * parameters
    assert cut * dp == pytest.approx((18.0 - per_parameter) * parameters)


@given(st.sampled_from([1, 2, 4, 8]))
def test_tensor_parallel_weights_add_up(tp: int) -> None:
    table = tabulate(MODEL, 2048)
    whole = float(table.attention_whole + table.norm_params) * 32
    parameters = states(Layout()) / 18.0
    cut = states(Layout(tp=tp)) / 18.0
    assert (cut - whole) * tp == pytest.approx(parameters - whole, rel=1e-6)


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from(list(Recompute)))
def test_more_devices_never_need_more_each(dp: int, recompute: Recompute) -> None:
    one = memory(Layout(dp=dp, zero=3, recompute=recompute)).tensors
    two = memory(Layout(dp=2 * dp, zero=3, recompute=recompute)).tensors
    # Sharding adds gathered layers once, at two ranks; from there on it only shrinks.
    assert float(two[0]) <= float(one[0]) or dp == 1


def test_recomputation_never_adds_saved_bytes() -> None:
    saved = {
        mode: float(memory(Layout(recompute=mode, micro_batch=4)).first.activations[0])
        for mode in Recompute
    }
    assert saved[Recompute.FULL] < saved[Recompute.MODULES] <= saved[Recompute.NONE]
    assert saved[Recompute.ATTENTION] <= saved[Recompute.NONE]


@given(st.floats(1e9, 1e12), st.floats(1.0, 4.0))
def test_more_memory_never_makes_a_layout_less_fit(capacity: float, times: float) -> None:
    found = memory(Layout())
    more, less = (fits_probability(found, c)[0] for c in (times * capacity, capacity))
    assert more >= less - 1e-12  # Neighbouring capacities differ by rounding alone.


def test_students_distribution_function() -> None:
    t = np.array([-4.604, -2.132, 0.0, 1.533, 2.776])
    assert student_cdf(t) == pytest.approx([0.005, 0.05, 0.5, 0.9, 0.975], abs=1e-4)


def test_dualpipe_holds_two_stages() -> None:
    plain = memory(Layout(pp=8, schedule=Schedule.ONE_F_ONE_B)).middle
    both = memory(Layout(pp=8, vpp=2, schedule=Schedule.DUALPIPE)).middle
    assert float(both.weights[0]) == pytest.approx(2.0 * float(plain.weights[0]))


def test_precision_of_what_is_saved() -> None:
    assert (low_bytes(Precision.BF16), low_bytes(Precision.MXFP8)) == (2.0, 1.0)
    assert stored_bytes(Precision.FP8_BLOCK) < stored_bytes(Precision.FP8) == 2.0
    lean = memory(Layout(), replace(SIZES, stored=1.25)).first.activations
    assert float(lean[0]) < float(memory(Layout()).first.activations[0])
