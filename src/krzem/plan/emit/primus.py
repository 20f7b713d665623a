"""Primus: the experiment YAML of its Megatron backend, for AMD's accelerators.

Keys, their types and what excludes what are those of Primus 26.5 and of the Megatron-LM commit
that it pins (``facts/engine_flags/primus-26.5.csv``).  Everything is written under ``overrides``,
which outrank the presets, and everything that a preset turns on is turned off again where the
plan has it off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from krzem.errors import GoalError, LayoutError, ModelError
from krzem.layout.layout import Layout, Optimizer, Precision, Recompute, Schedule
from krzem.model.architecture import AttentionKind
from krzem.plan.emit import megatron as model
from krzem.plan.emit import megatron_run as run
from krzem.plan.emit.launch import (
    Flag,
    Installed,
    Launch,
    Part,
    Request,
    Section,
    ask,
    filled,
    norm_epsilon,
    number,
    rotary_base,
    section,
)
from krzem.plan.emit.megatron import common_notes
from krzem.plan.emit.megatron_run import stage_layers
from krzem.plan.emit.model_shape import Shape, is_v4, shape_of, stand_in, v4_shape
from krzem.plan.emit.parts import keyed, keys_of, known, literal, merged, quoted
from krzem.plan.emit.primus_switches import switches

# DeepSeek V4 in Primus: a model type with keys for streams, compression and hash routing
# ---------------------------------------------------------------------------------------


def v4_model(request: Request) -> Iterator[Flag]:
    """The model's keys as options; the preset holds its constants."""
    shape, config = v4_shape(request.arch, "Primus"), request.config
    arch, a, moe = shape.arch, shape.attention, shape.experts
    yield Flag("--num-layers", str(arch.layers), "transformer layers")
    yield Flag("--hidden-size", str(arch.hidden), "width of a residual stream")
    yield Flag("--ffn-hidden-size", str(moe.width), "no dense layer uses it")
    yield Flag("--num-attention-heads", str(a.heads), "query heads")
    yield Flag("--num-query-groups", str(a.kv_heads), "one key-value head, shared")
    yield Flag("--kv-channels", str(a.head_dim), "width of a head")
    yield Flag("--qk-pos-emb-head-dim", str(a.rope_dim), "rotary part of a head")
    yield Flag("--q-lora-rank", str(a.q_lora_rank), "rank of the queries")
    yield Flag("--o-lora-rank", str(a.output_lora_rank), "rank of an output group")
    yield Flag("--o-groups", str(a.output_groups), "groups of the output projection")
    yield Flag("--attn-sink", "true" if a.sinks else "false", "a learned sink in each head")
    yield Flag("--attn-sliding-window", str(a.window or 0), "tokens seen uncompressed")
    if a.indexer is not None:
        yield Flag("--index-topk", str(a.indexer.topk), "compressed entries kept per query")
        yield Flag("--index-head-dim", str(a.indexer.head_dim), "width of an indexer head")
        yield Flag("--index-n-heads", str(a.indexer.heads), "heads of the indexer")
    yield Flag("--compress-ratios", str(list(shape.ratios)),
               "tokens per entry, by layer, the prediction modules last")  # fmt: skip
    yield Flag("--hc-mult", str(arch.hyper_connections), "residual streams")
    yield Flag("--num-experts", str(moe.experts), "routed experts of a layer")
    yield Flag("--moe-ffn-hidden-size", str(moe.width), "inner width of one expert")
    yield Flag("--moe-shared-expert-intermediate-size", str(moe.shared_width), "shared experts")
    yield Flag("--moe-router-topk", str(moe.experts_per_token), "experts per token")
    yield filled("--moe-router-topk-scaling-factor", number(config, "routed_scaling_factor"),
                 "ROUTER_SCALE", "routed_scaling_factor of config.json", "of gates")  # fmt: skip
    yield Flag("--moe-router-dtype", "fp32", "the gate is computed in fp32")
    yield Flag("--moe-token-dispatcher-type", "alltoall", "tokens travel by all-to-all")
    yield Flag("--moe-aux-loss-coeff", ask("AUX_LOSS", "weight of the balancing loss"),
               "its weight belongs to the recipe, not to the plan")  # fmt: skip
    yield Flag("--num-hash-layers", str(shape.hash_layers), "experts by a table of token ids")
    yield Flag("--mtp-num-layers", str(arch.mtp_layers), "multi-token prediction modules")
    yield filled("--norm-epsilon", norm_epsilon(config), "NORM_EPSILON",
                 "rms_norm_eps of config.json", "added under the root of a norm")  # fmt: skip
    yield filled("--rotary-base", rotary_base(config), "ROTARY_BASE",
                 "rope_theta of config.json", "base of the rotary frequencies")  # fmt: skip
    yield filled("--compress-rope-theta", number(config, "compress_rope_theta"), "COMPRESS_ROPE",
                 "compress_rope_theta of config.json", "base for compressed entries")  # fmt: skip
    limit = number(config, "swiglu_limit")
    if limit is not None:
        yield Flag("--swiglu-limit", f"{limit:g}", "inputs of the activation are clamped")
        yield Flag("--activation-func-clamp-value", f"{limit:g}", "the same for the fused path")
    yield Flag("--swiglu", "", "gated network: three matrices")
    yield Flag("--untie-embeddings-and-output-weights", "", "output matrix of its own")
    yield Flag("--disable-bias-linear", "", "matrices without bias")
    yield Flag("--max-position-embeddings", str(max(arch.max_positions, request.goal.sequence)),
               "at least the sequence length")  # fmt: skip


