"""One step: parts add up, faster parts never slow it, published steps are met."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import ADAMW, built, gpt, situation, step

from krzem.cost import machine as kernels
from krzem.cost.assemble import below_peak, machine
from krzem.cost.coefficients import fitted
from krzem.cost.layers import layer_seconds
from krzem.cost.stages import StepSeconds
from krzem.cost.step import step_seconds
from krzem.errors import UnknownFactError
from krzem.layout.layout import Layout, Precision, Recompute, Schedule, cells, pack
from krzem.model import load_model
from krzem.model.architecture import Architecture
from krzem.model.table import tabulate

MODEL = gpt(4096, 32, 32)
layouts = st.builds(
    Layout,
    tp=st.sampled_from([1, 2, 8, 16]),
    pp=st.sampled_from([1, 2, 4]),
    dp=st.sampled_from([1, 4, 16]),
    micro_batch=st.sampled_from([1, 2]),
    zero=st.sampled_from([0, 1, 3]),
    sequence_parallel=st.booleans(),
    recompute=st.sampled_from(list(Recompute)),
    schedule=st.sampled_from([Schedule.ONE_F_ONE_B, Schedule.ZB_H1]),
)
RATES = (
    "matmul_flops", "attention_flops", "memory_bytes_per_s", "up_bytes_per_s", "out_bytes_per_s",
)  # fmt: skip


def seconds(found: StepSeconds) -> float:
    return float(found.total[0])


@settings(max_examples=60, deadline=None)
@given(layouts, st.sampled_from(RATES), st.floats(1.0, 8.0))
def test_more_rate_is_never_slower(layout: Layout, rate: str, times: float) -> None:
    mc = built()
    faster = replace(mc, **{rate: getattr(mc, rate) * times})
    before = seconds(step(MODEL, layout, mc, 256.0))
    assert seconds(step(MODEL, layout, faster, 256.0)) <= before * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(layouts)
def test_parts_are_positive_and_add_up(layout: Layout) -> None:
    found = step(MODEL, layout, built(), 256.0)
    parts = [float(getattr(found, f.name)[0]) for f in fields(found) if f.name != "micro_batches"]
    assert min(parts) >= -1e-9
    assert sum(parts) == pytest.approx(seconds(found))


@given(st.sampled_from([2, 4, 8]))
def test_more_micro_batches_take_proportionally_longer(times: int) -> None:
    layout, mc = Layout(tp=2, pp=4), replace(built(), fixed_seconds=0.0)
    one, many = (seconds(step(MODEL, layout, mc, b)) for b in (64.0, 64.0 * times))
    assert one < many <= one * times * (1 + 1e-9)


def test_many_layouts_cost_what_each_costs_alone() -> None:
    several = [Layout(tp=2), Layout(tp=8, pp=2), Layout(tp=4, zero=3, dp=2)]
    x, table, mc = pack(several), tabulate(MODEL, 2048), built()
    together = step_seconds(table, x, layer_seconds(table, cells(x), mc), mc, 64.0, ADAMW)
    alone = [seconds(step(MODEL, layout, mc, 64.0)) for layout in several]
    assert together.total == pytest.approx(np.array(alone))


def test_small_shapes_are_bound_by_the_host() -> None:
    """Eight ranks on a small model: twice the arithmetic rate gains next to nothing."""
    mc = built(engine="megatron-deepspeed", year=2022.0)
    small = gpt(1024, 24, 16)
    before = seconds(step(small, Layout(tp=8), mc, 8.0))
    twice = replace(mc, matmul_flops=2 * mc.matmul_flops, matmul16_flops=2 * mc.matmul16_flops)
    after = seconds(step(small, Layout(tp=8), twice, 8.0))
    assert after > 0.95 * before


KORTHIKANTI = [
    (6144, 48, 64, 1, 1, 4, 4, 1.42, 1.10),
    (12288, 96, 96, 8, 3, 64, 1, 18.13, 13.75),
    (20480, 105, 128, 35, 3, 280, 1, 49.05, 37.83),
    (25600, 128, 160, 64, 1, 512, 1, 94.42, 71.49),
]
"""Hidden, layers, heads, pipeline, chunks, batch, micro-batch, seconds with full recomputation and
with selective recomputation and sequence parallelism: arXiv 2205.05198, table 5."""


def test_korthikanti_table_5() -> None:
    mc = built(engine="megatron-lm", year=2022.4, precision=Precision.FP16)
    errors = []
    for hidden, layers, heads, pp, vpp, batch, micro, full, selective in KORTHIKANTI:
        schedule = Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
        for mode, sp, measured in (
            (Recompute.FULL, False, full), (Recompute.ATTENTION, True, selective),
        ):  # fmt: skip
            layout = Layout(
                tp=8, pp=pp, vpp=vpp, micro_batch=micro, zero=0, schedule=schedule,
                recompute=mode, sequence_parallel=sp,
            )  # fmt: skip
            found = seconds(step(gpt(hidden, layers, heads), layout, mc, float(batch)))
            found *= fitted().common("maker")
            errors.append(abs(found / measured - 1.0))
    assert np.mean(errors) < 0.04
    assert max(errors) < 0.10


def test_deepseek_v3_on_2048_h800() -> None:
    """180k GPU-hours per trillion tokens: 19.9 s per step (arXiv 2412.19437)."""
    mc = built(
        device="nvidia-h800-sxm", engine="deepseek", year=2024.9, precision=Precision.FP8_BLOCK
    )
    layout = Layout(
        pp=16, vpp=2, ep=64, dp=128, schedule=Schedule.DUALPIPE, recompute=Recompute.MODULES,
        sequence_parallel=False,
    )  # fmt: skip
    found = seconds(step(load_model("deepseek-v3"), layout, mc, 15360.0, 4096))
    assert found == pytest.approx(19.9, rel=0.10)


def test_a_device_without_the_precision_says_so() -> None:
    with pytest.raises(UnknownFactError, match="no peak is published for fp8"):
        machine(situation(precision=Precision.FP8), fitted())


@given(st.floats(0.01, 10.0), st.floats(1.0, 3.0))
def test_shares_stay_below_the_peak(share: float, times: float) -> None:
    assert below_peak(share) <= min(share, 0.97)
    assert below_peak(share * times) >= below_peak(share) * (1 - 1e-12)


def test_pairs_of_cards_talk_over_pcie() -> None:
    bridged = machine(situation("nvidia-a100-pcie-80"), fitted())
    assert bridged.out_bytes_per_s < machine(situation(), fitted()).out_bytes_per_s


def test_cut_activations_stop_the_host_of_deepspeed_alone() -> None:
    """Their description is read back from the device, once per micro-batch."""
    layout = Layout(tp=2, pp=2)
    cut = (("partition-activations", "on"),)
    for engine, each in (("megatron-deepspeed", 0.01), ("megatron-core", 0.0)):
        mc = built(engine=engine, switches=cut)
        free = replace(mc, cut_turn_seconds=0.0)
        found = [step(gpt(4096, 8, 32), layout, m, 64.0).pipeline_transfer[0] for m in (mc, free)]
        assert found[0] - found[1] >= 64 * each
    whole = Layout(pp=2)
    mc = built(engine="megatron-deepspeed", switches=cut)
    both = [step(gpt(4096, 8, 32), whole, m, 64.0).pipeline_transfer[0]
            for m in (mc, replace(mc, cut_turn_seconds=0.0))]  # fmt: skip
    assert both[0] == both[1]


def test_modules_are_fetched_one_by_one_under_zero_3() -> None:
    """The hooks of DeepSpeed bound small models under stage 3, the more so with many experts."""
    mc = built(engine="deepspeed")
    free = replace(mc, fetch_seconds=0.0)

    def ratio(model: Architecture, zero: int, batch: int = 1) -> float:
        layout = Layout(dp=8, zero=zero, micro_batch=batch)
        both = [seconds(step(model, layout, m, 8.0 * batch)) for m in (mc, free)]
        return both[0] / both[1]

    assert ratio(gpt(1024, 24, 16), 3) > 1.5
    assert ratio(gpt(1024, 24, 16), 2) == 1.0
    assert ratio(gpt(8192, 24, 64), 3, 8) < 1.1
    assert ratio(load_model("qwen3-30b-a3b"), 3) > 2.0 * ratio(load_model("llama-3.1-8b"), 3)


def test_compiled_layers_and_fused_kernels_move_less_memory() -> None:
    for engine, switch in (
        ("torchtitan", ("compile", "on")), ("fsdp", ("compile", "on")), ("fsdp", ("loss", "fused")),
        ("deepspeed", ("loss", "chunked")),
    ):  # fmt: skip
        switches = (("compile", "off"), ("loss", "plain"))
        plain = built(engine=engine, switches=switches)
        fused = built(engine=engine, switches=(*switches, switch))
        assert fused.elementwise < plain.elementwise, engine


def test_products_of_experts_fill_a_chip_by_no_more_than_their_streams() -> None:
    mc = built(device="nvidia-h100-sxm")

    def each(groups: float, rows: float) -> float:
        whole = kernels.grouped(groups, rows, 1024.0, 2048.0, mc, 2.0)
        return float(whole / (groups * rows))

    few, many = each(kernels.STREAMS, 512.0), each(64.0, 512.0)
    assert many == pytest.approx(few)
    assert each(1.0, 512.0) > few
    assert each(64.0, 4096.0) < many


def test_operands_of_experts_are_quantised_apart() -> None:
    """Mixtures gain less from 8 bits than dense models: nothing before them casts their tokens."""
    at = {p: built(device="nvidia-h100-sxm", precision=p) for p in (Precision.BF16, Precision.FP8)}
    assert at[Precision.BF16].expert_cast_bytes == 0.0
    assert at[Precision.FP8].expert_cast_bytes > at[Precision.FP8].cast_bytes
    layout = Layout(ep=8, dp=8)

    def gain(model: Architecture) -> float:
        found = [seconds(step(model, layout, at[p], 64.0, 4096)) for p in at]
        return found[0] / found[1]

    assert gain(load_model("qwen3-30b-a3b")) < gain(load_model("llama-3.1-8b"))
