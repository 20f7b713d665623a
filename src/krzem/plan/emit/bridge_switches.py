"""The priced switches as fields of Megatron-Bridge's configuration."""

from __future__ import annotations

from collections.abc import Iterator

from krzem.errors import GoalError
from krzem.layout.layout import Recompute
from krzem.plan.emit.launch import Choices, Flag, Request, chosen

ENGINE = "Megatron-Bridge 0.6"
_OFFLOADED = (
    '["attn_norm", "qkv_linear", "core_attn", "attn_proj", "mlp_norm", "expert_fc1", "moe_act"]'
)


def switches(request: Request) -> Iterator[Flag]:
    """Fields of all switches; raises GoalError for one that the engine lacks."""
    _check(request)
    yield from chosen(ENGINE, request.switches, _choices(request))


def _on(*fields: str) -> dict[str, tuple[tuple[str, str], ...]]:
    return {
        "off": tuple((field, "False") for field in fields),
        "on": tuple((field, "True") for field in fields),
    }


def _dispatchers() -> dict[str, tuple[tuple[str, str], ...]]:
    kind, backend = "model.moe_token_dispatcher_type", "model.moe_flex_dispatcher_backend"
    flexible = (
        ("model.moe_shared_expert_overlap", "False"),
        ("model.moe_router_dtype", '"fp32"'),
    )
    return {
        "alltoall": ((kind, '"alltoall"'),),
        "allgather": ((kind, '"allgather"'),),
        "deepep": ((kind, '"flex"'), (backend, '"deepep"'), *flexible),
        "hybridep": ((kind, '"flex"'), (backend, '"hybridep"'), *flexible),
    }


def _graphs(request: Request) -> dict[str, tuple[tuple[str, str], ...]]:
    moe, on = request.arch.is_moe, request.switches
    kind = "model.cuda_graph_impl"
    # Graphs of the whole iteration need experts of fixed shapes, which this dispatcher gives.
    fixed = moe and "dispatcher" not in on and on.get("routing") != "capacity"
    shapes = _dispatchers()["hybridep"] if fixed else ()
    tracked = (("model.use_te_rng_tracker", "True"), ("rng.te_rng_tracker", "True"))
    parts = '["attn", "moe_router", "moe_preprocess"]' if moe else '["attn", "mlp"]'
    return {
        "none": ((kind, '"none"'),),
        "partial": ((kind, '"transformer_engine"'), ("model.cuda_graph_modules", parts), *tracked),
        "full": (
            (kind, '"full_iteration"'),
            ("model.cuda_graph_modules", "[]"),
            ("rerun_state_machine.check_for_nan_in_loss", "False"),
            ("ddp.check_for_nan_in_grad", "False"),
            *tracked,
            *shapes,
        ),
    }


def _choices(request: Request) -> Choices:
    x = request.layout
    fused = ("model.cross_entropy_loss_fusion", "True")
    scales: Choices = {"fp8-scaling": {"tensor": (), "delayed": ()}}
    return {
        "dispatcher": _dispatchers(),
        "overlap-a2a": _on("model.overlap_moe_expert_parallel_comm", "model.delay_wgrad_compute"),
        "overlap-tp": _on("model.tp_comm_overlap"),
        "overlap-grad-reduce": _on("ddp.overlap_grad_reduce"),
        "overlap-param-gather": _on("ddp.overlap_param_gather", "optimizer.overlap_param_gather"),
        "cuda-graphs": _graphs(request),
        "loss": {
            "plain": (("model.cross_entropy_loss_fusion", "False"),),
            "fused": (fused, ("model.cross_entropy_fusion_impl", '"te"')),
        },
        "fused-accumulation": _on("model.gradient_accumulation_fusion"),
        "attention": {
            "fused": (("model.attention_backend", "AttnBackend.auto"),),
            "eager": (("model.attention_backend", "AttnBackend.unfused"),),
        },
        **scales,
        "fp8-params": _on("mixed_precision.fp8_param_gather"),
        "grad-sync": {"every": ()} if x.zero >= 2 else {"last": ()},
        "compile": {"off": ()},
        "routing": {
            "real": (("model.moe_router_force_load_balancing", "False"),),
            "balanced": (("model.moe_router_force_load_balancing", "True"),),
            "capacity": (
                ("model.moe_expert_capacity_factor", "1.0"),
                ("model.moe_pad_expert_input_to_capacity", "True"),
            ),
        },
        "offload-activations": {
            "off": (("model.fine_grained_activation_offloading", "False"),),
            "on": (
                ("model.fine_grained_activation_offloading", "True"),
                ("model.offload_modules", _OFFLOADED),
            ),
        },
        "partition-activations": _on("model.distribute_saved_activations"),
    }


def _check(request: Request) -> None:
    """Combinations that its validation, or Megatron-Core's, stops."""
    x, on = request.layout, request.switches
    chunks = x.vpp > 1 or x.schedule.value in ("dualpipe", "dualpipev", "zb-v")
    full = x.recompute is Recompute.FULL
    capacity = on.get("routing") == "capacity"
    faults = (
        (on.get("overlap-a2a") == "on" and x.ep == 1, "overlap-a2a=on with ep = 1"),
        (on.get("overlap-a2a") == "on" and x.pp > 1 and not chunks,
         "overlap-a2a=on without model chunks (vpp = 1) on pipeline stages"),
        (on.get("overlap-a2a") == "on" and full, "overlap-a2a=on with recompute=full"),
        (on.get("overlap-a2a") == "on" and on.get("dispatcher") == "allgather",
         "overlap-a2a=on with dispatcher=allgather"),
        (on.get("overlap-tp") == "on" and (x.tp == 1 or not x.sequence_parallel),
         "overlap-tp=on without tensor and sequence parallelism"),
        (on.get("overlap-param-gather") == "on" and x.zero == 0,
         "overlap-param-gather=on with zero = 0, where nothing is gathered"),
        (on.get("overlap-param-gather") == "on" and on.get("overlap-grad-reduce") == "off",
         "overlap-param-gather=on with overlap-grad-reduce=off"),
        (on.get("cuda-graphs") == "partial" and full, "cuda-graphs=partial with recompute=full"),
        (on.get("cuda-graphs") == "partial" and on.get("offload-activations") == "on",
         "cuda-graphs=partial with offload-activations=on"),
        (on.get("cuda-graphs") == "full" and request.arch.is_moe and not capacity
         and on.get("dispatcher", "hybridep") != "hybridep",
         "cuda-graphs=full for experts whose shapes vary; plan with routing=capacity or"
         " dispatcher=hybridep"),
        (capacity and on.get("dispatcher") == "deepep", "routing=capacity with dispatcher=deepep"),
        (on.get("partition-activations") == "on" and (not full or (x.tp > 1 and
         x.sequence_parallel)), "partition-activations=on without recompute=full and sp=0"),
        (on.get("offload-activations") == "on" and full,
         "offload-activations=on with recompute=full"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise GoalError(f"{ENGINE} refuses {text}")