# Primus: the experiment YAML of its Megatron backend, for AMD's accelerators
# ---------------------------------------------------------------------------

VERSION = "26.5"
TABLE = f"primus-{VERSION}"
ENGINE = "Primus"
FILE = "krzem_primus.yaml"
_V_SHAPED = (Schedule.ZB_V,)
_LEFT_TO_SWITCHES = ("--overlap-grad-reduce", "--overlap-param-gather")


def launch(request: Request) -> Launch:
    """Everything Primus needs; see :func:`krzem.plan.emit.emit` for the errors."""
    compressed = is_v4(request.arch)
    shape = stand_in(request.arch, ENGINE) if compressed else shape_of(request.arch, ENGINE)
    _check(request, shape)
    sections = _sections(request, shape, compressed)
    return Launch(
        engine="primus",
        version=f"{VERSION} (Megatron backend)",
        sections=(),
        parts=(Part(path=FILE, syntax="yaml", sections=(_head(request, compressed), *sections)),),
        environment=tuple(_environment(request)),
        command=(
            f'"$PRIMUS_PATH/runner/primus-cli" direct -- train pretrain --config "$PWD/{FILE}"'
        ),
        installed=(
            Installed(
                name=ENGINE,
                command=(
                    'sed -n \'s/^__version__ = "\\(.*\\)"/\\1/p\' "$PRIMUS_PATH/primus/__init__.py"'
                ),
                version=VERSION,
            ),
        ),
        notes=tuple(_notes(request, shape)),
    )


def _head(request: Request, compressed: bool) -> Section:
    place = "modules.pre_trainer"
    preset = "deepseek_v4_base.yaml" if compressed else "language_model.yaml"
    return Section(
        title="Primus experiment",
        flags=(
            Flag("work_group", '"krzem"', "first folder of the results"),
            Flag("user_name", '"plan"', "second folder"),
            Flag("exp_name", literal(request.arch.name), "third folder"),
            Flag("workspace", quoted(ask("CHECKPOINTS", "folder for checkpoints and results")),
                 "on shared storage"),
            Flag(f"{place}.framework", '"megatron"', "backend"),
            Flag(f"{place}.config", '"pre_trainer.yaml"', "preset of the run"),
            Flag(f"{place}.model", f'"{preset}"', "preset that all values below replace"),
        ),
    )  # fmt: skip


def _sections(request: Request, shape: Shape, compressed: bool) -> tuple[Section, ...]:
    keys = keys_of(TABLE)
    extra = tuple(switches(request))
    prefix = "modules.pre_trainer.overrides."

    def part(title: str, flags: Iterable[Flag]) -> Section:
        once = merged(chain(defaults.get(title, ()), keyed(flags, keys)), over=extra)
        return section(title, known(once, TABLE, prefix))

    defaults = _defaults(request)
    latent = shape.attention.kind is AttentionKind.LATENT
    attention = chain(model.attention(shape), model.latent_rope() if latent else ())
    described = (
        (("Model", v4_model(request)),)
        if compressed
        else (
            ("Model", model.size(request, shape)),
            ("Attention", attention),
            ("Mixture of experts", model.experts(request, shape) if shape.experts else ()),
            ("Multi-token prediction", model.prediction(shape)),
        )
    )
    sections = (
        *(part(title, flags) for title, flags in described),
        part("Vocabulary", model.vocabulary(request, shape)),
        part("Parallelism", run.parallel(request, shape)),
        part("Pipeline", _pipeline(request, shape)),
        part("Data parallelism", _data_parallel(request)),
        part("Recomputation", run.recompute(request, shape)),
        part("Precision", _precision(request)),
        part("Batch", _batch(request)),
        part("Optimizer", chain(run.optimizer(request), run.states(request))),
        part("Data and checkpoints", chain(run.tokenizer(), _storage(request))),
        section("Switches that were priced", known(extra, TABLE, prefix)),
    )
    return tuple(part for part in sections if part.flags)


