"""What Megatron's arguments say about precision, states, the optimizer and the switches."""

from __future__ import annotations

from collections.abc import Mapping

from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.megatron_arguments import Arguments
from krzem.jobs.megatron_flags import ON

_BYTES: Mapping[str, float] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "uint8": 1}
_RECIPES: Mapping[str, tuple[str, str | None]] = {
    "delayed": ("fp8", "delayed"), "tensorwise": ("fp8", "tensor"),
    "blockwise": ("fp8-block", None), "mxfp8": ("mxfp8", None), "groupwise": ("fp8-block", None),
}  # fmt: skip
_FP8 = ("--fp8-format", "--fp8", "--fp8-hybrid", "--fp8-e4m3")
_OPTIMIZERS: Mapping[str, tuple[str, float]] = {
    "adam": ("adamw", 8), "adamw": ("adamw", 8), "fused_adam": ("adamw", 8), "sgd": ("sgd", 4),
    "muon": ("muon", 4), "dist_muon": ("muon", 4), "lion": ("lion", 4),
    "cpu_adam": ("adamw", 8), "ds_fused_adam": ("adamw", 8), "sophiag": ("sophia", 8),
    "ademamix": ("ademamix", 12), "shampoo": ("shampoo", 0), "lamb": ("lamb", 8),
}  # fmt: skip
_DISPATCHERS: Mapping[str, str] = {
    "alltoall": "alltoall", "alltoall_seq": "alltoall", "allgather": "allgather",
}  # fmt: skip
_EAGER = ("unfused", "local")


def precision(args: Arguments, job: JobBuilder, mindspeed: bool) -> None:
    """Number formats of products, weights, gradients and optimizer states."""
    bf16, fp16 = args.find("--bf16"), args.find("--fp16")
    if bf16 is not None and fp16 is not None:
        job.fault(fp16.place, f"--fp16 here and --bf16 at {bf16.place} exclude each other")
        return
    half = bf16 or fp16
    unsure = args.doubt("precision", "--bf16", "--fp16", *_FP8)
    eight = args.find(*_FP8)
    four = args.find("--fp4-format", "--fp4")
    if unsure:
        return
    if four is not None:
        job.state("precision", "nvfp4", four.place)
    elif eight is not None:
        _eight(args, job, eight.place)
    elif half is not None:
        job.state("precision", half.flag[2:], half.place)
    elif job.engine != "megatron-deepspeed":
        job.default("precision", "fp32", "neither --bf16 nor --fp16")
    _states(args, job, half.flag[2:] if half is not None else None)


def _eight(args: Arguments, job: JobBuilder, place: Place) -> None:
    recipe = args.text("precision", "--fp8-recipe")
    if args.open("--fp8-recipe"):
        return
    name = "delayed" if recipe is None else recipe[0]
    if name not in _RECIPES:
        job.not_understood(place, f"--fp8-recipe {name[:40]} is no recipe that is known")
        return
    word, scaling = _RECIPES[name]
    at = place if recipe is None else recipe[1]
    job.state("precision", word, at)
    if scaling is not None and recipe is not None:
        job.state("switch.fp8-scaling", scaling, at)
    elif scaling is not None:
        job.default("switch.fp8-scaling", scaling, "--fp8-recipe delayed")
    kept = args.find("--fp8-param-gather", "--fp8-param")
    if kept is not None:
        job.state("switch.fp8-params", "on", kept.place)
    elif not args.doubt("switch.fp8-params", "--fp8-param-gather"):
        job.default("switch.fp8-params", "off", "no --fp8-param-gather")


def _states(args: Arguments, job: JobBuilder, half: str | None) -> None:
    optimizer = args.text("optimizer", "--optimizer", "--optimizer-selection")
    known = not args.open("--optimizer", "--optimizer-selection")
    moments = 8.0
    if optimizer is not None:
        word, moments = _OPTIMIZERS.get(optimizer[0].lower().replace(".", "_"), (optimizer[0], 0))
        job.state("optimizer", word, optimizer[1])
    elif (eight := args.find("--use-bnb-optimizer")) is not None:
        job.state("optimizer", "adam8bit", eight.place)
    elif known:
        job.default("optimizer", "adamw", "--optimizer adam with decoupled weight decay")
    if job.engine == "megatron-deepspeed":
        wide = args.find("--accumulate-allreduce-grads-in-fp32")
        if wide is not None:
            job.state("state.gradient", 4.0, wide.place)
        return
    light = args.find("--o2-optimizer", "--o2-gradient")
    if light is not None:
        for name in ("gradient", "master", "moments"):
            job.ask(f"state.{name}", f"{light.flag} at {light.place} keeps fewer bytes", "give it")
        return
    aware = args.has("--use-precision-aware-optimizer")
    shared = args.has("--reuse-fp32-param")
    if half is not None:
        if not shared and job.get("switch.fp8-params") != "on":
            job.default("state.weight", 2.0, f"--{half}")
        if not shared and not (aware and job.get("precision") in ("bf16", "fp16")):
            job.default("state.master", 4.0, "fp32 master weights")
    elif job.get("precision") == "fp32":
        job.default("state.weight", 4.0, "fp32")
        job.default("state.master", 0.0, "fp32 weights are their own master")
    _gradient(args, job, half, aware)
    if known and moments:
        _moments(args, job, moments, aware)


