"""What a row says, what can be inferred from it and why it may be skipped."""

from __future__ import annotations

import math

import pytest

from krzem.accuracy.batch import predict, prepare
from krzem.accuracy.case import UnusableRowError
from krzem.accuracy.conventions import forward_flops, published_flops
from krzem.accuracy.reader import read_case
from krzem.accuracy.shapes import read_architecture
from krzem.accuracy.spellings import COLUMNS, state_bytes_of, switches_of
from krzem.cost.coefficients import Coefficients, fitted
from krzem.engine.switches import switches
from krzem.layout.layout import ContextParallel, Recompute, Schedule
from krzem.model import load_model

Row = dict[str, str]


def test_a_complete_row(llama: Row) -> None:
    case = read_case(llama)
    assert case.layout.zero == 3
    assert case.layout.dp == 64
    assert case.engine == "torchtitan"
    assert case.seconds == 3.0
    assert case.guesses == ()
    assert case.architecture.runs[0].layer.feed_forward.gated


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quality": "exclude"}, "marked exclude"),
        ({"accelerator_id": ""}, "not named"),
        ({"accelerator_id": "abacus-9"}, "not in the catalogue"),
        ({"seq_len": "", "model_name": "secret"}, "sequence length"),
        ({"devices": "7", "tp": "2"}, "not a multiple"),
        ({"global_batch": "8"}, "fewer sequences"),
        ({"global_batch": "8", "tp": "", "pp": "", "cp": ""}, "layout not published"),
        ({"precision": "int4"}, "not modelled"),
        ({"mixer": "state-space"}, "recurrent layers"),
        ({"model_name": "Jamba", "layers": "30"}, "recurrent layers"),
        ({"metric_step_time_s": ""}, "no speed or memory"),
        ({"tp": "", "pp": "", "zero_or_fsdp_stage": "1"}, "layout not published"),
        ({"layers": "", "model_name": "secret"}, "model shape"),
        ({"metric_step_time_s": "1e-4"}, "faster than the accelerator's peak"),
        ({"layers": "", "model_name": "Llama-3-8B-proxy"}, "model shape"),
    ],
)
def test_reasons(llama: Row, change: Row, reason: str) -> None:
    with pytest.raises(UnusableRowError, match=reason):
        read_case(llama | change)


@pytest.mark.parametrize(
    ("columns", "year", "guessed"),
    [
        ({"date": "2025"}, 2025 + 5.5 / 12, False),
        ({"date": "2025-10-03"}, 2025 + 9.5 / 12, False),
        ({"date": "2025/10"}, 2025 + 9.5 / 12, False),
        ({"date": "20251003"}, 2025 + 9.5 / 12, False),
        ({"date": "3 Oct 2025"}, 2025 + 9.5 / 12, False),
        ({"date": "10/2025"}, 2025 + 9.5 / 12, False),
        ({"date": "Q4 2025"}, 2025.875, False),
        ({"date": "2025-01 (tag 24.11.1)"}, 2025 + 0.5 / 12, False),
        ({"date": "", "source": "arXiv 2104.04473"}, 2022 + 8.5 / 12 + 1.5, True),
        ({"date": "yesterday"}, 2022 + 8.5 / 12 + 1.5, True),
    ],
)
def test_dates(llama: Row, columns: Row, year: float, guessed: bool) -> None:
    case = read_case(llama | columns)
    assert case.date == pytest.approx(
        year, abs=1e-6 if columns["date"] not in ("", "yesterday") else 0.6
    )
    assert ("date" in case.guesses) == guessed


@pytest.mark.parametrize("compiled", ["on", "off", ""])
def test_software_without_a_date_is_not_older_than_what_it_is_said_to_do(
    llama: Row, compiled: str
) -> None:
    old = {"accelerator": "", "accelerator_id": "nvidia-a100-sxm-80", "engine": "other"}
    case = read_case({**llama, **old, "date": "", "compile": compiled})
    assert case.guesses == ("date",)
    assert (case.date >= 2023.0) == (compiled == "on")
    dated = read_case({**llama, **old, "date": "2022-06", "compile": compiled})
    assert dated.date == 2022 + 5.5 / 12


