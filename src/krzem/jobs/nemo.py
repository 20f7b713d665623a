"""NeMo and Megatron-Bridge: what a tree of settings decides beyond single keys."""

from __future__ import annotations

from krzem.jobs.job import JobBuilder
from krzem.jobs.megatron_layout import stage_sizes
from krzem.jobs.nemo_keys import TABLE
from krzem.jobs.tree import (
    Call,
    Open,
    Tree,
    apply,
    integer,
    listed,
    truth,
    truth_of,
    unset,
    word_of,
)
from krzem.jobs.tree import UnclearError as _Unclear

_PLACES = ("model.", "train.", "trainer.", "data.", "dataset.", "ddp.", "optimizer.", "optim.",
           "comm_overlap.", "mixed_precision.", "model.overwritten_attributes.", "model.optim.",
           "trainer.strategy.", "model.config.", "strategy.", "trainer.strategy.ddp.",
           "optim.config.", "")  # fmt: skip
"""Tables in which a setting may stand, the one that wins first."""


def keys(name: str) -> tuple[str, ...]:
    """A setting in each of the tables."""
    return tuple(f"{place}{name}" for place in _PLACES)


def read_settings(tree: Tree, job: JobBuilder) -> None:
    """Every field that the merged settings decide."""
    apply(tree, TABLE, job)
    _length(tree, job)
    _model(tree, job)
    _latent(tree, job)
    _pipeline(tree, job)
    _sequence(tree, job)
    _recompute(tree, job)
    _precision(tree, job)
    _states(tree, job)
    _graphs(tree, job)
    _routing(tree, job)
    _dispatch(tree, job)
    _sharding(tree, job)


def _number(tree: Tree, *names: str) -> int | None:
    for name in names:
        value = tree.value(*keys(name))
        if value is None or isinstance(value, Open):
            continue
        try:
            return integer(value)
        except _Unclear:
            continue
    return None


def _truth(tree: Tree, name: str) -> bool | None:
    return truth_of(tree, *keys(name))


def _length(tree: Tree, job: JobBuilder) -> None:
    for name in ("seq_length", "encoder_seq_length", "sequence_length"):
        found = _number(tree, name)
        if found:
            job.state("seq", found, tree.place(*keys(name)), override=True)
            return
        value = tree.value(*keys(name))
        if isinstance(value, Open):
            job.ask("seq", f"{name} = {value.text}", "give tokens per sequence")


