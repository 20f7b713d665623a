"""Megatron-Bridge: a Python program that fills its configuration and starts pre-training.

Fields are those of a ConfigContainer of Megatron-Bridge 0.6 and of the Megatron-Core that it pins
(``facts/engine_flags/megatron-bridge-0.6.csv``).  Everything that the plan decides is set on the
parts of the configuration one by one, so that no default of a recipe stands in its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from krzem.errors import GoalError, LayoutError, ModelError
from krzem.layout.layout import Optimizer, Precision, Recompute, Schedule
from krzem.model.architecture import AttentionKind
from krzem.plan.emit import megatron as model
from krzem.plan.emit import megatron_run as run
from krzem.plan.emit.bridge_switches import switches
from krzem.plan.emit.launch import (
    Flag,
    Installed,
    Launch,
    Part,
    Request,
    Section,
    ask,
    is_asked,
    section,
    torchrun,
)
from krzem.plan.emit.megatron import common_notes
from krzem.plan.emit.model_shape import Shape, shape_of
from krzem.plan.emit.parts import keys_of, known, merged, python_package

VERSION = "0.6"
TABLE = f"megatron-bridge-{VERSION}"
ENGINE = "Megatron-Bridge"
FILE = "krzem_bridge.py"

_PREAMBLE = (
    '"""Pre-training by Megatron-Bridge, as planned."""',
    "",
    "import os",
    "",
    "import torch",
    "import torch.nn.functional as F",
    "from megatron.bridge.models.gpt_provider import GPTModelProvider",
    "from megatron.bridge.models.mla_provider import MLAModelProvider",
    "from megatron.bridge.training.config import (",
    "    CheckpointConfig,",
    "    ConfigContainer,",
    "    DistributedDataParallelConfig,",
    "    GPTDatasetConfig,",
    "    LoggerConfig,",
    "    OptimizerConfig,",
    "    SchedulerConfig,",
    "    TokenizerConfig,",
    "    TrainingConfig,",
    ")",
    "from megatron.bridge.training.gpt_step import forward_step",
    "from megatron.bridge.training.mixed_precision import get_mixed_precision_config",
    "from megatron.bridge.training.pretrain import pretrain",
    "from megatron.core.fusions.fused_bias_geglu import quick_gelu",
    "from megatron.core.transformer.enums import AttnBackend",
    "",
    "",
    "def configured():",
    '    """The configuration, before the plan\'s values."""',
    "    return ConfigContainer(",
    "        train=TrainingConfig(train_iters=1),",
    "        model=GPTModelProvider(num_layers=1, hidden_size=1, num_attention_heads=1),",
    "        optimizer=OptimizerConfig(),",
    "        scheduler=SchedulerConfig(),",
    "        ddp=DistributedDataParallelConfig(),",
    "        dataset=GPTDatasetConfig(",
    '            seq_length=1, random_seed=1234, split="99,1,0", dataloader_type="single",',
    "            reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,",
    "        ),",
    "        logger=LoggerConfig(log_interval=1),",
    "        tokenizer=TokenizerConfig(),",
    "        checkpoint=CheckpointConfig(),",
    "    )",
    "",
    "",
    "def plan_config():",
    '    """The plan\'s values."""',
    "    config = configured()",
)
_ENDING = (
    "    return config",
    "",
    "",
    'if __name__ == "__main__":',
    "    pretrain(plan_config(), forward_step_func=forward_step)",
)
_RECIPES = {
    Precision.BF16: "bf16_mixed",
    Precision.FP16: "fp16_mixed",
    Precision.FP8: "bf16_with_fp8_current_scaling_mixed",
    Precision.FP8_BLOCK: "bf16_with_fp8_subchannel_scaling_mixed",
    Precision.MXFP8: "bf16_with_mxfp8_mixed",
    Precision.NVFP4: "bf16_with_nvfp4_mixed",
}
_TYPES = {4.0: "torch.float32", 2.0: "torch.bfloat16", 1.0: "torch.uint8"}
_NAMES = {
    "num_experts": "num_moe_experts",
    "norm_epsilon": "layernorm_epsilon",
}
_LEFT_OUT = frozenset({
    "max_position_embeddings", "group_query_attention", "use_megatron_fsdp", "ckpt_format",
    "data_parallel_sharding_strategy", "use_distributed_optimizer", "overlap_grad_reduce",
    "overlap_param_gather", "num_distributed_optimizer_instances",
    "num_layers_per_virtual_pipeline_stage", "overlap_moe_expert_parallel_comm",
    "delay_wgrad_compute",
})  # fmt: skip
"""Arguments of Megatron-LM that are said elsewhere in the program, or by a switch."""
_REPLACED = {
    "swiglu": (("gated_linear_unit", "True"), ("activation_func", "F.silu")),
    "quick_geglu": (("gated_linear_unit", "True"), ("activation_func", "quick_gelu")),
    "disable_bias_linear": (("add_bias_linear", "False"),),
    "untie_embeddings_and_output_weights": (("share_embeddings_and_output_weights", "False"),),
    "no_gradient_accumulation_fusion": (("gradient_accumulation_fusion", "False"),),
    "no_rope_fusion": (("apply_rope_fusion", "False"),),
}


