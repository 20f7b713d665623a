"""Mean keys per query, against enumeration of the mask."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import GoalError
from krzem.model import Attention, AttentionKind, Indexer, mean_keys
from krzem.model.architecture import keys_by_branch, mean_scored, mean_visible

LENGTHS = st.integers(1, 400)
LIMITS = st.integers(1, 500)
STRIDES = st.integers(1, 40)


def attention(
    kind: AttentionKind = AttentionKind.GROUPED,
    window: int | None = None,
    compression: int | None = None,
    indexer: Indexer | None = None,
) -> Attention:
    return Attention(
        kind=kind,
        heads=4,
        kv_heads=1,
        head_dim=8,
        value_dim=8,
        window=window,
        compression=compression,
        indexer=indexer,
    )


def enumerated(sequence: int, limit: int, stride: int = 1) -> Fraction:
    """Entries a causal mask leaves, counted one by one."""
    seen = 0
    for query in range(sequence):
        complete = [e for e in range(sequence // stride) if (e + 1) * stride <= query + 1]
        seen += min(len(complete), limit)
    return Fraction(seen, sequence)


@given(LENGTHS, LIMITS, STRIDES)
def test_closed_form_is_exact(sequence: int, limit: int, stride: int) -> None:
    expected = float(enumerated(sequence, limit, stride))
    assert math.isclose(mean_visible(sequence, limit=limit, stride=stride), expected)


@given(LENGTHS, LIMITS)
def test_windows_follow_the_textbook_formula(sequence: int, window: int) -> None:
    w = min(window, sequence)
    expected = w - w * (w - 1) / (2 * sequence)
    assert math.isclose(mean_keys(attention(window=window), sequence), expected)


def test_full_attention_reads_half_the_square() -> None:
    assert mean_keys(attention(), 4096) == (4096 + 1) / 2
    assert mean_keys(attention(), 4096, causal=False) == 4096


@given(LENGTHS, LIMITS, LIMITS)
def test_the_tighter_of_window_and_choice_rules(sequence: int, window: int, topk: int) -> None:
    chosen = attention(window=window, indexer=Indexer(heads=2, head_dim=4, topk=topk))
    assert mean_keys(chosen, sequence) == mean_keys(attention(window=min(window, topk)), sequence)


@given(LENGTHS, LIMITS, STRIDES, LIMITS)
def test_v4_reads_its_window_and_the_chosen_entries(
    sequence: int, window: int, stride: int, topk: int
) -> None:
    csa = attention(
        AttentionKind.SHARED_KV, window, stride, Indexer(heads=2, head_dim=4, topk=topk)
    )
    near, far = keys_by_branch(csa, sequence)
    assert math.isclose(near, float(enumerated(sequence, window)))
    assert math.isclose(far, float(enumerated(sequence, topk, stride)))
    assert mean_keys(csa, sequence) == near + far
    assert math.isclose(mean_scored(csa, sequence), float(enumerated(sequence, sequence, stride)))


def test_v4_without_compression_or_indexer() -> None:
    sliding = attention(AttentionKind.SHARED_KV, 128)
    heavy = attention(AttentionKind.SHARED_KV, 128, 128)
    assert keys_by_branch(sliding, 4096)[1] == 0
    assert keys_by_branch(heavy, 4096, causal=False) == (128, 32)
    assert mean_scored(heavy, 4096) == 0


def test_a_shared_choice_is_not_scored_again() -> None:
    reused = attention(indexer=Indexer(heads=2, head_dim=4, topk=8, shared=True))
    assert mean_scored(reused, 64) == 0
    assert mean_keys(reused, 64) < mean_keys(attention(), 64)


@given(LENGTHS, LIMITS, STRIDES)
def test_a_mask_never_adds_keys(sequence: int, limit: int, stride: int) -> None:
    causal = mean_visible(sequence, limit=limit, stride=stride)
    assert 0 <= causal <= mean_visible(sequence, limit=limit, stride=stride, causal=False)


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    assert mean_keys(attention(), int(np.int64(64))) == mean_keys(attention(), np.int64(64))  # type: ignore[arg-type]


@pytest.mark.parametrize("sequence", [0, -1, 1.5, True, "4096", None])
def test_a_sequence_is_a_whole_number(sequence: object) -> None:
    with pytest.raises(GoalError, match="sequence length"):
        mean_keys(attention(), sequence)  # type: ignore[arg-type]
    with pytest.raises(GoalError, match="sequence length"):
        mean_scored(attention(), sequence)  # type: ignore[arg-type]
