"""Megatron-Core's names (``torch_dist`` folders, NeMo's too) said in Hugging Face's.

Megatron stacks the layers of a uniform model in one tensor and numbers them otherwise; it joins
queries, keys and values by key-value group, gate and up one after the other, and all experts of a
layer.  The vocabulary may be padded.  Stored tensors are whole, however many ranks wrote them
(sources: ``transformer/transformer_block.py``, ``mlp.py``, ``moe/experts.py``,
``multi_token_prediction.py``, ``optimizer/distrib_optimizer.py`` of Megatron-Core 0.19.2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from krzem.errors import CheckpointError
from krzem.train.checkpoint.correspondence import Copy
from krzem.train.checkpoint.dcp_format import DcpTensors
from krzem.train.checkpoint.manifest import Shape
from krzem.train.checkpoint.streaming import Renamed, Source
from krzem.train.checkpoint.titan import MOMENTS, Picked, from_copies
from krzem.train.checkpoint.transfer import WEIGHT

MODEL_TYPES = ("deepseek_v3", "llama", "qwen2", "qwen3", "qwen3_moe")

_PLAIN = ("float64", "float32", "bfloat16", "float16")
"""Types that hold a weight without a scale."""

_PADDED_TO, _PADDING_BELOW = 128, 128 * 64
"""``--make-vocab-size-divisible-by`` (128) times the tensor-parallel ranks, 64 at most."""

_TOP = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    "mlp.router.weight": "mlp.gate.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
}
_GROUPED_HEADS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
}
_LATENT = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_q_proj.weight": "self_attn.q_proj.weight",
    "self_attention.linear_q_down_proj.weight": "self_attn.q_a_proj.weight",
    "self_attention.linear_q_up_proj.weight": "self_attn.q_b_proj.weight",
    "self_attention.linear_q_up_proj.layer_norm_weight": "self_attn.q_a_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_a_layernorm.weight",
    "self_attention.linear_kv_down_proj.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "self_attention.linear_kv_up_proj.weight": "self_attn.kv_b_proj.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight": "self_attn.kv_a_layernorm.weight",
    "self_attention.kv_layernorm.weight": "self_attn.kv_a_layernorm.weight",
    "mlp.router.expert_bias": "mlp.gate.e_score_correction_bias",
    "mlp.shared_experts.linear_fc2.weight": "mlp.shared_experts.down_proj.weight",
}
_MTP = {
    "enorm.weight": "enorm.weight",
    "hnorm.weight": "hnorm.weight",
    "eh_proj.weight": "eh_proj.weight",
    "final_layernorm.weight": "shared_head.norm.weight",
}
_EXPERT = re.compile(r"mlp\.experts\.experts\.(?:(\d+)\.)?(linear_fc[12]\.weight(?:_[wv])?)")
_FC1 = re.compile(r"(mlp\.(?:shared_experts\.)?)linear_fc1\.weight(_[wv])?")
_STATE = re.compile(
    r"(?:chained_\d+\.)?optimizer\.state\.(exp_avg|exp_avg_sq|fp32_param|param)\.(.+)"
)
_MODEL = re.compile(r"(?:module\.)?((?:embedding|decoder|output_layer|mtp)\..+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Rows of one layer's Megatron tensor, and the rows of theirs that they are."""

    theirs: str
    shape: Shape
    row: int = 0
    theirs_row: int = 0
    index: Shape = ()
    """Leading indices, dropped in theirs: the expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronTensors:
    """What a Megatron folder holds: weights, moments, and what was found out on the way."""

    sources: dict[str, Source]
    step: int
    """As asked for, or the iteration that the folder's name states, or 0."""
    notes: dict[str, Any] = field(default_factory=dict)