def _defaults(request: Request) -> dict[str, tuple[Flag, ...]]:
    """What Primus' presets turn on, or Megatron-LM's off, unless the plan says otherwise."""
    off = "off unless the plan has it (a preset turns it on)"
    return {
        "Model": (
            Flag("add_bias_linear", "true", "matrices with bias unless the model has none"),
            Flag("swiglu", "false", off),
            Flag("untie_embeddings_and_output_weights", "false", off),
            Flag("add_position_embedding", "true", "Megatron-LM's default"),
        ),
        "Parallelism": (Flag("sequence_parallel", "false", off),),
        "Data parallelism": (Flag("use_distributed_optimizer", "false", off),),
        "Precision": (Flag("bf16", "false", off), Flag("fp16", "false", off)),
    }


def _pipeline(request: Request, shape: Shape) -> Iterator[Flag]:
    x = request.layout
    if x.pp > 1 and x.schedule in (Schedule.ZB_H1, Schedule.ZB_V):
        name = "zero-bubble" if x.schedule is Schedule.ZB_H1 else "zbv-formatted"
        yield Flag("--patch-primus-pipeline", "", "Primus' own pipeline runtime")
        yield Flag("--pp-algorithm", name, f"schedule {x.schedule}")
    if x.pp > 1 and x.schedule in _V_SHAPED:
        stages = stage_layers(request.arch.layers, x)
        yield Flag("--pipeline-model-parallel-size", str(x.pp), "pipeline stages")
        if len(set(stages)) == 1:
            yield Flag("--num-layers-per-virtual-pipeline-stage", str(stages[0]),
                       "two chunks per rank, in a V")  # fmt: skip
        else:
            yield Flag("--pipeline-model-parallel-layout",
                       run.stage_text(stages, request.arch.mtp_layers),
                       "layers in forward order; the second half runs back")  # fmt: skip
        return
    yield from run.pipeline(request, shape)


def _torch_fsdp(x: Layout) -> bool:
    """Whether ZeRO 3 is PyTorch's FSDP2: AMD's way, without expert parallelism."""
    return x.zero == 3 and x.ep == 1


