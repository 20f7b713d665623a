"""What an engine keeps per parameter, element and logit, as numbers or arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    """Per element that a norm reads, beyond a fused one: 32-bit copies that eager code saves."""
    gate: Array = 0.0
    """Per element of inner width, beyond a fused gate: what eager activation functions save."""
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
    host: Array = 0.0
    """Share of the saved activations that waits in host memory."""
    copies_sent: Array = 0.0
    """Copies of dispatched tokens at once while a layer of experts is at work, on the fullest
    rank: sent, received, sorted, results and their gradients."""
