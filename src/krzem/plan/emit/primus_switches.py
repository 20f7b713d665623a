"""The priced switches as keys of Primus: all that it has, with what each of them demands."""

from __future__ import annotations

from collections.abc import Iterator

from krzem.errors import GoalError
from krzem.layout.layout import Recompute
from krzem.plan.emit.launch import Choices, Flag, Request, chosen
from krzem.plan.emit.parts import literal

_OFFLOADED = (
    "attn_norm", "qkv_linear", "core_attn", "attn_proj", "mlp_norm", "expert_fc1", "moe_act",
)  # fmt: skip


def switches(request: Request) -> Iterator[Flag]:
    """Flags of all switches of the request; raises GoalError for one that Primus lacks."""
    _check(request)
    yield from chosen("Primus 26.5", request.switches, _choices(request))


def _on(key: str) -> dict[str, tuple[tuple[str, str], ...]]:
    return {"off": ((key, "false"),), "on": ((key, "true"),)}


def _dispatchers(request: Request) -> dict[str, tuple[tuple[str, str], ...]]:
    kind = "moe_token_dispatcher_type"
    return {
        "alltoall": ((kind, '"alltoall"'), ("use_turbo_deepep", "false")),
        "allgather": ((kind, '"allgather"'), ("use_turbo_deepep", "false")),
        "deepep": (
            (kind, '"flex"'), ("enable_primus_turbo", "true"), ("use_turbo_deepep", "true"),
            ("turbo_deepep_num_cu", "32" if request.layout.ep >= 16 else "80"),
            ("moe_shared_expert_overlap", "false"), ("moe_router_dtype", '"fp32"'),
        ),
    }  # fmt: skip


def _choices(request: Request) -> Choices:
    moe, x = request.arch.is_moe, request.layout
    scope = ["attn", "moe_router"] if moe else ["attn"]
    fused = ("cross_entropy_loss_fusion", "true")
    chunked = {} if request.arch.mtp_layers else {
        "chunked": (("enable_fused_linear_ce", "true"), ("cross_entropy_loss_fusion", "false")),
    }  # fmt: skip
    # Megatron's buckets are reduced at the last micro-batch, FSDP's at every one: nothing to say.
    native: Choices = {"grad-sync": {"every": ()} if x.zero >= 2 else {"last": ()}}
    return {
        "dispatcher": _dispatchers(request),
        "overlap-a2a": _on("overlap_moe_expert_parallel_comm"),
        "overlap-tp": _on("tp_comm_overlap"),
        "overlap-grad-reduce": _on("overlap_grad_reduce"),
        "overlap-param-gather": _on("overlap_param_gather"),
        "cuda-graphs": {
            "none": (("cuda_graph_impl", '"none"'),),
            "partial": (("cuda_graph_impl", '"transformer_engine"'),
                        ("cuda_graph_scope", literal(scope))),
        },
        "loss": {
            "plain": (("cross_entropy_loss_fusion", "false"),),
            "fused": (fused, ("cross_entropy_fusion_impl", '"te"')),
            **chunked,
        },
        "fused-accumulation": _on("gradient_accumulation_fusion"),
        "attention": {
            "fused": (("attention_backend", '"auto"'),),
            "eager": (("attention_backend", '"unfused"'),),
        },
        "fp8-scaling": {
            "tensor": (("fp8_recipe", '"tensorwise"'),),
            "delayed": (("fp8_recipe", '"delayed"'),),
        },
        "fp8-params": _on("fp8_param_gather"),
        **native,
        "compile": _on("torch_compile.enable"),
        "routing": {
            "real": (("moe_router_force_load_balancing", "false"),),
            "balanced": (("moe_router_force_load_balancing", "true"),
                         ("moe_router_force_load_balancing_type", '"even"')),
            "capacity": (("moe_expert_capacity_factor", "1.0"),
                         ("moe_pad_expert_input_to_capacity", "true")),
        },
        "offload-activations": {
            "off": (("fine_grained_activation_offloading", "false"),),
            "on": (("fine_grained_activation_offloading", "true"),
                   ("offload_modules", literal(_OFFLOADED))),
        },
        "partition-activations": _on("distribute_saved_activations"),
    }  # fmt: skip


def _check(request: Request) -> None:
    """Combinations that Megatron-LM's validation stops."""
    x, on = request.layout, request.switches
    fsdp = x.zero == 3 and x.ep == 1
    chunks = x.vpp > 1 or x.schedule.value in ("dualpipe", "dualpipev", "zb-v")
    faults = (
        (on.get("overlap-a2a") == "on" and x.ep == 1, "overlap-a2a=on with ep = 1"),
        (on.get("overlap-a2a") == "on" and x.pp > 1 and not chunks,
         "overlap-a2a=on without model chunks (vpp = 1) on pipeline stages"),
        (on.get("overlap-a2a") == "on" and x.recompute is Recompute.FULL,
         "overlap-a2a=on with recompute=full"),
        (fsdp and on.get("fused-accumulation") == "on", "fused-accumulation=on with FSDP2"),
        (fsdp and on.get("overlap-param-gather") == "on",
         "overlap-param-gather=on with FSDP2, which gathers ahead by itself"),
        (x.zero == 0 and on.get("overlap-param-gather") == "on",
         "overlap-param-gather=on with zero = 0, where nothing is gathered"),
        (on.get("overlap-param-gather") == "on" and on.get("overlap-grad-reduce") == "off",
         "overlap-param-gather=on with overlap-grad-reduce=off"),
        (on.get("partition-activations") == "on" and x.recompute is not Recompute.FULL,
         "partition-activations=on without recompute=full"),
        (on.get("partition-activations") == "on" and x.sequence_parallel and x.tp > 1,
         "partition-activations=on with sequence parallelism, which cuts them already"),
        (on.get("offload-activations") == "on" and x.recompute is Recompute.FULL,
         "offload-activations=on with recompute=full"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise GoalError(f"Primus 26.5 refuses {text}; plan without one of the two")