def launch(request: Request) -> Launch:
    """Everything Megatron-Bridge needs; see :func:`krzem.plan.emit.emit` for the errors."""
    shape = shape_of(request.arch, ENGINE)
    _check(request, shape)
    return Launch(
        engine="megatron-bridge",
        version=VERSION,
        sections=(),
        parts=(
            Part(path=FILE, syntax="python", sections=_sections(request, shape),
                 preamble=_PREAMBLE, ending=_ENDING),
        ),
        environment=tuple(_environment(request)),
        command=torchrun(request, FILE),
        installed=(
            Installed(
                name=ENGINE, command=python_package("megatron-bridge"), version=f"{VERSION}."
            ),
        ),
        notes=tuple(_notes(request, shape)),
    )  # fmt: skip


def _sections(request: Request, shape: Shape) -> tuple[Section, ...]:
    extra = tuple(switches(request))

    def part(title: str, flags: Iterable[Flag]) -> Section:
        once = merged(flags, over=extra)
        return section(title, known(once, TABLE, "config."))

    def ours(flags: Iterable[Flag]) -> Iterator[Flag]:
        return _fields(flags)

    latent = shape.attention.kind is AttentionKind.LATENT
    attention = chain(model.attention(shape), model.latent_rope() if latent else ())
    moe = model.experts(request, shape) if shape.experts is not None else iter(())
    sections = (
        part("Model", chain(_provider(request, latent), ours(model.size(request, shape)))),
        part("Attention", ours(attention)),
        part("Mixture of experts", ours(moe)),
        part("Multi-token prediction", ours(model.prediction(shape))),
        part("Vocabulary", chain(ours(model.vocabulary(request, shape)), _padded())),
        part("Parallelism", ours(run.parallel(request, shape))),
        part("Pipeline", chain(ours(run.pipeline(request, shape)), _chunks(request))),
        part("Data parallelism", _data_parallel(request)),
        part("Recomputation", ours(run.recompute(request, shape))),
        part("Precision", _precision(request)),
        part("Batch", _batch(request)),
        part("Optimizer", _optimizer(request)),
        part("Data and checkpoints", _storage(request)),
        section("Switches that were priced", known(merged(extra), TABLE, "config.")),
    )
    return tuple(part for part in sections if part.flags)


def _fields(flags: Iterable[Flag]) -> Iterator[Flag]:
    """Arguments of Megatron-LM as fields of the model."""
    keys = keys_of(TABLE)
    for flag in flags:
        name = flag.name.lstrip("-").replace("-", "_")
        if name in _LEFT_OUT:
            continue
        if name in _REPLACED:
            for field, value in _REPLACED[name]:
                yield Flag(f"model.{field}", value, flag.why)
            continue
        field = f"model.{_NAMES.get(name, name)}"
        kind = keys[field].kind.lower() if field in keys else ""
        yield Flag(field, _python(name, flag.value, kind), flag.why)


def _python(name: str, text: str, kind: str) -> str:
    if not text:
        return "True"
    if is_asked(text):
        number = "float" if "float" in kind else "int"
        variable = text.removeprefix("${").partition(":")[0]
        return f'{number}(os.environ["{variable}"])'
    if name in ("moe_layer_freq", "window_attn_skip_freq"):
        return text
    if name == "window_size":
        return f"({text.replace(',', ', ')})"
    if name == "recompute_modules":
        return repr(text.split())
    if "float" in kind and "str" not in kind:
        return repr(float(text))
    return repr(int(text)) if text.lstrip("-").isdigit() else f'"{text}"'


def _provider(request: Request, latent: bool) -> Iterator[Flag]:
    name = "MLAModelProvider" if latent else "GPTModelProvider"
    arch = request.arch
    heads = arch.expanded()[-1].attention.heads
    yield Flag("model",
               f"{name}(num_layers={arch.layers}, hidden_size={arch.hidden},"
               f" num_attention_heads={heads})", "the model")  # fmt: skip
    yield Flag("model.seq_length", str(request.goal.sequence), "tokens per sequence")
    yield Flag("model.add_bias_linear", "True", "matrices with bias unless the model has none")
    yield Flag("model.share_embeddings_and_output_weights", "True", "unless it has its own")


