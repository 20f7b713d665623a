"""Which weights each pipeline rank of krzem's own trainer holds, and what of them is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from krzem.cost.stages import is_schedule, kinds_held
from krzem.cost.trainer_layers import LayerBytes, layer_bytes, tokens_of
from krzem.layout.layout import Layouts, Schedule
from krzem.model.architecture import Architecture, Layer, LayerRun
from krzem.model.table import ModelTable, tabulate

Array = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Layers, embedding and output matrix, and where they lie."""

    layers: tuple[LayerBytes, ...]
    """Of each kind, and at the end that of prediction modules."""
    chunks: Callable[[Array], Array]
    """[C, K, N] how many of each kind the chunks of pipeline ranks ``[N]`` hold."""
    predicts: Callable[[Array], Array]
    """[N] whether these ranks compute the loss."""
    embedding: Array
    """Elements on a rank that has it."""
    head: Array
    mtp: float
    module: float
    """Elements of a prediction module beside its layer."""
    tied: bool

    def weights(self, rank: Array) -> tuple[Array, Array, Array]:
        """Elements on pipeline ranks ``[N]``: of layers, of routed experts, and of the ends."""
        counts, last = self.every(rank), self.predicts(rank)
        dense = sum(n * layer.dense for n, layer in zip(counts, self.layers, strict=True))
        experts = sum(n * layer.experts for n, layer in zip(counts, self.layers, strict=True))
        embeds = (rank == 0) | (last & (self.tied or self.mtp > 0))
        heads = last & ~((rank == 0) & self.tied)
        shared = self.tied & last & (rank > 0)  # A second copy of the embedding is the output.
        ends = np.where(embeds, self.embedding, 0.0)
        ends = ends + np.where(heads & ~shared, self.head, 0.0)
        return dense, experts, ends + np.where(last, self.mtp * self.module, 0.0)

    def every(self, rank: Array) -> Array:
        """[K, N] of all chunks."""
        return self.chunks(rank).sum(axis=0)


def held_weights(arch: Architecture, t: ModelTable, x: Layouts, wide: float = 1.0) -> Held:
    """What each pipeline rank of ``krzem train`` holds."""
    sequence = int(t.sequence)
    k = tokens_of(arch, sequence, x, wide)
    kinds = [layer for layer, _ in arch.kinds()]
    order = tuple(kinds.index(layer) for layer in arch.expanded())
    module = arch.mtp_layer or arch.expanded()[-1]
    layers = [layer_bytes(one, arch, _alone(one, arch, sequence), x, k) for one in (*kinds, module)]
    held = kinds_held(order, x, arch.mtp_layers)
    # In a V the first rank holds both ends, and the last one the middle.
    turned = is_schedule(x.schedule, Schedule.ZB_V, Schedule.DUALPIPE_V) & (x.pp > 1)

    def predicts(rank: Array) -> Array:
        return np.asarray(rank == np.where(turned, 0, x.pp - 1))

    def chunks(rank: Array) -> Array:
        own = held(rank)
        closes = predicts(rank) & (np.arange(len(own))[:, None] == x.vpp - 1)
        after = np.where(closes, float(arch.mtp_layers), 0.0)
        return np.concatenate((own, after[:, None]), axis=1)

    return Held(
        layers=tuple(layers),
        chunks=chunks,
        predicts=predicts,
        embedding=t.embedding_params / x.tp,
        head=np.maximum(t.head_params, t.embedding_params) / x.tp,
        mtp=float(arch.mtp_layers),
        module=float(t.mtp_params),
        tied=bool(arch.tied_embeddings),
    )


def _alone(layer: Layer, arch: Architecture, sequence: int) -> ModelTable:
    """The table of one layer."""
    runs = (LayerRun(layer=layer, count=1),)
    return tabulate(replace(arch, runs=runs, mtp_layers=0, mtp_layer=None), sequence)


def weight_traffic(held: Held, x: Layouts, global_batch: Array, rank: Array) -> Array:
    """Bytes that pipeline ranks ``[N]`` send in a step to gather weights and to sum gradients.

    Of a collective of n ranks a rank sends (n-1)/n, of a sum that all get twice that.  Weights
    travel in 16 bits, gradients in 32; with one pipeline rank ZeRO-2 does both for each
    micro-batch, and ZeRO-3 gathers before either pass.  NaN for ZeRO-3 in a pipeline: not counted.
    """
    dense, experts, ends = held.weights(rank)
    ranks = (x.dp * x.cp).astype(float)
    each = (x.zero >= 2) & (x.pp <= 1)
    times = np.where(each, np.maximum(global_batch / (x.dp * x.micro_batch), 1.0), 1.0)
    gathered = 2.0 * times * np.where(x.zero >= 3, 2.0, 1.0)

    def sent(elements: Array, over: Array) -> Array:
        shard: Array = np.where(x.shard > 0, np.minimum(x.shard, over), over)
        shard = np.where(x.zero == 0, 1.0, shard)
        inside = (shard - 1.0) / shard * elements * (gathered + 4.0 * times)
        copies = over / shard
        return inside + 8.0 * (copies - 1.0) / copies * elements / shard * times

    found = sent(dense + ends, ranks) + sent(experts, ranks * x.tp / (x.ep * x.etp))
    return np.where((x.zero >= 3) & (x.pp > 1), np.nan, found)
