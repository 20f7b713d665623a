"""Activations that a layer saves for its backward pass, in bytes, and its working set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from krzem.cost.sizes import StateSizes
from krzem.layout.layout import RECOMPUTES, Layouts, Recompute
from krzem.model.table import ModelTable

Array = Any


@dataclass(frozen=True, slots=True)
class Saved:
    """Activation bytes of one layer and micro-batch by recomputation, and its working set."""

    dense: Array
    moe: Array
    dense_kept: Array
    moe_kept: Array
    dense_partly: Array
    """What partial recomputation leaves where it keeps every second product."""
    moe_partly: Array
    boundary: Array
    sent: Array
    """Buffers of expert dispatch, whose sizes change from step to step: others cannot use them."""
    turned: Array
    """Gradients of the gate's inputs, beside what the recomputed layer holds."""


def layer_activations(
    t: ModelTable, x: Layouts, low: Array, unfused: Array, sizes: StateSizes
) -> Saved:
    """What one layer and micro-batch leave for the backward pass, by recomputation."""
    tp = x.tp.astype(float)
    stored = sizes.stored
    m = x.micro_batch * t.sequence / x.cp
    own = m / np.where(x.sequence_parallel > 0, tp, 1.0)
    cut = m / tp
    h = t.hidden
    low = np.minimum(low, 2.0)
    gated = np.maximum(t.dense_up - t.dense_width, t.expert_up - t.expert_width) > 0
    more, gate = sizes.norm * gated, sizes.gate * gated
    norm = own * h * (2.0 + low + more)
    heads = t.heads / tp
    pairs = np.maximum(t.kv_width, sizes.wide * (t.q_width + t.o_width))
    qkv = 2.0 * cut * (t.q_width + pairs)
    latent = np.where(np.asarray(t.latent_width) > 0, 4.0 * own * t.latent_width, 0.0)
    # The core keeps its output; a product in low precision keeps its own copy of it.
    out = cut * t.o_width * np.where((low < 2.0) & (stored >= 2.0), 3.0, stored)
    scores = unfused * 5.0 * heads * m * t.sequence
    attention = norm + qkv + latent + out + 4.0 * m * heads + scores
    streams = np.where(t.streams > 1, 2.0 * t.streams * own * h * 2.0, 0.0)
    dense = norm + cut * (stored * t.dense_up + (low + gate) * t.dense_width)
    # Dropout masks and unfused biases of engines before fused attention.
    dense = dense + unfused * (2.0 * own * h + 2.0 * cut * t.dense_width)
    picked = cut * t.experts_per_token * x.etp
    expert = (stored * t.expert_up + (low + gate) * t.expert_width) / x.etp
    scored = np.maximum(more, sizes.scored)
    routed = picked * ((low + scored) * t.expert_hidden + expert)
    moe = norm + routed + cut * t.experts * 8.0
    moe = moe + cut * (stored * t.shared_up + (low + gate) * t.shared_width)
    boundary = 2.0 * own * h * t.streams
    core = scores
    cheap_a = 0.5 * norm + np.where(np.asarray(t.latent_width) > 0, qkv, 0.0)
    low = low + gate
    cheap_d = 0.5 * norm + low * cut * t.dense_width
    cheap_m = 0.5 * norm + low * (picked * t.expert_width / x.etp + cut * t.shared_width)
    kind = x.recompute
    attn = kind == RECOMPUTES.index(Recompute.ATTENTION)
    mods = kind == RECOMPUTES.index(Recompute.MODULES)
    saved = np.where(attn, core, np.where(mods, cheap_a, 0.0))
    whole_dense, whole_moe = attention + dense + streams, attention + moe + streams
    kept_dense = whole_dense - saved - np.where(mods, cheap_d, 0.0)
    kept_moe = whole_moe - saved - np.where(mods, cheap_m, 0.0)
    if np.any(np.asarray(sizes.rematerialised) > 0):
        all_again = mods & (np.asarray(sizes.rematerialised) > 0)
        kept_dense = np.where(all_again, boundary, kept_dense)
        kept_moe = np.where(all_again, boundary, kept_moe)
    some_dense, some_moe = _partly(t, x, sizes, boundary, own, cut, picked)
    return Saved(
        dense=whole_dense,
        moe=whole_moe,
        dense_kept=kept_dense,
        moe_kept=kept_moe,
        dense_partly=some_dense,
        moe_partly=some_moe,
        boundary=boundary,
        sent=_sent(x, sizes, 2.0 * picked * t.expert_hidden),
        turned=2.0 * cut * t.dense_up,
    )


def _sent(x: Layouts, sizes: StateSizes, copy: Array) -> Array:
    """Copies of the tokens that a layer's experts are sent, on the fullest rank."""
    if not np.any(np.asarray(sizes.copies_sent) > 0):
        return 0.0
    return np.where(x.ep > 1, sizes.copies_sent * copy, 0.0)


def _partly(
    t: ModelTable,
    x: Layouts,
    sizes: StateSizes,
    boundary: Array,
    own: Array,
    cut: Array,
    picked: Array,
) -> tuple[Array, Array]:
    """What is left of a layer whose every second product (or each) is kept, dense and sparse."""
    part = np.asarray(sizes.products)
    if not np.any(part > 0):
        return 0.0, 0.0
    h, beyond = t.hidden, 2.0 * np.maximum(2.0 * part - 1.0, 0.0)
    attention = boundary + cut * 2.0 * (t.q_width + part * t.kv_width + t.o_width)
    attention = attention + own * h * beyond
    sent = np.where(x.ep > 1, sizes.dispatched * 4.0 * picked * t.expert_hidden, 0.0)
    dense = attention + cut * 2.0 * (part * t.dense_up + h)
    return dense, attention + cut * 2.0 * part * t.shared_up + sent
