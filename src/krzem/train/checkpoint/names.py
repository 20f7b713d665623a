"""Names of tensors on disk: one list of renames for each family.

Inside, experts of a layer are one tensor; on disk each expert has its own.  DeepSeek V4 is
published under DeepSeek's own names, which ``transformers`` and the inference engines read;
all others under the names of ``transformers``, where these differ from ours as ``[compute]`` of
the family says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from krzem.train.config import ModelSpec

_V4 = (
    ("self_attn.compressor.indexer.scorer.", "attn.indexer."),
    ("self_attn.compressor.indexer.q_b_proj.", "attn.indexer.wq_b."),
    ("self_attn.compressor.indexer.", "attn.indexer.compressor."),
    ("self_attn.", "attn."),
    ("compressor.kv_norm.", "compressor.norm."),
    ("position_bias", "ape"),
    ("q_a_proj.", "wq_a."),
    ("q_b_proj.", "wq_b."),
    ("q_a_norm.", "q_norm."),
    ("kv_proj.", "wkv."),
    ("o_a_proj.", "wo_a."),
    ("o_b_proj.", "wo_b."),
    ("attn.sinks", "attn.attn_sink"),
    ("compressor.gate_proj.", "compressor.wgate."),
    ("mlp.", "ffn."),
    ("gate.e_score_correction_bias", "gate.bias"),
    ("gate_proj.", "w1."),
    ("up_proj.", "w3."),
    ("down_proj.", "w2."),
    ("input_layernorm.", "attn_norm."),
    ("post_attention_layernorm.", "ffn_norm."),
    ("attn_hc.", "hc_attn_"),
    ("ffn_hc.", "hc_ffn_"),
    ("embed_tokens.", "embed."),
    ("lm_head.", "head."),
    ("hc_head.hc_", "hc_head_"),
    (".block.", "."),
)
"""DeepSeek V4: applied in this order, each to the whole name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskTensor:
    """One tensor on disk and the part of ours that it is."""

    disk: str
    also: tuple[str, ...]
    """Other names that a file may have it under."""
    index: tuple[int, ...]
    """Leading indices into our tensor."""


def disk_tensors(spec: ModelSpec, name: str, shape: tuple[int, ...]) -> Iterator[DiskTensor]:
    """What our tensor ``name`` of ``shape`` is on disk."""
    apart = [(name, ())] if spec.woven else _experts_apart(name, shape)
    for inner, index in apart:
        disk = _published(spec, inner)
        saved = f"model.{disk}".replace("model.head.", "head.")
        also = {saved, saved.replace("attn.kv_norm.", "attn.norm."), _transformers(spec, inner)}
        extra = {f"model.{inner}"} if spec.arch.model_type == "deepseek_v4" else set()
        yield DiskTensor(disk=disk, also=tuple(sorted((also | extra) - {disk})), index=index)


def _experts_apart(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    stem, _, last = name.rpartition(".")
    if not stem.endswith("mlp.experts"):
        yield name, ()
    elif last == "down_proj":
        yield from ((f"{stem}.{e}.down_proj.weight", (e,)) for e in range(shape[0]))
    else:
        for e in range(shape[0]):
            yield f"{stem}.{e}.gate_proj.weight", (e, 0)
            yield f"{stem}.{e}.up_proj.weight", (e, 1)


def _published(spec: ModelSpec, name: str) -> str:
    v4 = spec.arch.model_type == "deepseek_v4"
    for ours, theirs in _V4 if v4 else spec.names:
        name = name.replace(ours, theirs)
    return name if v4 else _transformers(spec, name)


def constants(spec: ModelSpec) -> dict[str, float]:
    """Numbers that a folder holds beside the weights, each as a tensor without dimensions."""
    if spec.activation.kind != "xielu":
        return {}
    held = {"beta": 0.5, "eps": -1e-6}
    layers = range(len(spec.layers))
    return {f"model.layers.{i}.mlp.act_fn.{n}": v for i in layers for n, v in held.items()}


def _transformers(spec: ModelSpec, name: str) -> str:
    """The names of ``transformers``; MTP modules follow the layers, as DeepSeek V3 has them."""
    if name.startswith("lm_head."):
        return name
    found = re.match(r"mtp\.(\d+)\.(.*)", name)
    if found:
        layer, inner = len(spec.layers) + int(found[1]), found[2]
        inner = inner.removeprefix("block.")
        inner = f"shared_head.{inner}" if inner.startswith("norm.") else inner
        return f"model.layers.{layer}.{inner}"
    return f"model.{name}"
