"""MindSpore Transformers (MindFormers): its YAML for models that are compiled as one graph.

Keys are those of its templates at release 1.8.0 (``facts/engine_flags/mindformers-1.8.0.csv``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from krzem.errors import GoalError, LayoutError, ModelError
from krzem.layout.layout import ContextParallel, Optimizer, Precision, Recompute, Schedule
from krzem.plan.emit.launch import (
    Choices,
    Flag,
    Installed,
    Launch,
    Part,
    Request,
    Section,
    ask,
    chosen,
    norm_epsilon,
    number,
    rotary_base,
    section,
)
from krzem.plan.emit.megatron_run import stage_layers
from krzem.plan.emit.model_shape import shape_of
from krzem.plan.emit.parts import known, literal, merged, quoted

VERSION = "1.8.0"
TABLE = f"mindformers-{VERSION}"
ENGINE = f"MindFormers {VERSION}"
FILE = "krzem_mindformers.yaml"
MODEL = "model.model_config."
_ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}  # fmt: skip
_TYPES = {Precision.BF16: "bfloat16", Precision.FP16: "float16", Precision.FP32: "float32"}
_INSTALLED = Installed(
    name="MindFormers", version="1.8.",
    command='sed -n "s/.*version=\'\\(.*\\)\',/\\1/p" "$MINDFORMERS_PATH/setup.py"',
)  # fmt: skip
_COLUMNS = ("input_ids", "labels", "loss_mask", "position_ids", "attention_mask")


def launch(request: Request) -> Launch:
    """Everything MindFormers needs; see :func:`krzem.plan.emit.emit` for the errors."""
    _check(request)
    folder = ask("MINDFORMERS_PATH", "folder of the checkout")
    return Launch(
        engine="mindformers", version=VERSION, sections=(), command=_command(request),
        parts=(Part(path=FILE, syntax="yaml", sections=_sections(request)),),
        environment=(Flag("MINDFORMERS_PATH", folder, "engine"),), installed=(_INSTALLED,),
        notes=tuple(_notes(request)),
    )  # fmt: skip


def _command(request: Request) -> str:
    """Its launcher: workers in all and on this node, the first host, this node's number."""
    x = request.layout
    each = min(request.cluster.devices_per_node, x.devices)
    run = f'"$MINDFORMERS_PATH/run_mindformer.py --config $PWD/{FILE}"'
    start = f'bash "$MINDFORMERS_PATH/scripts/msrun_launcher.sh" {run}'
    if x.devices == each:
        return f"{start} {each}"
    first = ask("MASTER_ADDR", "host of the first node")
    rank = ask("NODE_RANK", "number of this node, from 0")
    return f'{start} {x.devices} {each} "{first}" 8118 "{rank}" output/msrun_log False 7200'


def _sections(request: Request) -> tuple[Section, ...]:
    extra = tuple(chosen(ENGINE, request.switches, _choices(request)))

    def part(title: str, flags: Iterable[Flag]) -> Section:
        return section(title, known(merged(flags, over=extra), TABLE))

    sections = (
        part("Run", _run(request)),
        part("Model", _model(request)),
        part("Parallelism", _parallel(request)),
        part("Recomputation", _recompute(request)),
        part("Batch", _batch(request)),
        part("Optimizer", _optimizer(request)),
        part("Data and checkpoints", _storage(request)),
        section("Switches that were priced", known(merged(extra), TABLE)),
    )
    return tuple(part for part in sections if part.flags)


def _run(request: Request) -> Iterator[Flag]:
    yield Flag("use_legacy", "false", "models of Megatron-like parts")
    yield Flag("run_mode", '"train"', "pre-training")
    yield Flag("use_parallel", "true", "many devices")
    yield Flag("seed", "1234", "of the initialisation")
    yield Flag("context.mode", "0", "the whole step is one graph")
    yield Flag("context.device_target", '"Ascend"', "devices")
    yield Flag("context.max_device_memory",
               f'"{int(request.cluster.memory_bytes * 0.92 / 1e9)}GB"', "to be filled")  # fmt: skip
    yield Flag("trainer.type", '"CausalLanguageModelingTrainer"', "kind of training")
    yield Flag("trainer.model_name", literal(request.arch.name), "the model")
    yield Flag("runner_wrapper.type", '"MFTrainOneStepCell"', "one step")
    yield Flag("runner_wrapper.use_clip_grad", "true", "gradients are clipped")
    yield Flag("runner_wrapper.scale_sense", "1.0", "no scaling of the loss")