def _model(tree: Tree, job: JobBuilder) -> None:
    width = _number(tree, "ffn_hidden_size")
    if width and width > 0:
        job.state("model.ffn", width, tree.place(*keys("ffn_hidden_size")))
    for name in ("vocab_size", "override_vocab_size"):
        vocabulary = _number(tree, name)
        if vocabulary and vocabulary > 0:
            job.state("model.vocab", vocabulary, tree.place(*keys(name)))
    heads, hidden = job.number("model.heads"), job.number("model.hidden")
    if heads and hidden and hidden % heads == 0:
        job.derive("model.head_dim", hidden // heads, f"{hidden} / {heads}")
    act = tree.value(*keys("activation_func"), *keys("activation"))
    name = act.short if isinstance(act, Call) else str(act or "")
    place = tree.place(*keys("activation_func"), *keys("activation"))
    if "swiglu" in name:
        job.state("model.gated", True, place)
    elif "relu" in name and job.get("model.gated") is None:
        job.derive("model.gated", False, f"activation {name}", place)
    value = tree.value(*keys("devices"))
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        job.state("devices_per_node", value, tree.place(*keys("devices")))


_LATENT = {"kv_lora_rank": "model.kv_lora_rank", "qk_head_dim": "model.qk_nope",
           "qk_pos_emb_head_dim": "model.qk_rope", "v_head_dim": "model.v_head"}  # fmt: skip


def _latent(tree: Tree, job: JobBuilder) -> None:
    if job.get("model.attention") != "mla" and job.number("model.q_lora_rank") is None:
        return
    for name, field in _LATENT.items():
        found = _number(tree, name)
        if found and found > 0:
            job.state(field, found, tree.place(*keys(name)))


def _pipeline(tree: Tree, job: JobBuilder) -> None:
    pp, vpp = job.number("pp"), job.number("vpp")
    place = tree.place(*keys("virtual_pipeline_model_parallel_size"))
    said = [k for k in keys("virtual_pipeline_model_parallel_size") if k in tree.entries]
    if said and vpp is None and not isinstance(tree.entries[said[0]].value, Open):
        job.derive("vpp", 1, "no virtual stages", place)
    elif pp == 1 and vpp is None:
        job.derive("vpp", 1, "no pipeline")
    if pp == 1 or job.number("vpp") == 1:
        job.derive("schedule", "1f1b", "one stage on a rank")
    elif pp is not None and (job.number("vpp") or 0) > 1:
        job.derive("schedule", "interleaved", f"{vpp} stages on a rank")
    names = ("pipeline_model_parallel_layout", "account_for_embedding_in_pipeline_split",
             "account_for_loss_in_pipeline_split")  # fmt: skip
    _laid_out(tree, job)
    if any(tree.value(*keys(n)) for n in names) or job.number("first") or job.number("last"):
        job.uneven = "the split of the layers is given"


def _laid_out(tree: Tree, job: JobBuilder) -> None:
    """Chunks and end stages of a layout such as ``Ett|(ttt|)*6ttL``."""
    said, pp = tree.value(*keys("pipeline_model_parallel_layout")), job.number("pp")
    sizes = stage_sizes(said) if isinstance(said, str) else None
    if sizes is None or not pp or len(sizes) % pp:
        return
    place, chunks = tree.place(*keys("pipeline_model_parallel_layout")), len(sizes) // pp
    job.derive("vpp", chunks, f"{len(sizes)} chunks on {pp} stages", place)
    job.derive("schedule", "interleaved" if chunks > 1 else "1f1b", f"{chunks} chunks", place)
    ranks = [sum(sizes[rank::pp]) for rank in range(pp)]
    if len(set(ranks)) > 1:
        job.derive("first", ranks[0], "layers of the chunks of the first rank", place)
        job.derive("last", ranks[-1], "layers of the chunks of the last rank", place)


def _sequence(tree: Tree, job: JobBuilder) -> None:
    said = _truth(tree, "sequence_parallel")
    if said is not None:
        tp = job.number("tp") or 1
        job.state("sp", said and tp > 1, tree.place(*keys("sequence_parallel")))


def _recompute(tree: Tree, job: JobBuilder) -> None:
    names = ("recompute_granularity", "activations_checkpoint_granularity")
    said = [k for n in names for k in keys(n) if k in tree.entries]
    if not said:
        return
    value, place = tree.entries[said[0]].value, tree.place(said[0])
    if isinstance(value, Open):
        job.ask("recompute", f"{said[0]} = {value.text}", "say recompute=…")
    elif unset(value):
        job.state("recompute", "none", place, override=True)
    elif value == "full":
        job.state("recompute", "full", place, override=True)
        layers = _number(tree, "recompute_num_layers", "activations_checkpoint_num_layers")
        method = word_of(tree, *keys("recompute_method"), *keys("activations_checkpoint_method"))
        if method == "block" and layers:
            chunks = job.number("vpp") or 1
            rank = -(-(job.number("model.layers") or layers * chunks) // (job.number("pp") or 1))
            job.state("rlayers", min(layers * chunks, rank), place, override=True)
    elif value == "selective":
        _modules(tree, job, said[0])
    else:
        job.not_understood(place, f"granularity {value!r} is neither full nor selective")


def _modules(tree: Tree, job: JobBuilder, key: str) -> None:
    """Selective recomputation is of core attention unless modules are listed."""
    value = tree.value(*keys("recompute_modules"))
    names = () if unset(value) or isinstance(value, Open) else _listed(value)
    if names and set(names) != {"core_attn"}:
        place = tree.place(*keys("recompute_modules"))
        job.state("recompute", "modules", place, override=True)
        job.state("recompute_modules", names, place, override=True)
    else:
        job.state("recompute", "attention", tree.place(key), override=True)


def _listed(value: object) -> tuple[str, ...]:
    try:
        return listed(value)
    except _Unclear:
        return ()


_RECIPES = {"tensorwise": ("fp8", "tensor"), "delayed": ("fp8", "delayed"),
            "mxfp8": ("mxfp8", ""), "blockwise": ("fp8-block", ""),
            "current": ("fp8", "tensor")}  # fmt: skip
_MIXED = (
    ("nvfp4", "nvfp4", ""), ("mxfp8", "mxfp8", ""), ("subchannel", "fp8-block", ""),
    ("current_scaling", "fp8", "tensor"), ("delayed", "fp8", "delayed"), ("fp8", "fp8", ""),
    ("bf16", "bf16", ""), ("fp16", "fp16", ""), ("16", "fp16", ""), ("fp32", "fp32", ""),
    ("32", "fp32", ""),
)  # fmt: skip


def _precision(tree: Tree, job: JobBuilder) -> None:
    """A name such as ``bf16_with_mxfp8_mixed``, then what single keys change."""
    mixed = tree.value("mixed_precision", *keys("precision"), "mixed_precision.0",
                       "mixed_precision._target_")  # fmt: skip
    place = tree.place("mixed_precision", *keys("precision"), "mixed_precision.0",
                       "mixed_precision._target_")  # fmt: skip
    if isinstance(mixed, Open) and "mixed_precision" not in mixed.text:
        job.ask("precision", f"precision = {mixed.text}", "say precision=…")
    name = str(mixed or "").lower().replace("-", "_")
    for part, precision, scaling in _MIXED if not isinstance(mixed, Open) else ():
        if part in name:
            job.state("precision", precision, place, override=True)
            if scaling:
                job.state("switch.fp8-scaling", scaling, place, override=True)
            break
    for key, precision in (("bf16", "bf16"), ("fp16", "fp16")):
        if _truth(tree, key) and job.get("precision") is None:
            job.state("precision", precision, tree.place(*keys(key)))
    _eight_bits(tree, job)


def _eight_bits(tree: Tree, job: JobBuilder) -> None:
    four = tree.value(*keys("fp4"))
    if _on(four):
        job.state("precision", "nvfp4", tree.place(*keys("fp4")), override=True)
        return
    value = tree.value(*keys("fp8"), *keys("fp8_hybrid"))
    place = tree.place(*keys("fp8"), *keys("fp8_hybrid"))
    if isinstance(value, Open):
        job.ask("precision", f"fp8 = {value.text}", "say precision=…")
        return
    if not _on(value):
        return
    recipe = (word_of(tree, *keys("fp8_recipe")) or "").lower()
    precision, scaling = _RECIPES.get(recipe, ("fp8", ""))
    job.state("precision", precision, place, override=True)
    if scaling:
        job.state("switch.fp8-scaling", scaling, tree.place(*keys("fp8_recipe")), override=True)
    for name in ("fp8_param_gather", "fp8_params", "fp8_param"):
        said = _truth(tree, name)
        if said is not None:
            job.state("switch.fp8-params", "on" if said else "off", tree.place(*keys(name)),
                      override=True)  # fmt: skip
            return


def _on(value: object) -> bool:
    if unset(value) or isinstance(value, Open):
        return False
    try:
        return truth(value)
    except _Unclear:
        return isinstance(value, str)


_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1, "fp32": 4, "bf16": 2,
           "fp16": 2, "fp8": 1}  # fmt: skip


def _states(tree: Tree, job: JobBuilder) -> None:
    moments = [str(tree.value(*keys(n)) or "").rpartition(".")[2]
               for n in ("exp_avg_dtype", "exp_avg_sq_dtype")]  # fmt: skip
    if all(m in _WIDTHS for m in moments):
        total = sum(_WIDTHS[m] for m in moments)
        job.state("state.moments", total, tree.place(*keys("exp_avg_dtype")))
    half = _truth(tree, "megatron_amp_O2")
    if half is not None:
        sizes = (2, 4) if half else (4, 0)
        place = tree.place(*keys("megatron_amp_O2"))
        why = "weights in 16 bits with an fp32 copy" if half else "weights in fp32, no copy"
        for name, size in zip(("weight", "master"), sizes, strict=True):
            job.derive(f"state.{name}", size, why, place)
        if not half:
            job.derive("state.gradient", 4, why, place)


def _graphs(tree: Tree, job: JobBuilder) -> None:
    impl = word_of(tree, *keys("cuda_graph_impl"))
    scope = str(tree.value(*keys("cuda_graph_scope")) or "")
    place = tree.place(*keys("cuda_graph_impl"), *keys("enable_cuda_graph"),
                       *keys("external_cuda_graph"))  # fmt: skip
    if impl is not None:
        kind = "none" if impl.lower() in ("none", "null") else "partial"
        if impl == "local" and "full_iteration" in scope:
            kind = "full"
        if impl == "full_iteration":
            kind = "full"
        job.state("switch.cuda-graphs", kind, place, override=True)
        return
    own, outer = _truth(tree, "enable_cuda_graph"), _truth(tree, "external_cuda_graph")
    if own or outer:
        kind = "full" if "full_iteration" in scope else "partial"
        job.state("switch.cuda-graphs", kind, place, override=True)
    elif own is False or outer is False:
        job.state("switch.cuda-graphs", "none", place, override=True)


def _routing(tree: Tree, job: JobBuilder) -> None:
    """Tokens beyond a capacity are dropped where a factor is given and balance is not forced."""
    value = tree.value(*keys("moe_expert_capacity_factor"))
    known = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    if known and job.get("switch.routing") != "balanced":
        place = tree.place(*keys("moe_expert_capacity_factor"))
        job.state("switch.routing", "capacity", place, override=True)


def _dispatch(tree: Tree, job: JobBuilder) -> None:
    kind = word_of(tree, *keys("moe_token_dispatcher_type"))
    backend = word_of(tree, *keys("moe_flex_dispatcher_backend"))
    place = tree.place(*keys("moe_token_dispatcher_type"))
    if kind in ("alltoall", "allgather"):
        job.state("switch.dispatcher", kind, place, override=True)
    elif kind == "flex":
        deep = backend if backend in ("deepep", "hybridep") else "deepep"
        at = tree.place(*keys("moe_flex_dispatcher_backend")) if backend else place
        job.state("switch.dispatcher", deep, at, override=True)


_STRATEGIES = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}


def _sharding(tree: Tree, job: JobBuilder) -> None:
    """Megatron-FSDP shards by its strategy; the distributed optimizer alone is ZeRO 1."""
    on = _truth(tree, "use_megatron_fsdp") or _truth(tree, "use_custom_fsdp")
    strategy = word_of(tree, *keys("data_parallel_sharding_strategy"))
    fsdp = word_of(tree, *keys("fsdp"))
    if on or fsdp in ("megatron", "pytorch"):
        level = _STRATEGIES.get(strategy or "optim_grads_params", 3)
        place = tree.place(*keys("data_parallel_sharding_strategy"), *keys("use_megatron_fsdp"))
        job.state("zero", level, place, override=True)
    copies = _number(tree, "num_distributed_optimizer_instances")
    if copies is not None and copies > 1:
        job.instances = (copies, tree.place(*keys("num_distributed_optimizer_instances")))
