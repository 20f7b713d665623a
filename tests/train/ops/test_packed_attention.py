"""Attention over documents and windows in one row of tokens, without an ``S x S`` mask.

The kernel needs an NVIDIA device: here a loop over documents that keeps its contract stands in.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.configs import ALL
from torch import Tensor

from krzem.train.build import build_model
from krzem.train.config import model_spec
from krzem.train.device import accelerator_type
from krzem.train.ops import attention, portable_only
from krzem.train.ops.attention import document_spans, most_documents
from krzem.train.ops.cuda import packed_attention


def one_by_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    _: Tensor,
    longest: int,
    __: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """The contract of ``varlen_attn``, causal: every span by itself, ``[T, H, N]``."""
    assert starts.dtype is torch.int32
    assert window_size[1] == 0
    assert enable_gqa == (q.shape[1] != k.shape[1])
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    ends, parts = starts.tolist(), []
    assert ends[0] == 0
    assert ends[-1] == len(q)
    for a, b in pairwise(ends):
        assert a <= b <= a + longest
        scores = torch.einsum("shn,thn->hst", q[a:b], k[a:b]) * scale
        behind = torch.arange(b - a)[:, None] - torch.arange(b - a)[None, :]
        unread = behind < 0
        if window_size[0] >= 0:
            unread = unread | (behind > window_size[0])
        weights = scores.masked_fill(unread, -torch.inf).softmax(-1)
        parts.append(torch.einsum("hst,thn->shn", weights, v[a:b]))
    return torch.cat(parts)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_one_row_is_the_mask(data: Any) -> None:
    length = data.draw(st.integers(1, 40))
    lengths = st.lists(st.integers(1, 12), min_size=40, max_size=40)
    documents = torch.tensor(
        [
            [i for i, n in enumerate(data.draw(lengths)) for _ in range(n)][:length]
            for _ in range(data.draw(st.integers(1, 3)))
        ]
    )
    cut = data.draw(st.booleans())
    window = data.draw(st.sampled_from([None, 1, 3, 100])) if cut else data.draw(st.integers(1, 9))
    groups, narrow = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.sampled_from([16, 24]))
    batch = len(documents)
    inputs = [
        torch.randn(batch, heads, length, width, dtype=torch.float64, requires_grad=True)
        for heads, width in ((4, 24), (groups, 24), (groups, narrow))
    ]
    spans = document_spans(documents, most_documents(documents)) if cut else None
    with portable_only():
        expected = attention(
            *inputs, scale=0.3, window=window, documents=documents if cut else None
        )
    got = packed_attention(*inputs, spans, scale=0.3, window=window, kernel=one_by_one)
    torch.testing.assert_close(got, expected)
    direction = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_spans_begin_with_documents_and_end_with_sequences() -> None:
    documents = torch.tensor([[7, 7, 9, 9, 9], [3, 3, 3, 3, 3], [1, 2, 3, 3, 1]])
    assert most_documents(documents) == 4
    spans = document_spans(documents, 4).tolist()
    assert spans == [0, 2, 5, 5, 5, 10, 10, 10, 10, 11, 12, 14, 15]
    assert most_documents(None) == 0


@pytest.mark.parametrize("name", ["deepseek_v3", "gemma3_text", "qwen3_moe"])
def test_a_model_by_rows_is_the_model_by_masks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans reach the operator through layers, recomputation and micro-batches of several rows."""
    spec = model_spec(ALL[name], name=name)
    model = build_model(spec, seed=3)
    tokens = torch.randint(spec.vocab, (2, 25), generator=torch.Generator().manual_seed(5))
    documents = torch.tensor([[0] * 9 + [1] * 15, [4] * 3 + [5] * 20 + [6]])
    by_mask = model(tokens, documents=documents)
    calls = []

    def by_row(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        calls.append(more)
        assert more["spans"] is not None
        return packed_attention(
            q,
            k,
            v,
            more["spans"],
            scale=more["scale"],
            window=more.get("window"),
            kernel=one_by_one,
        )

    monkeypatch.setitem(attention.versions, "cpu", (by_row, lambda: True))
    by_rows = model(tokens, documents=documents)
    assert len(calls) >= len(spec.layers)
    torch.testing.assert_close(by_rows, by_mask, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(accelerator_type() != "cuda", reason="the kernel needs an NVIDIA device")
def test_the_kernel_itself() -> None:  # Not yet run on a device.
    documents = torch.tensor([[0] * 9 + [1] * 55, [4] * 3 + [5] * 60 + [6]], device="cuda")
    spans = document_spans(documents, most_documents(documents))
    q, k, v = torch.randn(3, 2, 4, 64, 64, dtype=torch.bfloat16, device="cuda").unbind()
    got = packed_attention(q, k, v, spans, scale=0.1, window=7)
    with portable_only():
        expected = attention(q, k, v, scale=0.1, window=7, documents=documents)
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