def _data_parallel(request: Request) -> Iterator[Flag]:
    x = request.layout
    if not _torch_fsdp(x):
        for flag in run.data_parallel(request):
            if flag.name not in _LEFT_TO_SWITCHES:
                yield flag
        return
    group = x.shard or x.dp * x.cp
    yield Flag("--use-torch-fsdp2", "", "ZeRO stage 3 by PyTorch's FSDP2")
    yield Flag("--no-gradient-accumulation-fusion", "", "FSDP2 excludes it")
    if group < x.dp * x.cp:
        yield Flag("--data-parallel-replicate-degree", str(x.dp * x.cp // group),
                   f"shards stay within groups of {group} ranks")  # fmt: skip
    yield Flag("--ckpt-format", "torch_dcp" if group < x.dp * x.cp else "torch_dist",
               "the checkpoint format of FSDP2")  # fmt: skip


def _precision(request: Request) -> Iterator[Flag]:
    yield from run.precision(request)
    if request.goal.precision is Precision.FP8_BLOCK:
        yield Flag("--enable-primus-turbo", "", "AMD's kernels")
        yield Flag("--use-turbo-gemm", "", "which have products with scales per block")


def _batch(request: Request) -> Iterator[Flag]:
    for flag in run.batch(request):
        if flag.name != "--train-samples":
            yield flag
    yield Flag("--train-iters", str(request.steps), f"{request.goal.tokens:.4g} tokens")


def _storage(request: Request) -> Iterator[Flag]:
    folder = f"{ask('CHECKPOINTS', 'folder')}/krzem/plan/{request.arch.name}/checkpoints"
    for flag in run.storage(request):
        if flag.name in ("--save", "--load"):
            yield Flag(flag.name, folder, flag.why)
        else:
            yield flag
    yield Flag("--mock-data", "false", "real data")
    yield Flag("--dataloader-type", "single", "Megatron-LM's order of samples, not the cyclic one")
    yield Flag("--finetune", "false", "a restart goes on (the preset would start at step 0)")
    yield Flag("--exit-on-missing-checkpoint", "false", "the first start finds none")


def _environment(request: Request) -> Iterator[Flag]:
    x = request.layout
    each = min(request.cluster.devices_per_node, x.devices)
    yield Flag("PRIMUS_PATH", ask("PRIMUS_PATH", "folder of the Primus checkout"), "the engine")
    yield Flag("NNODES", str(x.devices // each), "nodes")
    yield Flag("GPUS_PER_NODE", str(each), "processes of one node")
    if x.devices > each:
        yield Flag("NODE_RANK", ask("NODE_RANK", "number of this node, from 0"), "of this node")
        yield Flag("MASTER_ADDR", ask("MASTER_ADDR", "host of the first node"), "rendezvous")
    if request.goal.precision is Precision.MXFP8:
        yield Flag("NVTE_ROCM_ENABLE_MXFP8", "1", "Primus stops without it")
    if request.switches.get("offload-activations") == "on":
        yield Flag("NVTE_CPU_OFFLOAD_V1", "1", "activations go to host memory, weights do not")


def _moments(request: Request) -> int:
    """Moments per parameter."""
    return 2 if request.goal.optimizer is Optimizer.ADAMW else 1


def _eight_bits(request: Request) -> bool:
    eight = "8" in request.goal.precision.value and request.goal.states.weight < 2
    return eight or request.switches.get("fp8-params") == "on"


def _check(request: Request, shape: Shape) -> None:
    """What Primus refuses and nothing near it stands in for."""
    x, goal = request.layout, request.goal
    each = min(request.cluster.devices_per_node, x.devices)
    group = x.shard or x.dp * x.cp
    faults = (
        (x.devices % each != 0,
         f"tp*cp*pp*dp = {x.devices} devices are no whole number of nodes of {each}"),
        (x.zero >= 2 and x.pp > 1,
         f"zero = {x.zero} with pp = {x.pp}: FSDP excludes pipeline stages; plan with zero=1"),
        (x.zero >= 2 and goal.optimizer is Optimizer.MUON,
         f"zero = {x.zero} with Muon: neither FSDP knows it; plan with zero=1"),
        (_torch_fsdp(x) and request.arch.tied_embeddings,
         "FSDP2 with tied embeddings; plan with zero=1"),
        (_torch_fsdp(x) and goal.precision is Precision.FP16, "FSDP2 with fp16; plan with zero=1"),
        (x.zero == 3 and (x.dp * x.cp) % group != 0,
         f"shard = {group} does not divide dp * cp = {x.dp * x.cp}"),
        (x.zero == 2 and x.shard > 0 and group < x.dp * x.cp and x.ep > 1,
         "hybrid shards of Megatron-FSDP; plan with shard=0"),
        ((x.zero == 0 or _torch_fsdp(x)) and goal.states.moments / _moments(request) != 4,
         f"moments of {goal.states.moments:g} bytes with zero = {x.zero}: smaller ones belong to"
         " the sharded optimizer; plan with zero=1, or --state-bytes moments=8"),
        (x.zero == 0 and _eight_bits(request),
         "weights kept in 8 bits with zero = 0, which are gathered ones; plan with zero=1"),
        (x.offload_optimizer and x.zero != 1,
         f"offload=1 with zero = {x.zero}: its optimizer on the host is the sharded one; plan with"
         " zero=1"),
        (x.cp > 1 and goal.sequence % (2 * x.cp) != 0,
         f"cp = {x.cp}: {goal.sequence} tokens do not divide by 2 * cp = {2 * x.cp}"),
        (x.cp > 1 and is_v4(request.arch), "cp > 1 for DeepSeek V4; plan with cp=1"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise LayoutError(f"{ENGINE} cannot run this layout: {text}")
    if goal.precision is Precision.NVFP4:
        raise GoalError(f"{ENGINE} {VERSION} has MXFP4 but no NVFP4; choose bf16, fp8 or mxfp8")
    if shape.attention.sinks and not is_v4(request.arch):
        raise ModelError(
            f"{ENGINE} {VERSION} has sink attention without sliding windows (its own recipe of"
            f" GPT-OSS turns them off), so {request.arch.name} would be another model"
        )
    if shape.attention.indexer is not None and x.cp > 1:
        raise LayoutError(f"{ENGINE} cannot run this layout: an indexer with cp = {x.cp}")


def _notes(request: Request, shape: Shape) -> Iterator[str]:
    x = request.layout
    own = x.schedule in (Schedule.ZB_H1, Schedule.ZB_V)
    emitted = run.substituted(x)
    if x.pp > 1 and emitted is not x.schedule and not own:
        yield (
            f"{ENGINE} has no {x.schedule} schedule. Emitted instead: {emitted} with"
            f" {run.chunks(x)} chunk(s) per rank; its bubble and memory differ, so explain the plan"
            f" again with schedule={emitted},vpp={run.chunks(x)}"
        )
    if x.recompute is Recompute.MODULES and shape.dense is not None:
        yield f"{ENGINE} recomputes activation functions in experts only, not in dense networks"
    yield (
        "Primus' preset of a run sets weight_decay 0.0, adam_beta2 0.999, lr_warmup_iters 40 and"
        " min_lr 0: set them under overrides where your recipe differs"
    )
    yield from common_notes(request)
