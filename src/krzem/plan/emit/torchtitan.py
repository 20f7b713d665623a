"""torchtitan 0.3.0: a Python recipe, the form that its configurations have.

Names are fields of the dataclasses behind ``Trainer.Config`` in the 0.3.0 wheel; each is also an
option of its command line (``--parallelism.tensor_parallel_degree``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from krzem.errors import GoalError, LayoutError, ModelError
from krzem.layout.layout import (
    ContextParallel,
    Layout,
    Optimizer,
    Precision,
    Recompute,
    Schedule,
    chunks_per_rank,
)
from krzem.model.architecture import Architecture
from krzem.plan.emit.launch import (
    Flag,
    Installed,
    Launch,
    Request,
    Section,
    ask,
    section,
    torchrun,
)
from krzem.plan.emit.megatron_run import check_filled, stage_layers
from krzem.plan.emit.parts import python_package
from krzem.plan.emit.titan_switches import compiles, predicts, settings, spec

# Which torchtitan recipe builds a model: found by its shape, not by its name
# ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recipe:
    """A config function of torchtitan 0.3.0 and the flavour of model it is to build."""

    package: str
    function: str
    flavor: str
    own: bool = True
    """Whether the function builds this flavour itself."""

    @property
    def path(self) -> str:
        """The function, as it is imported."""
        return f"torchtitan.models.{self.package}.config_registry.{self.function}"


# (hidden, layers, vocabulary, experts): enough to tell apart all models built there.
_RECIPES = {
    (4096, 32, 128256, 0): Recipe("llama3", "llama3_8b", "8B"),
    (8192, 80, 128256, 0): Recipe("llama3", "llama3_70b", "70B"),
    # Its own recipe computes in 8 bits, whatever is asked.
    (16384, 126, 128256, 0): Recipe("llama3", "llama3_70b", "405B", own=False),
    (1024, 28, 151936, 0): Recipe("qwen3", "qwen3_0_6b", "0.6B"),
    (2048, 28, 151936, 0): Recipe("qwen3", "qwen3_1_7b", "1.7B"),
    (2560, 36, 151936, 0): Recipe("qwen3", "qwen3_1_7b", "4B", own=False),
    (4096, 36, 151936, 0): Recipe("qwen3", "qwen3_14b", "8B", own=False),
    (5120, 40, 151936, 0): Recipe("qwen3", "qwen3_14b", "14B"),
    (5120, 64, 151936, 0): Recipe("qwen3", "qwen3_32b", "32B"),
    (2048, 48, 151936, 128): Recipe("qwen3", "qwen3_30b_a3b", "30B-A3B"),
    (4096, 94, 151936, 128): Recipe("qwen3", "qwen3_30b_a3b", "235B-A22B", own=False),
    (7168, 61, 129280, 256): Recipe("deepseek_v3", "deepseek_v3_671b", "671B"),
    (2880, 24, 201088, 32): Recipe("gpt_oss", "gpt_oss_20b", "20b"),
    (2880, 36, 201088, 128): Recipe("gpt_oss", "gpt_oss_120b", "120b"),
}
_FAMILIES = {
    "llama": "llama3", "qwen3": "qwen3", "qwen3_moe": "qwen3", "deepseek_v3": "deepseek_v3",
    "gpt_oss": "gpt_oss",
}  # fmt: skip


def recipe_of(arch: Architecture) -> Recipe:
    """The recipe whose model has the shape of ``arch``; ModelError where there is none."""
    experts = max(kind.feed_forward.experts for kind, _ in arch.kinds())
    found = _RECIPES.get((arch.hidden, arch.layers, arch.vocab, experts))
    if found is None or _FAMILIES.get(arch.model_type) != found.package:
        known = ", ".join(f"{recipe.package} {recipe.flavor}" for recipe in _RECIPES.values())
        raise ModelError(
            f"torchtitan 0.3.0 builds no model of the shape of {arch.name} (model_type"
            f" {arch.model_type}, hidden {arch.hidden}, {arch.layers} layers, vocabulary"
            f" {arch.vocab}, {experts} experts); it builds {known}"
            " (torchtitan/models/*/config_registry.py @0.3.0). Write a ModelSpec for it, or"
            " emit for another engine"
        )
    return found


# torchtitan 0.3.0: a Python recipe, the form that its configurations have
# ------------------------------------------------------------------------

VERSION = "0.3.0"
ENGINE = "torchtitan"
INSTALLED = Installed(
    name=ENGINE,
    command=python_package(ENGINE),
    version=VERSION,
)

_SCHEDULES = {
    Schedule.ONE_F_ONE_B: "1F1B",
    Schedule.INTERLEAVED: "Interleaved1F1B",
    Schedule.ZB_H1: "1F1B",
    Schedule.ZB_V: "ZBVZeroBubble",
    Schedule.DUALPIPE: "DualPipeV",
    Schedule.DUALPIPE_V: "DualPipeV",
}
_CHECKPOINTING = {
    Recompute.NONE: ("None", "all activations are kept"),
    Recompute.ATTENTION: ("None", "fused attention computes its scores again by itself"),
    Recompute.MODULES: ("SelectiveAC.Config()", "all but matrix products and attention again"),
    Recompute.FULL: ("FullAC.Config()", "whole layers are computed again"),
}
_IMPORTS = (
    "import dataclasses",
    "import os",
    "",
    "from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss",
    "from torchtitan.components.optimizer import default_adamw",
    "from torchtitan.components.quantization import (",
    "    Float8GroupedExpertsConverter,",
    "    Float8LinearConverter,",
    "    MXFP8GroupedExpertsConverter,",
    "    MXFP8LinearConverter,",
    ")",
    "from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC",
)
_STAGES = (
    "",
    "",
    "def stages(counts):",
    '    """Module names per pipeline stage, from layers per stage."""',
    "    starts = [sum(counts[:i]) for i in range(len(counts))]",
    '    names = [[f"layers.{s + i}" for i in range(n)] for s, n in zip(starts, counts)]',
    '    names[0].insert(0, "tok_embeddings")',
    '    names[-1].extend(["norm", "lm_head"])',
    "    return names",
)


def launch(request: Request) -> Launch:
    """Everything torchtitan needs; see :func:`krzem.plan.emit.emit` for the errors."""
    recipe = recipe_of(request.arch)
    _check(request)
    return Launch(
        engine=ENGINE,
        version=VERSION,
        sections=_switched(request, recipe),
        environment=tuple(_environment(request)),
        preamble=tuple(_preamble(request, recipe)),
        command=torchrun(request, "-m torchtitan.train --module krzem_recipe --config run"),
        notes=tuple(_notes(request)),
        installed=(INSTALLED,),
    )


def _switched(request: Request, recipe: Recipe) -> tuple[Section, ...]:
    """All sections; settings of switches that were priced stand in one of their own."""
    priced = section("Switches that were priced", settings(request))
    said = {flag.name for flag in priced.flags}
    kept = (
        replace(part, flags=tuple(flag for flag in part.flags if flag.name not in said))
        for part in _sections(request, recipe)
    )
    return tuple(part for part in (*kept, priced) if part.flags)


def _sections(request: Request, recipe: Recipe) -> tuple[Section, ...]:
    return (
        section("Model", _model(request, recipe)),
        section("Parallelism", _parallel(request)),
        section("Pipeline", _pipeline(request)),
        section(
            "Recomputation",
            [Flag("activation_checkpoint", *_CHECKPOINTING[request.layout.recompute])],
        ),
        section("Batch", _batch(request)),
        section("Optimizer", _optimizer(request)),
        section("Data and checkpoints", _storage(request)),
    )


def _preamble(request: Request, recipe: Recipe) -> Iterator[str]:
    yield from _IMPORTS
    package = f"torchtitan.models.{recipe.package}"
    yield f"from {package} import model_registry"
    yield f"from {package}.config_registry import {recipe.function}"
    if predicts(request):
        yield f"from {package}.mtp import MTPLoss"
    yield "from torchtitan.trainer import Trainer"
    if request.layout.pp > 1:
        yield from _STAGES


def _model(request: Request, recipe: Recipe) -> Iterator[Flag]:
    yield Flag("recipe", f"{recipe.function}()", f"{recipe.package} {recipe.flavor}")
    converters = _converters(request)
    mtp = request.arch.mtp_layers if predicts(request) else 0
    arguments = dict(_arguments(request, recipe, converters, mtp))
    if not recipe.own or arguments:
        extra = "".join(f", {name}={value}" for name, value in arguments.items())
        yield Flag("model_spec", f'model_registry("{recipe.flavor}"{extra})', "the model")
    if mtp:
        yield Flag("loss", f"MTPLoss.Config(global_vocab_size={request.arch.vocab})",
                   "loss of the multi-token prediction modules added")  # fmt: skip


def _arguments(
    request: Request, recipe: Recipe, converters: list[str], mtp: int
) -> Iterator[tuple[str, str]]:
    """What the model registry is told beside the flavour."""
    # Context parallelism needs the attention that takes masks; GPT-OSS has another by default.
    if recipe.package == "gpt_oss" and request.layout.cp > 1:
        yield "attn_backend", '"flex"'
    if converters:
        yield "converters", f"[{', '.join(converters)}]"
    if mtp:
        yield "num_mtp_layers", str(mtp)
    yield from spec(request).items()


def _converters(request: Request) -> list[str]:
    names = {Precision.FP8: "Float8", Precision.MXFP8: "MXFP8"}
    name = names.get(request.goal.precision)
    if name is None:
        return []
    whole = "model_compile_enabled=True" if compiles(request) else ""
    skip = '"attention", "shared_experts", "feed_forward"'
    arguments = 'filter_fqns=["lm_head", "router.gate"]' if name == "Float8" else f"fqns=[{skip}]"
    linear = f"{name}LinearConverter.Config({', '.join(filter(None, (arguments, whole)))})"
    experts = [f"{name}GroupedExpertsConverter.Config({whole})"] if request.arch.is_moe else []
    return [linear, *experts]


def _parallel(request: Request) -> Iterator[Flag]:
    x = request.layout
    shards = _shards(x)
    yield Flag("parallelism.data_parallel_replicate_degree", str(x.dp // shards),
               "copies of the sharded weights")  # fmt: skip
    yield Flag("parallelism.data_parallel_shard_degree", str(shards),
               "ranks that share weights, gradients and states (FSDP)")  # fmt: skip
    if x.zero:
        policy = "always" if x.zero == 3 else "never"
        yield Flag("parallelism.fsdp_reshard_after_forward", f'"{policy}"',
                   "weights are dropped after forward (ZeRO 3)" if x.zero == 3
                   else "weights stay whole from forward to backward (ZeRO 2)")  # fmt: skip
    yield Flag("parallelism.tensor_parallel_degree", str(x.tp), "ranks that cut every matrix")
    yield Flag("parallelism.enable_sequence_parallel", str(x.sequence_parallel),
               "norms and residuals cut over the tensor ranks")  # fmt: skip
    yield Flag("parallelism.context_parallel_degree", str(x.cp), "ranks that cut a sequence")
    if request.arch.is_moe:
        yield Flag("parallelism.expert_parallel_degree", str(x.ep), "ranks that share the experts")


def _shards(x: Layout) -> int:
    """Data-parallel ranks of one shard group; context ranks shard along with them."""
    return 1 if x.zero == 0 else max(1, (x.shard or x.dp * x.cp) // x.cp)


def _pipeline(request: Request) -> Iterator[Flag]:
    x = request.layout
    yield Flag("parallelism.pipeline_parallel_degree", str(x.pp), "pipeline ranks")
    if x.pp == 1:
        return
    counts = stage_layers(request.arch.layers, _staged(x))
    yield Flag("parallelism.pipeline_parallel_schedule", f'"{_SCHEDULES[x.schedule]}"',
               "order of forward and backward")  # fmt: skip
    yield Flag("parallelism.pipeline_parallel_microbatch_size", str(x.micro_batch),
               "sequences per micro-batch")  # fmt: skip
    yield Flag("parallelism.module_fqns_per_model_part", f"stages({list(counts)})",
               "layers per stage, in forward order")  # fmt: skip


def _staged(x: Layout) -> Layout:
    """The pipeline of the schedule that is emitted."""
    schedule = Schedule.DUALPIPE_V if x.schedule is Schedule.DUALPIPE else x.schedule
    return Layout(pp=x.pp, vpp=x.vpp, schedule=schedule, first_stage_layers=x.first_stage_layers,
                  last_stage_layers=x.last_stage_layers)  # fmt: skip


def _batch(request: Request) -> Iterator[Flag]:
    x, goal = request.layout, request.goal
    local = goal.global_batch // x.dp if x.pp > 1 else x.micro_batch
    yield Flag("training.seq_len", str(goal.sequence), "tokens per sequence")
    yield Flag("training.local_batch_size", str(local),
               f"sequences per data-parallel rank, {request.micro_batches} micro-batches"
               if x.pp > 1 else "sequences per micro-batch and rank")  # fmt: skip
    yield Flag("training.global_batch_size", str(goal.global_batch), "sequences per step")
    yield Flag("training.steps", str(request.steps), f"{goal.tokens:.4g} tokens")
    param = "float32" if goal.precision is Precision.FP32 else "bfloat16"
    yield Flag("training.mixed_precision_param", f'"{param}"', "type of gathered weights")
    if x.pp > 1 or x.ep > 1:
        yield Flag("training.disable_cuda_graphs", "True",
                   "graphs exclude pipelines and the standard expert dispatch")  # fmt: skip


def _optimizer(request: Request) -> Iterator[Flag]:
    yield Flag("optimizer", 'default_adamw(lr=float(os.environ["LR"]))', "AdamW, fp32 states")
    if request.layout.offload_optimizer:
        yield Flag("training.enable_cpu_offload", "True",
                   "weights, gradients and states in host memory")  # fmt: skip


def _storage(request: Request) -> Iterator[Flag]:
    yield Flag("hf_assets_path", 'os.environ["TOKENIZER"]', "folder of the tokenizer")
    yield Flag("dataloader.dataset", 'os.environ["DATASET"]', "name of a registered data set")
    yield Flag("dump_folder", 'os.environ["CHECKPOINTS"]', "where checkpoints go")
    yield Flag("checkpoint.enable", "True", "save checkpoints, resume from the last")
    interval = request.save_steps or 'int(os.environ["SAVE_STEPS"])'
    yield Flag("checkpoint.interval", str(interval),
               "steps between checkpoints, as the plan forecasts")  # fmt: skip


def _environment(request: Request) -> Iterator[Flag]:
    yield Flag("PYTHONPATH", ".", "where the recipe below is written")
    yield Flag("LR", ask("LR", "peak learning rate"), "belongs to the recipe")
    yield Flag("TOKENIZER", ask("TOKENIZER", "folder of the tokenizer"), "of the model")
    yield Flag("DATASET", ask("DATASET", "name of a registered data set"), "training data")
    yield Flag("CHECKPOINTS", ask("CHECKPOINTS", "folder for checkpoints"), "on shared storage")
    if request.save_steps is None:
        yield Flag("SAVE_STEPS", ask("SAVE_STEPS", "steps between checkpoints"), "see the forecast")


def _check(request: Request) -> None:
    x, goal = request.layout, request.goal
    sharded = _shards(x) * x.cp * x.tp
    v_shaped = _SCHEDULES[x.schedule] in ("ZBVZeroBubble", "DualPipeV") and x.pp > 1
    layers = request.arch.layers
    check_filled(layers, stage_layers(layers, _staged(x)), ENGINE)
    attention = request.arch.expanded()[0].attention
    kv_heads = attention.kv_heads if attention.kv_lora_rank is None else 0
    faults = (
        (x.zero > 0 and x.shard > 0 and x.shard % x.cp != 0,
         f"shard = {x.shard} is no multiple of cp = {x.cp}, whose ranks shard together"),
        (x.dp % _shards(x) != 0, f"shards of {_shards(x)} ranks do not divide dp = {x.dp}"),
        (request.arch.is_moe and x.etp != 1 and not (x.ep == 1 and x.etp == x.tp),
         f"etp = {x.etp}: experts are not cut further when ep > 1; plan with etp=1"),
        (sharded % x.ep != 0,
         f"ep = {x.ep} does not divide the dp_shard * cp * tp = {_shards(x)} * {x.cp} * {x.tp}"
         f" = {sharded} ranks it borrows"),
        (v_shaped and x.recompute is Recompute.MODULES,
         f"{_SCHEDULES[x.schedule]} with selective recomputation: the engine tries to run backward"
         " twice and stops; plan with recompute=none"),
        (x.pp > 1 and request.arch.tied_embeddings,
         f"pp = {x.pp} with tied embeddings, which have to lie on one stage; plan with pp=1"),
        (bool(kv_heads % x.tp),
         f"tp = {x.tp} does not divide the {kv_heads} key-value heads; plan with a tp that does"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise LayoutError(f"{ENGINE} cannot run this layout: {text}")
    if goal.optimizer is Optimizer.MUON:
        raise GoalError(
            f"{ENGINE} {VERSION} has Muon for its own choice of matrices only (DistMuon parameter"
            " groups written by hand); choose AdamW, or add the groups to an emitted AdamW recipe"
        )
    if goal.precision in (Precision.FP16, Precision.FP8_BLOCK, Precision.NVFP4):
        has = f"{ENGINE} {VERSION} has no {goal.precision} here"
        raise GoalError(f"{has}; choose bf16, fp8 or mxfp8")


def _notes(request: Request) -> Iterator[str]:
    x, goal = request.layout, request.goal
    name = _SCHEDULES[x.schedule]
    if x.pp > 1 and x.schedule in (Schedule.DUALPIPE, Schedule.ZB_H1):
        near = Schedule.DUALPIPE_V if x.schedule is Schedule.DUALPIPE else Schedule.ONE_F_ONE_B
        yield (
            f"{ENGINE} has no {x.schedule} schedule. Emitted instead: {name} with"
            f" {chunks_per_rank(_staged(x))} stage(s) per rank; its bubble and memory differ, so"
            f" explain the plan again with schedule={near}"
        )
    if x.zero == 1:
        yield "FSDP shards gradients along with optimizer states: ZeRO 1 is emitted as ZeRO 2"
    if request.arch.mtp_layers and not predicts(request):
        yield (
            "multi-token prediction is left out: 0.3.0 has it without pipeline stages and context"
            " parallelism only"
        )
    if x.cp > 1 and x.context_parallel is not ContextParallel.ALL_GATHER:
        yield f"context parallelism gathers keys and values; {x.context_parallel} has no setting"
    if x.recompute is Recompute.FULL and x.recompute_layers is not None:
        yield f"full recomputation is for all layers, not {x.recompute_layers} per rank"
    if goal.precision is Precision.FP8:
        yield "8-bit products scale per row, not per tensor"
    if goal.states.weight != 4 or goal.states.master != 0:
        yield (
            "weights are kept sharded in fp32 and gathered in bf16: there is no second copy as the"
            f" plan's {goal.states.weight:g} + {goal.states.master:g} bytes per parameter assume"
        )
    yield "PyTorch 2.13 is too old for 0.3.0: its FSDP shards no tensors that are merely annotated"
    yield "learning-rate schedule, warm-up and initialisation are those of the base recipe"
