"""Megatron-Core's torch_dist folders: same numbers under our names, or refused by name."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from krzem.errors import CheckpointError
from krzem.train.checkpoint import load, read_manifest
from krzem.train.checkpoint.command import checkpoint_command
from krzem.train.checkpoint.megatron import megatron_tensors
from krzem.train.checkpoint.names import correspondence
from krzem.train.checkpoint.transfer import WEIGHT

LAYERS, WIDTH, WORDS, PADDED = 3, 16, 120, 128
BASE = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": WORDS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8, "norm_topk_prob": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {
        **EXPERTS,
        "num_experts": 4,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.0,
    },
    "deepseek_v3": {
        **EXPERTS,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 4,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 1,
        "routed_scaling_factor": 1.0,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
    },
}


def config_of(kind: str) -> dict[str, Any]:
    return {"model_type": kind, **BASE, **CONFIGS[kind]}


def published(kind: str) -> dict[str, Tensor]:
    """Random weights under Hugging Face's names."""
    generator = torch.Generator().manual_seed(1)
    shapes = correspondence(config_of(kind)).theirs
    return {n: torch.randn(s, generator=generator).bfloat16().float() for n, s in shapes.items()}


def joined_heads(q: Tensor, k: Tensor, v: Tensor, groups: int = 2) -> Tensor:
    """Megatron's order, said by reshaping: [groups, queries + key + value, head, ...]."""
    cut = [t.reshape(groups, -1, 4, *t.shape[1:]) for t in (q, k, v)]
    return torch.cat(cut, 1).reshape(-1, *q.shape[1:])


