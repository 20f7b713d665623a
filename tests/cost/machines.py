"""Machines and models that tests of the cost model share."""

from __future__ import annotations

from krzem.cost.assemble import Situation, machine
from krzem.cost.coefficients import Coefficients, fitted
from krzem.cost.layers import layer_seconds
from krzem.cost.machine import Machine
from krzem.cost.stages import StepSeconds
from krzem.cost.step import Optim, step_seconds
from krzem.engine.description import engine_named
from krzem.engine.setup import Choices, Setup
from krzem.hardware.catalogue import load_device
from krzem.layout.layout import Layout, Precision, cells, pack
from krzem.model.architecture import (
    Architecture,
    Attention,
    AttentionKind,
    FeedForward,
    Layer,
    LayerRun,
)
from krzem.model.table import tabulate

ADAMW = Optim(weight_bytes=2.0, state_bytes=12.0, muon=0.0)


def situation(
    device: str = "nvidia-a100-sxm-80",
    engine: str = "megatron-core",
    year: float = 2025.0,
    precision: Precision = Precision.BF16,
    switches: Choices = (),
) -> Situation:
    """A cluster of catalogue devices in their usual nodes."""
    d = load_device(device)
    node = d.devices_per_node or 8
    named = engine_named(engine)
    switches = tuple({**dict(named.defaults_at(year)), **dict(switches)}.items())
    setup = Setup(engine=named.name, year=year, stack=d.software, precision=precision)
    return Situation(
        device=d,
        devices_per_node=node,
        memory_bytes=d.memory_bytes or 0.0,
        memory_bytes_per_s=d.memory_bytes_per_s or 0.0,
        scale_up_domain=d.scale_up_domain or node,
        scale_up_bytes_per_s=d.scale_up_bytes_per_s or 0.0,
        scale_out_bytes_per_s=d.scale_out_bytes_per_s or 0.0,
        precision=precision,
        design=setup.design(switches),
        year=year,
    )


def built(coefficients: Coefficients | None = None, **changes: object) -> Machine:
    """The machine of such a situation, with the shipped coefficients."""
    return machine(situation(**changes), coefficients or fitted())  # type: ignore[arg-type]


def gpt(hidden: int, layers: int, heads: int, vocab: int = 51200) -> Architecture:
    """A GPT-3-like model."""
    head = hidden // heads
    attention = Attention(
        kind=AttentionKind.GROUPED, heads=heads, kv_heads=heads, head_dim=head, value_dim=head,
        qkv_bias=True, out_bias=True,
    )  # fmt: skip
    layer = Layer(
        attention=attention, feed_forward=FeedForward(width=4 * hidden, gated=False, bias=True)
    )
    return Architecture(
        name="gpt", model_type="test", hidden=hidden, vocab=vocab,
        runs=(LayerRun(layer=layer, count=layers),), max_positions=2048, learned_positions=2048,
        tied_embeddings=True, norm_bias=True,
    )  # fmt: skip


def step(
    model: Architecture, layout: Layout, mc: Machine, batch: float, sequence: int = 2048
) -> StepSeconds:
    """The step of one layout."""
    x = pack([layout])
    table = tabulate(model, sequence)
    return step_seconds(table, x, layer_seconds(table, cells(x), mc), mc, batch, ADAMW)
