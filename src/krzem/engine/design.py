"""What an engine's design does with the hardware, as numbers that time and memory depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from krzem.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """One engine at one date under one set of switches."""

    fits: str
    """Key of its calibrated factor in ``facts/coefficients.json``."""
    elementwise: float
    """Memory traffic of element-wise work over the fused minimum."""
    host_us: float
    """Host time per kernel launch, microseconds."""
    gap_us: float
    """Idle time between kernels, microseconds."""
    launch: float = 1.0
    """Share of launches that still come from the host (below 1: recorded graphs)."""
    host_waits: float = 1.0
    """1 where the host must learn how many tokens each expert was sent, else 0."""
    turn_ms: float = 0.5
    """Host time of the pipeline engine per micro-batch and chunk, forward and backward together."""
    cut_turn_ms: float = 0.0
    """The same, further, where activations are cut over tensor-parallel ranks."""
    tp_overlap: float = 0.0
    """Share of tensor-parallel communication that runs beside products."""
    tp_backward: float = 0.0
    """Share of backward tensor-parallel communication beside the weight products."""
    reduce_overlap: float = 0.0
    """Share of gradient reduction that may run beside the backward pass."""
    gather_overlap: float = 0.0
    """Share of weight gathering that may run beside computation."""
    ep_overlap: float = 0.0
    """Share of expert all-to-all that runs beside computation by the engine's own design."""
    overlap_a2a: float = 0.0
    """1 where it is overlapped by a switch; the share that hides is calibrated."""
    dedup: float = 0.0
    """1: an expert token crosses the network once per node, 0: once per expert."""
    dispatch_all: float = 0.0
    """1: all tokens are gathered on all expert-parallel ranks."""
    even_routing: float = 0.0
    """1: every expert gets the same number of tokens."""
    gradient_bytes: float = 4.0
    """Bytes per element of reduced gradients."""
    state_gradient_bytes: float = 4.0
    """Bytes per parameter of the gradients that are kept."""
    weight_bytes: float = 2.0
    """Bytes per parameter of the weights that are kept for the products."""
    logit_bytes: float = 10.0
    """Memory per logit at the peak (16-bit logits, 32-bit copies, gradients)."""
    bucket_bytes: float = 0.0
    """Memory set aside for communication buckets."""
    accumulate_bytes: float = 8.0
    """Memory traffic per weight and micro-batch of adding gradients up, beyond the product."""
    flash2: float = 0.0
    """1 while attention kernels are of the FlashAttention-2 generation on every chip."""
    unfused_attention: float = 0.0
    """1 where attention scores go through memory."""
    rowwise: float = 0.0
    """1 where 8-bit products have scales per row and leave the fast accumulation path."""
    whole_gradients: float = 0.0
    """1 where gradients stay whole between micro-batches although they are sharded."""
    pp_scatter: float = 0.0
    """1: pipeline transfers are cut over tensor-parallel ranks and gathered again."""

    def changed(self, numbers: Mapping[str, float]) -> Design:
        """The design with other ``numbers``; raises DataError for a name it does not have."""
        unknown = sorted(set(numbers) - NUMBERS)
        if unknown:
            raise DataError(f"an engine's design has no number {unknown[0]!r}")
        return replace(self, **numbers) if numbers else self  # type: ignore[arg-type]


NUMBERS = frozenset(item.name for item in fields(Design)) - {"fits"}
