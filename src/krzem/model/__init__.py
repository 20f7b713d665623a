"""Models: an architecture read from a config, its parameters and its FLOPs."""

from __future__ import annotations

from krzem.model.architecture import (
    Architecture,
    Attention,
    AttentionKind,
    FeedForward,
    Indexer,
    Layer,
    LayerRun,
    Recurrence,
    RouterKind,
    mean_keys,
)
from krzem.model.build import read_config, supported_types
from krzem.model.catalogue import ModelFact, PublishedCount, load_model, model_fact, model_ids
from krzem.model.parameters import (
    LayerParameters,
    ModelFlops,
    ParameterCount,
    count,
    flops_by_part,
    flops_per_token,
    layer_parameters,
)

__all__ = [
    "Architecture",
    "Attention",
    "AttentionKind",
    "FeedForward",
    "Indexer",
    "Layer",
    "LayerParameters",
    "LayerRun",
    "ModelFact",
    "ModelFlops",
    "ParameterCount",
    "PublishedCount",
    "Recurrence",
    "RouterKind",
    "count",
    "flops_by_part",
    "flops_per_token",
    "layer_parameters",
    "load_model",
    "mean_keys",
    "model_fact",
    "model_ids",
    "read_config",
    "supported_types",
]
