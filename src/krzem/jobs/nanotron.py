"""nanotron: one YAML file; the global batch is dp * micro-batch * accumulation.

Defaults are those of ``nanotron/config``.
"""

from __future__ import annotations

from krzem.errors import shorten
from krzem.jobs.documents import keys_of, yaml_tree
from krzem.jobs.job import JobBuilder
from krzem.jobs.launches import starts_of, state_machine
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.tree import (
    KEPT,
    Defaults,
    Found,
    Read,
    Table,
    Tree,
    apply,
    count,
    fall_back,
    positive,
    some,
    truth,
    truth_of,
    word,
    word_of,
    words,
    yes_no,
)

ENGINE = "other"
_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "torch.bfloat16": "bf16"}


def _recompute(value: object) -> Found:
    return {"recompute": "full" if truth(value) else "none"}


def _gated(value: object) -> Found:
    return {"model.gated": word(value) in ("silu", "swish", "swiglu")}


_MODEL = {
    "hidden_size": count("model.hidden"),
    "intermediate_size": count("model.ffn"),
    "num_attention_heads": count("model.heads"),
    "num_key_value_heads": positive("model.kv_heads"),
    "num_hidden_layers": count("model.layers"),
    "vocab_size": count("model.vocab"),
    "tie_word_embeddings": yes_no("model.tied"),
    "attention_bias": yes_no("model.bias"),
    "hidden_act": Read(("model.gated",), _gated),
    "activation_function": KEPT,
    "sliding_window_size": positive("model.window"),
    "_attn_implementation": KEPT,
    "rope_theta": KEPT,
    "moe_config.num_experts": some("model.experts", 2),
    "moe_config.top_k": positive("model.top_k"),
    "moe_config.moe_intermediate_size": positive("model.moe_ffn"),
    "moe_config.shared_expert_intermediate_size": positive("model.shared_ffn"),
    "moe_config.token_dispatcher_type": words(
        "switch.dispatcher", {"alltoall": "alltoall", "allgather": "allgather"}
    ),
}
_TABLE = Table(
    keys={
        **{f"model.model_config.{name}": read for name, read in _MODEL.items()},
        "model.dtype": words("precision", _TYPES),
        "parallelism.dp": count("dp"),
        "parallelism.pp": count("pp"),
        "parallelism.tp": count("tp"),
        "parallelism.context_parallel_size": count("cp"),
        "parallelism.expert_parallel_size": count("ep"),
        "parallelism.pp_engine": KEPT,
        "parallelism.tp_mode": KEPT,
        "parallelism.tp_linear_async_communication": KEPT,
        "parallelism.recompute_layer": Read(("recompute",), _recompute),
        "tokens.micro_batch_size": count("mbs"),
        "tokens.batch_accumulation_per_replica": count("accumulation"),
        "tokens.sequence_length": count("seq"),
        "tokens.train_steps": positive("train_steps"),
        "optimizer.zero_stage": some("zero"),
        "optimizer.accumulate_grad_in_fp32": KEPT,
        "optimizer.optimizer_factory.name": words(
            "optimizer", {"adamw": "adamw", "sgd": "sgd", "adam": "adamw"}
        ),
        "slurm.nodes": count("nodes"),
        "slurm.gpus_per_node": count("devices_per_node"),
        "model.ddp_bucket_cap_mb": KEPT,
        "parallelism.moe_layer_recompute": KEPT,
        "parallelism.tp_recompute_allgather": KEPT,
        "nodes": KEPT,
        "gpus_per_node": KEPT,
    },
    ignored=(
        r"(checkpoints|data_stages|data|general|logging|lighteval|profiler|tokenizer|s3_upload"
        r"|metrics_logging|experiment_logger|kill_switch_path|slurm|optimizer|tokens|model"
        r"|kubernetes|doremi)(\..*)?",
    ),
)

_DEFAULTS: Defaults = {
    "cp": (1, "context_parallel_size is 1"),
    "vpp": (1, "one chunk on a stage"),
    "schedule": ("1f1b", "pp_engine is 1f1b"),
    "recompute": ("none", "recompute_layer is false"),
    "offload": (False, "optimizer states stay on the device"),
    "finetune": ("none", "all weights are trained"),
    "model.bias": (False, "attention_bias is false"),
    "switch.attention": ("fused", "flash attention"),
    "switch.compile": ("off", "layers are not compiled"),
}