def _padded() -> Iterator[Flag]:
    yield Flag("model.should_pad_vocab", "True", "the vocabulary is padded to that")


def _chunks(request: Request) -> Iterator[Flag]:
    x = request.layout
    if x.pp > 1 and run.chunks(x) > 1:
        yield Flag("model.virtual_pipeline_model_parallel_size", str(run.chunks(x)),
                   "model chunks on every rank")  # fmt: skip


def _data_parallel(request: Request) -> Iterator[Flag]:
    x = request.layout
    sharded = "True" if x.zero >= 1 else "False"
    yield Flag("ddp.use_distributed_optimizer", sharded, f"ZeRO stage {x.zero}")
    yield Flag("optimizer.use_distributed_optimizer", sharded, "the same, for the optimizer")
    for flag in run.data_parallel(request):
        if flag.name == "--num-distributed-optimizer-instances":
            yield Flag("ddp.num_distributed_optimizer_instances", flag.value, flag.why)
    if x.zero >= 2:
        kept = "optim_grads" if x.zero == 2 else "optim_grads_params"
        yield Flag("ddp.use_megatron_fsdp", "True", "gradients are sharded too")
        yield Flag("ddp.data_parallel_sharding_strategy", f'"{kept}"', "what is sharded")
        yield Flag("checkpoint.ckpt_format", '"fsdp_dtensor"', "its checkpoint format")
        yield Flag("model.gradient_accumulation_fusion", "False", "sharded ones are not fused")


def _precision(request: Request) -> Iterator[Flag]:
    goal = request.goal
    if goal.precision is Precision.FP32:
        yield Flag("mixed_precision", "None", "products of fp32")
        return
    delayed = request.switches.get("fp8-scaling") == "delayed"
    name = _RECIPES[goal.precision]
    if goal.precision is Precision.FP8 and delayed:
        name = "bf16_with_fp8_delayed_scaling_mixed"
    yield Flag("mixed_precision", f'get_mixed_precision_config("{name}")', "arithmetic of products")
    yield Flag("mixed_precision.grad_reduce_in_fp32",
               "False" if goal.states.gradient <= 2 else "True", "bytes of gradients")  # fmt: skip
    yield Flag("ddp.grad_reduce_in_fp32", "False" if goal.states.gradient <= 2 else "True",
               "the same, where they are reduced")  # fmt: skip
    if "8" in goal.precision.value:
        whether = "True" if goal.states.weight < 2 else "False"
        yield Flag("mixed_precision.fp8_param_gather", whether, "weights kept in 8 bits only")


def _batch(request: Request) -> Iterator[Flag]:
    goal, x = request.goal, request.layout
    yield Flag("dataset.seq_length", str(goal.sequence), "tokens per sequence")
    yield Flag("train.micro_batch_size", str(x.micro_batch), "sequences per pass and rank")
    yield Flag("train.global_batch_size", str(goal.global_batch),
               f"sequences per step, {request.micro_batches} passes on dp = {x.dp}")  # fmt: skip
    yield Flag("train.train_iters", str(request.steps), f"{goal.tokens:.4g} tokens")


def _optimizer(request: Request) -> Iterator[Flag]:
    goal, x = request.goal, request.layout
    adam = goal.optimizer is Optimizer.ADAMW
    yield Flag("optimizer.optimizer", '"adam"' if adam else '"muon"', "AdamW" if adam else "Muon")
    yield Flag("optimizer.lr", 'float(os.environ["LR"])', "belongs to the recipe")
    for flag in run.states(request):
        name = flag.name.lstrip("-").replace("-", "_")
        if flag.value:
            count = 2 if adam else 1
            yield Flag(f"optimizer.{name}", _TYPES[goal.states.moments / count], flag.why)
        else:
            yield Flag(f"optimizer.{name}", "True", flag.why)
    if x.offload_optimizer:
        yield Flag("optimizer.optimizer_cpu_offload", "True", "states and update on the host")
        yield Flag("optimizer.optimizer_offload_fraction", "1.0", "all of them")
        yield Flag("optimizer.overlap_cpu_optimizer_d2h_h2d", "True", "copies behind the update")


