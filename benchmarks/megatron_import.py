"""Does what Megatron-Core itself saves come in bit for bit?

    scripts/engine-env megatron-lm && python benchmarks/megatron_import.py [qwen3] [qwen3_moe]

Megatron-Core builds a small model on the processor and saves it as torch_dist; it wants a GPU,
Triton and psutil for parts that a save does not use, so empty ones stand for these.  The reader's
tensors are put together again in Megatron's order by other code and compared with the model's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
import torch._dynamo
import torch._inductor.utils
import torch.distributed as dist

from krzem.train.checkpoint.megatron import megatron_tensors
from krzem.train.checkpoint.names import correspondence
from krzem.train.checkpoint.transfer import WEIGHT

ENGINE = Path(__file__).parents[1] / ".venv-engines/megatron-lm/lib"
LAYERS, EXPERTS, GROUPS, HEAD = 3, 4, 2, 4
CONFIG = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": LAYERS, "vocab_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": GROUPS, "head_dim": HEAD, "rms_norm_eps": 1e-6,
    "rope_theta": 1e4, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "hidden_act": "silu",
}  # fmt: skip
MOE = {
    "num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "router_aux_loss_coef": 0.0,
}  # fmt: skip


def main() -> None:
    """Write and compare each kind of model."""
    if sys.argv[1:2] == ["--write"]:
        write(sys.argv[2], Path(sys.argv[3]))
        return
    for kind in sys.argv[1:] or ["qwen3", "qwen3_moe"]:
        with tempfile.TemporaryDirectory() as place:
            words = [sys.executable, __file__, "--write", kind, place]
            subprocess.run(words, check=True, capture_output=True)
            print(f"{kind:<12} {compare(kind, Path(place))} tensors equal bit for bit")


def write(kind: str, place: Path) -> None:
    """Save a random model with Megatron-Core, and its parameters beside."""
    stand_in()
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    experts = EXPERTS if kind.endswith("_moe") else None
    more: dict[str, Any] = (
        {"num_moe_experts": experts, "moe_ffn_hidden_size": 8, "moe_router_topk": 2}
        if experts
        else {}
    )
    config = TransformerConfig(
        num_layers=LAYERS, hidden_size=16, ffn_hidden_size=32, num_attention_heads=4,
        num_query_groups=GROUPS, kv_channels=HEAD, qk_layernorm=True, normalization="RMSNorm",
        gated_linear_unit=True, activation_func=torch.nn.functional.silu, add_bias_linear=False,
        use_cpu_initialization=True, bias_activation_fusion=False, **more,
    )  # fmt: skip
    spec = get_gpt_layer_local_spec(num_experts=experts, qk_layernorm=True, normalization="RMSNorm")
    model = GPTModel(
        config, spec, vocab_size=128, max_sequence_length=64, position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )  # fmt: skip
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    (place / "iter_0000005").mkdir()
    state = model.sharded_state_dict(metadata={"dp_cp_group": group})
    dist_checkpointing.save({"model": state, "iteration": 5}, str(place / "iter_0000005"))
    torch.save({n: p.detach() for n, p in model.named_parameters()}, place / "model.pt")


def stand_in() -> None:
    """Put empty modules where Megatron-Core asks for what a save does not use."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29871", RANK="0", WORLD_SIZE="1")
    sys.path.append(str(next(ENGINE.glob("python*/site-packages"))))
    torch.cuda.synchronize = torch.cuda.current_stream = lambda *_: None
    torch.cuda.current_device = lambda: "cpu"
    torch.compile = lambda f=None, **_: f or (lambda g: g)
    for name in ("triton", "triton.language"):
        module = MagicMock(__spec__=None, __version__="3.5.0")
        module.jit = lambda f=None, **_: f or (lambda g: g)
        module.autotune = module.heuristics = lambda *_, **__: lambda f: f
        sys.modules[name] = module
    memory = SimpleNamespace(rss=0)
    process = lambda *_: SimpleNamespace(memory_info=lambda: memory)  # noqa: E731
    sys.modules["psutil"] = SimpleNamespace(Process=process)  # type: ignore[assignment]


def compare(kind: str, place: Path) -> int:
    """How many of Megatron's parameters were compared; an AssertionError names one that differs."""
    config = {"model_type": kind, **CONFIG, **(MOE if kind.endswith("_moe") else {})}
    source = megatron_tensors(place / "iter_0000005", config).sources[WEIGHT]
    found = {n: shape for n, (_, shape) in source.tensors().items()}
    correspondence(config, found).compare(str(place), found)
    read = {n: source.read(n, (0,) * len(s), s) for n, s in found.items()}
    model = torch.load(place / "model.pt", weights_only=True)
    for name, tensor in model.items():
        assert torch.equal(again(name, read), tensor), name
    return len(model)


PLAIN = {
    "decoder.layers.": "model.layers.", "self_attention.linear_proj": "self_attn.o_proj",
    "self_attention.q_layernorm": "self_attn.q_norm", "pre_mlp_": "post_attention_",
    "self_attention.k_layernorm": "self_attn.k_norm", "mlp.router": "mlp.gate",
    "experts.local_experts": "experts", "linear_fc2": "down_proj", "output_layer": "lm_head",
    "embedding.word_embeddings": "model.embed_tokens", "decoder.final_layernorm": "model.norm",
}  # fmt: skip


def again(name: str, read: dict[str, torch.Tensor]) -> torch.Tensor:
    """Megatron's parameter ``name`` out of Hugging Face's tensors."""
    for theirs, ours in PLAIN.items():
        name = name.replace(theirs, ours)
    if "linear_fc1" in name:
        return torch.cat([read[name.replace("linear_fc1", p)] for p in ("gate_proj", "up_proj")])
    if "self_attention.linear_qkv" in name:
        parts = [name.replace("self_attention.linear_qkv", f"self_attn.{x}_proj") for x in "qkv"]
        heads = [read[p].reshape(GROUPS, -1, HEAD, read[p].shape[1]) for p in parts]
        return torch.cat(heads, 1).reshape(-1, heads[0].shape[-1])
    return read[name]


if __name__ == "__main__":
    main()
