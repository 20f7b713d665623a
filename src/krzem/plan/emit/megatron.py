"""Megatron-LM: ``torchrun pretrain_gpt.py`` with its arguments.

Names, choices and what excludes what are those of the arguments of megatron-core 0.19.2
(``megatron/training/arguments.py`` and the dataclasses it reads).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from krzem.errors import LayoutError
from krzem.layout.layout import ContextParallel, Optimizer, Recompute, Schedule
from krzem.model.architecture import AttentionKind, FeedForward, RouterKind
from krzem.plan.emit import megatron_run as run
from krzem.plan.emit.launch import (
    Flag,
    Installed,
    Launch,
    Request,
    Section,
    ask,
    filled,
    governed,
    norm_epsilon,
    number,
    rope_scaling,
    rotary_base,
    section,
    switch_flags,
    torchrun,
)
from krzem.plan.emit.model_shape import Shape, pattern, shape_of

# Megatron-LM's arguments that describe the model
# -----------------------------------------------

_SCORES = {
    RouterKind.SOFTMAX: "softmax",
    RouterKind.SIGMOID: "sigmoid",
    RouterKind.SQRT_SOFTPLUS: "sqrtsoftplus",
}


def size(request: Request, shape: Shape) -> Iterator[Flag]:
    """Widths, depth, norms, activation, vocabulary."""
    arch = shape.arch
    wide = shape.dense or shape.experts
    assert wide is not None
    yield Flag("--num-layers", str(arch.layers), "transformer layers")
    yield Flag("--hidden-size", str(arch.hidden), "width of the residual stream")
    yield Flag("--ffn-hidden-size", str(wide.width), "inner width of a dense network")
    yield Flag("--normalization", "LayerNorm" if arch.norm_bias else "RMSNorm", "kind of norm")
    yield filled("--norm-epsilon", norm_epsilon(request.config), "NORM_EPSILON",
                 "rms_norm_eps of config.json", "added under the root of a norm")  # fmt: skip
    yield from _activation(shape, wide)
    yield from biases(shape)
    if not arch.tied_embeddings:
        yield Flag("--untie-embeddings-and-output-weights", "", "output matrix of its own")
    yield from _positions(request, shape)
    yield Flag("--attention-dropout", "0.0", "the default is 0.1; the plan assumes none")
    yield Flag("--hidden-dropout", "0.0", "the default is 0.1; the plan assumes none")


def _activation(shape: Shape, network: FeedForward) -> Iterator[Flag]:
    if shape.arch.model_type == "gpt_oss":
        yield Flag("--quick-geglu", "", "gated network with the sigmoid-approximated GELU")
        yield Flag("--glu-linear-offset", "1.0", "one is added to the linear half of the gate")
        yield Flag("--activation-func-clamp-value", "7.0", "inputs of the activation are clamped")
    elif network.gated:
        yield Flag("--swiglu", "", "gated network: three matrices, SiLU")


def biases(shape: Shape) -> Iterator[Flag]:
    """Megatron-LM knows all biases, none, or those of query, key and value alone."""
    network = shape.dense or shape.experts
    if network is not None and network.bias:
        return
    yield Flag("--disable-bias-linear", "", "matrices without bias")
    if shape.attention.qkv_bias:
        yield Flag("--add-qkv-bias", "", "except those of query, key and value")


def _positions(request: Request, shape: Shape) -> Iterator[Flag]:
    arch = shape.arch
    if arch.learned_positions:
        yield Flag("--position-embedding-type", "learned_absolute", "a learned table")
    else:
        yield Flag("--position-embedding-type", "rope", "rotary positions")
        yield filled("--rotary-base", rotary_base(request.config), "ROTARY_BASE",
                     "rope_theta of config.json", "base of the rotary frequencies")  # fmt: skip
        part = number(request.config, "partial_rotary_factor")
        if part is not None and shape.attention.kind is AttentionKind.GROUPED:
            yield Flag("--rotary-percent", f"{part:g}", "part of a head that is rotated")
    longest = max(arch.max_positions, request.goal.sequence)
    yield Flag("--max-position-embeddings", str(longest), "at least the sequence length")


def vocabulary(request: Request, shape: Shape) -> Iterator[Flag]:
    """Vocabulary and its padding, so that tensor parallelism divides it."""
    vocab, tp = shape.arch.vocab, request.layout.tp
    unit = next((u for u in (128, 64, 32, 16, 8, 4, 2) if vocab % (u * tp) == 0), 1)
    padded = -(-vocab // (unit * tp)) * unit * tp
    yield Flag("--vocab-size", str(vocab), "tokens of the vocabulary")
    yield Flag("--make-vocab-size-divisible-by", str(unit),
               f"times tp = {tp} divides the padded vocabulary of {padded}")  # fmt: skip


def attention(shape: Shape) -> Iterator[Flag]:
    """Heads, latent ranks, windows, sinks, the indexer of sparse attention."""
    a = shape.attention
    yield Flag("--num-attention-heads", str(a.heads), "query heads")
    if a.kind is AttentionKind.LATENT:
        yield from _latent(shape)
    else:
        yield Flag("--kv-channels", str(a.head_dim), "width of a head")
        if a.kv_heads != a.heads:
            yield Flag("--group-query-attention", "", "queries share key-value heads")
            yield Flag("--num-query-groups", str(a.kv_heads), "key-value heads")
        if a.qk_norm:
            yield Flag("--qk-layernorm", "", "queries and keys are normed")
    if a.window is not None:
        yield Flag("--window-size", f"{a.window - 1},0",
                   f"a query sees itself and {a.window - 1} tokens before")  # fmt: skip
        if not all(shape.windows):
            yield Flag("--window-attn-skip-freq", pattern(shape.windows),
                       "1: a layer with the window, 0: one that sees all")  # fmt: skip
    if a.sinks:
        yield Flag("--softmax-type", "learnable", "a learned sink in the softmax of each head")


def _latent(shape: Shape) -> Iterator[Flag]:
    a = shape.attention
    rope = a.rope_dim or 0
    yield Flag("--multi-latent-attention", "", "keys and values from a low-rank latent")
    if a.q_lora_rank is not None:
        yield Flag("--q-lora-rank", str(a.q_lora_rank), "rank of the queries")
    yield Flag("--kv-lora-rank", str(a.kv_lora_rank), "rank of keys and values")
    yield Flag("--qk-head-dim", str(a.head_dim - rope), "part of a head without position")
    yield Flag("--qk-pos-emb-head-dim", str(rope), "rotary part of a head")
    yield Flag("--v-head-dim", str(a.value_dim), "width of a value head")
    yield Flag("--qk-layernorm", "", "the latents are normed")
    if a.indexer is not None:
        yield Flag("--experimental-attention-variant", "dsa", "sparse attention with an indexer")
        yield Flag("--dsa-indexer-n-heads", str(a.indexer.heads), "heads of the indexer")
        yield Flag("--dsa-indexer-head-dim", str(a.indexer.head_dim), "width of an indexer head")
        yield Flag("--dsa-indexer-topk", str(a.indexer.topk), "keys kept per query")


def latent_rope() -> Iterator[Flag]:
    """Latent attention defaults to YaRN; pre-training at the original length has no scaling."""
    yield Flag("--rope-type", "rope", "plain rotary positions (latent attention defaults to yarn)")
    yield Flag("--no-rope-fusion", "", "the fused kernel of latent attention knows yarn only")


def experts(request: Request, shape: Shape) -> Iterator[Flag]:
    """The mixture of experts: sizes, router, dispatcher."""
    moe = shape.experts
    assert moe is not None
    yield Flag("--num-experts", str(moe.experts), "routed experts of a layer")
    yield Flag("--moe-ffn-hidden-size", str(moe.width), "inner width of one expert")
    if not all(shape.moe_layers):
        yield Flag("--moe-layer-freq", pattern(shape.moe_layers), "0: dense layer, 1: experts")
    if moe.shared_width:
        yield Flag("--moe-shared-expert-intermediate-size", str(moe.shared_width),
                   "inner width of all shared experts together")  # fmt: skip
    if moe.shared_gate:
        yield Flag("--moe-shared-expert-gate", "", "a learned gate weighs the shared expert")
    yield from router(request, moe)
    yield Flag("--moe-token-dispatcher-type", "alltoall", "tokens travel by all-to-all")
    yield Flag("--moe-grouped-gemm", "", "all local experts in one grouped matrix product")
    yield Flag("--moe-permute-fusion", "", "one kernel sorts tokens by expert")


def router(request: Request, moe: FeedForward) -> Iterator[Flag]:
    """How tokens find their experts, and what keeps the load even."""
    assert moe.router is not None
    yield Flag("--moe-router-topk", str(moe.experts_per_token), "experts per token")
    yield Flag("--moe-router-score-function", _SCORES[moe.router], "scores of the gate")
    yield Flag("--moe-router-dtype", "fp32", "the gate is computed in fp32")
    if moe.router is RouterKind.SOFTMAX and request.config.get("norm_topk_prob") is False:
        yield Flag("--moe-router-pre-softmax", "", "softmax over all experts, before the choice")
    if moe.router_bias:
        yield Flag("--moe-router-enable-expert-bias", "", "balancing bias, not trained by gradient")
    if moe.expert_groups > 1:
        yield Flag("--moe-router-num-groups", str(moe.expert_groups), "groups of experts")
        yield Flag("--moe-router-group-topk", str(moe.groups_per_token), "groups a token may reach")
    scale = number(request.config, "routed_scaling_factor")
    if scale is not None or moe.router is not RouterKind.SOFTMAX:
        yield filled("--moe-router-topk-scaling-factor", scale, "ROUTER_SCALE",
                     "routed_scaling_factor of config.json", "scales the gates")  # fmt: skip
    kind = "seq_aux_loss" if moe.router_bias else "aux_loss"
    yield Flag("--moe-router-load-balancing-type", kind, "which loss keeps experts even")
    yield Flag("--moe-aux-loss-coeff", ask("AUX_LOSS", "weight of the balancing loss"),
               "its weight belongs to the recipe, not to the plan")  # fmt: skip


def prediction(shape: Shape) -> Iterator[Flag]:
    """Multi-token prediction."""
    if shape.arch.mtp_layers:
        yield Flag("--mtp-num-layers", str(shape.arch.mtp_layers), "multi-token prediction modules")


# Megatron-LM: ``torchrun pretrain_gpt.py`` with its arguments
# ------------------------------------------------------------

VERSION = "core 0.19.2"
ENGINE = "Megatron-LM"
FACTS = "megatron-lm"
INSTALLED = Installed(
    name="megatron-core",
    command="python3 -c 'import megatron.core; print(megatron.core.__version__)'",
    version="0.19.2",
)


def launch(request: Request) -> Launch:
    """Everything Megatron-LM needs; see :func:`krzem.plan.emit.emit` for the errors."""
    shape = shape_of(request.arch, ENGINE)
    _check(request, shape)
    return Launch(
        engine=FACTS,
        version=VERSION,
        sections=_switched(request, shape),
        environment=tuple(_environment(request)),
        command=torchrun(request, 'pretrain_gpt.py "${args[@]}"'),
        notes=tuple(_notes(request, shape)),
        installed=(INSTALLED,),
    )


def _switched(request: Request, shape: Shape) -> tuple[Section, ...]:
    """All sections; flags of switches that were priced stand in one of their own."""
    left = governed(FACTS, request.switches)
    if request.switches.get("overlap-grad-reduce") == "off":
        left |= {"--overlap-param-gather"}  # only along with the other
    priced = section("Switches that were priced", _fitting(request))
    said = {flag.name for flag in priced.flags}
    kept = (
        replace(part, flags=tuple(flag for flag in part.flags if flag.name not in left | said))
        for part in _sections(request, shape)
    )
    return tuple(part for part in (*kept, priced) if part.flags)


def _fitting(request: Request) -> Iterator[Flag]:
    """The flags of all switches; a dense model has no router to record."""
    for flag in switch_flags(FACTS, request.switches):
        dense = flag.name == "--cuda-graph-modules" and not request.arch.is_moe
        yield replace(flag, value="attn mlp") if dense else flag
    chosen = request.switches
    if chosen.get("offload-activations") == "on" and chosen.get("cuda-graphs") == "full":
        yield Flag("--fine-grained-offloading-max-inflight-offloads", "1",
                   "recorded graphs need a bound on copies under way")  # fmt: skip


def _sections(request: Request, shape: Shape) -> tuple[Section, ...]:
    heads = [*attention(shape)]
    if shape.attention.kind is AttentionKind.LATENT:
        heads += latent_rope()
    moe = experts(request, shape) if shape.experts is not None else iter(())
    predicted = prediction(shape) if run.predicts(shape) else iter(())
    return (
        section("Model", chain(size(request, shape), _unfused(shape))),
        section("Vocabulary", vocabulary(request, shape)),
        section("Attention", iter(heads)),
        section("Mixture of experts", moe),
        section("Multi-token prediction", predicted),
        section("Parallelism", run.parallel(request, shape)),
        section("Pipeline", run.pipeline(request, shape)),
        section("Data parallelism", run.data_parallel(request)),
        section("Recomputation", run.recompute(request, shape)),
        section("Precision", run.precision(request)),
        section("Batch", run.batch(request)),
        section("Optimizer", chain(run.optimizer(request), run.states(request))),
        section("Data and checkpoints", chain(run.tokenizer(), run.storage(request))),
    )


def _unfused(shape: Shape) -> Iterator[Flag]:
    if shape.experts is not None and shape.experts.bias:
        yield Flag("--no-bias-dropout-fusion", "", "grouped experts with bias have none")


def _check(request: Request, shape: Shape) -> None:
    """What Megatron-LM refuses and nothing near it stands in for."""
    x = request.layout
    faults = (
        (
            x.cp > 1
            and shape.attention.indexer is not None
            and x.context_parallel is not ContextParallel.ALL_GATHER,
            f"cp = {x.cp} by {x.context_parallel}: sparse attention with an indexer gathers keys"
            " and values; plan with cpkind=allgather",
        ),
        (x.zero >= 2 and x.pp > 1,
         f"zero = {x.zero} with pp = {x.pp}: Megatron-FSDP is emitted without pipeline stages"
         " only; plan with zero=1 or pp=1"),
        (x.zero >= 2 and request.goal.optimizer is Optimizer.MUON,
         f"zero = {x.zero} with Muon: Megatron-FSDP knows Adam and SGD; plan with zero=1"),
        (x.offload_optimizer and x.zero == 0,
         "offload=1 with zero = 0: its optimizer on the host is the sharded one; plan with zero=1"),
        (x.etp > 1 and shape.experts is not None and shape.experts.bias,
         f"etp = {x.etp}: experts with bias are not cut; plan with etp=1"),
        (x.cp > 1 and request.goal.sequence % (2 * x.cp) != 0,
         f"cp = {x.cp}: a sequence of {request.goal.sequence} tokens does not divide by"
         f" 2 * cp = {2 * x.cp}"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise LayoutError(f"{ENGINE} cannot run this layout: {text}")
    run.check_states(request)


def _environment(request: Request) -> Iterator[Flag]:
    yield from _queues(request)
    if request.switches.get("offload-activations") == "on":
        yield Flag("NVTE_CPU_OFFLOAD_V1", "1", "activations are offloaded, weights are not")


def _queues(request: Request) -> Iterator[Flag]:
    x = request.layout
    blackwell = request.cluster.device.family.startswith(
        ("nvidia-blackwell", "nvidia-gb", "nvidia-rubin")
    )
    if x.zero >= 2 or blackwell:
        return
    if run.overlaps_experts(request):
        yield Flag("CUDA_DEVICE_MAX_CONNECTIONS", "32",
                   "several queues, so that all-to-all runs beside compute")  # fmt: skip
    elif x.tp > 1 or x.cp > 1:
        yield Flag("CUDA_DEVICE_MAX_CONNECTIONS", "1",
                   "one queue keeps collectives ahead of the kernels that hide them")  # fmt: skip


def _notes(request: Request, shape: Shape) -> Iterator[str]:
    x = request.layout
    emitted = run.substituted(x)
    if x.pp > 1 and emitted is not x.schedule:
        yield (
            f"{ENGINE} has no {x.schedule} schedule. Emitted instead: {emitted} with"
            f" {run.chunks(x)} chunk(s) per rank; its bubble and memory differ, so explain the plan"
            f" again with schedule={emitted},vpp={run.chunks(x)}"
        )
    if x.schedule in (Schedule.DUALPIPE, Schedule.DUALPIPE_V) and x.recompute is Recompute.FULL:
        yield "overlap of the expert all-to-all is left out: it excludes full recomputation"
    if shape.arch.mtp_layers and not run.predicts(shape):
        yield "multi-token prediction is left out: the engine builds it without an indexer only"
    if x.recompute is Recompute.MODULES and shape.dense is not None:
        yield f"{ENGINE} recomputes activation functions in experts only, not in dense networks"
    if x.zero >= 2 and (x.tp > 1 or x.cp > 1):
        yield (
            "Megatron-FSDP and tensor or context parallelism want different values of"
            " CUDA_DEVICE_MAX_CONNECTIONS; it is left unset"
        )
    yield from common_notes(request)


def common_notes(request: Request) -> Iterator[str]:
    """What no plan knows: said for every Megatron-like engine."""
    scaling = rope_scaling(request.config)
    if scaling is not None:
        yield (
            f"config.json scales rotary positions ({scaling}) for long contexts; the flags here are"
            " those of pre-training at the original length, without scaling"
        )
    yield (
        "learning-rate schedule, warm-up, weight decay, clipping and initialisation belong to the"
        " recipe and are left at the engine's defaults"
    )
