"""torchtitan: TOML files of all generations, and Python recipes."""

from __future__ import annotations

import math

from krzem.jobs.job import Basis, JobBuilder, Place
from krzem.jobs.titan_keys import LOOPED, OTHER_SCHEDULES, SCHEDULES, SECTIONS, TABLE
from krzem.jobs.tree import (
    Call,
    Open,
    Tree,
    UnclearError,
    apply,
    integer,
    listed,
    show,
    truth,
    unset,
    word,
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
    _pipeline(tree, job, complete)
    _batch(tree, job, complete)
    _other(tree, job, complete)


def _number(tree: Tree, *keys: str) -> int | None:
    """A whole number of the first key that has one; None where it is open or unreadable."""
    value = tree.value(*keys)
    try:
        return None if value is None or isinstance(value, Open) else integer(value)
    except UnclearError:
        return None


def _truth(tree: Tree, *keys: str) -> bool | None:
    value = tree.value(*keys)
    try:
        return None if value is None or isinstance(value, Open) else truth(value)
    except UnclearError:
        return None


def _word(tree: Tree, *keys: str) -> str | None:
    value = tree.value(*keys)
    try:
        return None if unset(value) or isinstance(value, Open) else word(value)
    except UnclearError:
        return None


def _keys(name: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for section in SECTIONS)


def _model(tree: Tree, job: JobBuilder) -> None:
    """A name in a table of the engine's code; the shape is not in the file."""
    spec = tree.value("model_spec.0", "model_spec.flavor", "model.flavor")
    family = _word(tree, "model.name") or ""
    flavor = show(spec).strip("'") if isinstance(spec, str | int) else ""
    place = tree.place("model_spec.0", "model_spec.flavor", "model.flavor", "model.name")
    name = " ".join(part for part in (family, flavor) if part)
    base = tree.value("_target_")
    if not name and isinstance(base, str) and not base.endswith("Config"):
        name, place = base.rpartition(".")[2], tree.place("_target_")
    if name:
        job.state("model.name", name, place)


def _degrees(tree: Tree, job: JobBuilder, complete: bool) -> None:
    why = "degrees that are not set are 1"
    if complete:
        for name in ("tp", "pp", "cp"):
            job.default(name, 1, why)
    shard = _number(tree, *_keys("data_parallel_shard_degree"), "training.data_parallel_degree")
    copies = _number(tree, *_keys("data_parallel_replicate_degree"))
    if copies is None and complete:
        copies = 1
    place = tree.place(*_keys("data_parallel_shard_degree"), "training.data_parallel_degree",
                       *_keys("data_parallel_replicate_degree"))  # fmt: skip
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
    key = _keys("fsdp_reshard_after_forward")
    policy = (_word(tree, *key) or ("default" if complete else "")).lower()
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
    mode = _word(tree, "activation_checkpoint.mode")
    made = _word(tree, "activation_checkpoint._target_")
    key = "activation_checkpoint.mode" if mode else "activation_checkpoint._target_"
    place = tree.place(key, "activation_checkpoint")
    if mode is None and made is not None:
        name = made.lower().removesuffix(".config").rpartition(".")[2]
        kind = _CLASSES.get(name)
        if kind:
            job.state("recompute", kind, place, override=True)
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
        layers, pp = job.number("model.layers"), job.number("pp")
        if layers and pp:
            some = layers // pp // every
            job.derive("rlayers", some, f"every {every}nd of {layers // pp} layers", place)


def _compile(tree: Tree, job: JobBuilder, complete: bool) -> None:
    on = _truth(tree, "compile.enable")
    if on is None:
        if complete:
            job.default("switch.compile", "off", "compilation is off unless it is enabled")
        return
    parts = tree.value("compile.components")
    model = parts is None or isinstance(parts, Open) or "model" in listed(parts)
    choice = "on" if on and model else "off"
    job.state("switch.compile", choice, tree.place("compile.enable"), override=True)


def _converters(tree: Tree) -> list[tuple[str, Call | None, Place]]:
    """Converters of the model, by name in lower case."""
    found: list[tuple[str, Call | None, Place]] = []
    for key in ("model.converters", "model_spec.converters", "model_converters.converters"):
        value = tree.value(key)
        parts = (
            value if isinstance(value, list) else listed(value) if isinstance(value, str) else ()
        )
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
    if complete:
        job.default("precision", "bf16", "products are in bfloat16 unless set")
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
    said = _word(tree, "training.fp8_linear")
    on = _truth(tree, "float8.enable_float8_linear", "training.enable_fp8_linear")
    place = tree.place("training.fp8_linear", "float8.enable_float8_linear",
                       "training.enable_fp8_linear")  # fmt: skip
    if said or on:
        job.state("precision", "fp8", place, override=True)
        _float8(tree, job, None, place)
        if said == "delayed":
            job.state("switch.fp8-scaling", "delayed", place, override=True)


def _pipeline(tree: Tree, job: JobBuilder, complete: bool) -> None:
    pp = job.number("pp")
    if pp is None or pp == 1:
        return
    key = _keys("pipeline_parallel_schedule")
    said, place = _word(tree, *key), tree.place(*key)
    kind = SCHEDULES.get((said or "1f1b").lower())
    looped = kind in LOOPED
    if said is not None and kind is None:
        looped = OTHER_SCHEDULES.get(said.lower(), 1) > 1
        job.not_understood(place, f"schedule {said} is none of {', '.join(SCHEDULES)}")
        job.ask("schedule", f"the file names {said}", "say the nearest schedule")
    elif said is not None and kind is not None:
        job.state("schedule", kind, place, override=True)
    elif complete:
        job.default("schedule", "1f1b", "the schedule is 1F1B unless set")
    _stages(tree, job, pp, looped)


def _stages(tree: Tree, job: JobBuilder, pp: int, looped: bool) -> None:
    job.uneven = "the first and last stage hold fewer layers"
    counts = _layers_of_parts(tree)
    names = ("module_fqns_per_model_part", "module_fqns_per_model_part.0",
             "pipeline_parallel_split_points")  # fmt: skip
    place = tree.place(*(k for name in names for k in _keys(name)))
    points = tree.value(*_keys("pipeline_parallel_split_points"))
    parts = len(counts) if counts else 0
    if not parts and isinstance(points, list | str) and listed(points):
        parts = len(listed(points)) + 1
    layers = job.number("model.layers")
    per_stage = _number(tree, *_keys("pipeline_parallel_layers_per_stage"))
    if not parts and layers and per_stage:
        ends = [_number(tree, *_keys(f"pipeline_parallel_{end}_stage_less_layers"))
                for end in ("first", "last")]  # fmt: skip
        parts = math.ceil((layers + sum(1 if n is None else n for n in ends)) / per_stage)
    if parts and parts % pp == 0:
        job.derive("vpp", parts // pp, f"{parts} stages on pp = {pp} ranks", place)
    elif per_stage is None and not parts:
        job.derive("vpp", 2 if looped else 1, "stages on a rank of this schedule", place)
    if counts and len(counts) == pp:
        job.derive("first", counts[0], "layers of the first stage", place)
        job.derive("last", counts[-1], "layers of the last stage", place)


def _layers_of_parts(tree: Tree) -> list[int]:
    """Layers of each stage, from lists of module names or a list of counts."""
    counts = tree.value(*_keys("module_fqns_per_model_part.0"))
    if isinstance(counts, list) and all(type(n) is int for n in counts):
        return counts
    parts = tree.value(*_keys("module_fqns_per_model_part"))
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        return []
    return [sum(str(name).startswith("layers.") for name in part) for part in parts]


def _batch(tree: Tree, job: JobBuilder, complete: bool) -> None:
    keys = ("training.local_batch_size", "training.batch_size")
    local, place = _number(tree, *keys), tree.place(*keys)
    if tree.has("training.num_tokens_per_microbatch_per_dp_rank"):
        _token_batch(tree, job)
        return
    if local is None or local < 1:
        return
    pp = job.number("pp")
    if pp is None:
        return
    if pp == 1:
        job.state("mbs", local, place, override=True)
        passes = 1
    else:
        size = _micro_batch(tree, job, local, pp)
        if size is None:
            return
        at = tree.place(*_keys("pipeline_parallel_microbatch_size"),
                        *_keys("pipeline_parallel_microbatches"))  # fmt: skip
        job.derive("mbs", size, f"{local} sequences of a rank in {local // size} micro-batches", at)
        passes = local // size
    if job.number("global_batch") is None and complete and job.number("accumulation") is None:
        job.derive("accumulation", passes, "no global batch size: one pass over the local batch")


def _micro_batch(tree: Tree, job: JobBuilder, local: int, pp: int) -> int | None:
    """Sequences of a pipeline's micro-batch."""
    pieces = _number(tree, *_keys("pipeline_parallel_microbatches"))
    size = _number(tree, *_keys("pipeline_parallel_microbatch_size"))
    if size is not None and size > 0:
        return size
    if pieces is None and tree.has("training.batch_size"):
        if (job.number("vpp") or 1) > 1:
            job.ask("mbs", "the number of pipeline micro-batches is not set and its default"
                    " changed from stages to ranks between releases", "give sequences")  # fmt: skip
            return None
        pieces = pp
    if pieces is not None and pieces > 0:
        return local // pieces if local % pieces == 0 else None
    return 1


def _token_batch(tree: Tree, job: JobBuilder) -> None:
    """Since the summer of 2026 batches are counted in tokens."""
    key, whole = (
        "training.num_tokens_per_microbatch_per_dp_rank",
        "training.num_tokens_per_train_step",
    )
    tokens, seq, total = _number(tree, key), job.number("seq"), _number(tree, whole)
    if tokens and seq and tokens % seq == 0:
        job.derive("mbs", tokens // seq, f"{tokens} tokens / {seq}", tree.place(key))
    if total and total > 0 and seq and total % seq == 0:
        job.derive("global_batch", total // seq, f"{total} tokens / {seq}", tree.place(whole))
    elif total is None or total < 0:
        pieces = _number(tree, *_keys("num_pp_microbatches")) or 1
        pp = job.number("pp")
        if pp is not None:
            job.derive("accumulation", pieces if pp > 1 else 1, "no tokens per step: one pass")


def _other(tree: Tree, job: JobBuilder, complete: bool) -> None:
    tp = job.number("tp")
    said = _truth(tree, *_keys("enable_sequence_parallel"))
    if said is not None:
        place = tree.place(*_keys("enable_sequence_parallel"))
        job.state("sp", said and tp != 1, place, override=True)
    elif tp is not None:
        job.default("sp", tp > 1, "norms and residuals are cut over the tensor ranks")
    if complete:
        job.default("optimizer", "adamw", "AdamW unless set")
    made = (_word(tree, "optimizer._target_") or "").lower()
    for name in ("adamw", "muon"):
        if name in made:
            job.state("optimizer", name, tree.place("optimizer._target_"), override=True)
    loss = (_word(tree, "loss._target_") or "").lower()
    if "chunked" in loss:
        job.state("switch.loss", "chunked", tree.place("loss._target_"), override=True)
    overlap = job.setting("switch.overlap-tp")
    if overlap is not None and overlap.value == "on" and tp == 1:
        job.drop("switch.overlap-tp")
        job.note("asynchronous tensor parallelism does nothing with tp = 1")
    _one_expert_rank(job)


def _one_expert_rank(job: JobBuilder) -> None:
    etp = job.setting("etp")
    if etp is not None and etp.basis is Basis.STATED and not (job.number("ep") or 1) > 1:
        job.drop("etp")
