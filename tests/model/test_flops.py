"""Model FLOPs against torch's counter (exactly), published figures and textbook formulas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_configs import TRANSFORMERS, small

from krzem.errors import GoalError
from krzem.model import (
    Architecture,
    count,
    flops_by_part,
    flops_per_token,
    load_model,
    model_ids,
    read_config,
)

TOKENS = 32


def head_sums(arch: Architecture) -> int:
    """FLOPs of 32 tokens in the sum of V3.2's indexer over its heads.

    transformers writes that sum as a product of matrices for V3.2 and element by element for V4;
    the convention leaves it out of both.
    """
    owners = [
        a.indexer
        for a in (layer.attention for layer in arch.expanded())
        if a.indexer and not a.indexer.shared and not a.compression
    ]
    return sum(2 * i.heads * TOKENS * TOKENS for i in owners)


@pytest.mark.parametrize("row", TRANSFORMERS, ids=lambda row: str(row["name"]))
def test_forward_flops_agree_exactly_with_torchs_counter(row: dict[str, object]) -> None:
    arch = read_config(small(str(row["name"])))
    per_token = flops_per_token(arch, TOKENS, attention="full", mtp=False) / 3
    assert per_token * TOKENS + head_sums(arch) == row["forward_flops"]


@pytest.mark.parametrize(
    ("name", "gigaflops", "tolerance"),
    [
        # arXiv 2505.09343 table 2: training cost per token at a sequence length of 4096.
        ("deepseek-v2", 155, 0.005),
        ("deepseek-v3", 250, 0.005),
        ("llama-3.1-405b", 2448, 0.012),
    ],
)
def test_published_training_cost(name: str, gigaflops: float, tolerance: float) -> None:
    ours = flops_per_token(load_model(name), 4096, mtp=False)
    assert ours == pytest.approx(gigaflops * 1e9, rel=tolerance)


def test_the_formula_of_the_megatron_paper() -> None:
    # arXiv 2104.04473 equation 3 without recomputation (72 instead of 96) and its full square.
    arch = load_model("megatron-145b")
    layers, hidden, vocab, sequence = 80, 12288, 51200, 2048
    expected = (
        72 * layers * hidden**2 * (1 + sequence / (6 * hidden) + vocab / (12 * layers * hidden))
    )
    assert flops_per_token(arch, sequence, attention="full") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [n for n in model_ids() if load_model(n).hyper_connections == 1])
def test_six_times_the_weights_in_matrices(name: str) -> None:
    arch = load_model(name)
    counted = count(arch)
    positions = (
        counted.embedding if not arch.tied_embeddings else arch.learned_positions * (arch.hidden)
    )
    weights = counted.active - positions
    ours = flops_per_token(arch, 4096, attention="none", mtp=False)
    # Norms and biases are the difference: below a thousandth.
    assert 0.999 * 6 * weights < ours <= 6 * weights


@given(st.sampled_from(model_ids()), st.integers(1, 100_000), st.integers(1, 100_000))
def test_flops_never_fall_with_the_sequence(name: str, first: int, second: int) -> None:
    arch = load_model(name)
    short, long = sorted((first, second))
    for rule in ("causal", "full"):
        below = flops_per_token(arch, short, attention=rule)
        above = flops_per_token(arch, long, attention=rule)
        assert below <= above * (1 + 1e-12)


@given(st.sampled_from(model_ids()), st.integers(1, 2**20))
def test_parts_add_and_switches_take_out_what_they_say(name: str, sequence: int) -> None:
    arch = load_model(name)
    parts = flops_by_part(arch, sequence)
    assert parts.total == flops_per_token(arch, sequence)
    assert parts.linear > 0
    bare = flops_by_part(arch, sequence, attention="none", logits=False, mtp=False)
    assert (bare.attention, bare.logits, bare.mtp) == (0, 0, 0)
    assert bare.linear == parts.linear
    assert flops_by_part(arch, sequence, mtp=False).mtp == 0
    assert (parts.mtp > 0) == (arch.mtp_layers > 0)
    assert parts.attention <= flops_by_part(arch, sequence, attention="full").attention


def test_sparse_attention_grows_slower_than_full() -> None:
    v3, v32 = load_model("deepseek-v3"), load_model("deepseek-v3.2")
    assert flops_per_token(v32, 2**17) < 0.4 * flops_per_token(v3, 2**17)
    # Below its top-k the indexer only adds.
    assert flops_per_token(v32, 2048) > flops_per_token(v3, 2048)


def test_v4_at_a_million_tokens_costs_a_fraction_of_v32() -> None:
    # The report states 27 % (Pro) and 10 % (Flash) for the token at position one million, with
    # the indexer's low-precision products discounted, which this count does not do.
    def last(name: str) -> float:
        return flops_per_token(load_model(name), 2**20, attention="full", mtp=False)

    assert 0.2 < last("deepseek-v4-pro") / last("deepseek-v3.2") < 0.4
    assert 0.08 < last("deepseek-v4-flash") / last("deepseek-v3.2") < 0.2


def test_mtp_passes_through_the_shared_head() -> None:
    arch = load_model("deepseek-v3")
    head = 6 * arch.hidden * arch.vocab
    with_logits = flops_by_part(arch, 4096).mtp
    assert with_logits - flops_by_part(arch, 4096, logits=False).mtp == pytest.approx(head)


@pytest.mark.parametrize("sequence", [0, -4, 2.5])
def test_a_sequence_is_a_whole_number(sequence: float) -> None:
    with pytest.raises(GoalError, match="sequence length"):
        flops_per_token(load_model("llama-2-7b"), sequence)  # type: ignore[arg-type]


def test_an_unknown_rule_names_the_known_ones() -> None:
    with pytest.raises(GoalError, match="causal, full or none"):
        flops_per_token(load_model("llama-2-7b"), 8, attention="half")  # type: ignore[arg-type]