def test_what_a_name_says_is_filled_in(llama: Row) -> None:
    bare = llama | {"seq_len": "", "layers": "", "hidden": "", "kv_heads": ""}
    case = read_case(bare)
    assert case.architecture.runs == read_case(llama).architecture.runs
    assert case.sequence == 8192
    assert case.guesses == ("sequence length",)


def test_degrees_that_are_blank(llama: Row) -> None:
    row = llama | {"zero_or_fsdp_stage": "1", "tp": "4", "pp": "", "dp": "8", "devices": "64"}
    assert read_case(row).layout.pp == 2
    assert read_case(row | {"dp": ""}).layout.pp == 1
    assert "pipeline degree" in read_case(row | {"dp": ""}).guesses
    assert read_case(row | {"devices": "", "pp": "2"}).devices == 64
    rounded = read_case(row | {"devices": "6000", "tp": "8", "pp": "16", "global_batch": "768"})
    assert rounded.layout.dp == 47
    assert "devices rounded" in rounded.guesses


def test_a_rate_of_all_devices_is_passed_over(llama: Row) -> None:
    """128 x 8,192 tokens in 3 s are 5,461 tokens/s a device and 349,525 together."""
    row = llama | {"metric_step_time_s": "", "metric_tokens_per_s_per_device": "349525"}
    with pytest.raises(UnusableRowError, match="faster than"):
        read_case(row)
    case = read_case(row | {"metric_mfu_pct": "0.4"})
    assert case.measured_by == "metric_mfu_pct"


def test_a_known_model_needs_no_shape(llama: Row) -> None:
    bare = {k: v for k, v in llama.items() if k not in ("layers", "hidden", "ffn_hidden", "heads")}
    found, _, guesses = read_architecture(bare | {"model_name": "DeepSeek-V3"})
    assert found.layers == load_model("deepseek-v3").layers
    assert guesses


@pytest.mark.parametrize(
    ("columns", "value"),
    [
        ({"metric_step_time_s": "2.0"}, 2.0),
        ({"metric_tokens_per_s_per_device": "8192"}, 2.0),
    ],
)
def test_speed_by_its_column(llama: Row, columns: Row, value: float) -> None:
    case = read_case(llama | {"metric_step_time_s": ""} | columns)
    assert case.seconds == pytest.approx(value)
    assert case.measured_by == next(iter(columns))


def test_speed_by_flops_keeps_to_the_convention(llama: Row) -> None:
    arch = load_model("llama-3.1-8b")
    causal = published_flops(arch, 8192, "model flops, causal attention", False)
    full = published_flops(arch, 8192, "non-causal", False)
    hardware = published_flops(arch, 8192, "hardware, causal", True)
    assert full > causal
    assert hardware == pytest.approx(causal * 4 / 3)
    assert published_flops(arch, 8192, "6n without attention", False) == pytest.approx(
        3 * forward_flops(arch, 8192, "none")
    )
    row = llama | {"metric_step_time_s": "", "metric_tflops_per_device": "400",
                   "flops_convention": "causal"}  # fmt: skip
    assert read_case(row).measured_by == "metric_tflops_per_device"


def test_sharded_weights_are_not_accumulated(llama: Row) -> None:
    case = read_case(llama | {"micro_batch": ""})
    assert case.layout.micro_batch == 2
    assert "micro-batch" in case.guesses


def test_schedules_and_recomputation(llama: Row) -> None:
    row = llama | {"pp": "8", "zero_or_fsdp_stage": "1", "recompute": "unknown", "vpp": "1"}
    assert read_case(row).layout.schedule is Schedule.ONE_F_ONE_B
    assert read_case(row | {"schedule": "DualPipeV"}).layout.schedule is Schedule.DUALPIPE_V
    assert not read_case(row).recompute_known
    assert read_case(row | {"recompute": "none"}).layout.recompute is Recompute.NONE


def test_a_pipeline_that_would_idle_is_taken_as_interleaved(llama: Row) -> None:
    row = llama | {"pp": "8", "zero_or_fsdp_stage": "1", "vpp": "", "micro_batch": "1"}
    few, many = read_case(row), read_case(row | {"global_batch": "1024"})
    assert few.layout.vpp == 4
    assert "chunks" in few.guesses
    assert many.layout.vpp == 1
    assert many.guesses == ()


