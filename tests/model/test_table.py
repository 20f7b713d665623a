"""The table of a model carries every parameter and every multiplication of its architecture."""

from __future__ import annotations

import numpy as np
import pytest

from krzem.model import count, load_model, model_ids
from krzem.model.architecture import NO_ATTENTION, Architecture, Attention, keys_by_branch
from krzem.model.parameters import flops_by_part, state_flops
from krzem.model.table import stack, tabulate
from krzem.model.weights import branches, state_branch

SEQUENCE = 4096


@pytest.mark.parametrize("name", model_ids())
def test_parameters_add_up(name: str) -> None:
    arch = load_model(name)
    t = tabulate(arch, SEQUENCE)
    dense = t.layers - t.moe_layers
    layers = t.layers * (t.attention_split + t.attention_whole + t.norm_params)
    layers += dense * t.dense_params
    layers += t.moe_layers * (t.expert_params + t.shared_params + t.router_params)
    total = layers + t.embedding_params + t.head_params
    assert total == pytest.approx(count(arch).total, rel=2e-3)


@pytest.mark.parametrize("name", model_ids())
def test_matrix_flops_add_up(name: str) -> None:
    arch = load_model(name)
    t = tabulate(arch, SEQUENCE)
    scores = np.sum(t.core_count * t.core_heads * (t.core_qk + t.core_v) * t.core_keys)
    ours = 3 * 2 * t.layers * scores
    theirs = flops_by_part(arch, SEQUENCE, mtp=False).attention + chunking(arch)
    assert ours == pytest.approx(theirs, rel=1e-2)


def chunking(arch: Architecture) -> float:
    """What chunked kernels of recurrences multiply beyond the recurrence itself."""
    more = 0.0
    for layer, times in arch.kinds():
        branch = state_branch(layer.recurrence, SEQUENCE) if layer.recurrence else None
        if layer.recurrence is not None and branch is not None:
            kernel = 2 * branch.heads * (branch.qk_dim + branch.v_dim) * branch.keys
            assert kernel >= state_flops(layer.recurrence)
            more += 3 * times * (kernel - state_flops(layer.recurrence))
    return more


def _attentions() -> list[Attention]:
    found = {r.layer.attention for n in model_ids() for r in load_model(n).runs}
    return sorted(found - {NO_ATTENTION}, key=repr)


@pytest.mark.parametrize("attention", _attentions())
def test_branches_agree_with_mean_keys(attention: Attention) -> None:
    scored = [b for b in branches(attention, SEQUENCE) if b.v_dim]
    assert sum(b.keys for b in scored) == pytest.approx(sum(keys_by_branch(attention, SEQUENCE)))
    assert all(b.keys <= b.span for b in scored)


def test_a_stack_pads_with_nothing() -> None:
    small, large = (tabulate(load_model(n), SEQUENCE) for n in ("llama-3.1-8b", "deepseek-v4-pro"))
    both = stack([small, large])
    assert both.proj_count.shape == (len(large.proj_count), 2)
    assert both.proj_count[len(small.proj_count) :, 0].sum() == 0
    assert both.hidden.tolist() == [small.hidden, large.hidden]