def _gradient(args: Arguments, job: JobBuilder, half: str | None, aware: bool) -> None:
    short = args.find("--grad-reduce-in-bf16")
    wide = args.find("--accumulate-allreduce-grads-in-fp32")
    main = args.text("state.gradient", "--main-grads-dtype", "--megatron-fsdp-main-grads-dtype")
    if aware and main is not None and main[0] in _BYTES:
        job.state("state.gradient", _BYTES[main[0]], main[1])
    elif short is not None:
        job.state("state.gradient", 2.0, short.place)
    elif wide is not None:
        job.state("state.gradient", 4.0, wide.place)
    elif half == "fp16":
        job.default("state.gradient", 2.0, "fp16 gradients unless accumulated in fp32")
    else:
        job.default("state.gradient", 4.0, "--bf16 accumulates and reduces gradients in fp32")


def _moments(args: Arguments, job: JobBuilder, moments: float, aware: bool) -> None:
    widths, place = [], None
    for flag in ("--exp-avg-dtype", "--exp-avg-sq-dtype"):
        found = args.text("state.moments", flag)
        widths.append(_BYTES.get(found[0] if found is not None else "fp32", 4))
        place = found[1] if found is not None else place
    if aware and place is not None:
        job.state("state.moments", float(sum(widths)), place)
    elif not args.open("--exp-avg-dtype", "--exp-avg-sq-dtype"):
        job.default("state.moments", moments, "moments in fp32")


def switches(args: Arguments, job: JobBuilder, mindspeed: bool) -> None:
    """Everything an engine may do one way or another."""
    for field, flags in ON.items():
        found = args.find(*flags)
        if found is not None:
            job.state(field, "on", found.place)
        elif not args.doubt(field, *flags):
            job.default(field, "off", f"no {flags[0]}")
    _offload(args, job)
    _graphs(args, job)
    _loss(args, job)
    _fusion(args, job)
    _attention(args, job, mindspeed)
    job.default("switch.compile", "off", "layers are not compiled")
    _moe(args, job)


def _offload(args: Arguments, job: JobBuilder) -> None:
    flags = ("--optimizer-cpu-offload", "--offload-optimizer-states", "--swap-optimizer",
             "--cpu-optimizer")  # fmt: skip
    found = args.find(*flags)
    if found is not None:
        job.state("offload", True, found.place)
    elif not args.doubt("offload", *flags) and job.engine != "megatron-deepspeed":
        job.default("offload", False, "no --optimizer-cpu-offload")


def _graphs(args: Arguments, job: JobBuilder) -> None:
    kind = args.text("switch.cuda-graphs", "--cuda-graph-impl")
    scope = args.find("--cuda-graph-scope", "--cuda-graph-modules")
    own, external = args.find("--enable-cuda-graph"), args.find("--external-cuda-graph")
    parts = set() if scope is None else {p for v in scope.values for p in v.split(",")}
    if kind is not None and kind[0] == "none":
        job.state("switch.cuda-graphs", "none", kind[1])
    elif kind is not None:
        whole = kind[0] == "full_iteration" or "full_iteration" in parts
        job.state("switch.cuda-graphs", "full" if whole else "partial", kind[1])
    elif own is not None or external is not None:
        whole = own is not None and "full_iteration" in parts
        place = own.place if own is not None else external.place if external else Place()
        job.state("switch.cuda-graphs", "full" if whole else "partial", place)
    elif not args.open("--cuda-graph-impl", "--enable-cuda-graph", "--external-cuda-graph"):
        job.default("switch.cuda-graphs", "none", "--cuda-graph-impl none")


def _loss(args: Arguments, job: JobBuilder) -> None:
    fused = args.find("--cross-entropy-loss-fusion")
    mode = args.text("switch.loss", "--loss-compute-mode")
    args.find("--loss-chunk-size")
    if mode is not None and mode[0] == "chunk":
        job.state("switch.loss", "chunked", mode[1])
    elif fused is not None:
        job.state("switch.loss", "fused", fused.place)
    elif not args.doubt("switch.loss", "--cross-entropy-loss-fusion"):
        job.default("switch.loss", "plain", "no --cross-entropy-loss-fusion")


