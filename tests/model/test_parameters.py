"""Parameter counts against transformers (exactly) and against what is published (to 0.5 %)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_configs import TRANSFORMERS, small

from krzem.model import (
    Architecture,
    count,
    layer_parameters,
    load_model,
    model_fact,
    model_ids,
    read_config,
)

# Sizes of parameters() of the classes of transformers 5.23.0, built on the meta device from the
# packaged configs (Kimi K2 as deepseek_v3, language models of MiniMax-M3 and Step-3.7 with the head
# of their wrapper).  None of them holds the MTP modules.
EXACT = {
    "gpt3-175b": 174_604_259_328,
    "megatron-22b": 22_074_273_792,
    "megatron-145b": 145_622_261_760,
    "megatron-530b": 529_600_819_200,
    "megatron-1t": 1_008_038_758_400,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_404_352,
    "deepseek-v3.2": 671_877_929_216,
    "deepseek-v4-flash": 284_332_230_231,
    "deepseek-v4-pro": 1_572_997_179_491,
    "kimi-k2": 1_026_408_209_408,
    "glm-4.5": 352_797_814_784,
    "glm-5": 743_911_199_232,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "nemotron-h-8b": 8_100_852_736,
    "nemotron-h-47b": 46_791_554_816,
    "nemotron-h-56b": 56_324_350_464,
    "nemotron-nano-9b-v2": 8_888_227_328,
    "nemotron-nano-12b-v2": 12_310_001_152,
    "nemotron-3-nano-30b-a3b": 31_577_937_344,
    "nemotron-3-super-120b-a12b": 120_668_687_360,
    "apertus-8b": 8_053_338_176,
    "apertus-70b": 70_599_864_480,
    "viking-7b": 7_550_013_440,
    "viking-13b": 14_030_361_600,
    "eurollm-9b": 9_152_319_488,
    "gemma-3-4b": 3_880_099_328,
    "gemma-3-12b": 11_765_788_416,
    "gemma-3-27b": 27_009_002_240,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-4-31b": 30_697_345_280,
    "gemma-4-26b-a4b": 25_233_141_760,
    "olmo-3-7b": 7_298_011_136,
    "olmo-3-32b": 32_233_522_176,
    "qwen3.5-397b-a17b": 396_346_350_336,
    "qwen3.5-35b-a3b": 34_660_610_688,
    "qwen3-next-80b-a3b": 79_674_391_296,
    "qwen3-coder-480b-a35b": 480_154_875_392,
    "qwen3.5-27b": 26_895_998_464,
    "llama-4-scout": 107_769_861_120,
    "llama-4-maverick": 400_711_848_960,
    "minimax-m2": 228_689_748_992,
    "kimi-linear-48b-a3b": 49_133_074_464,
    "hunyuan-3": 295_033_528_320,
    "glm-4.7-flash": 29_943_390_976,
    "glm-4.5-air": 106_852_245_504,
    "ernie-4.5-21b-a3b": 21_825_437_888,
    "ernie-4.5-300b-a47b": 299_484_163_264,
    "smollm3-3b": 3_075_098_624,
    "mimo-v2-flash": 308_778_768_832,
    "solar-open-100b": 102_651_793_408,
    "minimax-m3": 426_174_565_632,
    "step-3.5-flash": 196_956_118_272,
    "poro-34b": 34_216_949_760,
    "bielik-11b-v2": 11_168_796_672,
    "pllum-12b": 12_247_782_400,
}

# LongCat-Flash's class allocates matrices of zero experts, which nothing uses (test_model_types).
# Pangu Ultra has no class; its report rounds to 135B what the shapes it prints add to as 133.9B.
UNCHECKED = {"pangu-ultra-135b", "pangu-ultra-moe-718b", "longcat-flash"}


@pytest.mark.parametrize("name", EXACT)
def test_built_in_models_agree_exactly_with_transformers(name: str) -> None:
    assert count(load_model(name)).total == EXACT[name]


def test_every_built_in_model_with_a_class_is_in_the_exact_list() -> None:
    assert set(model_ids()) - set(EXACT) == UNCHECKED


@pytest.mark.parametrize("row", TRANSFORMERS, ids=lambda row: str(row["name"]))
def test_every_family_agrees_exactly_with_transformers(row: dict[str, object]) -> None:
    assert count(read_config(small(str(row["name"])))).total == row["parameters"]


@pytest.mark.parametrize("name", model_ids())
def test_totals_agree_with_the_published_ones(name: str) -> None:
    published = model_fact(name).total
    assert published.agrees(count(load_model(name)).total_of(published.counts))


@pytest.mark.parametrize("name", [n for n in model_ids() if model_fact(n).active])
def test_active_counts_agree_with_the_published_ones(name: str) -> None:
    published = model_fact(name).active
    assert published is not None
    assert published.agrees(count(load_model(name)).active_of(published.counts))


def test_only_mixtures_have_a_published_active_count() -> None:
    for name in model_ids():
        assert (model_fact(name).active is not None) == load_model(name).is_moe


def test_mtp_module_of_deepseek_v3() -> None:
    # README_WEIGHTS.md: 11.5B unique parameters, without the embedding and head it shares.
    assert count(load_model("deepseek-v3")).mtp == pytest.approx(11.5e9, rel=0.01)


def test_mtp_module_of_deepseek_v4_completes_the_checkpoint() -> None:
    # The checkpoint of V4-Pro lists 1598.8B, that of V4-Flash-Base 292.0B; the latter stores
    # embedding and head a second time for MTP.
    pro, flash = count(load_model("deepseek-v4-pro")), count(load_model("deepseek-v4-flash"))
    assert pro.total + pro.mtp == pytest.approx(1598.8e9, abs=0.05e9)
    again = flash.embedding + flash.head
    assert flash.total + flash.mtp + again == pytest.approx(292.0e9, abs=0.05e9)


@pytest.mark.parametrize("name", model_ids())
def test_modules_add_to_the_total(name: str) -> None:
    arch = load_model(name)
    counted = count(arch)
    assert sum(counted.by_module().values()) == counted.total
    assert counted.active <= counted.total
    assert (counted.active == counted.total) == (not arch.is_moe)
    layers = sum(layer_parameters(layer, arch).total for layer in arch.expanded())
    norms = arch.final_norms * arch.hidden * (2 if arch.norm_bias else 1)
    outside = counted.embedding + counted.head + norms
    if arch.hyper_connections == 1:
        assert layers + outside == counted.total
    assert counted.total_of(("embedding", "head")) == counted.total
    assert counted.total_of(("embedding", "head", "mtp")) == counted.total + counted.mtp


def test_layer_counts_add_and_tell_idle_experts_apart() -> None:
    arch = load_model("deepseek-v3")
    dense, routed = (layer_parameters(layer, arch) for layer, _ in arch.kinds())
    expert = 3 * 7168 * 2048
    assert (dense.dense, dense.routed_experts, dense.router) == (3 * 7168 * 18432, 0, 0)
    assert routed.routed_experts == 256 * expert
    assert routed.shared_experts == expert
    assert routed.router == 256 * 7168
    assert routed.norms == 2 * 7168
    assert routed.total - routed.active == routed.idle_experts == 248 * expert
    assert dense.attention == routed.attention == 187_107_328


def test_a_tied_head_counts_once() -> None:
    tied = count(load_model("qwen3-0.6b"))
    assert tied.head == 0
    assert tied.total_of(("head",)) == tied.total
    assert tied.total_of(()) == tied.total - tied.embedding


def test_shared_indexers_weigh_nothing() -> None:
    arch = read_config(small("glm_moe_dsa-shared"))
    full = read_config(small("glm_moe_dsa-shared", indexer_types=["full"] * 4))
    assert count(full).indexer == 2 * count(arch).indexer > 0


@given(st.integers(1, 6), st.integers(1, 6))
def test_counts_are_linear_in_layers(first: int, second: int) -> None:
    arch = load_model("mixtral-8x7b")

    def of(layers: int) -> int:
        return count(deepened(arch, layers)).total

    assert (
        of(first) + of(second)
        == of(first + second) + of(1) - layer_parameters(arch.runs[0].layer, arch).total
    )


def deepened(arch: Architecture, layers: int) -> Architecture:
    return replace(arch, runs=(replace(arch.runs[0], count=layers),))