def test_adapters_train_no_weights(llama: Row) -> None:
    plain, adapted = read_case(llama), read_case(llama | {"finetune": "lora"})
    seconds = predict(prepare([plain, adapted]), fitted()).total
    assert adapted.finetune == "lora"
    assert 0.6 * seconds[0] < seconds[1] < 0.95 * seconds[0]


def test_what_is_recomputed_is_the_least_that_fits(llama: Row) -> None:
    row = llama | {"recompute": "unknown", "micro_batch": "4", "global_batch": "256"}
    roomy = read_case(row | {"micro_batch": "1"})
    tight = read_case(row | {"accelerator_id": "nvidia-a100-sxm-40", "micro_batch": "2"})
    found = prepare([roomy, tight]).cases
    assert found[0].layout.recompute is not Recompute.FULL
    assert found[1].layout.recompute is Recompute.FULL


def test_recomputation_that_is_open_is_as_likely_as_it_is_needed(llama: Row) -> None:
    """Ways to recompute share the chance; where memory is plenty, or one is stated, none is."""
    row = llama | {"recompute": "unknown", "micro_batch": "1", "global_batch": "256"}
    tight = prepare([read_case(row | {"accelerator_id": "nvidia-a100-sxm-40"})]).cases[0]
    assert tight.alternatives
    assert sum(chance for _, chance in tight.alternatives) < 1.0
    assert len({x.recompute for x, _ in tight.alternatives} | {tight.layout.recompute}) > 1
    roomy = prepare([read_case(row | {"accelerator_id": "nvidia-b300-sxm"})]).cases[0]
    stated = prepare([read_case(row | {"recompute": "full"})]).cases[0]
    assert not roomy.alternatives
    assert not stated.alternatives


def test_a_dispatcher_says_that_experts_are_spread(llama: Row) -> None:
    mixture = llama | {"experts": "64", "experts_per_token": "4", "moe_ffn_hidden": "1024",
                       "dispatcher": "deepep", "ep": "1"}  # fmt: skip
    assert read_case(mixture).layout.ep > 1
    assert "ep" in read_case(mixture).guesses
    assert read_case(mixture | {"dispatcher": "allgather"}).layout.ep == 1


def test_states_on_the_host_take_their_time(llama: Row) -> None:
    both = [read_case(llama | {"offload": said}) for said in ("no", "yes", "paged")]
    seconds = predict(prepare(both), fitted()).total
    assert seconds[1] > seconds[0]
    assert seconds[2] == seconds[0]


def test_sliding_windows_by_name(llama: Row) -> None:
    stated = {"window": "1024", "full_every": "6", "layers": "48"}
    for said in (stated, {"model_name": "Gemma-3-12B", "layers": "48"}, {"model": "gemma-3-12b",
                 "layers": "48"}):  # fmt: skip
        arch = read_case(llama | said).architecture
        windows = [run.layer.attention.window for run in arch.runs for _ in range(run.count)]
        assert windows.count(None) == 8
        assert windows.count(1024) == 40


def test_a_network_that_the_row_states(llama: Row) -> None:
    assert read_case(llama).network_bytes_per_s is None
    assert read_case(llama | {"network_gbit_per_device": "200"}).network_bytes_per_s == 25e9


@pytest.mark.parametrize(
    ("columns", "engine", "kept"),
    [
        ({"engine": "Megatron-Core"}, "megatron-lm", "megatron-lm"),
        ({"engine": "megatron-lm", "date": "2021-05"}, "megatron-lm", "megatron-lm"),
        ({"engine": "NeMo"}, "megatron-bridge", "megatron-bridge"),
        ({"engine": "accelerate"}, "fsdp", "fsdp"),
        ({"engine": ""}, "", "fsdp"),
        ({"engine": "of my own"}, "of-my-own", "other"),
        ({"engine": "maxtext"}, "maxtext", "maxtext"),
        ({"engine": "", "accelerator_id": "google-tpu-v5p"}, "", "maxtext"),
        ({"engine": "megatron-lm", "accelerator_id": "amd-mi300x"}, "megatron-lm", "primus"),
    ],
)
def test_engines(llama: Row, columns: Row, engine: str, kept: str) -> None:
    case = read_case(llama | columns)
    assert (case.named_engine, case.engine) == (engine, kept)
    assert ("engine" in case.unknown) == (not engine)


