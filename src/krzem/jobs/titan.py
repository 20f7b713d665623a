"""torchtitan: TOML files of all generations, and Python recipes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from krzem.jobs.job import Basis, JobBuilder, Place
from krzem.jobs.priced import read_shape
from krzem.jobs.titan_keys import TABLE, read_batch, read_pipeline, section_keys
from krzem.jobs.tree import (
    Call,
    Defaults,
    Tree,
    apply,
    fall_back,
    names_of,
    number,
    show,
    truth_of,
    unset,
    word_of,
)

FULL, MODULES, NONE = "full", "modules", "none"
_CLASSES = {"fullac": FULL, "selectiveac": MODULES, "noac": NONE, "memorybudgetac": ""}


def read_settings(tree: Tree, job: JobBuilder, *, complete: bool = True) -> None:
    """Everything a configuration decides; ``complete``: what it leaves out is at its default."""
    apply(tree, TABLE, job)
    _model(tree, job)
    _degrees(tree, job, complete)
    _checkpointing(tree, job, complete)
    _compile(tree, job, complete)
    _precision(tree, job, complete)
    read_pipeline(tree, job, complete)
    read_batch(tree, job, complete)
    _other(tree, job, complete)


_NAMELESS = ("custom", "default")


def _model(tree: Tree, job: JobBuilder) -> None:
    """A name in a table of the engine's code; the shape is there, or beside the name."""
    keys = ("model_spec.0", "model_spec.flavor", "model.flavor")
    flavor = tree.value(*keys)
    name = show(flavor).strip("'") if isinstance(flavor, str | int) else ""
    place = tree.place(*keys)
    if not name or name in _NAMELESS:
        name, place = word_of(tree, "model.name") or name, tree.place("model.name")
    base = tree.value("_target_")
    if not name and isinstance(base, str) and not base.endswith("Config"):
        name, place = base.rpartition(".")[2], tree.place("_target_")
    if name:
        job.state("model.name", name, place)
    read_shape(tree.sub("model"), job, llama=False)


def _degrees(tree: Tree, job: JobBuilder, complete: bool) -> None:
    why = "degrees that are not set are 1"
    if complete:
        for name in ("tp", "pp", "cp"):
            job.default(name, 1, why)
    shard = number(
        tree, *section_keys("data_parallel_shard_degree"), "training.data_parallel_degree"
    )
    copies = number(tree, *section_keys("data_parallel_replicate_degree"))
    if copies is None and complete:
        copies = 1
    place = tree.place(*section_keys("data_parallel_shard_degree"), "training.data_parallel_degree",
                       *section_keys("data_parallel_replicate_degree"))  # fmt: skip
    ways = "replicate degree * shard degree"
    if shard is not None and shard > 0 and copies is not None:
        job.derive("dp", shard * copies, f"{ways} = {copies} * {shard}", place)
    cp = job.number("cp") or 1
    if shard is None or shard < 0:
        shard = _left_over(job, copies)
        if shard is not None and copies:
            job.derive("dp", shard * copies, f"{ways} = {copies} * the rest {shard}", place)
    if copies is not None and copies > 1 and shard is not None and shard * cp > 1:
        job.derive("shard", shard * cp, f"shard degree * cp = {shard} * {cp}", place)
    _zero(tree, job, shard, complete)


def _left_over(job: JobBuilder, copies: int | None) -> int | None:
    """``-1``: the ranks that the other degrees leave."""
    devices = job.number("devices") or (job.number("nodes") or 0) * (
        job.number("devices_per_node") or 0
    )
    used = [job.number(name) for name in ("tp", "cp", "pp")]
    if not devices or copies is None or any(n is None for n in used):
        return None
    rest = copies * math.prod(n or 1 for n in used)
    return devices // rest if devices % rest == 0 else None


def _zero(tree: Tree, job: JobBuilder, shard: int | None, complete: bool) -> None:
    """FSDP drops weights after forward (3) unless told not to, or under a pipeline (2)."""
    key = section_keys("fsdp_reshard_after_forward")
    policy = (word_of(tree, *key) or ("default" if complete else "")).lower()
    place = tree.place(*key)
    pp, cp = job.number("pp"), job.number("cp")
    if shard == 1 and cp == 1:
        job.derive("zero", 0, "a shard degree of 1 replicates the weights", place)
    elif policy == "always":
        job.derive("zero", 3, "weights are dropped after forward", place)
    elif policy == "never":
        job.derive("zero", 2, "weights stay whole from forward to backward", place)
    elif policy == "default" and pp is not None:
        kept = pp > 1
        why = "with" if kept else "without"
        job.derive("zero", 2 if kept else 3, f"FSDP's default {why} a pipeline", place)