def megatron_tensors(
    folder: Path, config: Mapping[str, Any], step: int | None = None, *, weights_only: bool = False
) -> MegatronTensors:
    """Weights and moments of a ``torch_dist`` or NeMo folder, under Hugging Face names.

    Weights are the optimizer's float32 ones where it holds them.  With ``weights_only`` the
    optimizer is passed over.

    Raises:
        CheckpointError: the format or model type is not known, a tensor has no place, or the
            optimizer's tensors do not have the shapes of the weights.
    """
    _check_config(config)
    folder = megatron_folder(folder)
    stored = DcpTensors(folder)
    types = stored.tensors()
    kinds = _by_kind(types, folder, weights_only=weights_only)
    master = {**kinds["param"], **kinds["fp32_param"]}
    weights = {**kinds[""], **{n: full for n, full in master.items() if n in kinds[""]}}
    chosen = {WEIGHT: weights, **{prefix: kinds[kind] for prefix, kind in MOMENTS.items()}}
    _check_optimizer(types, kinds, folder)
    sources: dict[str, Source] = {}
    for prefix, names in chosen.items():
        if names or prefix == WEIGHT:
            shapes = {n: _unpadded(n, types[full][1], config) for n, full in names.items()}
            copies = [c for n, s in shapes.items() for c in _copies(n, s, config)]
            picked = Picked(stored, names, shapes)
            sources[prefix] = Renamed(picked, from_copies(shapes, copies, "Megatron-Core"))
    found = re.fullmatch(r"iter_(\d+)", folder.name)
    step = int(found[1]) if step is None and found else step
    if step is None and len(sources) > 1:
        raise CheckpointError(
            f"{folder} holds the optimizer's moments and its name states no iteration "
            "(iter_0001000); AdamW corrects them by the step: give it with --step"
        )
    notes = _notes(weights, types, config, master)
    return MegatronTensors(sources=sources, step=step or 0, notes=notes)


