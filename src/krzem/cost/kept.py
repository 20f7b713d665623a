"""What an engine keeps in memory: bytes of states, by engine, precision, optimizer and adapters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from krzem.cost.sizes import StateSizes
from krzem.engine.conditions import Design
from krzem.layout.layout import Precision, StateBytes

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