def layer_of(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One layer as Megatron names it (Transformer Engine's and latent attention's specs)."""
    w = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    latent = "self_attn.kv_b_proj.weight" in w
    out = {"self_attention.linear_proj.weight": w["self_attn.o_proj.weight"]}
    if latent:
        out |= {
            "input_layernorm.weight": w["input_layernorm.weight"],
            "self_attention.linear_q_down_proj.weight": w["self_attn.q_a_proj.weight"],
            "self_attention.linear_q_up_proj.weight": w["self_attn.q_b_proj.weight"],
            "self_attention.linear_q_up_proj.layer_norm_weight": w[
                "self_attn.q_a_layernorm.weight"
            ],
            "self_attention.linear_kv_down_proj.weight": w["self_attn.kv_a_proj_with_mqa.weight"],
            "self_attention.linear_kv_up_proj.weight": w["self_attn.kv_b_proj.weight"],
            "self_attention.kv_layernorm.weight": w["self_attn.kv_a_layernorm.weight"],
        }
    else:
        out["self_attention.linear_qkv.layer_norm_weight"] = w["input_layernorm.weight"]
        for part in ("weight", "bias"):
            if f"self_attn.q_proj.{part}" in w:
                heads = [w[f"self_attn.{x}_proj.{part}"] for x in "qkv"]
                out[f"self_attention.linear_qkv.{part}"] = joined_heads(*heads)
    for x in "qk":
        if f"self_attn.{x}_norm.weight" in w:
            out[f"self_attention.{x}_layernorm.weight"] = w[f"self_attn.{x}_norm.weight"]

    def fused(stem: str) -> Tensor:
        return torch.cat([w[f"{stem}.gate_proj.weight"], w[f"{stem}.up_proj.weight"]])

    if "mlp.gate.weight" not in w:
        out["mlp.linear_fc1.layer_norm_weight"] = w["post_attention_layernorm.weight"]
        out["mlp.linear_fc1.weight"] = fused("mlp")
        out["mlp.linear_fc2.weight"] = w["mlp.down_proj.weight"]
        return out
    stems = [f"mlp.experts.{e}" for e in range(4)]
    out["pre_mlp_layernorm.weight"] = w["post_attention_layernorm.weight"]
    out["mlp.router.weight"] = w["mlp.gate.weight"]
    out["mlp.experts.experts.linear_fc1.weight"] = torch.stack([fused(s) for s in stems])
    down = [w[f"{s}.down_proj.weight"] for s in stems]
    out["mlp.experts.experts.linear_fc2.weight"] = torch.stack(down)
    if latent:
        out["mlp.router.expert_bias"] = w["mlp.gate.e_score_correction_bias"]
        out["mlp.shared_experts.linear_fc1.weight"] = fused("mlp.shared_experts")
        out["mlp.shared_experts.linear_fc2.weight"] = w["mlp.shared_experts.down_proj.weight"]
    return out


def megatron(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model as Megatron stores it: stacked where its layers are alike, else numbered."""

    def padded(name: str) -> Tensor:
        return torch.cat([weights[name], torch.full((PADDED - WORDS, WIDTH), 7.0)])

    out = {
        "embedding.word_embeddings.weight": padded("model.embed_tokens.weight"),
        "output_layer.weight": padded("lm_head.weight"),
        "decoder.final_layernorm.weight": weights["model.norm.weight"],
    }
    layers = [layer_of(weights, f"model.layers.{i}.") for i in range(LAYERS)]
    if all(layer.keys() == layers[0].keys() for layer in layers):
        stack = {n: torch.stack([layer[n] for layer in layers]) for n in layers[0]}
        return {**out, **{f"decoder.layers.{n}": t for n, t in stack.items()}}
    for i, layer in enumerate(layers):
        out |= {f"decoder.layers.{i}.{n}": t for n, t in layer.items()}
    module, prefix = "mtp.layers.0.", f"model.layers.{LAYERS}."
    inner = layer_of(weights, prefix)
    out |= {f"{module}transformer_layer.{n}": t for n, t in inner.items()}
    out |= {f"{module}{n}.weight": weights[f"{prefix}{n}.weight"] for n in ("enorm", "hnorm")}
    out[f"{module}eh_proj.weight"] = weights[f"{prefix}eh_proj.weight"]
    out[f"{module}final_layernorm.weight"] = weights[f"{prefix}shared_head.norm.weight"]
    return out


def with_optimizer(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Model in bfloat16, float32 weights a little off it, moments that say whose they are."""
    trained = {n: t for n, t in model.items() if not n.endswith("expert_bias")}
    state = {n: t.bfloat16() if n in trained else t for n, t in model.items()}
    for kind, change in (("fp32_param", 1 + 2**-12), ("exp_avg", 0.5), ("exp_avg_sq", 0.25)):
        state |= {f"optimizer.state.{kind}.{n}": t * change for n, t in trained.items()}
    return state


def stored(folder: Path, state: dict[str, Any]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it saves from one process
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    file = folder / ".metadata"
    described = pickle.loads(file.read_bytes())
    item = WriteItem(index=MetadataIndex("x", (0,)), type=WriteItemType.SHARD)
    described.planner_data = [SavePlan([item])]  # Megatron keeps its plans of saving there
    file.write_bytes(pickle.dumps(described))
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    return folder


def imported(tmp_path: Path, kind: str, source: Path, *more: str) -> dict[str, Any]:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_of(kind)))
    run = str(tmp_path / "run")
    words = ["import", str(source), run, "--from", "megatron", "--config", str(config), "--json"]
    result = CliRunner().invoke(checkpoint_command, [*words, *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.output)
    return value


def expected(kind: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours, put together from Hugging Face's by the correspondence that other tests check."""
    pairs = correspondence(config_of(kind))
    out = {n: torch.zeros(s) for n, s in pairs.ours.items()}
    for copy in pairs.copies:
        ends = zip(copy.ours_at, copy.shape, strict=True)
        out[copy.ours][tuple(slice(a, a + n) for a, n in ends)] = weights[copy.theirs]
    return out


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_weights_moments_and_step_come_along(tmp_path: Path, kind: str) -> None:
    weights = published(kind)
    stored(tmp_path / "iter_0000042", with_optimizer(megatron(weights)))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("42\n")
    value = imported(tmp_path, kind, tmp_path)
    assert value["step"] == 42
    assert value["meta"]["vocabulary_padding_dropped"] == PADDED - WORDS
    assert value["meta"]["weights_from"] == "float32 of the optimizer"
    folder = tmp_path / "run" / "checkpoints" / "step-000000042"
    ours = expected(kind, weights)
    fixed = {n for n in ours if n.endswith("e_score_correction_bias")}
    scales = {"weight": 1 + 2**-12, "exp_avg": 0.5, "exp_avg_sq": 0.25}
    names = {f"{k}/{n}" for k in scales for n in ours if k == "weight" or n not in fixed}
    assert read_manifest(folder).tensors.keys() == names
    state = {n: torch.zeros_like(ours[n.partition("/")[2]]) for n in names}
    load(folder, state)
    for name, found in state.items():
        part, _, inner = name.partition("/")
        assert torch.equal(found, ours[inner] * (1 if inner in fixed else scales[part])), name


def test_nemo_names_and_folders_are_read(tmp_path: Path) -> None:
    weights = published("qwen3")
    model = {f"module.{n}": t for n, t in megatron(weights).items()}
    stored(tmp_path / "weights", model)
    found = megatron_tensors(tmp_path, config_of("qwen3"))
    source = found.sources[WEIGHT]
    assert {n: s for n, (_, s) in source.tensors().items()} == {
        n: tuple(t.shape) for n, t in weights.items()
    }
    for name, tensor in weights.items():
        shape = tuple(tensor.shape)
        assert torch.equal(source.read(name, (0,) * len(shape), shape), tensor)


QKV = "decoder.layers.self_attention.linear_qkv.weight"
BAD: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "an unknown tensor": (
        lambda s: s.update({"decoder.layers.mlp.linear_fc3.weight": s[QKV]}),
        "linear_fc3.weight is not a name",
    ),
    "no model's tensor": (lambda s: s.update(extra=s[QKV]), "extra in .* is not a name"),
    "other heads": (lambda s: s.update({QKV: s[QKV][:, :-4]}), "has 28 rows in each layer"),
    "bucket order": (
        lambda s: s.update({"optimizer.distributed.dp_group_idx_0.exp_avg": torch.zeros(9)}),
        "order of one run's buckets.*--weights-only",
    ),
    "flattened moments": (
        lambda s: s.update({f"optimizer.state.exp_avg.{QKV}": s[QKV].reshape(-1)}),
        "flattened state of one layout",
    ),
    "one moment lacking": (
        lambda s: s.pop(f"optimizer.state.exp_avg.{QKV}"),
        "exp_avg of some weights, and none of",
    ),
    "rows that are no padding": (
        lambda s: s.update({"output_layer.weight": torch.zeros(125, WIDTH)}),
        "no padding: correct vocab_size",
    ),
    "eight bits": (lambda s: s.update({QKV: s[QKV].to(torch.float8_e4m3fn)}), "no scale is known"),
    "odd gate and up": (
        lambda s: s.update({"decoder.layers.mlp.linear_fc1.weight": torch.zeros(3, 63, WIDTH)}),
        "no gate and up together",
    ),
    "no step": (lambda _: None, "give it with --step"),
}


@pytest.mark.parametrize("fault", sorted(BAD))
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    change, words = BAD[fault]
    full = with_optimizer(megatron(published("llama")))
    bare = {n: t for n, t in full.items() if "optimizer" not in n}
    state = full if fault in ("one moment lacking", "flattened moments", "no step") else bare
    change(state)
    folder = stored(tmp_path / "it", state)
    with pytest.raises(CheckpointError, match=words):
        megatron_tensors(folder, config_of("llama"))


def test_other_formats_and_models_are_refused(tmp_path: Path) -> None:
    folder = stored(tmp_path / "it", megatron(published("llama")))
    with pytest.raises(CheckpointError, match="model_type 'gemma3'"):
        megatron_tensors(folder, {**config_of("llama"), "model_type": "gemma3"})
    with pytest.raises(CheckpointError, match="rope_interleave"):
        megatron_tensors(folder, {**config_of("deepseek_v3"), "rope_interleave": False})
    (folder / "metadata.json").write_text('{"sharded_backend": "fsdp_dtensor"}')
    with pytest.raises(CheckpointError, match="--ckpt-format torch_dist"):
        megatron_tensors(folder, config_of("llama"))