def megatron_folder(folder: Path) -> Path:
    """The folder of tensors in ``folder``: itself, NeMo's ``weights``, or the last iteration's.

    Raises:
        CheckpointError: it was written in another of Megatron's formats.
    """
    tracker = folder / "latest_checkpointed_iteration.txt"
    if (folder / "weights" / ".metadata").is_file():
        folder = folder / "weights"
    elif tracker.is_file() and not (folder / ".metadata").exists():
        last = tracker.read_text(errors="replace").strip()
        if not re.fullmatch(r"\d{1,12}|release", last):
            raise CheckpointError(f"{tracker} names no iteration: {last[:40]!r}")
        folder = folder / (last if last == "release" else f"iter_{int(last):07d}")
    described = folder / "metadata.json"
    if described.is_file():
        try:
            backend = json.loads(described.read_bytes())["sharded_backend"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{described} names no sharded_backend: {error!r}") from error
        if backend != "torch_dist":
            raise CheckpointError(
                f"{folder} was written as {backend!r}; only torch_dist can be read: load it in "
                "Megatron and save it with --ckpt-format torch_dist"
            )
    return folder


def _check_config(config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise CheckpointError(
            f"Megatron checkpoints can be imported for {', '.join(MODEL_TYPES)}; the config says "
            f"model_type {kind!r}"
        )
    if kind == "deepseek_v3" and not config.get("rope_interleave", True):
        raise CheckpointError(
            "Megatron's latent attention turns neighbouring values together, as "
            "rope_interleave = true says; the config says false, so its rows would be in "
            "another order: correct the config"
        )


def _by_kind(
    types: Mapping[str, tuple[str, Shape]], folder: Path, *, weights_only: bool
) -> dict[str, dict[str, str]]:
    """For weights ("") and each kind of optimizer state: name -> stored name."""
    kinds: dict[str, dict[str, str]] = {
        k: {} for k in ("", "param", "fp32_param", *MOMENTS.values())
    }
    for full, (dtype, _) in types.items():
        state = _STATE.fullmatch(full)
        name = _MODEL.fullmatch(state[2] if state else full)
        if weights_only and re.match(r"(chained_\d+\.)?optimizer\.", full):
            continue
        if name is None:
            raise CheckpointError(_no_place(full, folder))
        if dtype not in _PLAIN:
            raise CheckpointError(f"{full} in {folder} has type {dtype}, and no scale is known")
        if name[1] in kinds[state[1] if state else ""]:
            raise CheckpointError(f"{folder} holds {name[1]} twice, once as {full}")
        kinds[state[1] if state else ""][name[1]] = full
    return kinds


def _no_place(full: str, folder: Path) -> str:
    if "optimizer." not in full:
        return f"{full} in {folder} is not a name that Megatron-Core gives to a model's tensors"
    return (
        f"{full} in {folder} is optimizer state in the order of one run's buckets, whose places "
        "are not stored: save it in Megatron with --dist-ckpt-optim-fully-reshardable, or import "
        "with --weights-only"
    )


def _check_optimizer(
    types: Mapping[str, tuple[str, Shape]], kinds: Mapping[str, Mapping[str, str]], folder: Path
) -> None:
    """Every tensor of the optimizer has the shape of its weight, and no kind of them is half."""
    weights = kinds[""]
    for names in kinds.values():
        for name, full in names.items():
            if name not in weights:
                raise CheckpointError(f"{full} in {folder} belongs to no weight of it")
            shape, whole = types[full][1], types[weights[name]][1]
            if shape != whole:
                raise CheckpointError(
                    f"{full} in {folder} is {list(shape)}, its weight {list(whole)}: flattened "
                    "state of one layout is not read; save it in Megatron with "
                    "--dist-ckpt-optim-fully-reshardable, or import with --weights-only"
                )
    trained = {n for n in weights if not n.endswith(".expert_bias")}
    held = {kind: names for kind, names in kinds.items() if kind and names}
    for kind, names in held.items():
        if lacking := sorted(trained - names.keys()):
            raise CheckpointError(
                f"{folder} holds {kind} of some weights, and none of {lacking[0]}"
            )
    moments = set(MOMENTS.values())
    if moments & held.keys() not in (set(), moments):
        raise CheckpointError(f"{folder} holds {', '.join(held)}; AdamW needs both moments")


def _unpadded(name: str, shape: Shape, config: Mapping[str, Any]) -> Shape:
    """The shape without rows that only pad the vocabulary."""
    if name not in ("embedding.word_embeddings.weight", "output_layer.weight"):
        return shape
    words = int(config["vocab_size"])
    extra = shape[0] - words
    if extra < 0 or (extra and (shape[0] % _PADDED_TO or extra >= _PADDING_BELOW)):
        raise CheckpointError(
            f"{name} has {shape[0]:,} rows, and the config's vocab_size is {words:,}; Megatron "
            f"pads to a multiple of {_PADDED_TO} by fewer than {_PADDING_BELOW:,} rows, so these "
            "rows are no padding: correct vocab_size"
        )
    return (words, *shape[1:])


def _notes(
    weights: Mapping[str, str],
    types: Mapping[str, tuple[str, Shape]],
    config: Mapping[str, Any],
    master: Mapping[str, str],
) -> dict[str, Any]:
    embedding = weights.get("embedding.word_embeddings.weight")
    rows = types[embedding][1][0] - int(config["vocab_size"]) if embedding else 0
    notes: dict[str, Any] = {"weights_from": "float32 of the optimizer" if master else "the model"}
    return {**notes, "vocabulary_padding_dropped": rows} if rows else notes


def _copies(name: str, shape: Shape, config: Mapping[str, Any]) -> Iterator[Copy]:
    """The boxes of the tensor ``name`` that are Hugging Face tensors."""
    if name in _TOP:
        yield _copy(name, _TOP[name], _Part(theirs="", shape=shape), ())
        return
    match = re.fullmatch(r"(decoder|mtp)\.layers\.(?:(\d+)\.)?(.+)", name)
    if match is None or (match[1] == "mtp" and match[2] is None):
        raise CheckpointError(_unknown(name, config))
    stacked = match[2] is None
    if stacked and len(shape) < 2:
        raise CheckpointError(f"{name} is {list(shape)}, which holds no layers")
    first = int(config["num_hidden_layers"]) if match[1] == "mtp" else 0
    inner = match[3].removeprefix("transformer_layer.") if match[1] == "mtp" else match[3]
    parts = list(_parts(inner, shape[stacked:], config, name, mtp=match[1] == "mtp"))
    for layer in range(shape[0]) if stacked else (int(match[2]),):
        for part in parts:
            yield _copy(name, f"model.layers.{first + layer}.", part, (layer,) if stacked else ())


def _copy(name: str, prefix: str, part: _Part, lead: Shape) -> Copy:
    rest = (0,) * (len(part.shape) - 1)
    index = (*lead, *part.index)
    return Copy(
        theirs=prefix + part.theirs,
        ours=name,
        shape=(*(1 for _ in index), *part.shape),
        theirs_at=(part.theirs_row, *rest),
        ours_at=(*index, part.row, *rest),
    )


def _parts(
    inner: str, shape: Shape, config: Mapping[str, Any], name: str, *, mtp: bool
) -> Iterator[_Part]:
    """What the tensor ``inner`` of one layer is made of."""
    latent = config["model_type"] == "deepseek_v3"
    table = {**_LAYER, **(_LATENT if latent else _GROUPED_HEADS), **(_MTP if mtp else {})}
    expert, fused = _EXPERT.fullmatch(inner), _FC1.fullmatch(inner)
    woven = re.fullmatch(r"self_attention\.linear_qkv\.(weight|bias)", inner)
    if inner in table:
        yield _Part(theirs=table[inner], shape=shape)
    elif expert:
        yield from _experts(expert, shape, name)
    elif fused:
        yield from _gated(fused[1], fused[2], shape, name)
    elif woven and not latent:
        yield from _heads(woven[1], shape, config, name)
    else:
        raise CheckpointError(_unknown(name, config))


def _unknown(name: str, config: Mapping[str, Any]) -> str:
    return f"{name} is not a name that Megatron-Core gives to {config['model_type']} tensors"


def _experts(found: re.Match[str], shape: Shape, name: str) -> Iterator[_Part]:
    """One expert of its own, or all experts of a layer stacked."""
    apart = found[1] is not None
    if len(shape) != (2 if apart else 3):
        raise CheckpointError(f"{name} is {list(shape)} in each layer, which no experts are")
    for expert in (int(found[1]),) if apart else range(shape[0]):
        prefix, rest = f"mlp.experts.{expert}.", shape if apart else shape[1:]
        side = found[2].removeprefix("linear_fc1.weight") or None
        parts = (
            [_Part(theirs=f"{prefix}down_proj.weight", shape=rest)]
            if found[2] == "linear_fc2.weight"
            else _gated(prefix, side, rest, name)
        )
        for part in parts:
            yield replace(part, index=() if apart else (expert,))


def _gated(prefix: str, side: str | None, shape: Shape, name: str) -> Iterator[_Part]:
    """Gate above up in one tensor, or one of them (``_w``, ``_v``)."""
    if side:
        part = "gate_proj" if side == "_w" else "up_proj"
        yield _Part(theirs=f"{prefix}{part}.weight", shape=shape)
        return
    if shape[0] % 2:
        raise CheckpointError(f"{name} has {shape[0]} rows, which are no gate and up together")
    half = shape[0] // 2
    yield _Part(theirs=f"{prefix}gate_proj.weight", shape=(half, *shape[1:]))
    yield _Part(theirs=f"{prefix}up_proj.weight", shape=(half, *shape[1:]), row=half)


def _heads(kind: str, shape: Shape, config: Mapping[str, Any], name: str) -> Iterator[_Part]:
    """For each key-value head its queries, then key, then value."""
    heads = int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    queries = heads // groups
    if shape[0] != groups * (queries + 2) * size:
        raise CheckpointError(
            f"{name} has {shape[0]} rows in each layer; {heads} + 2 x {groups} heads of {size} by "
            f"the config are {groups * (queries + 2) * size}"
        )
    row = 0
    for group in range(groups):
        for part, count in (("q", queries), ("k", 1), ("v", 1)):
            yield _Part(
                theirs=f"self_attn.{part}_proj.{kind}",
                shape=(count * size, *shape[1:]),
                row=row,
                theirs_row=group * count * size,
            )
            row += count * size