def _model(request: Request) -> Iterator[Flag]:
    arch, config = request.arch, request.config
    shape = shape_of(arch, ENGINE)
    a, wide = shape.attention, shape.dense or shape.experts
    assert wide is not None
    name = _ARCHITECTURES[arch.model_type]
    base = rotary_base(config)
    epsilon = norm_epsilon(config)
    pairs: list[tuple[str, str, str]] = [
        ("model_type", literal(arch.model_type), "family"),
        ("architectures", literal(name), "class"),
        ("num_hidden_layers", str(arch.layers), "transformer layers"),
        ("hidden_size", str(arch.hidden), "width of the residual stream"),
        ("intermediate_size", str(wide.width), "inner width of a dense network"),
        ("num_attention_heads", str(a.heads), "query heads"),
        ("num_key_value_heads", str(a.kv_heads), "key-value heads"),
        ("vocab_size", str(arch.vocab), "tokens of the vocabulary"),
        ("seq_length", str(request.goal.sequence), "tokens per sequence"),
        ("max_position_embeddings", str(max(arch.max_positions, request.goal.sequence)),
         "at least the sequence length"),
        ("rms_norm_eps", ask("NORM_EPSILON", "rms_norm_eps of config.json") if epsilon is None
         else literal(epsilon), "added under the root of a norm"),
        ("rope_theta", ask("ROTARY_BASE", "rope_theta of config.json") if base is None
         else str(int(base)), "base of the rotary frequencies"),
        ("position_embedding_type", '"rope"', "rotary positions"),
        ("tie_word_embeddings", literal(arch.tied_embeddings), "output matrix"),
        ("hidden_act", '"silu"', "activation"),
        ("add_bias_linear", "false", "matrices without bias"),
        ("hidden_dropout", "0.0", "the plan assumes none"),
        ("attention_dropout", "0.0", "the plan assumes none"),
        ("input_sliced_sig", "true", "rows have the sequence length"),
    ]  # fmt: skip
    for key, value, why in pairs:
        yield Flag(f"{MODEL}{key}", value, why)
    yield from _attention(request)
    if shape.experts is not None:
        yield from _experts(request)
    yield from _precision(request)


def _attention(request: Request) -> Iterator[Flag]:
    shape = shape_of(request.arch, ENGINE)
    a = shape.attention
    if a.kv_lora_rank is None:
        yield Flag(f"{MODEL}head_dim", str(a.head_dim), "width of a head")
        yield Flag(f"{MODEL}qk_layernorm", literal(a.qk_norm), "norms of q and k")
        return
    rope = a.rope_dim or 0
    yield Flag(f"{MODEL}multi_latent_attention", "true", "keys and values from a latent")
    if a.q_lora_rank is not None:
        yield Flag(f"{MODEL}q_lora_rank", str(a.q_lora_rank), "rank of the queries")
    yield Flag(f"{MODEL}kv_lora_rank", str(a.kv_lora_rank), "rank of keys and values")
    yield Flag(f"{MODEL}qk_nope_head_dim", str(a.head_dim - rope), "without position")
    yield Flag(f"{MODEL}qk_rope_head_dim", str(rope), "rotary part of a head")
    yield Flag(f"{MODEL}v_head_dim", str(a.value_dim), "width of a value head")
    yield Flag(f"{MODEL}num_nextn_predict_layers", str(request.arch.mtp_layers), "prediction")