def claim(sources: Sources) -> Claim | None:
    """Its own words for the batch."""
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if {"batch_accumulation_per_replica", "parallelism"} <= keys_of(text):
            return Claim(engine=ENGINE, strength=80, why=f"nanotron's settings in {name}")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The YAML files in the order given, the later wins."""
    tree = Tree()
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        tree.update(yaml_tree(text, name))
    job.note("the engine is nanotron")
    apply(tree, _TABLE, job)
    _model(tree, job)
    _parallel(tree, job)
    fall_back(job, _DEFAULTS)
    _states(tree, job)
    state_machine(job, next(iter(starts_of(sources).find("run_train")), None), sources)
    describe(sources, job)


def _model(tree: Tree, job: JobBuilder) -> None:
    hidden, heads = job.number("model.hidden"), job.number("model.heads")
    if heads:
        job.default("model.kv_heads", heads, "num_key_value_heads is num_attention_heads")
    if hidden and heads and hidden % heads == 0:
        job.derive("model.head_dim", hidden // heads, f"{hidden} / {heads}")
    if tree.has("model.model_config.rope_theta"):
        place = tree.place("model.model_config.rope_theta")
        job.state("model.positions", "rope", place)
    elif truth_of(tree, "model.model_config.is_llama_config"):
        job.default("model.positions", "rope", "a Llama's positions are rotary")
    fused = "optimizer.torch_adam_is_fused"
    if tree.has(fused) and not tree.has("optimizer.optimizer_factory"):
        job.derive("optimizer", "adamw", "AdamW with decay, fused or not", tree.place(fused))


def _parallel(tree: Tree, job: JobBuilder) -> None:
    tp = job.number("tp") or 1
    mode = (word_of(tree, "parallelism.tp_mode") or "").lower()
    if mode:
        sharded = mode.endswith("reduce_scatter") and tp > 1
        job.state("sp", sharded, tree.place("parallelism.tp_mode"))
    said = truth_of(tree, "parallelism.tp_linear_async_communication")
    if said is not None and tp > 1:
        place = tree.place("parallelism.tp_linear_async_communication")
        job.state("switch.overlap-tp", "on" if said else "off", place)
    engine, place = word_of(tree, "parallelism.pp_engine"), tree.place("parallelism.pp_engine")
    if engine is not None and engine.lower() == "1f1b":
        job.state("schedule", "1f1b", place)
    elif engine is not None and (job.number("pp") or 1) > 1:
        job.ask(
            "schedule", f"{shorten(engine, 40)} ({place}) holds all micro-batches", "choose one"
        )
    kind = word_of(tree, "model.model_config._attn_implementation")
    if (job.number("cp") or 1) > 1:
        place = tree.place("model.model_config._attn_implementation")
        if kind == "llama3_ring_attention":
            job.derive("cpkind", "allgather", "keys and values are gathered head by head", place)
        elif kind == "ring_flash_triton":
            job.derive("cpkind", "ring", f"{kind} sends keys and values around", place)


def _states(tree: Tree, job: JobBuilder) -> None:
    """With gradients accumulated in fp32 the weights have an fp32 copy."""
    said = truth_of(tree, "optimizer.accumulate_grad_in_fp32")
    place = tree.place("optimizer.accumulate_grad_in_fp32")
    if said is None or job.get("precision") not in ("bf16", "fp16"):
        return
    job.derive("state.weight", 2, "16-bit weights", tree.place("model.dtype"))
    job.state("state.gradient", 4 if said else 2, place)
    job.derive("state.master", 4 if said else 0, "fp32 copy with fp32 gradients", place)
    if job.get("optimizer") == "adamw":
        size = 8 if said else 4
        job.derive("state.moments", size, f"two moments of {size // 2} bytes", place)


READERS = (Reader(kind="nanotron", engines=(ENGINE,), claim=claim, read=read),)
