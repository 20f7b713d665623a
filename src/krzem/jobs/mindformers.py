"""MindFormers: one YAML file; a batch is counted by the runner, data-parallel ranks and pipeline.

Defaults are those of ``mindformers/trainer`` and ``models/llama/llama_config.py``.
"""

from __future__ import annotations

import re

from krzem.jobs.documents import keys_of, yaml_tree
from krzem.jobs.hydra import literal
from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.launch import at
from krzem.jobs.launches import Start, starts_of, state_machine
from krzem.jobs.mindformers_keys import TABLE
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.tree import (
    Defaults,
    Entry,
    Open,
    Tree,
    UnclearError,
    apply,
    fall_back,
    listed,
    number,
    real,
    size_of,
    truth_of,
    unset,
    word_of,
)

ENGINE = "mindformers"
_DEFAULTS: Defaults = {
    "tp": (1, "model_parallel is 1"),
    "cp": (1, "context_parallel is 1"),
    "pp": (1, "pipeline_stage is 1"),
    "vpp": (1, "pp_interleave_num is 1"),
    "dp": (1, "data_parallel is 1"),
    "schedule": ("1f1b", "the pipeline's order"),
    "offload": (False, "optimizer states stay on the device"),
    "optimizer": ("adamw", "the optimizer is AdamW"),
    "model.mtp": (0, "mtp_depth is 0"),
    "model.tied": (False, "tie_word_embeddings is false"),
    "model.qk_norm": (False, "the model has none"),
    "model.positions": ("rope", "rotary positions"),
    "switch.attention": ("eager", "use_flash_attention is false"),
    "switch.offload-activations": ("off", "swap is off"),
    "switch.cuda-graphs": ("none", "there are none on this hardware"),
    "switch.loss": ("plain", "cross-entropy in separate kernels"),
}


def claim(sources: Sources) -> Claim | None:
    """MindFormers' own tables beside each other."""
    keys = {n: keys_of(t) for n, t in sources.with_suffix(".yaml", ".yml").items()}
    everywhere = set().union(*keys.values()) if keys else set()
    for name, own in keys.items():
        if {"runner_config", "parallel_config"} <= own and "model_config" in everywhere:
            return Claim(engine=ENGINE, strength=80, why=f"runner and parallel_config in {name}")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The YAML files, bases first, then in the order given; the command line wins."""
    trees = [yaml_tree(t, n) for n, t in sources.with_suffix(".yaml", ".yml").items()]
    tree = Tree()
    for part in sorted(trees, key=lambda t: "base_config" in t.entries):
        tree.update(part)
    start = next(iter(starts_of(sources).find(r"run_mindformer\.py$")), None)
    if start is not None:
        _started(start, tree, sources, job)
    apply(_chosen(tree), TABLE, job)
    _length(tree, job)
    _batch(tree, job)
    _model(tree, job)
    _experts(tree, job)
    if word_of(tree, "parallel_config.context_parallel_algo") == "colossalai_cp":
        job.default("cpkind", "ring", "context_parallel_algo is colossalai_cp")
    _shards(tree, job)
    _recompute(tree, job)
    _finetune(tree, job)
    fall_back(job, _DEFAULTS)
    _offsets(tree, job)
    tp = job.number("tp") or 1
    said = truth_of(tree, "parallel_config.use_seq_parallel")
    if said is None:
        job.default("sp", False, "use_seq_parallel is false")
    else:
        job.state("sp", said and tp > 1, tree.place("parallel_config.use_seq_parallel"))
    _states(tree, job)


_ARGUMENTS = ("use_parallel", "run_mode", "load_checkpoint")


def _started(start: Start, tree: Tree, sources: Sources, job: JobBuilder) -> None:
    """Options of the program, and the ranks that its launcher sets or the script exports."""
    for name in _ARGUMENTS:
        entry = start.options.entries.get(name)
        if entry is not None and not isinstance(entry.value, Open):
            value = literal(entry.value) if isinstance(entry.value, str) else entry.value
            tree.put(Entry(key=name, value=value, place=entry.place))
    state_machine(job, start, sources)
    ranks = start.launch.command.environment.get("RANK_SIZE")
    known = ranks is not None and ranks.known and re.fullmatch(r"[1-9]\d{0,5}", ranks.text)
    if ranks is not None and known and job.number("devices") is None:
        job.state("devices", int(ranks.text), at(ranks.origin, sources.files))


def _chosen(tree: Tree) -> Tree:
    """``use_parallel: False`` runs on one device whatever the degrees say."""
    if truth_of(tree, "use_parallel") is not False:
        return tree
    place = tree.place("use_parallel")
    for name in ("data_parallel", "model_parallel", "pipeline_stage", "context_parallel"):
        key = f"parallel_config.{name}"
        tree.put(Entry(key=key, value=1, place=place))
    return tree


def _length(tree: Tree, job: JobBuilder) -> None:
    """The data set gives the length where the model's table has none."""
    key = "train_dataset.data_loader.config.seq_length"
    found = number(tree, key)
    if found and job.number("seq") is None:
        job.state("seq", found, tree.place(key))