def _experts(request: Request) -> Iterator[Flag]:
    shape = shape_of(request.arch, ENGINE)
    moe = shape.experts
    assert moe is not None
    scale = number(request.config, "routed_scaling_factor")
    yield Flag(f"{MODEL}num_experts", str(moe.experts), "routed experts of a layer")
    yield Flag(f"{MODEL}num_experts_per_tok", str(moe.experts_per_token), "experts per token")
    yield Flag(f"{MODEL}moe_intermediate_size", str(moe.width), "inner width of one expert")
    yield Flag(f"{MODEL}gated_linear_unit", "true", "three matrices")
    yield Flag(f"{MODEL}moe_grouped_gemm", "true", "local experts in one grouped product")
    yield Flag(f"{MODEL}router_dense_type", '"float32"', "the gate is computed in fp32")
    if moe.shared_width:
        yield Flag(f"{MODEL}n_shared_experts", str(moe.shared_width // moe.width), "shared experts")
    if not all(shape.moe_layers):
        dense = shape.moe_layers.index(True)
        yield Flag(f"{MODEL}first_k_dense_replace", str(dense), "leading dense layers")
    if moe.router_bias:
        yield Flag(f"{MODEL}topk_method", '"noaux_tc"', "balancing bias")
        yield Flag(f"{MODEL}scoring_func", '"sigmoid"', "scores of the gate")
        yield Flag(f"{MODEL}n_group", str(moe.expert_groups), "groups of experts")
        yield Flag(f"{MODEL}topk_group", str(moe.groups_per_token), "groups of a token")
        yield Flag(f"{MODEL}routed_scaling_factor",
                   ask("ROUTER_SCALE", "routed_scaling_factor of config.json") if scale is None
                   else literal(scale), "scales the gates")  # fmt: skip
    yield Flag(f"{MODEL}moe_router_load_balancing_type", '"seq_aux_loss"', "loss of balance")
    yield Flag(f"{MODEL}moe_aux_loss_coeff", ask("AUX_LOSS", "weight of the balancing loss"),
               "its weight belongs to the recipe, not to the plan")  # fmt: skip
    yield Flag(f"{MODEL}moe_token_dispatcher_type", '"alltoall"', "tokens travel by all-to-all")


def _precision(request: Request) -> Iterator[Flag]:
    goal = request.goal
    half = goal.states.weight == 2 and goal.states.master == 0
    kept = _TYPES[goal.precision] if half else "float32"
    yield Flag(f"{MODEL}compute_dtype", literal(_TYPES[goal.precision]), "type of products")
    yield Flag(f"{MODEL}params_dtype", literal(kept), "type of the kept weights")
    yield Flag(f"{MODEL}layernorm_compute_dtype", '"float32"', "norms")
    yield Flag(f"{MODEL}softmax_compute_dtype", '"float32"', "softmax")
    yield Flag(f"{MODEL}rotary_dtype", '"float32"', "rotary positions")


def _parallel(request: Request) -> Iterator[Flag]:
    x = request.layout
    place = "parallel_config."
    yield Flag("parallel.parallel_mode", "1", "layouts by hand")
    yield Flag("parallel.full_batch", "false", "each rank loads its own part")
    yield Flag("parallel.dataset_strategy", literal(
        [[x.dp, 1]] * 4 + [[x.dp, 1, 1, 1]]), "how columns are cut over data ranks")  # fmt: skip
    yield Flag(f"{place}data_parallel", str(x.dp), "data-parallel ranks")
    yield Flag(f"{place}model_parallel", str(x.tp), "ranks that cut every matrix")
    yield Flag(f"{place}use_seq_parallel", literal(x.sequence_parallel and x.tp > 1), "norms too")
    yield Flag(f"{place}context_parallel", str(x.cp), "ranks that cut a sequence")
    if x.cp > 1:
        kind = "ulysses_cp" if x.context_parallel is ContextParallel.ALL_TO_ALL else "colossalai_cp"
        ring = x.context_parallel is ContextParallel.RING
        yield Flag(f"{place}context_parallel_algo", literal(kind), "how")
        yield Flag(f"{MODEL}use_ring_attention", literal(ring), "round a ring")
    yield Flag(f"{place}expert_parallel", str(x.ep), "ranks that share the experts")
    yield Flag(f"{place}pipeline_stage", str(x.pp), "pipeline stages")
    if x.pp > 1:
        yield from _pipeline(request)
    yield Flag("parallel.enable_parallel_optimizer", literal(x.zero > 0), f"ZeRO stage {x.zero}")
    if x.zero:
        place = "parallel.parallel_optimizer_config."
        yield Flag(f"{place}gradient_accumulation_shard", literal(x.zero >= 2),
                   "whether gradients are sharded between passes")  # fmt: skip
        if 0 < x.shard < x.dp:
            yield Flag(f"{place}optimizer_weight_shard_size", str(x.shard), "ranks of a shard")


def _pipeline(request: Request) -> Iterator[Flag]:
    x, layers = request.layout, request.arch.layers
    kind = "zero_bubble_v" if x.schedule is Schedule.ZB_V else "1f1b"
    chunks = 2 if x.schedule is Schedule.ZB_V else x.vpp
    stages = stage_layers(layers, x)
    place = "parallel.pipeline_config."
    yield Flag(f"{place}pipeline_interleave", literal(chunks > 1), "several chunks per rank")
    yield Flag(f"{place}pipeline_scheduler", literal(kind), "schedule")
    yield Flag(f"{MODEL}pp_interleave_num", str(chunks), "chunks per rank")
    base = layers // len(stages)
    offsets = [count - base for count in stages]
    rows = [offsets[i : i + x.pp] for i in range(0, len(offsets), x.pp)]
    yield Flag(f"{MODEL}offset", literal(rows[0] if chunks == 1 else rows),
               f"layers of a stage beyond {base}")  # fmt: skip


def _recompute(request: Request) -> Iterator[Flag]:
    x = request.layout
    full, some = x.recompute is Recompute.FULL, x.recompute is Recompute.MODULES
    value: object = full
    if full and x.recompute_layers is not None and x.pp > 1 and x.vpp == 1:
        counts = stage_layers(request.arch.layers, x)
        value = [min(x.recompute_layers, count) for count in counts]
    place = "recompute_config."
    yield Flag(f"{place}recompute", literal(value), "layers that are computed again")
    yield Flag(f"{place}select_recompute", literal(some), "parts of layers")
    gathered = f"{place}parallel_optimizer_comm_recompute"
    yield Flag(gathered, literal(x.zero == 3), "weights are gathered again")
    yield Flag(f"{place}mp_comm_recompute", literal(full), "tensor-parallel communication again")


def _batch(request: Request) -> Iterator[Flag]:
    x, goal = request.layout, request.goal
    piped = request.micro_batches if x.pp > 1 else 1
    yield Flag("runner_config.batch_size", str(x.micro_batch), "sequences per pass and rank")
    yield Flag("runner_config.epochs", "1", "once through the samples below")
    yield Flag("runner_config.gradient_accumulation_steps",
               str(request.micro_batches if x.pp == 1 else 1), "passes of a step")  # fmt: skip
    yield Flag("parallel_config.micro_batch_num", str(piped), "micro-batches of the pipeline")
    yield Flag("micro_batch_interleave_num", "1", "none are interleaved further")
    samples = request.steps * goal.global_batch
    for prefix in ("train_dataset.", "train_dataset_task.dataset_config."):
        yield Flag(f"{prefix}data_loader.sizes", literal([samples, 0, 0]),
                   f"{request.steps} steps, {goal.tokens:.4g} tokens")  # fmt: skip


def _optimizer(request: Request) -> Iterator[Flag]:
    yield Flag("optimizer.type", '"AdamW"', "optimizer")
    if request.layout.offload_optimizer:
        yield Flag("optimizer.swap", "true", "states live in host memory")
    yield Flag("lr_schedule.type", '"CosineWithWarmUpLR"', "learning rate")
    yield Flag("lr_schedule.learning_rate", ask("LR", "peak learning rate"), "of the recipe")
    yield Flag("lr_schedule.total_steps", str(request.steps), "steps of the run")


def _storage(request: Request) -> Iterator[Flag]:
    interval = request.save_steps or ask("SAVE_STEPS", "steps between checkpoints")
    folder = quoted(ask("CHECKPOINTS", "folder for checkpoints"))
    yield Flag("output_dir", folder, "results")
    yield Flag("load_checkpoint", folder, "where a restart looks")
    yield Flag("resume_training", "${RESUME:?false for the first start, then true}", "restart")
    yield Flag("load_ckpt_format", '"safetensors"', "format")
    yield Flag("auto_trans_ckpt", "true", "another layout may read them")
    yield Flag("callbacks",
               '[{"type": "MFLossMonitor"}, {"type": "CheckpointMonitor", "prefix": "llm",'
               f' "save_checkpoint_steps": {interval}, "integrated_save": false,'
               ' "async_save": false, "checkpoint_format": "safetensors"}]',
               "a line and a checkpoint now and then")  # fmt: skip
    yield Flag("train_dataset_task.type", '"CausalLanguageModelDataset"', "kind of data")
    for prefix in ("train_dataset.", "train_dataset_task.dataset_config."):
        yield from _dataset(request, prefix)


def _dataset(request: Request, prefix: str) -> Iterator[Flag]:
    loader = f"{prefix}data_loader."
    yield Flag(f"{loader}type", '"BlendedMegatronDatasetDataLoader"', "Megatron's files")
    yield Flag(f"{loader}datasets_type", '"GPTDataset"', "of tokens")
    yield Flag(f"{loader}config.seq_length", str(request.goal.sequence), "tokens per sequence")
    yield Flag(f"{loader}config.split", '"1, 0, 0"', "all for training")
    yield Flag(f"{loader}config.create_attention_mask", "true", "a column of the model")
    yield Flag(f"{loader}config.eod", ask("EOD", "token id of the end of a document"), "its end")
    yield Flag(f"{loader}config.pad", "-1", "no padding")
    yield Flag(f"{loader}config.data_path",
               f'["1", "{ask("DATA", "prefix of the tokenised data")}"]', "where")  # fmt: skip
    yield Flag(f"{prefix}input_columns", literal(_COLUMNS), "columns")
    yield Flag(f"{prefix}construct_args_key", literal(_COLUMNS), "their order")
    yield Flag(f"{prefix}drop_remainder", "true", "every step has the whole batch")


def _choices(request: Request) -> Choices:
    kind = f"{MODEL}moe_token_dispatcher_type"
    flash = f"{MODEL}use_flash_attention"
    capacity = f"{MODEL}moe_expert_capacity_factor"
    sharded = "parallel.parallel_optimizer_config.gradient_accumulation_shard"
    sync: dict[str, tuple[tuple[str, str], ...]] = {"every": ((sharded, "true"),)}
    if request.layout.zero < 2:
        sync = {"last": ((sharded, "false"),) if request.layout.zero else ()}
    return {
        "dispatcher": {"alltoall": ((kind, '"alltoall"'),),
                       "deepep": ((kind, '"alltoall_deredundency"'),)},
        # The graph's compiler places collectives beside computation and launches nothing.
        "overlap-grad-reduce": {"on": ()},
        "overlap-param-gather": {"on": ()},
        "cuda-graphs": {"full": (("context.mode", "0"),)},
        "compile": {"on": ()},
        "loss": {"plain": ()},
        "attention": {"fused": ((flash, "true"),), "eager": ((flash, "false"),)},
        "grad-sync": sync,
        "routing": {"real": ((capacity, "null"),),
                    "capacity": ((capacity, ask("CAPACITY", "factor of expert capacity")),)},
        "offload-activations": {"off": (("swap_config.swap", "false"),),
                                "on": (("swap_config.swap", "true"),)},
    }  # fmt: skip


def _check(request: Request) -> None:
    x, goal, arch = request.layout, request.goal, request.arch
    if arch.model_type not in _ARCHITECTURES:
        raise ModelError(
            f"{ENGINE} trains {', '.join(_ARCHITECTURES)}, not {arch.name} (model_type"
            f" {arch.model_type}). Emit for another engine"
        )
    each = min(request.cluster.devices_per_node, x.devices)
    known_schedules = (Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED, Schedule.ZB_V)
    faults = (
        (x.devices % each != 0, f"{x.devices} devices are no whole number of nodes of {each}"),
        (x.pp > 1 and x.schedule not in known_schedules,
         f"schedule={x.schedule}; plan with 1f1b, interleaved or zb-v"),
        (x.pp > 1 and request.micro_batches < x.pp,
         f"{request.micro_batches} micro-batches on pp = {x.pp} stages"),
        (x.pp > 1 and x.schedule is Schedule.ZB_V and request.micro_batches < 2 * x.pp,
         f"schedule=zb-v with {request.micro_batches} micro-batches, fewer than 2 * pp"),
        (arch.is_moe and x.etp != x.tp, f"etp = {x.etp} with tp = {x.tp}:"
         f" experts are cut as matrices are; plan with etp={x.tp}"),
        (arch.is_moe and x.tp > 1 and not x.sequence_parallel,
         f"tp = {x.tp} without sequence parallelism; plan with sp=1"),
        (arch.is_moe and x.dp % x.ep != 0, f"ep = {x.ep} does not divide dp = {x.dp}"),
        (0 < x.shard < x.dp and x.dp % x.shard != 0, f"shard = {x.shard} with dp = {x.dp}"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise LayoutError(f"{ENGINE} cannot run this layout: {text}")
    if goal.precision not in _TYPES:
        raise GoalError(f"{ENGINE} has no {goal.precision}; choose bf16, fp16 or fp32")
    if goal.optimizer is not Optimizer.ADAMW:
        raise GoalError(f"{ENGINE} is emitted with AdamW, not {goal.optimizer}; choose adamw")
    if goal.states.moments != 8:
        raise GoalError(f"{ENGINE} keeps moments of 8 bytes, not {goal.states.moments:g}")


def _notes(request: Request) -> Iterator[str]:
    x = request.layout
    if x.recompute is Recompute.ATTENTION:
        yield "recompute=attention: fused attention computes its scores again by itself"
    some = x.recompute is Recompute.FULL and x.recompute_layers is not None
    if some and (x.pp == 1 or x.vpp > 1):
        yield f"full recomputation is for all layers, not {x.recompute_layers} per rank"
    if request.arch.mtp_layers and x.pp > 1:
        yield "the prediction module sits on the last stage, beside the layers that are counted"
    if request.goal.states.master:
        yield "weights are kept in fp32 and cast for the products: there is no second copy"
    yield (
        "warm-up, weight decay, clipping and initialisation belong to the recipe and are left at"
        " the engine's defaults"
    )