def _checkpointing(tree: Tree, job: JobBuilder, complete: bool) -> None:
    mode = word_of(tree, "activation_checkpoint.mode")
    made = word_of(tree, "activation_checkpoint._target_")
    key = "activation_checkpoint.mode" if mode else "activation_checkpoint._target_"
    place = tree.place(key, "activation_checkpoint")
    if mode is None and made is not None:
        name = made.lower().removesuffix(".config").rpartition(".")[2]
        kind = _CLASSES.get(name)
        if kind:
            job.state("recompute", kind, place, override=True)
            job.every = int(kind == FULL)
            return
        if kind == "" or not name.startswith("activationcheckpoint"):
            job.ask("recompute", f"{made} decides what is recomputed", "say recompute=…")
            return
    if "activation_checkpoint" in tree.entries and tree.value("activation_checkpoint") is None:
        job.state("recompute", NONE, place, override=True)
        return
    if mode is None and not complete:
        return
    _by_mode(tree, job, (mode or "selective").lower(), place, stated=mode is not None)


def _by_mode(tree: Tree, job: JobBuilder, mode: str, place: Place, *, stated: bool) -> None:
    option = tree.value("activation_checkpoint.selective_ac_option",
                        "activation_checkpoint.selective_ac_freq")  # fmt: skip
    kind, every = {"none": (NONE, 0), "full": (FULL, 1)}.get(mode, ("", 0))
    if mode == "selective":
        said = "2" if option is None else str(option).strip()
        if said == "op":
            kind = MODULES
        elif said.isdigit() and int(said) > 0:
            kind, every = FULL, int(said)
    if not kind:
        job.ask("recompute", f"activation checkpointing in mode {mode!r}", "say recompute=…")
        return
    if stated:
        job.state("recompute", kind, place, override=True)
    else:
        job.default("recompute", kind, "activation checkpointing that is not set is selective")
    if every > 1:
        job.note(f"activations of every {every}nd layer are recomputed; the others are kept")
    job.every = every


