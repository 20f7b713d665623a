"""Every version of every operator, forward and backward, against float64 arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from krzem.errors import UnknownNameError
from krzem.train import ops
from krzem.train.device import accelerator_type
from krzem.train.ops.attention import causal_mask

DEVICES = ["cpu", *([accelerator_type()] if accelerator_type() else [])]


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def check(
    operator: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    inputs: list[Tensor],
    device: str | None,
    dtype: torch.dtype,
) -> None:
    """Results and gradients of ``operator`` in ``dtype`` against ``exact`` in float64."""
    tolerance = 2e-5 if dtype is torch.float32 else 4e-2
    low = [x.to(device, dtype).requires_grad_() for x in inputs]
    high = [x.to(dtype).double().requires_grad_() for x in inputs]
    got, expected = operator(*low), exact(*high)
    direction = draw(*expected.shape, seed=99)
    got.backward(direction.to(device, dtype))
    expected.backward(direction.to(dtype).double())
    close(got, expected, tolerance)
    for a, b in zip(low, high, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        close(a.grad, b.grad, tolerance)


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (got.double().cpu() - expected).norm() / (expected.norm() + 1e-30)
    assert error <= tolerance, float(error)


both = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
everywhere = pytest.mark.parametrize("device", DEVICES)


def exact_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = (q @ k.mT * scale).masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v


@both
@everywhere
@pytest.mark.parametrize(
    ("groups", "width", "window", "documents"),
    [(4, 16, None, False), (2, 16, 3, False), (4, 8, None, True), (1, 24, 5, True)],
)
@pytest.mark.parametrize("length", [13, 75])
def test_attention(
    dtype: torch.dtype,
    device: str,
    length: int,
    groups: int,
    width: int,
    window: int | None,
    documents: bool,
) -> None:
    ids = torch.tensor([[0] * 4 + [1] * 5 + [2] * (length - 9), [0] * length])
    ids = ids if documents else None  # type: ignore[assignment]
    mask = causal_mask(length, torch.device("cpu"), window, ids)
    if mask is None:
        mask = torch.ones(length, length).tril().bool()
    inputs = [draw(2, g, length, w, seed=w) for g, w in ((4, 24), (groups, 24), (groups, width))]
    where = None if ids is None else ids.to(device)
    check(
        lambda q, k, v: ops.attention(q, k, v, scale=0.3, window=window, documents=where),
        lambda q, k, v: exact_attention(q, k, v, mask, 0.3),
        inputs,
        device,
        dtype,
    )


@both
@everywhere
def test_sink_attention(dtype: torch.dtype, device: str) -> None:
    mask = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(4)) < 0.6

    def exact(q: Tensor, kv: Tensor, sinks: Tensor) -> Tensor:
        scores = torch.einsum("bhsn,btn->bhst", q, kv) * 0.25
        scores = scores.masked_fill(~mask[:, None], -math.inf)
        column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat((scores, column), dim=-1).softmax(-1)[..., :-1]
        return torch.einsum("bhst,btn->bhsn", weights, kv)

    check(
        lambda q, kv, sinks: ops.sink_attention(q, kv, sinks, mask.to(device), scale=0.25),
        exact,
        [draw(2, 3, 7, 16), draw(2, 9, 16, seed=1), draw(3, seed=2)],
        device,
        dtype,
    )


@both
@everywhere
@pytest.mark.parametrize("sizes", [(64, 0, 128), (0, 0, 64), (64, 64, 64)])
def test_grouped_linear(dtype: torch.dtype, device: str, sizes: tuple[int, ...]) -> None:
    ends = torch.tensor(sizes).cumsum(0).int()
    groups = ops.Groups(ends=ends.to(device), sizes=sizes)

    def exact(x: Tensor, w: Tensor) -> Tensor:
        parts = x.split(list(sizes))
        return torch.cat([p @ w[e].T for e, p in enumerate(parts)])

    check(
        lambda x, w: ops.grouped_linear(x, w, groups),
        exact,
        [draw(sum(sizes), 16), draw(3, 24, 16, seed=1)],
        device,
        dtype,
    )


# No limit in bfloat16: its gradient jumps there, and rounding carries values across.
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, None), (torch.bfloat16, None), (torch.float32, 0.5)]
)
@everywhere
def test_grouped_network(dtype: torch.dtype, device: str, limit: float | None) -> None:
    sizes = (64, 0, 128)
    ends = torch.tensor(sizes).cumsum(0).int()
    groups = ops.Groups(ends=ends.to(device), sizes=sizes)

    def exact(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        out = []
        for e, rows in enumerate(x.split(list(sizes))):
            gate, value = (rows @ up[e].T).chunk(2, dim=-1)
            if limit is not None:
                gate, value = gate.clamp(max=limit), value.clamp(-limit, limit)
            out.append(gate / (1 + (-gate).exp()) * value @ down[e].T)
        return torch.cat(out)

    check(
        lambda x, up, down: ops.grouped_network(x, up, down, groups, limit),
        exact,
        [draw(192, 16), draw(3, 48, 16, seed=1, scale=0.3), draw(3, 16, 24, seed=2)],
        device,
        dtype,
    )


@both
@everywhere
@pytest.mark.parametrize("outputs", [8, 40])
def test_linear(dtype: torch.dtype, device: str, outputs: int) -> None:
    inputs = [draw(2, 6, 24), draw(outputs, 24, seed=1), draw(outputs, seed=2)]
    check(ops.linear, lambda x, w, b: x @ w.T + b, inputs, device, dtype)
    check(ops.linear, lambda x, w: x @ w.T, inputs[:2], device, dtype)


@both
def test_gradient_of_a_weight_over_many_rows(dtype: torch.dtype) -> None:
    rows = 1100  # three pieces, the last one short
    for outputs in (8, 40):
        inputs = [draw(rows, 24), draw(outputs, 24, seed=1)]
        check(ops.linear, lambda x, w: x @ w.T, inputs, "cpu", dtype)


@both
@everywhere
def test_rms_norm(dtype: torch.dtype, device: str) -> None:
    def exact(x: Tensor, w: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w

    check(lambda x, w: ops.rms_norm(x, w, 1e-6), exact, [draw(3, 5, 32), draw(32)], device, dtype)
    x = draw(2, 8)
    torch.testing.assert_close(ops.rms_norm(x, None, 1e-6), exact(x, torch.ones(8).double()))


@both
@everywhere
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotate(dtype: torch.dtype, device: str, interleaved: bool) -> None:
    angle = torch.arange(5)[:, None] * torch.tensor([1.0, 0.3, 0.02, 0.001])
    cos, sin = angle.cos(), angle.sin()

    def exact(x: Tensor) -> Tensor:
        pairs = x.unflatten(-1, (4, 2)) if interleaved else x.unflatten(-1, (2, 4)).mT
        turned = torch.view_as_complex(pairs.contiguous())
        turned = turned * torch.polar(torch.ones_like(angle), angle).to(turned)[:, None]
        out = torch.view_as_real(turned)
        return (out if interleaved else out.mT).flatten(-2)

    check(
        lambda x: ops.rotate(x, cos.to(device), sin.to(device), interleaved),
        exact,
        [draw(2, 5, 3, 8)],
        device,
        dtype,
    )


@both
@everywhere
@pytest.mark.parametrize(("plain", "interleaved"), [(6, True), (3, True), (6, False)])
def test_queries_and_keys_of_two_parts(
    dtype: torch.dtype, device: str, plain: int, interleaved: bool
) -> None:
    angle = torch.arange(5)[:, None] * torch.tensor([1.0, 0.3])
    cos, sin = angle.cos().to(device), angle.sin().to(device)

    def exact(x: Tensor) -> Tensor:
        turned = ops.rotate.portable(x[..., plain:], cos.cpu(), sin.cpu(), interleaved)
        return torch.cat((x[..., :plain], turned), dim=-1)

    check(
        lambda x: ops.rotate_tail(x, cos, sin, interleaved),
        exact,
        [draw(2, 5, 3, plain + 4)],
        device,
        dtype,
    )
    check(
        lambda kv, r: torch.cat(ops.keys_values(kv, r, plain), dim=-1),
        lambda kv, r: torch.cat(
            (kv[..., :plain], r.unsqueeze(2).expand(-1, -1, 3, -1), kv[..., plain:]), dim=-1
        ),
        [draw(2, 5, 3, plain + 7), draw(2, 5, 4, seed=1)],
        device,
        dtype,
    )


@both
@everywhere
@pytest.mark.parametrize("limit", [None, 0.5])
def test_swiglu(dtype: torch.dtype, device: str, limit: float | None) -> None:
    def exact(gate: Tensor, up: Tensor) -> Tensor:
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate / (1 + (-gate).exp()) * up

    check(
        lambda a, b: ops.swiglu(a, b, limit),
        exact,
        [draw(6, 32), draw(6, 32, seed=1)],
        device,
        dtype,
    )


@both
@everywhere
def test_permute_and_combine(dtype: torch.dtype, device: str) -> None:
    index = torch.tensor([[0, 2], [2, 1], [2, 0], [0, 1]])
    position, groups = ops.place(index.flatten(), 4)
    where, rows = position.view(4, 2), sum(groups.sizes)

    def exact(x: Tensor, weights: Tensor) -> Tensor:
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()[index]
        return (x[:, None] * (scale * weights)[..., None]).sum(1)

    def grouped(x: Tensor, weights: Tensor) -> Tensor:
        spread = ops.permute(x, where.to(device), rows)
        factor = torch.repeat_interleave(torch.arange(1, 5), torch.tensor(groups.sizes))
        return ops.combine(spread * factor[:, None].to(spread), where.to(device), weights)

    check(grouped, exact, [draw(4, 8), draw(4, 2, seed=1)], device, dtype)


@given(st.lists(st.integers(0, 5), max_size=300), st.sampled_from([1, 8, 64]))
def test_place_groups_and_keeps_order(experts: list[int], align: int) -> None:
    position, groups = ops.place(torch.tensor(experts, dtype=torch.int64), 6, align)
    stops = groups.ends.tolist()
    starts = [0, *stops[:-1]]
    assert len(set(position.tolist())) == len(experts)
    assert all(size % align == 0 for size in groups.sizes)
    for e in range(6):
        rows = [int(p) for p, own in zip(position, experts, strict=True) if own == e]
        assert rows == list(range(starts[e], starts[e] + len(rows)))
        assert stops[e] - starts[e] - len(rows) < align


@both
@everywhere
@pytest.mark.parametrize("vocabulary", [9, 70])
def test_sums_and_gradients_of_logits(dtype: torch.dtype, device: str, vocabulary: int) -> None:
    logits = draw(6, vocabulary, scale=4.0).to(dtype)
    own = torch.tensor([0, 8, -1, 3, vocabulary - 1, -1])
    here = (own >= 0).double()
    part, chosen = ops.logit_sums(logits.to(device), own.to(device))
    exact = logits.double()
    close(part, exact.logsumexp(-1), 1e-6)
    close(chosen, exact.gather(1, own.clamp(min=0)[:, None])[:, 0] * here, 1e-6)
    partition, factor = draw(6).abs() + exact.logsumexp(-1), draw(6, seed=1).abs()
    expected = (exact - partition[:, None]).exp() * factor[:, None]
    expected[torch.arange(6), own.clamp(min=0)] -= here
    given = (partition.float().to(device), factor.float().to(device))
    got = ops.logit_gradient(logits.to(device, copy=True), own.to(device), *given)
    assert got.dtype is dtype
    close(got, expected, 2e-6 if dtype is torch.float32 else 4e-3)


def test_a_vendor_version_is_taken_only_where_its_library_is() -> None:
    @ops.operator
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    ready = [False]
    doubled.version("cpu", lambda: ready[0])(lambda x: x + x + 0)
    x = torch.ones(2)
    assert doubled.chosen("cpu") is doubled.portable
    ready[0] = True
    assert doubled.chosen("cpu") is not doubled.portable
    assert doubled.chosen("npu") is doubled.portable
    assert torch.equal(doubled(x), x * 2)
    del ops.OPERATORS["doubled"]


@pytest.mark.parametrize("traceable", [False, True])
def test_a_compiler_gets_the_versions_that_it_can_trace(
    traceable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    @ops.operator
    def tripled(x: Tensor) -> Tensor:
        return x * 3

    del ops.OPERATORS["tripled"]
    tripled.version("cpu", traceable=traceable)(lambda x: x * 2 + x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert (tripled.chosen("cpu") is not tripled.portable) == traceable
    monkeypatch.undo()
    assert tripled.chosen("cpu") is not tripled.portable


def test_the_slots_that_vendors_fill() -> None:
    expected = {
        "attention", "combine", "dispatch", "float8_product", "float8_rows_product",
        "float8_tokens_product", "gated_delta", "grouped_linear", "grouped_network",
        "keys_values", "linear", "logit_gradient", "logit_sums", "permute", "rms_norm", "rotate",
        "rotate_tail", "sink_attention", "swiglu",
    }  # fmt: skip
    assert set(ops.OPERATORS) == expected
    fused: dict[str, Any] = {n: op.versions for n, op in ops.OPERATORS.items()}
    npu = {n for n, v in fused.items() if "npu" in v}
    assert npu == {"attention", "rms_norm", "rotate", "swiglu"}
    with pytest.raises(UnknownNameError, match="Did you mean attention"):
        ops.find_operator("atention")


def delta_token_by_token(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, documents: Tensor | None
) -> Tensor:
    """The gated delta rule as it is defined, one token after the other."""
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    state, out = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), []
    for t in range(q.shape[2]):
        if documents is not None and t:
            goes_on = documents[:, t] == documents[:, t - 1]
            state = state * goes_on[:, None, None, None]
        state = state * decay[:, :, t].exp()[..., None, None]
        given = torch.einsum("bhk,bhkv->bhv", k[:, :, t], state)
        written = beta[:, :, t, None] * (v[:, :, t] - given)
        state = state + k[:, :, t, :, None] * written[:, :, None]
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], state) / q.shape[-1] ** 0.5)
    return torch.stack(out, dim=2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("length", "chunk"), [(23, 8), (16, 8), (5, 64)])
@pytest.mark.parametrize("cut", [False, True])
def test_delta_rule(device: str, length: int, chunk: int, cut: bool) -> None:
    heads = (2, 3, length)
    documents = torch.tensor([[t // 7 for t in range(length)], [t // 4 for t in range(length)]])
    inputs = [draw(*heads, 4, seed=1), draw(*heads, 4, seed=2), draw(*heads, 5, seed=3)]
    inputs += [draw(*heads, seed=4), draw(*heads, seed=5)]
    ends = documents if cut else None

    def gates(decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        return -decay.exp(), beta.sigmoid()

    def ours(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
        own = ends if ends is None else ends.to(q.device)
        return ops.gated_delta(q, k, v, *gates(decay, beta), own, chunk)

    def exact(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
        return delta_token_by_token(q, k, v, *gates(decay, beta), ends)

    check(ours, exact, inputs, device, torch.float32)
