"""Megatron's arguments by the names of its configuration objects, as YAML and recipes have them.

Most names are those of the flags; some say the opposite of their flag, or stand for a flag with a
value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from krzem.jobs.job import JobBuilder
from krzem.jobs.megatron import fill
from krzem.jobs.megatron_arguments import Argument, canonical_flag
from krzem.jobs.shell_words import State
from krzem.jobs.tree import Entry, Open, Tree, UnclearError, integer, truth

_NEGATED: Mapping[str, str] = {
    "add_bias_linear": "--disable-bias-linear",
    "gradient_accumulation_fusion": "--no-gradient-accumulation-fusion",
    "masked_softmax_fusion": "--no-masked-softmax-fusion",
    "apply_rope_fusion": "--no-rope-fusion",
    "bias_gelu_fusion": "--no-bias-gelu-fusion",
    "bias_swiglu_fusion": "--no-bias-swiglu-fusion",
    "bias_dropout_fusion": "--no-bias-dropout-fusion",
    "overlap_p2p_comm": "--no-overlap-p2p-communication",
    "async_tensor_model_parallel_allreduce": "--no-async-tensor-model-parallel-allreduce",
    "check_for_nan_in_loss_and_grad": "--no-check-for-nan-in-loss-and-grad",
    "gated_linear_unit_off": "--no-gated-linear-unit",
}
"""Names that are true where their flag is absent."""
_RENAMED: Mapping[str, str] = {
    "fp8": "--fp8-format",
    "fp4": "--fp4-format",
    "fp8_param_gather": "--fp8-param-gather",
    "fp8_param": "--fp8-param-gather",
    "rope_theta": "--rotary-base",
    "qk_pos_emb_head_dim": "--qk-pos-emb-head-dim",
    "moe_enable_deepep": "--moe-enable-deepep",
    "virtual_pipeline_model_parallel_size": "--num-virtual-stages-per-pipeline-rank",
    "moe_router_force_load_balancing": "--moe-router-force-load-balancing",
}
_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
_FLAGS = (
    "sequence_parallel", "swiglu", "bf16", "fp16", "group_query_attention", "qk_layernorm",
    "use_distributed_optimizer", "untie_embeddings_and_output_weights", "overlap_grad_reduce",
    "overlap_param_gather", "recompute_activations", "multi_latent_attention", "moe_grouped_gemm",
)  # fmt: skip
"""Names that stand for a flag without a value, so that ``1`` is true."""


_IRRELEVANT = re.compile(
    r"(retro|dino|rl|grpo|langrl|inference|vision|ict|bert|biencoder|one_logger|img|mask|retriever"
    r"|indexer|relative_attention|replication|error_injection|sft_tokenizer|hybrid|mamba"
    r"|encoder_tensor|encoder_pipeline|classes|cuda_graph_warmup|pin_cpu)_.*"
    r"|fp4_recipe|scatter_gather_tensors_in_pipeline|short_seq_prob|gradient_reduce_div_fusion"
    r"|suggested_communication_unit_size|sample_rate|enable_gloo_process_groups|enable_one_logger"
    r"|main_params_dtype|num_classes|num_channels|patch_dim|iter_per_epoch|max_tokens_to_oom"
    r"|query_in_block_prob|model_type|clone_scatter_output_in_embedding|moe_token_drop_policy"
    r"|moe_use_fused_router_with_aux_score|use_tokenizer_model_from_checkpoint_args"
    r"|strict_fsdp_dtensor_load|torch_fsdp2_reshard_after_forward|mlp_chunks_for_prefill"
    r"|add_position_embedding"
)
"""Names that a complete table of defaults holds and that a text model's price does not need."""
_ZERO_IS_OFF = ("cpu_offloading_num_layers", "mtp_num_layers")


def fill_from(tree: Tree, job: JobBuilder) -> None:
    """Fill the builder from a table of Megatron's names."""
    rest = Tree()
    for key, entry in tree.entries.items():
        if _IRRELEVANT.fullmatch(key) or (key in _ZERO_IS_OFF and entry.value == 0):
            job.ignore(entry.place, "says nothing about time or memory of a text model")
        else:
            rest.put(entry)
    fill(arguments_of(rest), job)


def arguments_of(tree: Tree) -> list[Argument]:
    """The flags that a table of settings stands for; an open value is an unknown argument."""
    dropped = set(_dropped(tree))
    found = [_argument(e) for k, e in tree.entries.items() if k not in dropped]
    return [argument for argument in found if argument is not None]


def _dropped(tree: Tree) -> list[str]:
    """Names without effect: of latent attention, groups or experts that the model has not."""
    names: list[str] = []
    if _off(tree, "multi_latent_attention"):
        names.extend(_LATENT)
    if _off(tree, "group_query_attention"):
        names.append("num_query_groups")
    if "num_experts" in tree.entries and _none(tree.value("num_experts")):
        names.extend(k for k in tree.entries if k.startswith("moe_") or k == "num_experts")
    return names


def _off(tree: Tree, key: str) -> bool:
    value = tree.value(key)
    try:
        return value is not None and not isinstance(value, Open) and not truth(value)
    except UnclearError:
        return False


def _none(value: object) -> bool:
    try:
        return value is None or integer(value) < 1
    except UnclearError:
        return False


def _argument(entry: Entry) -> Argument | None:
    key, value, place = entry.key, entry.value, entry.place
    if isinstance(value, Open):
        flag = _NEGATED.get(key) or _RENAMED.get(key) or canonical_flag(key)
        return Argument(flag, (value.text,), place, place, State.UNKNOWN)
    if key in _NEGATED:
        return Argument(_NEGATED[key], (), place, place) if value is False else None
    flag = _RENAMED.get(key) or canonical_flag(key)
    if key in _FLAGS and not isinstance(value, bool):
        try:
            value = truth(value)
        except UnclearError:
            return None
    if value is None or value is False or value in ("null", "None", ""):
        return None
    return Argument(flag, _values(value), place, place)


def _values(value: object) -> tuple[str, ...]:
    if value is True:
        return ()
    if isinstance(value, list | tuple):
        return tuple(str(part) for part in value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 10**15:
        return (str(int(value)),)
    return (str(value),)
