"""torchtitan's names for DeepSeek-V3 and Qwen3, said in Hugging Face's.

torchtitan keeps the same numbers under shorter names, with a layer's experts stacked in one tensor
and, in Qwen3, queries, keys and values woven together by key-value group.  Names are those of
release 0.3.0 and of the year before it (sources: ``models/deepseek_v3/state_dict_adapter.py``,
``models/qwen3/state_dict_adapter.py``, ``models/common/attention.py``, read 2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from krzem.errors import CheckpointError
from krzem.train.checkpoint.correspondence import Copy, Correspondence
from krzem.train.checkpoint.dcp_format import DcpTensors
from krzem.train.checkpoint.manifest import Shape
from krzem.train.checkpoint.streaming import Renamed, Source
from krzem.train.checkpoint.transfer import WEIGHT

MODEL_TYPES = ("deepseek_v3", "qwen3", "qwen3_moe")

MOMENTS = {"exp_avg/": "exp_avg", "exp_avg_sq/": "exp_avg_sq"}
"""Prefix in our checkpoints -> what AdamW calls it."""

_TOP = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "lm_head.weight": "lm_head.weight",
}
_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "moe.router.gate.weight": "mlp.gate.weight",
}
_DEEPSEEK = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wq_a.weight": "self_attn.q_a_proj.weight",
    "attention.q_norm.weight": "self_attn.q_a_layernorm.weight",
    "attention.wq_b.weight": "self_attn.q_b_proj.weight",
    "attention.wkv_a.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attention.kv_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attention.wkv_b.weight": "self_attn.kv_b_proj.weight",
    "moe.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "moe.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    "moe.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
    "moe.expert_bias": "mlp.gate.e_score_correction_bias",
    "moe.expert_bias_E": "mlp.gate.e_score_correction_bias",
}
_QWEN = {
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    **{
        f"attention.{inner}w{x}.weight": f"self_attn.{x}_proj.weight"
        for x in "qkv"
        for inner in ("", "qkv_linear.")
    },
}
_EXPERTS = {"1": "gate_proj", "2": "down_proj", "3": "up_proj"}
_EXPERT = re.compile(r"moe\.(?:experts\.w([123])|routed_experts\.inner_experts\.w([123])_E\w\w)")
_WOVEN = "attention.qkv_linear.wqkv.weight"
_COUNTERS = re.compile(r"moe\.(tokens_per_expert\w*|_tokens_per_expert\w*)$")


def titan_sources(folder: Path, config: Mapping[str, Any]) -> dict[str, Source]:
    """Weights and, where there are any, moments of a torchtitan checkpoint, by prefix.

    They are read under Hugging Face names; ``config`` is the model's Hugging Face config.  Raises
    CheckpointError for a model type whose names are not known, or a tensor that fits no name.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise CheckpointError(
            f"torchtitan checkpoints can be imported for {', '.join(MODEL_TYPES)}; the config says "
            f"model_type {kind!r}"
        )
    stored = DcpTensors(folder)
    names = stored.tensors()
    tied = bool(config.get("tie_word_embeddings"))
    sources: dict[str, Source] = {}
    for prefix, moment in {WEIGHT: "", **MOMENTS}.items():
        chosen = _chosen(names, moment, tied=tied)
        if chosen or prefix == WEIGHT:
            shapes = {n: names[full][1] for n, full in chosen.items()}
            correspondence = titan_correspondence(shapes, config)
            sources[prefix] = Renamed(Picked(stored, chosen, shapes), correspondence)
    return sources


def titan_step(folder: Path) -> int | None:
    """How often the optimizer had stepped, where the checkpoint has optimizer state."""
    stored = DcpTensors(folder)
    for name, (_, shape) in stored.tensors().items():
        if name.startswith("optimizer.state.") and name.endswith(".step") and shape == ():
            return int(stored.read(name, (), ()))
    return None


def _chosen(names: Mapping[str, Any], moment: str, *, tied: bool) -> dict[str, str]:
    """Parameter name -> stored name, for weights or one of the moments."""
    if moment:
        found = {
            n.removeprefix("optimizer.state.").removesuffix(f".{moment}"): n
            for n in names
            if n.startswith("optimizer.state.") and n.endswith(f".{moment}")
        }
    else:
        found = {
            n: n
            for n in names
            if n in _TOP or (n.startswith("layers.") and not _COUNTERS.search(n))
        }
    if tied:
        found = {
            n: full for n, full in found.items() if n not in ("output.weight", "lm_head.weight")
        }
    return found


