"""MaxText's keys of a model (a decoder block, found by structure), precision and switches."""

from __future__ import annotations

from collections.abc import Iterator

from krzem.errors import GoalError, ModelError
from krzem.layout.layout import ContextParallel, Optimizer, Precision, Recompute
from krzem.model.architecture import Architecture, AttentionKind, FeedForward, RouterKind
from krzem.plan.emit.launch import (
    Choices,
    Flag,
    Request,
    ask,
    chosen,
    is_tpu,
    norm_epsilon,
    number,
    rotary_base,
)
from krzem.plan.emit.model_shape import is_v4, v4_shape
from krzem.plan.emit.parts import literal

ENGINE = "MaxText 0.2.4"
_SCORES = {
    RouterKind.SOFTMAX: "softmax",
    RouterKind.SIGMOID: "sigmoid",
    RouterKind.SQRT_SOFTPLUS: "sqrtsoftplus",
}


def block_of(arch: Architecture) -> str:
    """The decoder block that builds ``arch``; ModelError where none does."""
    if is_v4(arch):
        v4_shape(arch, ENGINE)
        return "deepseek4"
    if arch.model_type == "gpt_oss":
        return "gpt_oss"
    kinds = [layer for layer, _ in arch.kinds()]
    a = kinds[-1].attention
    networks = [layer.feed_forward for layer in kinds]
    same = {layer.attention for layer in kinds}
    plain = not (a.qkv_bias or a.out_bias or a.sinks or any(f.bias for f in networks))
    normal = all(layer.norms == 2 for layer in kinds) and len(same) == 1 and not arch.norm_bias
    moe = [f for f in networks if f.is_moe]
    if normal and plain and a.kind is AttentionKind.LATENT and moe:
        return "deepseek"
    if normal and plain and a.kind is AttentionKind.GROUPED and a.window is None:
        if not moe:
            return "qwen3" if a.qk_norm else "llama2"
        if len(networks) == 1 and _simple(networks[0]):
            return "qwen3_moe" if a.qk_norm else "mixtral"
    if arch.norm_bias and arch.learned_positions and not moe and len(kinds) == 1:
        return "gpt3"
    raise ModelError(
        f"{ENGINE} has no decoder block for {arch.name} (model_type {arch.model_type}): it builds"
        " llama2, qwen3, qwen3_moe, mixtral, deepseek, deepseek4, gpt_oss and gpt3"
        " (src/maxtext/configs/types.py, decoder_block). Write a block, or emit for another engine"
    )


def _simple(moe: FeedForward) -> bool:
    return moe.router is RouterKind.SOFTMAX and not moe.shared_width and not moe.router_bias


def model(request: Request) -> Iterator[Flag]:
    """Widths, depth, attention, experts."""
    arch, config = request.arch, request.config
    block = block_of(arch)
    layer = arch.expanded()[-1]
    dense = next((x.feed_forward for x in arch.expanded() if not x.feed_forward.is_moe), None)
    wide = dense or layer.feed_forward
    yield Flag("decoder_block", literal(block), "kind of layer")
    yield Flag("base_num_decoder_layers", str(arch.layers), "transformer layers")
    yield Flag("base_emb_dim", str(arch.hidden), "width of the residual stream")
    yield Flag("base_mlp_dim", str(wide.width), "inner width of a dense network")
    yield Flag("mlp_activations", _activations(block, wide), "activation, and the linear half")
    yield Flag("vocab_size", str(arch.vocab), "tokens of the vocabulary")
    yield Flag("logits_via_embedding", "true" if arch.tied_embeddings else "false",
               "whether the output matrix is the embedding")  # fmt: skip
    yield _number("normalization_layer_epsilon", norm_epsilon(config), "NORM_EPSILON",
                  "rms_norm_eps of config.json", "under the root of a norm")  # fmt: skip
    yield from _positions(request)
    yield from _attention(request, block)
    if arch.is_moe:
        yield from _experts(request, block)
    mtp = 0 if block == "deepseek4" else arch.mtp_layers
    yield Flag("mtp_num_layers", str(mtp), "multi-token prediction modules")
    yield Flag("enable_dropout", "false", "the plan assumes none")
    scale = number(config, "routed_scaling_factor")
    if block in ("deepseek", "deepseek4"):
        yield _number("routed_scaling_factor", scale, "ROUTER_SCALE",
                      "routed_scaling_factor of config.json", "scales the gates")  # fmt: skip


def _number(name: str, value: float | None, variable: str, what: str, why: str) -> Flag:
    return Flag(name, ask(variable, what) if value is None else literal(value), why)


