"""Bytes that an engine keeps per parameter, element and logit, by precision; how they are cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from krzem.engine.conditions import Design
from krzem.layout.layout import Layouts, Precision, StateBytes

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
    """1 where sharded weights stay gathered between micro-batches of a pipeline, and under ZeRO-2
    from the forward to the backward pass."""
    scored: Array = 0.0
    """Per element that experts return: a copy that the product with their scores keeps."""
    received: Array = 0.0
    """1 where a pipeline stage sets aside a buffer for all that it will receive in a step."""
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


def state_cuts(
    x: Layouts, sizes: StateSizes, m: Array, *, experts_within: bool = False
) -> StateCuts:
    """Of layouts with ``m`` micro-batches a step; ``experts_within`` a sharding group experts are
    cut as well, not over all ranks that hold the same ones."""
    whole = (x.dp * x.cp).astype(float)
    edp = np.maximum(x.tp * whole / (x.ep * x.etp), 1.0)
    deep = (np.asarray(sizes.deep) > 0) & (x.zero >= 1)
    third = (x.zero >= 3) | deep
    by = whole
    if np.any(x.shard > 0):
        by = np.where(third & (x.shard > 0), np.minimum(x.shard, whole), whole)
        if experts_within:
            edp = np.where(third & (x.shard > 0), np.minimum(x.shard, edp), edp)
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
        stays = np.where(third & ((x.pp > 1) | (x.zero < 3)), sizes.stay * sizes.gathered, 0.0)
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


ADAPTERS = ("lora", "qlora")


ADAPTER_RANK = 16.0
"""Rank of adapters where nobody says."""


ADAPTER_BYTES = 16.0
"""Per parameter of an adapter: in 32 bits, with its gradient and two moments."""


ENDS_BYTES = 14.0
"""Per parameter of embedding and output matrix trained beside adapters: a 16-bit copy beside the
frozen one, its 32-bit copy and two moments (PEFT keeps both, ``ModulesToSaveWrapper``)."""


FOUR_BITS = 0.53
"""Bytes per weight of a base in 4 bits, with its scales (NF4 in blocks of 64: 0.52 to 0.56)."""


MOMENT_BYTES = {
    "adam8bit": 2.03, "adamw8bit": 2.03, "adam4bit": 1.06, "lion": 4.0, "muon": 4.0, "sgd": 0.0,
    "adafactor": 0.02,
}  # fmt: skip
"""All moments of an optimizer, per parameter; one that is not here keeps two in 32 bits.

8 and 4 bits: one number a moment and scales for blocks of 256 and 128 (bitsandbytes, torchao).
"""


NARROW = ("adam8bit", "adamw8bit", "adam4bit")
"""Optimizers of loops that keep weights and gradients in 16 bits and nothing in 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is known of a run that its states depend on, beside engine and precision."""

    states: StateBytes | None = None
    """As stated; None where nobody says."""
    finetune: str = "none"
    optimizer: str = ""
    rank: float | None = None
    """Of adapters."""
    on_attention: float = 1.0
    """Share of the width of attention's matrices that has adapters."""
    on_mlp: float = 1.0
    trained_ends: bool = False
    """Embedding and output matrix are trained beside adapters."""
    in_backward: bool = False
    """The optimizer steps inside the backward pass: gradients never stand together."""
    offload: bool = False
    """States and gradients wait in host memory."""
    sharded: bool = False
    """Weights are sharded over several devices."""


def stored_bytes(precision: Precision) -> float:
    """:attr:`StateSizes.stored` of a precision: DeepSeek's recipe keeps these in scaled fp8."""
    return 1.25 if precision is Precision.FP8_BLOCK else 2.0


def usual_states(design: Design, kept: Kept) -> StateBytes:
    """The bytes of states where nobody states them: the engine's, the optimizer's."""
    moments = MOMENT_BYTES.get(kept.optimizer, design.moment_bytes)
    weight, gradient = min(design.weight_bytes, 4.0), design.state_gradient_bytes
    if kept.optimizer in NARROW:
        return StateBytes(weight=2.0, gradient=2.0, master=0.0, moments=moments)
    if kept.finetune == "full" and design.master_bytes == 0.0:
        # One device trains the 16-bit weights that it loads; sharding loops do, or train in 32.
        wide = 3.0 if kept.sharded else 2.0
        moments = moments * min(1.0, 2.0 * wide / design.moment_bytes)
        return StateBytes(weight=wide, gradient=wide, master=0.0, moments=moments)
    return StateBytes(weight=weight, gradient=gradient, master=design.master_bytes, moments=moments)


def sizes_of(
    design: Design, precision: Precision, kept: Kept, extra_bytes: float = 0.0
) -> StateSizes:
    """Sizes for the memory model; ``extra_bytes`` are those of switches, per device."""
    states = kept.states or usual_states(design, kept)
    if design.master_bytes == 0.0 and states.master >= 4.0 and states.weight <= 2.0:
        # One copy in 32 bits is weight and master at once; products get 16 bits gathered.
        states = replace(states, weight=4.0, master=0.0)
    adapters = kept.finetune in ADAPTERS
    gradient, optimizer = states.gradient, states.master + states.moments
    weight, adapter = states.weight, 0.0
    if design.weight_bytes < 2.0:  # 8-bit weights, and no 16-bit ones
        weight = min(weight, design.weight_bytes)
    step = design.step_share * 0.5 * states.moments + design.step_bytes
    rank = 0.0
    if adapters:
        rank = ADAPTER_RANK if kept.rank is None else kept.rank
        adapter = ADAPTER_BYTES if kept.states is None else weight + gradient + optimizer
        weight = 2.0 if kept.states is None else weight
        gradient = optimizer = step = 0.0
    if kept.in_backward or (kept.offload and design.offload_gradients):
        gradient = 0.0
    if kept.in_backward or kept.offload:
        step = 0.0
    squeeze = FOUR_BITS / weight if kept.finetune == "qlora" else 1.0
    low = precision.arithmetic in ("fp8", "fp4")
    return StateSizes(
        weight=weight,
        gradient=gradient,
        optimizer=0.0 if kept.offload else optimizer,
        logit=design.logit_bytes,
        stored=stored_bytes(precision),
        buckets=design.bucket_bytes + extra_bytes,
        whole=0.0 if adapters or not gradient else design.whole_gradients,
        held=design.held_bytes,
        gather=2.0 * weight * squeeze if adapters else design.gather_bytes,
        ends=design.end_gather,
        stay=design.pipe_gathered,
        received=design.pipe_received,
        scored=design.score_bytes,
        outputs=design.pipe_outputs,
        products=design.kept_products,
        dispatched=design.kept_dispatch,
        copies=design.fp8_copy_bytes if low else 0.0,
        squeeze=squeeze,
        norm=design.norm_bytes,
        gate=design.gate_bytes,
        wide=design.wide_kv,
        whole_logits=design.whole_logits,
        lazy=design.lazy_gradients,
        step=step,
        least_stage=design.least_stage,
        rank=rank,
        on_attention=kept.on_attention,
        on_mlp=kept.on_mlp,
        adapter=adapter,
        ends_adapter=ENDS_BYTES if adapters and kept.trained_ends else 0.0,
        off_gradients=design.offload_gradients,
        off_weights=design.offload_weights,
        host=1.0 - design.kept_share,
        rematerialised=design.rematerialised,
        deep=design.deep_stages,
        copies_sent=design.dispatch_copies * (1.0 - design.even_routing),
    )