def _storage(request: Request) -> Iterator[Flag]:
    steps = request.save_steps
    yield Flag("tokenizer.tokenizer_type", '"HuggingFaceTokenizer"', "tokenizer of the model")
    yield Flag("tokenizer.tokenizer_model", 'os.environ["TOKENIZER"]', "which")
    yield Flag("dataset.data_path", 'os.environ["DATA"]', "training data")
    yield Flag("checkpoint.save", 'os.environ["CHECKPOINTS"]', "where checkpoints go")
    yield Flag("checkpoint.load", 'os.environ["CHECKPOINTS"]', "and where a restart looks")
    yield Flag("checkpoint.save_interval",
               'int(os.environ["SAVE_STEPS"])' if steps is None else str(steps),
               "steps between checkpoints, as the plan forecasts")  # fmt: skip


_WHAT = {
    "LR": "peak learning rate",
    "TOKENIZER": "name or folder of the tokenizer",
    "DATA": "prefix of the tokenised data",
    "CHECKPOINTS": "folder for checkpoints",
    "SAVE_STEPS": "steps between checkpoints",
    "AUX_LOSS": "weight of the balancing loss",
    "ROTARY_BASE": "rope_theta of config.json",
    "NORM_EPSILON": "rms_norm_eps of config.json",
    "ROUTER_SCALE": "routed_scaling_factor of config.json",
}


def _environment(request: Request) -> Iterator[Flag]:
    """What the program reads, asked of the user; and how many queues a device has."""
    sections = _sections(request, shape_of(request.arch, ENGINE))
    text = " ".join(flag.value for part in sections for flag in part.flags)
    for name, what in _WHAT.items():
        if f'os.environ["{name}"]' in text:
            yield Flag(name, ask(name, what), what)
    x = request.layout
    old = not request.cluster.device.family.startswith(("nvidia-blackwell", "nvidia-rubin"))
    if old and x.zero < 2 and (x.tp > 1 or x.cp > 1):
        yield Flag("CUDA_DEVICE_MAX_CONNECTIONS", "1",
                   "one queue keeps collectives ahead of the kernels that hide them")  # fmt: skip


def _check(request: Request, shape: Shape) -> None:
    x, goal = request.layout, request.goal
    adam = goal.optimizer is Optimizer.ADAMW
    faults = (
        (x.zero >= 2 and x.pp > 1,
         f"zero = {x.zero} with pp = {x.pp}: Megatron-FSDP is emitted without pipeline stages;"
         " plan with zero=1 or pp=1"),
        (x.zero >= 2 and goal.optimizer is Optimizer.MUON,
         f"zero = {x.zero} with Muon; plan with zero=1"),
        (x.offload_optimizer and x.zero == 0, "offload=1 with zero = 0; plan with zero=1"),
        (x.zero == 0 and goal.states.moments / (2 if adam else 1) != 4,
         f"moments of {goal.states.moments:g} bytes with zero = 0: smaller ones belong to the"
         " sharded optimizer; plan with zero=1, or --state-bytes moments=8"),
        (x.zero == 0 and request.switches.get("fp8-params") == "on",
         "fp8-params=on with zero = 0, which are gathered weights; plan with zero=1"),
        (x.cp > 1 and goal.sequence % (2 * x.cp) != 0,
         f"cp = {x.cp}: {goal.sequence} tokens do not divide by 2 * cp = {2 * x.cp}"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise LayoutError(f"{ENGINE} cannot run this layout: {text}")
    if shape.attention.indexer is not None:
        raise ModelError(
            f"{ENGINE} {VERSION} builds sparse attention with an indexer by a layer specification"
            f" of its own recipes, which is not emitted for {request.arch.name}"
        )
    if request.switches.get("fp8-scaling") and goal.precision is not Precision.FP8:
        raise GoalError(f"{ENGINE} has fp8-scaling with precision fp8 only, not {goal.precision}")


def _notes(request: Request, shape: Shape) -> Iterator[str]:
    x = request.layout
    emitted = run.substituted(x)
    if x.pp > 1 and emitted is not x.schedule:
        yield (
            f"{ENGINE} has no {x.schedule} schedule. Emitted instead: {emitted} with"
            f" {run.chunks(x)} chunk(s) per rank; its bubble and memory differ, so explain the plan"
            f" again with schedule={emitted},vpp={run.chunks(x)}"
        )
    if x.schedule in (Schedule.DUALPIPE, Schedule.DUALPIPE_V) and x.ep > 1:
        yield "overlap of the expert all-to-all is a switch: plan with overlap-a2a=on"
    if x.recompute is Recompute.MODULES and shape.dense is not None:
        yield f"{ENGINE} recomputes activation functions in experts only, not in dense networks"
    yield from common_notes(request)
