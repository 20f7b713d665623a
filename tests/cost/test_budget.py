"""Nothing is free: links carry one thing at a time, and what runs beside computation slows it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import ADAMW, built, gpt, step

from krzem.cost import machine as collectives
from krzem.cost.layers import layer_seconds
from krzem.cost.machine import Machine
from krzem.cost.stages import expert_group, parameters, shard_group, stages
from krzem.cost.step import step_seconds
from krzem.layout.layout import Layout, Recompute, cells, pack
from krzem.model import load_model
from krzem.model.table import tabulate

MOE = load_model("qwen3-30b-a3b")
GREEDY = replace(
    built(device="nvidia-h100-sxm"), ep_overlap=1.0, gather_overlap=1.0, reduce_overlap=1.0,
    overhead=1.0, jitter=0.0, fixed_seconds=0.0, beside=0.0, whole_gradients=0.0,
)  # fmt: skip
"""A machine that hides whatever can be hidden."""
layouts = st.builds(
    lambda ep, mbs, zero, full: Layout(
        dp=64, ep=ep, micro_batch=mbs, zero=zero,
        recompute=Recompute.FULL if full else Recompute.NONE,
    ),
    st.sampled_from([1, 4, 8, 16, 32, 64]), st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 3]), st.booleans(),
)  # fmt: skip


def traffic(layout: Layout, mc: Machine, batch: float) -> float:
    """Seconds that the links of a rank are busy: all-to-all, weights and gradients of a step."""
    x, t = pack([layout]), tabulate(MOE, 4096)
    parts, s = layer_seconds(t, cells(x), mc), stages(t, x)
    again = 1.0 if layout.recompute is Recompute.FULL else 0.0
    m = batch / (layout.dp * layout.micro_batch)
    sent = t.moe_layers * (parts.dispatch_f * (1.0 + again) + parts.dispatch_b)
    dense, expert = parameters(t, x, s)
    group, stride = shard_group(x)
    once = collectives.ring(2.0 * dense, group, stride, mc)
    once = once + collectives.ring(2.0 * expert, expert_group(x), x.ep * x.etp, mc)
    gathered = (2.0 + mc.gradient_bytes / 2.0) * once if layout.zero == 3 else 0.0 * once
    return float(np.ravel(m * (sent + gathered))[0])


@given(layouts, st.sampled_from([0.2, 1.0, 5.0]), st.sampled_from([0.2, 1.0, 5.0]))
@settings(max_examples=60, deadline=None)
def test_no_link_is_busier_than_the_step_is_long(layout: Layout, up: float, out: float) -> None:
    mc = replace(GREEDY, up_bytes_per_s=GREEDY.up_bytes_per_s * up,
                 out_bytes_per_s=GREEDY.out_bytes_per_s * out)  # fmt: skip
    batch = 64.0 * 8
    x, t = pack([layout]), tabulate(MOE, 4096)
    found = step_seconds(t, x, layer_seconds(t, cells(x), mc), mc, batch, ADAMW).total[0]
    assert found >= traffic(layout, mc, batch) * (1 - 1e-9)


@given(layouts)
@settings(max_examples=40, deadline=None)
def test_what_runs_beside_computation_is_paid_for(layout: Layout) -> None:
    x, t = pack([layout]), tabulate(MOE, 4096)

    def seconds(beside: float) -> float:
        mc = replace(GREEDY, beside=beside)
        parts = layer_seconds(t, cells(x), mc)
        return float(step_seconds(t, x, parts, mc, 512.0, ADAMW).total[0])

    assert seconds(0.15) >= seconds(0.0)
    if layout.ep > 8 or layout.zero == 3:
        assert seconds(0.15) > seconds(0.0)


@pytest.mark.parametrize("micro_batches", [2, 8])
def test_gradients_that_are_scattered_each_time_cost_each_time(micro_batches: int) -> None:
    mc = built(device="nvidia-h100-sxm", engine="fsdp")
    batch = 64.0 * micro_batches
    each = replace(mc, whole_gradients=0.0)
    sharded = step(gpt(4096, 16, 32), Layout(dp=64, zero=2), each, batch).data_parallel[0]
    states = step(gpt(4096, 16, 32), Layout(dp=64, zero=1), mc, batch).data_parallel[0]
    whole = replace(mc, whole_gradients=1.0)
    kept = step(gpt(4096, 16, 32), Layout(dp=64, zero=2), whole, batch).data_parallel[0]
    assert sharded > states
    assert kept < sharded


def test_small_messages_between_nodes_take_their_start() -> None:
    mc = built(device="nvidia-h100-sxm")
    sizes = np.array([1e5, 1e6, 1e7, 1e8, 1e9, 1e10])
    n = np.array([16.0])
    seconds = collectives.ring(sizes, n, 1.0, mc)
    rate = sizes / seconds
    assert (np.diff(rate) > 0).all()
    # A flat ring: each interface carries all but a sixteenth, shared by the eight of a node; inside
    # a node the ring runs over each link whole.
    slower = min(mc.out_bytes_per_s * 8, float(mc.up_bytes_per_s))
    assert rate[-1] == pytest.approx(slower * 16 / 15, rel=0.02)
    assert rate[0] < 0.2 * rate[-1]


def test_attention_gets_faster_per_key_with_length_and_young_chips_with_age() -> None:
    mc = built(device="nvidia-a100-sxm-80")
    per_pair = []
    for length in (1024, 4096, 32768, 131072):
        t = tabulate(load_model("llama-3.1-8b"), length)
        core = layer_seconds(t, cells(pack([Layout()])), mc).core_f
        per_pair.append(float(np.ravel(core)[0]) / length**2)
    assert per_pair == sorted(per_pair, reverse=True)
    assert per_pair[0] > 1.1 * per_pair[-1]
    early, late = (built(device="nvidia-b200-sxm", year=y).matmul16_flops for y in (2025.0, 2027.0))
    assert early < late
