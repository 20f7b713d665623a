"""What an engine keeps per parameter, element and logit (numbers or arrays), and how it is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from krzem.layout.layout import Layouts

Array = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSizes:
    """What an engine keeps (floats or arrays); bytes per parameter unless said otherwise."""

    weight: Array
    gradient: Array
    optimizer: Array
    """Master weights and moments."""
    logit: Array = 6.0
    """Per logit at the peak: 6 where loss and gradient are fused, up to 14 where they are not."""
    stored: Array = 2.0
    """Per element of saved gate inputs and attention outputs (1.25 where kept in scaled fp8)."""
    buckets: Array = 0.0
    """Bytes (not per parameter) that the engine sets aside for communication buckets."""
    whole: Array = 0.0
    """1 where sharded gradients stay whole between micro-batches (no_sync), else 0."""
    held: Array = 0.0
    """Of gradients that stay whole (0: as ``gradient``)."""
    scratch: Array = 2.0
    """Per weight of one layer: products for weight gradients before they are added up."""
    gathered: Array = 2.0
    """Of weights gathered for the products under ZeRO-3."""
    gather: Array = 6.0
    """Of the layer at work under ZeRO-3: two layers of weights and one of gradients, or more."""
    stay: Array = 0.0
    """1 where sharded weights stay gathered between the micro-batches of a pipeline."""
    outputs: Array = 0.0
    """1 where a pipeline stage keeps what it handed on until its backward pass."""
    ends: Array = 0.0
    """1 where ZeRO-3 gathers embedding and output matrix whole, beside the layers, and the output
    matrix has its gradient in a tensor of its own."""
    copies: Array = 0.0
    """Of a layer's matrices: 8-bit copies and their transposes, beside the weights."""
    squeeze: Array = 1.0
    """Share of ``weight`` that the layers' matrices take (a base in 4 bits: about a quarter)."""
    norm: Array = 0.0
    """Per element that a norm reads, beyond a fused one: 32-bit copies that eager code saves.
    Networks without a gate have none: their layer norm is one kernel."""
    gate: Array = 0.0
    """Per element of inner width, beyond a fused gate: the activation function's output, which an
    eager gate multiplies.  Without a gate it is what the next matrix reads, counted anyway."""
    wide: Array = 0.0
    """1 where keys and values are saved once per query head."""
    whole_logits: Array = 0.0
    """1 where every tensor-parallel rank holds the logits of the whole vocabulary (0.5: open)."""
    lazy: Array = 0.0
    """1 where gradients come into being in the backward pass, as activations go."""
    step: Array = 0.0
    """Temporaries of the optimizer's step, cut as the states are."""
    deep: Array = 0.0
    """1 where the engine shards weights and gradients wherever it shards states."""
    least_stage: Array = 0.0
    """ZeRO stage that the engine uses at least (DeepSpeed's bf16 optimizer: 1)."""
    rank: Array = 0.0
    """Rank of adapters; 0 where the weights themselves are trained."""
    on_attention: Array = 1.0
    """Share of the width of attention's matrices that has adapters."""
    on_mlp: Array = 1.0
    """The same of the dense network's."""
    adapter: Array = 16.0
    """Of adapters, with gradients and states."""
    products: Array = 0.0
    """Share of each layer's products whose results partial recomputation keeps; 0 where it
    runs some layers again and others not at all."""
    dispatched: Array = 0.0
    """1 where it keeps what expert dispatch brought, too."""
    rematerialised: Array = 0.0
    """1 where recomputation of modules runs all of a layer again but what it was given."""
    ends_adapter: Array = 0.0
    """Of embedding and output matrix trained beside adapters: a copy and its states."""
    off_gradients: Array = 0.0
    """1 where gradients go to the host with the states of an offloaded optimizer."""
    off_weights: Array = 0.0
    """1 where sharded weights do, too."""
    host: Array = 0.0
    """Share of the saved activations that waits in host memory."""
    copies_sent: Array = 0.0
    """Copies of dispatched tokens at once while a layer of experts is at work, on the fullest
    rank: sent, received, sorted, results and their gradients."""


# Bytes per parameter on a device, after sharding
# -----------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Bytes per parameter on a device after sharding: of layers' matrices, experts and ends."""

    body: Array
    expert: Array
    end: Array

    def of(self, params: Array, expert: Array, ends: Array) -> Array:
        """Bytes of so many parameters of each kind."""
        return params * self.body + expert * self.expert + ends * self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCuts:
    """How weights, gradients and states of layouts ``[N]`` lie on a device."""

    weights: Cut
    gradients: Cut
    optimizer: Cut
    step: Cut | None
    """Temporaries of the optimizer's step; None where it has none."""
    third: Array
    """Whether weights are sharded between uses."""
    parts: Array
    """Share of a dense weight that a device holds where it is sharded."""


def state_cuts(x: Layouts, sizes: StateSizes, m: Array) -> StateCuts:
    """Of layouts with ``m`` micro-batches a step."""
    whole = (x.dp * x.cp).astype(float)
    edp = np.maximum(x.tp * whole / (x.ep * x.etp), 1.0)
    deep = (np.asarray(sizes.deep) > 0) & (x.zero >= 1)
    third = (x.zero >= 3) | deep
    by = whole
    if np.any(x.shard > 0):
        by = np.where(third & (x.shard > 0), np.minimum(x.shard, whole), whole)
    parts, expert_parts = 1.0 / by, 1.0 / edp
    optimizing = np.maximum(x.zero, sizes.least_stage) >= 1
    step = sizes.step * np.ones(1)
    return StateCuts(
        weights=_weights(x, sizes, third, parts, expert_parts),
        gradients=_gradients((x.zero >= 2) | deep, sizes, m, parts, expert_parts),
        optimizer=_sharded(sizes.optimizer, optimizing, parts, expert_parts),
        step=_sharded(sizes.step, optimizing, parts, expert_parts) if np.any(step > 0) else None,
        third=third,
        parts=parts,
    )


def _sharded(size: Array, where: Array, parts: Array, expert_parts: Array) -> Cut:
    body = size * np.where(where, parts, 1.0)
    return Cut(body=body, expert=size * np.where(where, expert_parts, 1.0), end=body)


def _weights(x: Layouts, sizes: StateSizes, third: Array, parts: Array, expert_parts: Array) -> Cut:
    plain = _sharded(sizes.weight, third, parts, expert_parts)
    body, expert, end = plain.body, plain.expert, plain.end
    if np.any(np.asarray(sizes.squeeze) < 1.0) or np.any(np.asarray(sizes.copies) > 0):
        beside = np.where(third, 0.0, sizes.copies)
        body, expert = body * sizes.squeeze + beside, expert * sizes.squeeze + beside
    if np.any(np.asarray(sizes.stay) > 0):
        stays = np.where(third & (x.pp > 1), sizes.stay * sizes.gathered, 0.0)
        held = stays * (parts < 1.0)
        body, end = body + held, end + held
        expert = expert + stays * (expert_parts < 1.0)
    return Cut(body=body, expert=expert, end=end)


def _gradients(
    second: Array, sizes: StateSizes, m: Array, parts: Array, expert_parts: Array
) -> Cut:
    plain = _sharded(sizes.gradient, second, parts, expert_parts)
    if not np.any(np.asarray(sizes.whole) > 0):
        return plain
    held = np.where(np.asarray(sizes.held) > 0, sizes.held, sizes.gradient)
    whole = second & (m > 1.0) & (np.asarray(sizes.whole) > 0)
    body = np.where(whole, held, plain.body)
    return Cut(body=body, expert=np.where(whole, held, plain.expert), end=body)