class Picked:
    """Some tensors of a source under shorter names, with their first ``shapes`` of elements."""

    def __init__(
        self, source: Source, names: Mapping[str, str], shapes: Mapping[str, Shape]
    ) -> None:
        self._source = source
        self._names = names
        self._shapes = shapes
        self._tensors = source.tensors()

    def tensors(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every tensor."""
        return {n: (self._tensors[full][0], self._shapes[n]) for n, full in self._names.items()}

    def read(self, name: str, at: Shape, shape: Shape) -> Any:
        """The box of ``name`` that begins at ``at``."""
        return self._source.read(self._names[name], at, shape)


def titan_correspondence(titan: Mapping[str, Shape], config: Mapping[str, Any]) -> Correspondence:
    """Copies between torchtitan's tensors (``ours``) and Hugging Face's (``theirs``)."""
    copies = [c for name, shape in titan.items() for c in _copies(name, shape, config)]
    return from_copies(titan, copies, "torchtitan")


def from_copies(ours: Mapping[str, Shape], copies: list[Copy], trainer: str) -> Correspondence:
    """The correspondence of ``copies``, whose ends give the shapes of theirs.

    Raises:
        CheckpointError: two tensors of ``trainer`` are one of theirs, or leave a gap in it.
    """
    theirs: dict[str, Shape] = {}
    for copy in copies:
        ends = tuple(a + n for a, n in zip(copy.theirs_at, copy.theirs_shape, strict=True))
        held = theirs.get(copy.theirs, ends)
        if len(held) != len(ends):
            raise CheckpointError(f"{trainer}'s tensors do not fit together in {copy.theirs}")
        theirs[copy.theirs] = tuple(max(a, b) for a, b in zip(held, ends, strict=True))
    try:
        return Correspondence(ours=dict(ours), theirs=theirs, copies=tuple(copies))
    except AssertionError as error:
        raise CheckpointError(f"{trainer}'s tensors overlap or leave gaps: {error}") from error


def _copies(name: str, shape: Shape, config: Mapping[str, Any]) -> Iterator[Copy]:
    if name in _TOP:
        yield _same(_TOP[name], name, shape)
        return
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    layer, inner = (match[1], match[2]) if match else ("", "")
    prefix = f"model.layers.{layer}."
    table = {**_LAYER, **(_DEEPSEEK if config["model_type"] == "deepseek_v3" else _QWEN)}
    expert = _EXPERT.fullmatch(inner)
    if inner in table:
        yield _same(prefix + table[inner], name, shape)
    elif expert:
        part = _EXPERTS[expert[1] or expert[2]]
        for number in range(shape[0]):
            yield Copy(
                theirs=f"{prefix}mlp.experts.{number}.{part}.weight",
                ours=name,
                shape=(1, *shape[1:]),
                theirs_at=(0, 0),
                ours_at=(number, 0, 0),
            )
    elif inner == _WOVEN:
        yield from _woven(prefix, name, shape, config)
    else:
        raise CheckpointError(
            f"{name} is not a name that torchtitan gives to {config['model_type']} tensors"
        )


def _same(theirs: str, ours: str, shape: Shape) -> Copy:
    zero = (0,) * len(shape)
    return Copy(theirs=theirs, ours=ours, shape=shape, theirs_at=zero, ours_at=zero)


def _woven(prefix: str, name: str, shape: Shape, config: Mapping[str, Any]) -> Iterator[Copy]:
    """Rows of the fused projection: for each key-value head its queries, then key, then value."""
    groups = int(config["num_key_value_heads"])
    queries = int(config["num_attention_heads"]) // groups
    head = shape[0] // (groups * (queries + 2))
    for group in range(groups):
        row = group * (queries + 2) * head
        for part, heads in (("q", queries), ("k", 1), ("v", 1)):
            yield Copy(
                theirs=f"{prefix}self_attn.{part}_proj.weight",
                ours=name,
                shape=(heads * head, *shape[1:]),
                theirs_at=(group * heads * head, *(0 for _ in shape[1:])),
                ours_at=(row, *(0 for _ in shape[1:])),
            )
            row += heads * head