def recomputed_layers(tree: Tree, job: JobBuilder) -> None:
    """Layers of a stage that are recomputed, once the number of layers is known."""
    layers, pp, every = job.number("model.layers"), job.number("pp"), job.every
    place = tree.place("activation_checkpoint.mode", "activation_checkpoint._target_")
    if layers and pp and every > 1:
        some = layers // pp // every
        job.derive("rlayers", some, f"every {every}nd of {layers // pp} layers", place)
    elif layers and pp and every == 1 and layers % pp == 0:
        job.derive("rlayers", layers // pp, f"all of {layers // pp} layers", place)


def _compile(tree: Tree, job: JobBuilder, complete: bool) -> None:
    on = truth_of(tree, "compile.enable")
    if on is None:
        if complete:
            job.default("switch.compile", "off", "compilation is off unless it is enabled")
        return
    parts = names_of(tree, "compile.components")
    model = not parts or "model" in parts
    choice = "on" if on and model else "off"
    job.state("switch.compile", choice, tree.place("compile.enable"), override=True)


def _converters(tree: Tree) -> list[tuple[str, Call | None, Place]]:
    """Converters of the model, by name in lower case."""
    found: list[tuple[str, Call | None, Place]] = []
    for key in ("model.converters", "model_spec.converters", "model_converters.converters"):
        value = tree.value(key)
        parts: Sequence[object] = value if isinstance(value, list) else names_of(tree, key)
        for part in parts:
            call = part if isinstance(part, Call) else None
            name = call.name if call else str(part)
            found.append((name.lower(), call, tree.place(key)))
    return found


_CONVERTERS = (
    ("mxfp8", "mxfp8"), ("quantize.linear.mx", "mxfp8"), ("quantize.dense.mx", "mxfp8"),
    ("nvfp4", "nvfp4"), ("float8", "fp8"), ("mx", "mxfp8"),
)  # fmt: skip


def _precision(tree: Tree, job: JobBuilder, complete: bool) -> None:
    for name, call, place in _converters(tree):
        if "grouped" in name:
            continue
        for part, precision in _CONVERTERS:
            if name.startswith(part) or (len(part) > 2 and part in name):
                job.state("precision", precision, place, override=True)
                if precision == "fp8":
                    _float8(tree, job, call, place)
                break
        if "lora" in name:
            kind = "qlora" if "qlora" in name else "lora"
            job.state("finetune", kind, place, override=True)
    _old_float8(tree, job)
    if not complete:
        return
    tp, pp = job.number("tp"), job.number("pp")
    alone = job.number("zero") == 0 and job.number("cp") == 1
    if alone and tp is not None and pp is not None and tp * pp > 1:
        why = "mixed precision needs sharding or context ranks beside tp or pp"
        if job.get("precision") == "bf16":
            job.drop("precision")
        job.default("precision", "fp32", why)
    job.default("precision", "bf16", "products are in bfloat16 unless set")


def _float8(tree: Tree, job: JobBuilder, call: Call | None, place: Place) -> None:
    where = ("float8", "quantize.linear.float8", "quantize.dense.float8")
    given = dict(call.keywords) if call else {}
    recipe = given.get("recipe_name") or tree.value(*(f"{w}.recipe_name" for w in where))
    gather = given.get("enable_fsdp_float8_all_gather")
    if gather is None:
        gather = tree.value(*(f"{w}.enable_fsdp_float8_all_gather" for w in where))
    said = "tensorwise" if unset(recipe) else str(recipe).lower()
    if said.startswith("rowwise") or said == "tensorwise":
        kind = "row" if said.startswith("row") else "tensor"
        job.state("switch.fp8-scaling", kind, place, override=True)
    if isinstance(gather, bool):
        job.state("switch.fp8-params", "on" if gather else "off", place, override=True)


def _old_float8(tree: Tree, job: JobBuilder) -> None:
    """2024: ``training.fp8_linear = "dynamic"`` or ``float8.enable_float8_linear = true``."""
    said = word_of(tree, "training.fp8_linear")
    on = truth_of(tree, "float8.enable_float8_linear", "training.enable_fp8_linear")
    place = tree.place("training.fp8_linear", "float8.enable_float8_linear",
                       "training.enable_fp8_linear")  # fmt: skip
    if said or on:
        job.state("precision", "fp8", place, override=True)
        _float8(tree, job, None, place)
        if said == "delayed":
            job.state("switch.fp8-scaling", "delayed", place, override=True)


def _other(tree: Tree, job: JobBuilder, complete: bool) -> None:
    tp = job.number("tp")
    said = truth_of(tree, *section_keys("enable_sequence_parallel"))
    if said is not None:
        place = tree.place(*section_keys("enable_sequence_parallel"))
        job.state("sp", said and tp != 1, place, override=True)
    elif tp is not None:
        job.default("sp", tp > 1, "norms and residuals are cut over the tensor ranks")
    if complete:
        job.default("optimizer", "adamw", "AdamW unless set")
    made = (word_of(tree, "optimizer._target_") or "").lower()
    for name in ("adamw", "muon"):
        if name in made:
            job.state("optimizer", name, tree.place("optimizer._target_"), override=True)
    loss = (word_of(tree, "loss._target_") or "").lower()
    if "chunked" in loss:
        job.state("switch.loss", "chunked", tree.place("loss._target_"), override=True)
    overlap = job.setting("switch.overlap-tp")
    if overlap is not None and overlap.value == "on" and tp == 1:
        job.drop("switch.overlap-tp")
        job.note("asynchronous tensor parallelism does nothing with tp = 1")
    _one_expert_rank(job)
    if complete:
        fall_back(job, _DEFAULTS)
        if job.number("pp") == 1:
            fall_back(job, _ONE_STAGE)


_DEFAULTS: Defaults = {
    "offload": (False, "enable_cpu_offload is false"),
    "finetune": ("none", "all weights are trained"),
    "state.weight": (4, "weights are kept in float32"),
    "state.gradient": (4, "gradients are kept in float32"),
    "state.master": (0, "weights are kept in float32"),
    "state.moments": (8, "two float32 moments"),
    "switch.overlap-tp": ("off", "enable_async_tensor_parallel is false"),
    "switch.cuda-graphs": ("none", "nothing is captured"),
    "switch.attention": ("fused", "scaled_dot_product_attention"),
    "switch.offload-activations": ("off", "activations stay on the device"),
}
_ONE_STAGE: Defaults = {
    "vpp": (1, "no pipeline"),
    "schedule": ("1f1b", "pipeline_parallel_schedule is 1F1B"),
}


def _one_expert_rank(job: JobBuilder) -> None:
    etp = job.setting("etp")
    if etp is not None and etp.basis is Basis.STATED and not (job.number("ep") or 1) > 1:
        job.drop("etp")