def _activations(block: str, network: FeedForward) -> str:
    if block == "gpt_oss":
        return '["sigmoid", "linear"]'
    return '["silu", "linear"]' if network.gated else '["gelu"]'


def _positions(request: Request) -> Iterator[Flag]:
    arch = request.arch
    longest = max(arch.max_positions, request.goal.sequence)
    if arch.learned_positions:
        rows = max(arch.learned_positions, request.goal.sequence)
        yield Flag("trainable_position_size", str(rows), "rows of the learned position table")
        return
    base = rotary_base(request.config)
    yield Flag("rope_type", '"default"', "rotary positions of the original length")
    yield Flag("rope_max_timescale",
               ask("ROTARY_BASE", "rope_theta of config.json") if base is None else str(int(base)),
               "base of the rotary frequencies")  # fmt: skip
    yield Flag("max_position_embeddings", str(longest), "at least the sequence length")


def _attention(request: Request, block: str) -> Iterator[Flag]:
    arch = request.arch
    a = arch.expanded()[-1].attention
    yield Flag("base_num_query_heads", str(a.heads), "query heads")
    kv = a.heads if a.kind is AttentionKind.LATENT else a.kv_heads
    yield Flag("base_num_kv_heads", str(kv), "key-value heads")
    if block == "deepseek":
        yield Flag("attention_type", '"mla"', "keys and values from a low-rank latent")
        yield Flag("q_lora_rank", str(a.q_lora_rank or 0), "rank of the queries")
        yield Flag("kv_lora_rank", str(a.kv_lora_rank), "rank of keys and values")
        yield Flag("qk_nope_head_dim", str(a.head_dim - (a.rope_dim or 0)), "without position")
        yield Flag("qk_rope_head_dim", str(a.rope_dim), "rotary part of a head")
        yield Flag("v_head_dim", str(a.value_dim), "width of a value head")
        yield Flag("use_indexer", "true" if a.indexer else "false", "sparse attention")
    elif block == "deepseek4":
        yield from _compressed(request)
    else:
        yield Flag("head_dim", str(a.head_dim), "width of a head")
        yield Flag("use_qk_norm", "true" if a.qk_norm else "false", "norms of queries and keys")
    if a.indexer is not None and block == "deepseek":
        yield from _kernels(request)
        yield Flag("indexer_n_heads", str(a.indexer.heads), "heads of the indexer")
        yield Flag("indexer_head_dim", str(a.indexer.head_dim), "width of an indexer head")
        yield Flag("indexer_topk", str(a.indexer.topk), "keys kept per query")
    if block == "gpt_oss":
        window = max(x.attention.window or 0 for x in arch.expanded())
        yield Flag("sliding_window_size", str(window), "tokens of the window")
        yield Flag("attention_bias", "true", "projections with bias")
        yield Flag("attention_sink", "true", "a learned sink in each head")
        yield Flag("mlp_bias", "true", "experts with bias")
        yield Flag("mlp_activations_limit", "7.0", "inputs of the activation are clamped")
        yield Flag("inhomogeneous_layer_cycle_interval", "2", "every other layer has the window")


def _kernels(request: Request) -> Iterator[Flag]:
    """The kernels that sparse and compressed attention have."""
    tpu = is_tpu(request)
    yield Flag("attention", '"flash"' if tpu else '"dot_product"', "kernels of this attention")
    yield Flag("use_tokamax_splash", "true" if tpu else "false", "the same")


def is_sparse(arch: Architecture) -> bool:
    """Whether attention picks its keys by an indexer or reads compressed entries."""
    return is_v4(arch) or any(layer.attention.indexer for layer, _ in arch.kinds())


def _compressed(request: Request) -> Iterator[Flag]:
    shape = v4_shape(request.arch, ENGINE)
    a = shape.attention
    base = number(request.config, "compress_rope_theta")
    yield Flag("attention_type", '"compressed"', "compressed key-value entries")
    yield Flag("head_dim", str(a.head_dim), "width of a head")
    yield Flag("qk_rope_head_dim", str(a.rope_dim), "rotary part of a head")
    yield Flag("q_lora_rank", str(a.q_lora_rank), "rank of the queries")
    yield Flag("o_groups", str(a.output_groups), "groups of the output projection")
    yield Flag("o_lora_rank", str(a.output_lora_rank), "rank of an output group")
    yield Flag("sliding_window_size", str(a.window or 0), "tokens seen uncompressed")
    yield Flag("compress_ratios", literal(shape.ratios[: request.arch.layers]),
               "tokens per compressed entry, by layer")  # fmt: skip
    yield Flag("mhc_expansion_rate", str(request.arch.hyper_connections), "residual streams")
    yield Flag("first_num_hash_layers", str(shape.hash_layers), "experts by a table of token ids")
    yield Flag("compressed_rope_max_timescale",
               ask("COMPRESS_ROPE", "compress_rope_theta of config.json") if base is None
               else str(int(base)), "rotary base of compressed entries")  # fmt: skip
    yield from _kernels(request)
    if a.indexer is not None:
        yield Flag("indexer_n_heads", str(a.indexer.heads), "heads of the indexer")
        yield Flag("indexer_head_dim", str(a.indexer.head_dim), "width of an indexer head")
        yield Flag("indexer_topk", str(a.indexer.topk), "entries kept per query")


