"""Precision and the priced switches as keys of MaxText and flags of its compiler."""

from __future__ import annotations

from collections.abc import Iterator

from krzem.errors import GoalError
from krzem.layout.layout import ContextParallel, Recompute
from krzem.plan.emit.launch import Flag, Request, is_tpu
from krzem.plan.emit.maxtext_model import is_sparse
from krzem.plan.emit.parts import literal
from krzem.plan.emit.switches import Choices, chosen
from krzem.plan.goal import Optimizer, Precision

ENGINE = "MaxText 0.2.4"


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