def _batch(tree: Tree, job: JobBuilder) -> None:
    """batch_size of the runner * dp * micro-batches of the pipeline * interleaved copies."""
    pp = job.number("pp") or 1
    copies = size_of(tree, "micro_batch_interleave_num") or 1
    pieces = size_of(tree, "parallel_config.micro_batch_num") or 1
    passes = size_of(tree, "runner_config.gradient_accumulation_steps") or 1
    if pp == 1:
        pieces = 1
    else:
        passes = 1
    place = tree.place("parallel_config.micro_batch_num",
                       "runner_config.gradient_accumulation_steps")  # fmt: skip
    why = f"micro-batches {pieces} * interleaved {copies} * accumulated {passes}"
    job.derive("accumulation", pieces * copies * passes, why, place)
    fine = number(tree, "model.model_config.fine_grain_interleave")
    if fine is not None and copies == 1:
        at = tree.place("model.model_config.fine_grain_interleave")
        job.state("switch.overlap-tp", "on" if fine > 1 else "off", at)
    if copies > 1:
        job.state("switch.overlap-tp", "on", tree.place("micro_batch_interleave_num"))
        job.note(f"each micro-batch is computed in {copies} copies beside one another")


def _model(tree: Tree, job: JobBuilder) -> None:
    at = "model.model_config."
    kind = word_of(tree, f"{at}type") or ""
    if kind == "GPT2Config":
        _gpt2(tree, job)
    act = (word_of(tree, f"{at}hidden_act") or "").lower()
    llama = kind in ("LlamaConfig", "DeepseekV3Config", "TelechatConfig", "DeepseekV2Config")
    if act:
        gated = act in ("swiglu", "silu", "swish", "fusedswiglu")
        job.state("model.gated", gated, tree.place(f"{at}hidden_act"))
    elif llama:
        job.default("model.gated", True, f"{kind} has SwiGLU")
    heads = job.number("model.heads")
    if llama and heads is not None:
        job.default("model.kv_heads", heads, "n_kv_heads is num_heads")
    hidden = job.number("model.hidden")
    if job.number("model.kv_lora_rank"):
        job.derive("model.attention", "mla", "keys and values have a latent rank")
    elif heads and hidden and hidden % heads == 0:
        job.derive("model.head_dim", hidden // heads, f"{hidden} / {heads}")
    if llama and hidden and job.number("model.ffn") is None:
        _inner_width(tree, job, hidden)
    _bias(tree, job)


def _gpt2(tree: Tree, job: JobBuilder) -> None:
    """GPT-2: every head has keys and values, learned positions, a width by ``expand_ratio``."""
    hidden, heads = job.number("model.hidden"), job.number("model.heads")
    ratio = size_of(tree, "model.model_config.expand_ratio") or 4
    if hidden:
        place = tree.place("model.model_config.expand_ratio")
        job.derive("model.ffn", ratio * hidden, f"expand_ratio {ratio} * {hidden}", place)
    if heads:
        job.default("model.kv_heads", heads, "GPT-2")
    for name, value in (("gated", False), ("tied", True), ("bias", True)):
        job.default(f"model.{name}", value, "GPT-2")
    job.default("model.positions", "learned", "GPT-2")


def _inner_width(tree: Tree, job: JobBuilder, hidden: int) -> None:
    """4h, times the multiplier, times 2/3, up to a multiple."""
    key = "model.model_config.ffn_dim_multiplier"
    width: float = 4 * hidden
    step = size_of(tree, "model.model_config.multiple_of") or 256
    value = tree.value(key)
    if not unset(value):
        try:
            width = int((real(value) + 0.01) * width)
        except UnclearError:
            return
    rounded = step * -(-int(2 * width / 3) // step)
    job.derive("model.ffn", rounded, f"2/3 of {width:g} up to a multiple of {step}",
               tree.place(key, "model.model_config.multiple_of"))  # fmt: skip


def _bias(tree: Tree, job: JobBuilder) -> None:
    at = "model.model_config."
    keys = (f"{at}qkv_has_bias", f"{at}attention_bias", f"{at}add_qkv_bias")
    said = truth_of(tree, *keys)
    if said is not None:
        job.state("model.bias", said, tree.place(*keys))
    elif truth_of(tree, f"{at}add_bias_linear") is False:
        job.state("model.bias", False, tree.place(f"{at}add_bias_linear"))
    elif word_of(tree, f"{at}type") == "LlamaConfig":
        job.default("model.bias", False, "qkv_has_bias is false")


def _first(tree: Tree, *names: str) -> tuple[int | None, Place]:
    keys = [f"{at}{name}" for name in names for at in ("model.model_config.", "moe_config.")]
    return number(tree, *keys), tree.place(*keys)


def _experts(tree: Tree, job: JobBuilder) -> None:
    if job.number("model.experts") is None:
        return
    chosen, place = _first(tree, "num_experts_chosen", "num_experts_per_tok")
    if chosen:
        job.state("model.top_k", chosen, place)
    dense = job.number("model.ffn")
    if dense:
        job.derive("model.moe_ffn", dense, "no moe_intermediate_size: that of a dense layer")
    shared, place = _first(tree, "shared_expert_num", "n_shared_experts")
    width = job.number("model.moe_ffn")
    if shared is not None:
        job.state("model.shared_experts", shared, place)
        if width is not None:
            job.derive("model.shared_ffn", shared * width, f"{shared} * {width}", place)
    keys = [f"{at}use_gmm" for at in ("model.model_config.", "moe_config.")]
    if truth_of(tree, *keys):
        job.state("switch.routing", "real", tree.place(*keys))
        return
    keys = [f"{at}capacity_factor" for at in ("model.model_config.", "moe_config.")]
    factor = tree.value(*keys)
    if isinstance(factor, int | float) and factor > 0 and truth_of(tree, *_DROPS) is not False:
        job.state("switch.routing", "capacity", tree.place(*keys))


_DROPS = ("moe_config.enable_sdrop", "model.model_config.enable_sdrop")


def _shards(tree: Tree, job: JobBuilder) -> None:
    """Optimizer parallelism cuts weights, gradients and states over data-parallel ranks."""
    keys = ("parallel.enable_parallel_optimizer", "parallel_config.optimizer_shard")
    said, place = truth_of(tree, keys[0]), tree.place(*keys)
    if said is None:
        said = truth_of(tree, keys[1])
    if said is None:
        job.default("zero", 0, "enable_parallel_optimizer is false")
        return
    sharded = truth_of(tree, "parallel.parallel_optimizer_config.gradient_accumulation_shard")
    again = truth_of(tree, "recompute_config.parallel_optimizer_comm_recompute")
    stage = (3 if again else 2) if sharded else 1
    job.state("zero", stage if said else 0, place)
    size = number(tree, "parallel.parallel_optimizer_config.optimizer_weight_shard_size")
    dp = job.number("dp") or 0
    if said and size and 0 < size < dp:
        job.derive("shard", size, f"optimizer_weight_shard_size of dp = {dp}", place)


def _recompute(tree: Tree, job: JobBuilder) -> None:
    full, some_of = (tree.value(f"recompute_config.{name}")
                     for name in ("recompute", "select_recompute"))  # fmt: skip
    place = tree.place("recompute_config.recompute")
    if isinstance(full, Open) or isinstance(some_of, Open):
        job.ask("recompute", "recompute_config is open", "say recompute=…")
    elif _counts(full):
        job.state("recompute", "full", place)
        counts = _counts(full)
        job.derive("rlayers", max(counts), f"the most of {counts} recomputed on a stage", place)
    elif isinstance(full, bool | str | list) and full not in (False, "False", []):
        job.state("recompute", "full", place)
        layers, pp = job.number("model.layers"), job.number("pp") or 1
        if full is True and layers and layers % pp == 0:
            job.derive("rlayers", layers // pp, f"all of {layers} / {pp}", place)
    elif some_of not in (None, False, "False", []):
        at = tree.place("recompute_config.select_recompute")
        job.state("recompute", "modules", at)
        if isinstance(some_of, list) and all(isinstance(name, str) for name in some_of):
            job.state("recompute_modules", listed(some_of), at)
    elif full is None:
        job.default("recompute", "none", "recompute is false")
    else:
        job.state("recompute", "none", place)


def _counts(value: object) -> list[int]:
    """Layers of each stage that are recomputed, where a list of numbers says so."""
    flat = value[0] if isinstance(value, list) and value and isinstance(value[0], list) else value
    if isinstance(flat, list) and flat and all(type(n) is int for n in flat):
        return flat if any(flat) else []
    return []


def _finetune(tree: Tree, job: JobBuilder) -> None:
    mode = word_of(tree, "run_mode")
    start = tree.value("load_checkpoint")
    if job.get("finetune") is not None or mode is None:
        return
    if mode == "finetune":
        job.state("finetune", "full", tree.place("run_mode"))
    elif mode == "train" and unset(start):
        job.state("finetune", "none", tree.place("run_mode"))


def _offsets(tree: Tree, job: JobBuilder) -> None:
    """``offset`` adds layers to each stage; the second stages of a V go from the last rank back."""
    layers, pp = job.number("model.layers"), job.number("pp")
    value = tree.value("model.model_config.offset")
    place = tree.place("model.model_config.offset")
    if value is None or value == 0 or not layers or not pp or pp == 1:
        return
    job.uneven = "offset gives each stage its number of layers"
    chunks = job.number("vpp") or 1
    rows = value if chunks > 1 and isinstance(value, list) else [value]
    vee = job.get("schedule") == "zb-v"
    flat = [n for i, row in enumerate(rows) if isinstance(row, list)
            for n in (row[::-1] if vee and i % 2 else row)]  # fmt: skip
    if len(flat) == pp * len(rows) and all(type(n) is int for n in flat):
        each = layers // (pp * len(rows))
        counts = [sum(each + n for n in flat[rank::pp]) for rank in range(pp)]
        value = [count - layers // pp for count in counts]
        job.derive("first", counts[0], f"{layers} // {pp} + {value[0]}", place)
        job.derive("last", counts[-1], f"{layers} // {pp} + {value[-1]}", place)


def _states(tree: Tree, job: JobBuilder) -> None:
    at = "model.model_config."
    kind = word_of(tree, f"{at}param_init_type", f"{at}params_dtype", f"{at}param_init_dtype")
    place = tree.place(f"{at}param_init_type", f"{at}params_dtype", f"{at}param_init_dtype")
    if kind == "float32":
        for name, size in (("weight", 4), ("gradient", 4), ("master", 0), ("moments", 8)):
            job.derive(f"state.{name}", size, "weights and moments in float32", place)
    elif kind in ("float16", "bfloat16"):
        job.derive("state.weight", 2, f"weights in {kind}", place)


READERS = (Reader(kind="MindFormers", engines=(ENGINE,), claim=claim, read=read),)
