"""DeepSpeed under Hugging Face's Trainer: its JSON, the Trainer's arguments and a program.

Keys are those of DeepSpeed 0.19.6 (``facts/engine_flags/deepspeed-0.19.6.csv``).
"""

from __future__ import annotations

from collections.abc import Iterator

from krzem.errors import GoalError, LayoutError
from krzem.layout.layout import Recompute
from krzem.plan.emit import hugging_face as trainer
from krzem.plan.emit.keys import keys_of, known
from krzem.plan.emit.launch import (
    Flag,
    Installed,
    Launch,
    Part,
    Request,
    Section,
    section,
    torchrun,
)
from krzem.plan.emit.parts import python_package
from krzem.plan.emit.switches import Choices, chosen
from krzem.plan.emit.yaml_megatron import merged
from krzem.plan.goal import Precision

VERSION = "0.19.6"
TABLE = f"deepspeed-{VERSION}"
ENGINE = f"DeepSpeed {VERSION}"
FILE = "krzem_deepspeed.json"


def launch(request: Request) -> Launch:
    """Everything DeepSpeed needs; see :func:`krzem.plan.emit.emit` for the errors."""
    trainer.check(request, ENGINE)
    _check(request)
    flags = tuple(chosen(ENGINE, request.switches, _choices(request)))
    own = [flag for flag in flags if flag.name in keys_of(TABLE)]
    theirs = [flag for flag in flags if flag.name not in keys_of(TABLE)]
    extra = (
        Flag("deepspeed", f'"{FILE}"', "DeepSpeed's own file"),
        Flag("activation_checkpointing", _whether(request.layout.recompute is Recompute.FULL),
             "whether layers are computed again"),
    )  # fmt: skip
    return Launch(
        engine="deepspeed",
        version=f"{VERSION} under transformers 5.23",
        sections=(),
        parts=(
            Part(path=FILE, syntax="json", sections=_sections(request, own)),
            trainer.arguments(request, extra, theirs),
            trainer.program(request, "torch.float32"),
        ),
        environment=tuple(trainer.environment()),
        command=torchrun(request, f"{trainer.PROGRAM} {trainer.ARGUMENTS}"),
        installed=(
            Installed(name="DeepSpeed", command=python_package("deepspeed"), version="0.19."),
            trainer.INSTALLED,
        ),
        notes=tuple(trainer.notes(request)),
    )


def _whether(value: bool) -> str:
    return "true" if value else "false"


def _sections(request: Request, switches: list[Flag]) -> tuple[Section, ...]:
    sections = (
        section("Batch", known(_batch(request), TABLE)),
        section("Precision", known(_precision(request), TABLE)),
        section("ZeRO", known(merged(_zero(request), over=switches), TABLE)),
        section("Switches that were priced", known(merged(switches), TABLE)),
    )
    return tuple(part for part in sections if part.flags)


def _batch(request: Request) -> Iterator[Flag]:
    x, goal = request.layout, request.goal
    yield Flag("train_batch_size", str(goal.global_batch), "sequences per step")
    yield Flag("train_micro_batch_size_per_gpu", str(x.micro_batch), "sequences per pass and rank")
    yield Flag("gradient_accumulation_steps", str(request.micro_batches),
               f"passes of a step on dp = {x.dp} ranks")  # fmt: skip


def _precision(request: Request) -> Iterator[Flag]:
    kind, states = request.goal.precision, request.goal.states
    yield Flag("bf16.enabled", _whether(kind is Precision.BF16), "products of 16 bits")
    yield Flag("fp16.enabled", _whether(kind is Precision.FP16), "the older 16 bits")
    if kind is Precision.BF16 and states.moments == 4:
        yield Flag("bf16.bf16_master_weights_and_grads", "true", "no fp32 copy of the weights")
        yield Flag("bf16.bf16_optimizer_states", "true", "moments of 2 bytes")
    elif kind is Precision.BF16:
        width = "bf16" if states.gradient <= 2 else "fp32"
        yield Flag("data_types.grad_accum_dtype", f'"{width}"', "gradients between passes")


def _zero(request: Request) -> Iterator[Flag]:
    x = request.layout
    yield Flag("zero_optimization.stage", str(x.zero), "what is sharded")
    if x.offload_optimizer:
        yield Flag("zero_optimization.offload_optimizer.device", '"cpu"', "states in host memory")
        yield Flag("zero_optimization.offload_optimizer.pin_memory", "true", "for quick copies")
    if x.zero == 3:
        yield Flag("zero_optimization.stage3_gather_16bit_weights_on_model_save", "true",
                   "a model can be saved whole")  # fmt: skip


def _choices(request: Request) -> Choices:
    x = request.layout
    overlap = "zero_optimization.overlap_comm"
    off, on = ((overlap, "false"),), ((overlap, "true"),)
    ahead = "zero_optimization.stage3_prefetch_bucket_size"
    gather: Choices = {
        "overlap-param-gather": {"off": ((ahead, "0"),), "on": ((ahead, "50000000"),)}
        if x.zero == 3
        else {"off": ()}
    }
    native = {"every": ()} if x.zero >= 2 else {"last": ()}
    return {
        **trainer.trainer_choices(),
        "overlap-grad-reduce": {"off": off, "on": on},
        **gather,
        "grad-sync": {"every": (), "last": ()} if request.micro_batches == 1 else native,
        "fp8-params": {"off": ()},
        "partition-activations": {
            "off": (("activation_checkpointing.partition_activations", "false"),),
        },
    }


def _check(request: Request) -> None:
    x, goal = request.layout, request.goal
    if x.cp > 1:
        raise LayoutError(
            f"{ENGINE} cannot run this layout: cp = {x.cp}: its Ulysses sequence parallelism is not"
            " emitted; plan with cp=1"
        )
    if 0 < x.shard < x.dp:
        raise LayoutError(
            f"{ENGINE} cannot run this layout: shard = {x.shard}: the Trainer initialises for all"
            f" ranks; plan with shard=0"
        )
    if x.offload_optimizer and x.zero == 0:
        raise LayoutError(
            f"{ENGINE} cannot run this layout: offload=1 with zero = 0; plan with zero=1"
        )
    if goal.precision not in (Precision.BF16, Precision.FP16, Precision.FP32):
        raise GoalError(f"{ENGINE} has no {goal.precision} here; choose bf16, fp16 or fp32")
    half = goal.precision is Precision.BF16 and x.zero > 0 and goal.states.master <= 2
    if goal.states.moments != 8 and not (half and goal.states.moments == 4):
        raise GoalError(
            f"{ENGINE} keeps moments of 8 bytes beside an fp32 copy of the weights, or 4 bytes"
            f" with master=2 under bf16 and ZeRO, not {goal.states.moments:g} with"
            f" master={goal.states.master:g}"
        )