def _experts(request: Request, block: str) -> Iterator[Flag]:
    arch = request.arch
    layers = [layer.feed_forward.is_moe for layer in arch.expanded()]
    moe = next(x.feed_forward for x in reversed(arch.expanded()) if x.feed_forward.is_moe)
    yield Flag("num_experts", str(moe.experts), "routed experts of a layer")
    yield Flag("num_experts_per_tok", str(moe.experts_per_token), "experts per token")
    yield Flag("base_moe_mlp_dim", str(moe.width), "inner width of one expert")
    yield Flag("load_balance_loss_weight", ask("AUX_LOSS", "weight of the balancing loss"),
               "its weight belongs to the recipe, not to the plan")  # fmt: skip
    if block in ("deepseek", "deepseek4"):
        assert moe.router is not None
        yield Flag("shared_experts", str(moe.shared_width // moe.width), "shared experts")
        yield Flag("routed_score_func", literal(_SCORES[moe.router]), "scores of the gate")
        yield Flag("routed_bias", "true" if moe.router_bias else "false", "balancing bias")
    if block == "deepseek":
        yield Flag("first_num_dense_layers", str(layers.index(True)), "leading dense layers")
        if moe.expert_groups > 1:
            yield Flag("n_routing_groups", str(moe.expert_groups), "groups of experts")
            yield Flag("topk_routing_group", str(moe.groups_per_token), "groups of a token")
    if block == "gpt_oss":
        yield Flag("routed_bias", "true", "the gate has a bias")
    if block in ("qwen3_moe", "deepseek4"):
        yield Flag("norm_topk_prob",
                   "false" if request.config.get("norm_topk_prob") is False else "true",
                   "gates of a token add up to one")  # fmt: skip


# Precision and the priced switches as keys of MaxText and flags of its compiler
# ------------------------------------------------------------------------------


def _quantization(request: Request) -> str:
    """The name of an 8-bit or 4-bit arithmetic; raises GoalError for one that it lacks."""
    kind, device = request.goal.precision, request.cluster.device
    delayed = request.switches.get("fp8-scaling") == "delayed"
    amd = device.vendor.lower().startswith("amd")
    names = {Precision.BF16: "", Precision.FP32: "", Precision.FP8: "fp8_full"}
    if not is_tpu(request):
        names[Precision.FP8] = "te_fp8_delayedscaling" if delayed else "te_fp8_currentscaling"
        names |= {Precision.MXFP8: "te_mxfp8", Precision.NVFP4: "te_nvfp4"}
        if amd:
            old = any(word in device.id for word in ("mi300", "mi325"))
            names[Precision.FP8] = "nanoo_fp8" if old else "fp8"
            names = {k: v for k, v in names.items() if not v.startswith("te_")}
    if kind not in names:
        raise GoalError(
            f"{ENGINE} has no {kind} on {device.id}; choose from"
            f" {', '.join(str(name) for name in names)}"
        )
    return names[kind]


def arithmetic(request: Request) -> Iterator[Flag]:
    """Types of products and weights."""
    name = _quantization(request)
    full = request.goal.precision is Precision.FP32
    yield Flag("dtype", '"float32"' if full else '"bfloat16"', "type of activations")
    yield Flag("quantization", literal(name), "arithmetic of matrix products")
    if name == "fp8_full":
        yield Flag("use_qwix_quantization", "true", "the library that has it")
    if name in ("fp8", "nanoo_fp8", "te_fp8_delayedscaling") and _passes(request) > 1:
        raise GoalError(
            f"{ENGINE} refuses {name} with gradient accumulation ({_passes(request)} passes); plan"
            " with one micro-batch per step, bf16, or on NVIDIA without fp8-scaling=delayed"
        )


def _passes(request: Request) -> int:
    return 1 if request.layout.pp > 1 else request.micro_batches


def states(request: Request) -> Iterator[Flag]:
    """Bytes of weights, gradients and moments.

    Raises GoalError for moments that follow from no pair of types.
    """
    wanted = request.goal.states
    half = wanted.weight == 2 and wanted.master == 0
    second = 2 if half else 4
    first = wanted.moments - second if request.goal.optimizer is Optimizer.ADAMW else wanted.moments
    if first not in (2, 4):
        raise GoalError(
            f"{ENGINE} keeps the second moment like the weights ({second} bytes), so that"
            f" {wanted.moments:g} bytes of moments leave {first:g} for the first; choose"
            f" --state-bytes moments={second + 2} or moments={second + 4}"
        )
    if wanted.weight < 2:
        raise GoalError(f"{ENGINE} keeps weights in 2 or 4 bytes, not {wanted.weight:g}")
    names = {2: '"bfloat16"', 4: '"float32"'}
    yield Flag("weight_dtype", names[second], "type of the kept weights")
    yield Flag("grad_dtype", names[2 if wanted.gradient <= 2 else 4], "type of gradients")
    yield Flag("mu_dtype", names[int(first)], "type of the first moment")


def switches(request: Request) -> Iterator[Flag]:
    """Keys of all switches; raises GoalError for one that MaxText lacks."""
    _check(request)
    yield from chosen(ENGINE, request.switches, _choices(request))


def _choices(request: Request) -> Choices:
    tpu, x = is_tpu(request), request.layout
    scales: Choices = {"fp8-scaling": {"tensor": ()} if tpu else {"tensor": (), "delayed": ()}}
    sync = "every" if x.zero == 3 else "last"
    return {
        "dispatcher": {
            "alltoall": (("use_ring_of_experts", "false"),),
            "allgather": (("use_ring_of_experts", "true"),),
        },
        "overlap-a2a": {
            "off": (("use_batch_split_schedule", "false"),),
            "on": (("use_batch_split_schedule", "true"), ("batch_split_factor", "2")),
        },
        "overlap-tp": {"off": (("te_comm_gemm_overlap", '"disabled"'),)},
        # The compiler schedules collectives beside computation and runs the step as one program.
        "overlap-grad-reduce": {"on": ()},
        "overlap-param-gather": {"on": ()},
        "cuda-graphs": {"full": ()},
        "compile": {"on": ()},
        "fused-accumulation": {"on": ()},
        "loss": {
            "fused": (("num_vocab_tiling", "1"),),
            "chunked": (("num_vocab_tiling", "8"),),
        },
        "attention": {
            "fused": (("attention", '"flash"'),) if tpu
            else (("attention", '"cudnn_flash_te"'), ("max_segments_per_seq", "128")),
            "eager": (("attention", '"dot_product"'),),
        },
        **scales,
        "fp8-params": {"off": ()},
        "grad-sync": {sync: ()} if _passes(request) > 1 else {"every": (), "last": ()},
        "routing": {
            "real": (("use_random_routing", "false"), ("capacity_factor", "-1.0")),
            "balanced": (("use_random_routing", "true"),),
            "capacity": (("sparse_matmul", "false"), ("megablox", "false"),
                         ("capacity_factor", "1.0")),
        },
        "offload-activations": {
            "off": (),
            "on": (("remat_policy", '"minimal_offloaded"'),),
        },
        "partition-activations": {"off": ()},
    }  # fmt: skip


def xla_flags(request: Request) -> str:
    """Flags of the compiler for GPUs; a TPU's compiler overlaps by itself."""
    overlaps = {"overlap-grad-reduce", "overlap-param-gather"} & set(request.switches)
    if is_tpu(request) or not overlaps:
        return ""
    return "--xla_gpu_enable_latency_hiding_scheduler=true"


def _check(request: Request) -> None:
    on, x = request.switches, request.layout
    hashed = request.arch.hyper_connections > 1
    faults = (
        (on.get("overlap-a2a") == "on"
         and (x.ep == 1 or x.pp > 1 or request.arch.expanded()[-1].attention.kv_lora_rank is None),
         "overlap-a2a=on where layers are not DeepSeek's, or with ep = 1 or pipeline stages"),
        (on.get("offload-activations") == "on" and x.recompute is Recompute.FULL,
         "offload-activations=on with recompute=full"),
        (on.get("dispatcher") == "allgather" and (hashed or x.ep == 1),
         "dispatcher=allgather with hash-routed layers or ep = 1"),
        (on.get("routing") == "balanced" and x.ep == 1, "routing=balanced with ep = 1"),
        (on.get("attention") == "fused" and is_sparse(request.arch) and not is_tpu(request),
         "attention=fused for sparse or compressed attention on GPUs; plan with attention=eager"),
        (on.get("attention") == "eager" and is_tpu(request) and x.cp > 1
         and x.context_parallel is not ContextParallel.ALL_GATHER,
         "attention=eager with ring or all-to-all context parallelism on TPUs"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise GoalError(f"{ENGINE} refuses {text}")
