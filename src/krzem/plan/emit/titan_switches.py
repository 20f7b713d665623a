"""The priced switches as settings of torchtitan 0.3.0 and as arguments of its model registry."""

from __future__ import annotations

from collections.abc import Iterator

from krzem.plan.emit.launch import Choices, Flag, Request, chosen

ENGINE = "torchtitan"
_SPEC = "spec."
"""Before the names of what the model registry is told."""


def settings(request: Request) -> Iterator[Flag]:
    """Settings of a run for all switches; GoalError for one that torchtitan lacks."""
    written: dict[str, Flag] = {}
    for flag in chosen(ENGINE, request.switches, _choices(request)):
        if not flag.name.startswith(_SPEC):
            written[flag.name] = flag
    yield from written.values()


def spec(request: Request) -> dict[str, str]:
    """Arguments of the model registry for the switches; they are all about experts."""
    if not request.arch.is_moe:
        return {}
    flags = chosen(ENGINE, request.switches, _choices(request))
    return {f.name.removeprefix(_SPEC): f.value for f in flags if f.name.startswith(_SPEC)}


def compiles(request: Request) -> bool:
    """Whether layers are compiled."""
    return request.switches.get("compile") == "on"


def _choices(request: Request) -> Choices:
    x = request.layout
    backend, factor = f"{_SPEC}moe_comm_backend", f"{_SPEC}non_blocking_capacity_factor"
    return {
        "dispatcher": {
            "alltoall": ((backend, '"standard"'),),
            "deepep": ((backend, '"deepep"'),),
            "hybridep": ((backend, '"hybridep"'),),
        },
        "overlap-a2a": {"off": ()},
        "overlap-tp": {
            "off": (("compile.enable_async_tensor_parallel", "False"),),
            "on": (("compile.enable_async_tensor_parallel", "True"),),
        },
        # FSDP does both without being told.
        "overlap-grad-reduce": {"on": ()},
        "overlap-param-gather": {"on": ()},
        "cuda-graphs": {
            "none": (("training.disable_cuda_graphs", "True"),),
            "full": (("training.disable_cuda_graphs", "False"),),
        },
        "loss": _losses(request),
        "attention": {"fused": ()},
        "fp8-scaling": {"row": ()},
        "fp8-params": {"off": ()},
        "grad-sync": {"last": ()} if x.pp > 1 else {"every": ()},
        "compile": _compiled(request),
        "routing": {
            "real": (("debug.moe_force_load_balance", "False"),),
            "balanced": (("debug.moe_force_load_balance", "True"),),
            "capacity": ((factor, "1.0"),),
        },
    }


def _compiled(request: Request) -> dict[str, tuple[tuple[str, str], ...]]:
    """What is compiled: layers as asked, the loss where it is to be fused."""
    loss = request.switches.get("loss") == "fused"
    parts = {"off": ["loss"] * loss, "on": ["model", *["loss"] * loss]}
    return {
        choice: (("compile.enable", str(bool(names))), ("compile.components", str(names)))
        for choice, names in parts.items()
    }


def _losses(request: Request) -> dict[str, tuple[tuple[str, str], ...]]:
    whole = f"CrossEntropyLoss.Config(global_vocab_size={request.arch.vocab})"
    if predicts(request):  # its loss has logits of every module
        own = (("loss", f"MTPLoss.Config(global_vocab_size={request.arch.vocab})"),)
        return {"plain": own, "fused": own}
    return {
        "plain": (("loss", whole),),
        "fused": (("loss", whole),),
        "chunked": (("loss", f"ChunkedLossWrapper.Config(loss_fn={whole})"),),
    }


def predicts(request: Request) -> bool:
    """Whether multi-token prediction is built: only without pipeline stages and context ranks."""
    return request.arch.mtp_layers > 0 and request.layout.pp == request.layout.cp == 1
