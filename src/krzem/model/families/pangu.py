"""Huawei's Pangu Ultra: dense with grouped queries, and MoE with latent attention.

``transformers`` has no class for them.  ``pangu_ultra_moe`` is the model type that the published
openPangu-Ultra-MoE-718B config carries.  No config of the dense model is published;
``pangu_ultra`` is krzem's name for a Llama config with sandwich norms (four per layer).
"""

from __future__ import annotations

from dataclasses import replace

from krzem.model.architecture import Architecture, RouterKind
from krzem.model.families.common import layer_count, mtp_count
from krzem.model.families.deepseek import assemble_routed, latent_attention
from krzem.model.families.llama import llama
from krzem.model.fields import Fields

SANDWICH_NORMS = 4
"""Before and after both attention and feed-forward."""


def pangu_ultra(fields: Fields) -> Architecture:
    """Llama fields with ``sandwich_norm`` (true unless said otherwise)."""
    plain = llama(fields)
    norms = _norms(fields)
    runs = tuple(replace(run, layer=replace(run.layer, norms=norms)) for run in plain.runs)
    return replace(plain, runs=runs)


def pangu_ultra_moe(fields: Fields) -> Architecture:
    """The fields of openPangu-Ultra-MoE: DeepSeek's network with ``attention_*_dim`` names."""
    attention = latent_attention(fields)
    layers = layer_count(fields)
    return assemble_routed(
        fields,
        [attention] * layers,
        RouterKind.SIGMOID,
        mtp=(mtp_count(fields, 0), attention),
        norms=_norms(fields),
    )


def _norms(fields: Fields) -> int:
    return SANDWICH_NORMS if fields.flag("sandwich_norm", default=True) else 2
