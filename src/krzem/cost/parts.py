"""What a micro-batch, a pipeline rank and a step take, part by part."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

Array = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeconds:
    """Seconds per micro-batch of the parts of a model on one device, arrays ``[U]``.

    Forward parts end in ``_f``, backward in ``_b``; ``*_comm_*`` is what stays exposed of tensor-
    and context-parallel communication and is contained in the part it belongs to.
    """

    attention_f: Array
    attention_b: Array
    core_f: Array
    """Attention core alone: what recomputing ``attention`` repeats."""
    cheap_f: Array
    """Norms, activations and latent up-projections: what recomputing ``modules`` repeats."""
    dense_f: Array
    dense_b: Array
    moe_f: Array
    """Mixture-of-experts network without its all-to-all."""
    moe_b: Array
    dispatch_f: Array
    """All-to-all of one forward pass (dispatch and combine)."""
    dispatch_b: Array
    head_f: Array
    head_b: Array
    embed: Array
    """Embedding look-up, forward and backward."""
    mtp_f: Array
    mtp_b: Array
    weight_share: Array
    """Share of forward and backward that computes weight gradients (zero-bubble schedules)."""
    attention_comm_f: Array
    """Exposed tensor- and context-parallel communication of an attention block."""
    attention_comm_b: Array
    dense_comm_f: Array
    """The same of a dense network."""
    dense_comm_b: Array
    moe_comm_f: Array
    """The same of a mixture-of-experts network."""
    moe_comm_b: Array
    covered_f: Array
    """Of an attention block, what runs beside context-parallel communication and hides it."""
    covered_b: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """One optimizer step, arrays ``[N]``; the parts add up to ``total``."""

    compute: Array
    """Matrix products, attention and element-wise work of the busiest pipeline rank."""
    recompute: Array
    """Forward work repeated in the backward pass."""
    tensor_parallel: Array
    """Exposed tensor- and context-parallel communication."""
    expert_parallel: Array
    """Exposed all-to-all."""
    pipeline_transfer: Array
    bubble: Array
    """Idle time of the pipeline, and of ranks with fewer layers."""
    data_parallel: Array
    """Exposed reduction of gradients and gathering of weights."""
    optimizer: Array
    overhead: Array
    """Engine overhead, stragglers and fixed time per step."""
    micro_batches: Array

    @property
    def total(self) -> Array:
        """Seconds per optimizer step."""
        return sum(getattr(self, f.name) for f in fields(self) if f.name != "micro_batches")


@dataclass(frozen=True, slots=True)
class RankSeconds:
    """Seconds per micro-batch of one pipeline rank.

    ``forward`` and ``backward`` are all of it; the others are parts of these two.
    """

    forward: Array
    backward: Array
    recompute: Array
    """Computation repeated in the backward pass (its communication is in ``comm``)."""
    dispatch: Array
    comm: Array
    gather: Array
    """Exposed gathering of sharded weights and scattering of their gradients."""
    free_f: Array
    """Computation of the forward pass that covers no communication yet."""
    free_b: Array

    @property
    def total(self) -> Array:
        return self.forward + self.backward