def _fusion(args: Arguments, job: JobBuilder) -> None:
    off = args.find("--no-gradient-accumulation-fusion")
    inside = args.find("--gemm-gradient-accumulation-fusion")
    if inside is not None:
        job.state("switch.fused-accumulation", "on", inside.place)
    elif off is not None:
        job.state("switch.fused-accumulation", "off", off.place)
    elif not old(args) and not args.doubt(
        "switch.fused-accumulation", "--no-gradient-accumulation-fusion"
    ):
        why = "gradient accumulation is fused unless --no-gradient-accumulation-fusion"
        job.default("switch.fused-accumulation", "on", why)


_OLD = ("--use-legacy-models", "--DDP-impl", "--data-impl", "--checkpoint-activations",
        "--activations-checkpoint-method", "--model-parallel-size",
        "--checkpoint-num-layers")  # fmt: skip


def old(args: Arguments) -> bool:
    """Whether there are flags that only releases before Megatron Core have."""
    return any(flag in args.all for flag in _OLD)


def _attention(args: Arguments, job: JobBuilder, mindspeed: bool) -> None:
    backend = args.text("switch.attention", "--attention-backend")
    flash = args.find("--use-flash-attn", "--use-flash-attn-v2", "--use-flash-attn-triton",
                      "--use-flash-attn-builder", "--use-fusion-attn-v2")  # fmt: skip
    local = args.find("--transformer-impl")
    legacy = job.engine == "megatron-deepspeed" or old(args)
    is_local = local is not None and local.text == "local"
    if backend is not None:
        job.state("switch.attention", "eager" if backend[0] in _EAGER else "fused", backend[1])
    elif flash is not None:
        job.state("switch.attention", "fused", flash.place)
    elif mindspeed or legacy or is_local:
        job.default("switch.attention", "eager", "no --use-flash-attn")
    else:
        job.default("switch.attention", "fused", "Transformer Engine picks a fused kernel")


def _moe(args: Arguments, job: JobBuilder) -> None:
    flags = ("--moe-token-dispatcher-type", "--moe-flex-dispatcher-backend",
             "--moe-enable-deepep", "--overlap-moe-expert-parallel-comm")  # fmt: skip
    if job.setting("model.experts") is None:
        args.find(*flags)
        return
    _dispatcher(args, job)
    _beside(args, job)
    forced = args.find("--moe-router-force-load-balancing", "--fix-router")
    capacity = args.find("--moe-expert-capacity-factor", "--moe-train-capacity-factor",
                         "--moe-token-dropping")  # fmt: skip
    if forced is not None:
        job.state("switch.routing", "balanced", forced.place)
    elif capacity is not None and not capacity.text.startswith(("-", "None")):
        job.state("switch.routing", "capacity", capacity.place)
    elif not args.doubt("switch.routing", "--moe-router-force-load-balancing"):
        job.default("switch.routing", "real", "neither forced balance nor a capacity")


def _dispatcher(args: Arguments, job: JobBuilder) -> None:
    kind = args.text("switch.dispatcher", "--moe-token-dispatcher-type")
    backend = args.text("switch.dispatcher", "--moe-flex-dispatcher-backend")
    deep = args.find("--moe-enable-deepep")
    if args.open("--moe-token-dispatcher-type", "--moe-flex-dispatcher-backend"):
        return
    if kind is None:
        job.default("switch.dispatcher", "allgather", "--moe-token-dispatcher-type allgather")
    elif kind[0] in _DISPATCHERS:
        job.state("switch.dispatcher", _DISPATCHERS[kind[0]], kind[1])
    elif kind[0] == "flex" and (backend is None or deep is not None or backend[0] == "deepep"):
        job.state("switch.dispatcher", "deepep", kind[1])
    elif kind[0] == "flex" and backend is not None and backend[0] == "hybridep":
        job.state("switch.dispatcher", "hybridep", backend[1])
    else:
        job.not_understood(kind[1], f"{kind[0][:40]!r} is no dispatcher that is known")


def _beside(args: Arguments, job: JobBuilder) -> None:
    """All-to-all beside the computation of another micro-batch, or of the same one."""
    flags = ("--overlap-moe-expert-parallel-comm", "--moe-fb-overlap")
    found = args.find(*flags)
    partly = args.find("--moe-alltoall-overlap-comm", "--moe-allgather-overlap-comm",
                       "--moe-shared-expert-overlap")  # fmt: skip
    if found is not None:
        job.state("switch.overlap-a2a", "on", found.place)
    elif partly is not None and partly.flag != "--moe-shared-expert-overlap":
        job.note(f"{partly.flag} hides a part of the expert exchange in the same micro-batch")
    elif not args.doubt("switch.overlap-a2a", *flags):
        job.default("switch.overlap-a2a", "off", f"no {flags[0]}")