def test_every_choice_of_every_switch_is_read(llama: Row) -> None:
    for name, switch in switches().items():
        column = COLUMNS.get(name, switch.word)
        for choice in switch.choices:
            assert switches_of({column: f" {choice.upper()}"}) == {name: choice}
        assert switches_of({column: "whatever"}) == {}
        assert switches_of({column: ""}) == {}
    case = read_case(llama | {"overlap_tp": "yes", "cuda_graphs": "full"})
    assert case.switches == {"overlap-tp": "on", "cuda-graphs": "full"}


def test_what_is_left_open_is_told(llama: Row) -> None:
    experts = {
        "experts": "8", "experts_per_token": "2", "moe_ffn_hidden": "14336", "shared_experts": "0",
        "family": "moe", "ep": "8", "tp": "2", "dp": "32",
    }  # fmt: skip
    case = read_case(llama | experts | {"precision": "", "recompute": ""})
    needed = {"dispatcher", "overlap-a2a", "routing", "etp", "overlap-tp", "precision", "grad-sync",
              "recomputation"}  # fmt: skip
    assert needed <= set(case.unknown)
    stated = {"dispatcher": "deepep", "routing": "balanced", "etp": "1", "grad_sync": "every"}
    told = read_case(llama | experts | stated)
    assert not {"dispatcher", "routing", "etp", "grad-sync", "precision"} & set(told.unknown)
    assert told.layout.etp == 1
    assert "dispatcher" not in read_case(llama).unknown


def test_states_that_the_row_states() -> None:
    cell = "weight=2, gradient=4; master=0,moments=8,other=3,weights"
    found = state_bytes_of({"state_bytes": cell})
    assert found == {"weight": 2.0, "gradient": 4.0, "master": 0.0, "moments": 8.0}


def test_layouts_that_the_row_states(llama: Row) -> None:
    row = llama | {"pp": "8", "zero_or_fsdp_stage": "1", "vpp": "", "micro_batch": "1"}
    assert read_case(row | {"schedule": "1f1b"}).layout.vpp == 1
    many = read_case(row | {"schedule": "interleaved", "global_batch": "1024"})
    assert many.layout.vpp == 2
    assert many.layout.schedule is Schedule.INTERLEAVED
    assert read_case(llama | {"shard": "16"}).layout.shard == 16
    assert read_case(llama | {"shard": "node"}).layout.shard == 8
    assert (
        read_case(llama | {"cp_kind": "a2a"}).layout.context_parallel is ContextParallel.ALL_TO_ALL
    )
    modules = read_case(llama | {"recompute": "unknown", "recompute_modules": "mlp+norm"})
    assert modules.recompute_modules == ("mlp", "norm")
    assert modules.recompute_known
    assert read_case(llama | {"memory_kind": "nvidia-smi"}).memory_kind == "shown"


@pytest.mark.parametrize(
    ("said", "maker"),
    [
        ({}, False),
        ({"organisation": "NVIDIA"}, True),
        ({"organisation": "Huawei"}, False),
        ({"organisation": "", "source": "NVIDIA/dgxc-benchmarking README"}, False),
        ({"source": "NVIDIA/dgxc-benchmarking README"}, True),
        ({"source": "a blog about NVIDIA", "url_or_repo": "https://example.org/nvidia"}, False),
        ({"url_or_repo": "https://docs.nvidia.com/nemo-framework/performance.html"}, True),
        ({"url_or_repo": "https://github.com/NVIDIA-NeMo/Megatron-Bridge"}, True),
        ({"url_or_repo": "https://github.com/ROCm/Megatron-LM"}, False),
        ({"source": "MLPerf Training v4.1 Dell"}, True),
    ],
)
def test_what_a_chips_maker_publishes_has_a_pace_of_its_own(
    llama: Row, said: Row, maker: bool
) -> None:
    case = read_case({**llama, **said})
    assert case.by_maker is maker
    users, theirs = Coefficients({}), Coefficients({"maker": -0.2})
    batch = prepare([case])
    ratio = float(predict(batch, theirs).total[0] / predict(batch, users).total[0])
    assert ratio == pytest.approx(math.exp(-0.2) if maker else 1.0)
