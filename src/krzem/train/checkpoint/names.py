"""Names of tensors on disk, by family, and what in a Hugging Face folder corresponds to them.

Inside, experts of a layer are one tensor; on disk each expert has its own.  DeepSeek V4 is
published under DeepSeek's own names, which ``transformers`` and the inference engines read;
all others under the names of ``transformers``, where these differ from ours as ``[compute]`` of
the family says.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krzem.train.checkpoint.correspondence import Copy, Correspondence
from krzem.train.checkpoint.manifest import Shape
from krzem.train.checkpoint.pieces import DTYPE_NAMES
from krzem.train.config import ModelSpec, model_spec
from krzem.train.model.transformer import Transformer

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


def correspondence(config: Mapping[str, Any], found: Collection[str] = ()) -> Correspondence:
    """Copies between the trainer's tensors and those of a Hugging Face folder.

    Some tensors are published under several names; those in ``found`` are preferred.  Router
    biases that a folder with other tensors lacks begin at zero, as they do in training.
    """
    return correspondence_of(model_spec(config), found)


def correspondence_of(spec: ModelSpec, found: Collection[str] = ()) -> Correspondence:
    """The same for a model whose config has been read."""
    with torch.device("meta"):
        model = Transformer(spec)
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    trained = frozenset(tensors)
    kept = model.state_dict().keys()
    tensors |= {n: b for n, b in model.named_buffers() if n in kept}
    pairs = [(_chosen(d, found), n, d) for n, t in tensors.items() for d in _on_disk(spec, n, t)]
    theirs = {disk: tuple(tensors[n].shape)[len(d.index) :] for disk, n, d in pairs}
    fixed = {disk: DTYPE_NAMES[tensors[n].dtype] for disk, n, _ in pairs if n not in trained}
    return Correspondence(
        ours={name: tuple(t.shape) for name, t in tensors.items()},
        theirs=theirs,
        copies=tuple(_copy(disk, n, d, tuple(tensors[n].shape)) for disk, n, d in pairs),
        ignored=("*.inv_freq",),
        groups=dict(_mtp_modules(spec, pairs)),
        twice=dict(_twice(spec, {n: disk for disk, n, _ in pairs})),
        theirs_dtype=fixed,
        ours_dtype={n: DTYPE_NAMES[t.dtype] for n, t in tensors.items() if n not in trained},
        constants=constants(spec),
        stateless=frozenset(tensors) - trained,
        zeros=frozenset(disk for disk in fixed if disk.endswith("bias")),
    )


def _on_disk(spec: ModelSpec, name: str, tensor: Tensor) -> Iterator[DiskTensor]:
    return disk_tensors(spec, name, tuple(tensor.shape))


def _chosen(tensor: DiskTensor, found: Collection[str]) -> str:
    names = (tensor.disk, *tensor.also)
    return next((n for n in names if n in found), tensor.disk)


def _copy(disk: str, name: str, tensor: DiskTensor, shape: Shape) -> Copy:
    depth = len(tensor.index)
    rest = shape[depth:]
    return Copy(
        theirs=disk,
        ours=name,
        shape=(*(1 for _ in tensor.index), *rest),
        theirs_at=(0,) * len(rest),
        ours_at=(*tensor.index, *(0 for _ in rest)),
    )


def _mtp_modules(
    spec: ModelSpec, pairs: Sequence[tuple[str, str, DiskTensor]]
) -> Iterator[tuple[str, frozenset[str]]]:
    """MTP modules, which many folders lack (``save_pretrained`` of ``transformers`` drops them)."""
    for module in range(spec.arch.mtp_layers):
        group = f"mtp.{module}"
        yield group, frozenset(disk for disk, n, _ in pairs if n.startswith(f"{group}."))


def _twice(spec: ModelSpec, disk: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names under which folders hold the embedding or the output matrix once more."""
    embedding = disk["embed_tokens.weight"]
    if spec.arch.tied_embeddings:
        yield from ((name, embedding) for name in ("lm_head.weight", "head.weight"))
    output = disk.get("lm_head.weight", embedding)
    for module in range(spec.arch.mtp_layers):
        layer = f"model.layers.{len(spec.layers) + module}"
        yield f"{layer}.embed_tokens.weight", embedding
        yield f"{layer}.shared_head.head.weight", output
        yield f"mtp.{module}.emb.tok_emb.weight", embedding
        yield f"mtp.{module}.head.weight", output
