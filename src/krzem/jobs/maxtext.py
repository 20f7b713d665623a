"""MaxText: ``base.yml``, a model's file, a configuration, and ``key=value`` on the command line.

Defaults are those of ``configs/base.yml``; a model that is named and whose file is not given
leaves its shape open.
"""

from __future__ import annotations

import math

from krzem.jobs.job import JobBuilder
from krzem.jobs.maxtext_keys import ARITHMETIC, MESH, TABLE
from krzem.jobs.tree import (
    Defaults,
    Entry,
    Open,
    Tree,
    apply,
    fall_back,
    number,
    real,
    truth_of,
    unset,
    word_of,
)

_DEFAULTS: Defaults = {
    "seq": (2048, "max_target_length is 2048"),
    "accumulation": (1, "gradient_accumulation_steps is 1"),
    "precision": ("bf16", "dtype is bfloat16"),
    "optimizer": ("adamw", "opt_type is adamw"),
    "offload": (False, "optimizer_memory_host_offload is false"),
    "finetune": ("none", "the trainer trains all weights"),
    "recompute": ("full", "remat_policy is full"),
    "switch.attention": ("fused", "attention is chosen among fused kernels"),
    "switch.offload-activations": ("off", "no part of the remat policy is offloaded"),
}


def read_settings(tree: Tree, job: JobBuilder, *, complete: bool = True) -> None:
    """Everything that the merged settings decide; ``complete``: the rest is at its default."""
    base = [k for k, e in tree.entries.items() if e.place.file.endswith("base.yml")]
    apply(tree, TABLE, job, skip=[k for k in base if TABLE.reader(k) is None])
    _model(tree, job)
    _quantization(tree, job)
    _recompute(tree, job)
    if not complete:
        for name in ("tp", "mbs", "seq"):
            job.ask(name, "a configuration that was not given decides it", "give that file")
        return
    _mesh(tree, job)
    _batch(tree, job)
    _states(tree, job)
    fall_back(job, _DEFAULTS)


def _axis(tree: Tree, name: str) -> int | None:
    """ici * dcn ranks of an axis; None where one of them takes what is left or is open."""
    total = 1
    for level, default in (("ici", MESH[name][0]), ("dcn", MESH[name][1])):
        key = f"{level}_{name}_parallelism"
        value = number(tree, key)
        if value is None:
            value = None if isinstance(tree.value(key), Open) else default
        if value is None or value < 1:
            return None
        total *= value
    return total


def _mesh(tree: Tree, job: JobBuilder) -> None:
    """Axes of the mesh; with the number of devices and one level, ``-1`` is found."""
    tree = _filled(tree, job)
    known = {name: _axis(tree, name) for name in MESH}

    def product(*names: str) -> int | None:
        values = [known[n] for n in names]
        return None if any(v is None for v in values) else math.prod(v or 1 for v in values)

    groups = {
        "tp": ("tensor", "tensor_sequence", "tensor_transpose"), "pp": ("pipeline",),
        "cp": ("context", "sequence"), "ep": ("expert",),
        "dp": ("data", "fsdp", "fsdp_transpose", "expert", "diloco"),
    }  # fmt: skip
    for field, names in groups.items():
        total = product(*names)
        keys = [f"{level}_{n}_parallelism" for n in names for level in ("ici", "dcn")]
        said = [k for k in keys if k in tree.entries]
        if total is None or (field == "ep" and total == 1 and not said):
            continue
        if said:
            job.state(field, total, tree.place(*said), override=field != "dp")
        elif field != "dp":
            job.default(field, total, f"no {names[0]} axis")
    if (job.number("model.experts") or 0) > 1 and job.number("tp"):
        job.default("etp", job.number("tp") or 1, "experts are cut over the tensor axis")
    _shards(tree, job, known)


def _filled(tree: Tree, job: JobBuilder) -> Tree:
    """The tree with ``-1`` replaced where the other axes and the devices decide it."""
    devices = job.number("devices")
    local = job.number("devices_per_node")
    keys = {level: [f"{level}_{n}_parallelism" for n in MESH] for level in ("ici", "dcn")}
    values = {k: number(tree, k) for level in keys for k in keys[level]}
    for index, level in enumerate(("ici", "dcn")):
        for name in MESH:
            key = f"{level}_{name}_parallelism"
            if values[key] is None and not isinstance(tree.value(key), Open):
                values[key] = MESH[name][index]
    ici = [values[k] for k in keys["ici"]]
    dcn = [values[k] for k in keys["dcn"]]
    inside = _whole(ici)
    outside = _whole(dcn)
    slices = job.number("nodes")
    per_slice = devices // slices if devices and slices and devices % slices == 0 else local
    if devices and inside and outside is None and devices % inside == 0:
        outside = devices // inside
    if devices and outside and inside is None and devices % outside == 0:
        inside = devices // outside
    if devices is None and inside and outside and "ici_fsdp_parallelism" in tree.entries:
        job.derive("devices", inside * outside, "the product of all axes of the mesh")
    inside = inside or per_slice
    found = Tree(dict(tree.entries))
    for level, total in (("ici", inside), ("dcn", outside)):
        _put_rest(found, keys[level], values, total)
    return found


def _whole(values: list[int | None]) -> int | None:
    """The product of axes when none takes what is left."""
    if any(v is None or v < 1 for v in values):
        return None
    return math.prod(v or 1 for v in values)


def _put_rest(
    tree: Tree, keys: list[str], values: dict[str, int | None], total: int | None
) -> None:
    rest = [k for k in keys if values[k] == -1]
    others = [values[k] for k in keys if values[k] != -1]
    if len(rest) != 1 or not total or any(v is None or v < 1 for v in others):
        return
    known = math.prod(v or 1 for v in others)
    if total % known == 0:
        tree.put(Entry(key=rest[0], value=total // known, place=tree.place(rest[0])))


def _shards(tree: Tree, job: JobBuilder, known: dict[str, int | None]) -> None:
    """Weights are cut over the fsdp axes: ZeRO 3 over that many ranks."""
    ways = [known["fsdp"], known["fsdp_transpose"]]
    places = [f"{level}_fsdp_parallelism" for level in ("ici", "dcn")]
    place = tree.place(*places)
    if None in ways:
        job.derive("zero", 3, "weights are cut over the fsdp axis that takes what is left", place)
        return
    total = math.prod(w or 1 for w in ways)
    if total == 1 and truth_of(tree, "shard_optimizer_over_data"):
        job.derive("zero", 1, "shard_optimizer_over_data", tree.place("shard_optimizer_over_data"))
        return
    if total == 1:
        job.derive("zero", 0, "no fsdp axis: weights are copied", place)
        return
    job.derive("zero", 3, f"weights are cut over fsdp = {total} ranks", place)
    dp = job.number("dp") or _data_ranks(job)
    if known["data"] != 1 and (dp is None or (total < dp and dp % total == 0)):
        along = (job.number("cp") or 1) * (job.number("ep") or 1)
        job.derive("shard", total * along, "ranks of the fsdp, context and expert axes", place)


def _data_ranks(job: JobBuilder) -> int | None:
    """Ranks that the degrees leave of the devices."""
    devices, used = job.number("devices"), [job.number(n) for n in ("tp", "cp", "pp")]
    if devices is None or any(n is None for n in used):
        return None
    return devices // math.prod(n or 1 for n in used)


def _batch(tree: Tree, job: JobBuilder) -> None:
    """per_device_batch_size * devices sequences a pass, over dp ranks."""
    value = tree.value("per_device_batch_size")
    place = tree.place("per_device_batch_size")
    if value is None or isinstance(value, Open):
        return
    try:
        each = real(value)
    except ValueError:
        return
    ways = [job.number(n) for n in ("tp", "cp", "pp")]
    if any(w is None for w in ways):
        return
    rank = each * math.prod(w or 1 for w in ways)
    pieces = number(tree, "num_pipeline_microbatches")
    if (job.number("pp") or 1) > 1:
        if pieces is None or pieces < 1 or rank % pieces:
            return
        if (number(tree, "gradient_accumulation_steps") or 1) == 1:
            job.drop("accumulation")
        job.derive("accumulation", pieces, f"num_pipeline_microbatches = {pieces}", place)
        rank /= pieces
    if rank >= 1 and rank == int(rank):
        job.derive(
            "mbs", int(rank), f"{each:g} a device * {rank / each:g} devices of a rank", place
        )
    devices = job.number("devices")
    passes = number(tree, "gradient_accumulation_steps") or 1
    total = each * (devices or 0) * passes
    if total >= 1 and total == int(total):
        job.derive("global_batch", int(total), f"{each:g} * {devices} devices * {passes}", place)


def _model(tree: Tree, job: JobBuilder) -> None:
    heads, kv = job.number("model.heads"), job.number("model.kv_heads")
    parts = tree.value("mlp_activations")
    if isinstance(parts, list):
        job.state("model.gated", len(parts) > 1, tree.place("mlp_activations"))
    if word_of(tree, "attention_type") == "mla":
        job.state("model.attention", "mla", tree.place("attention_type"))
    elif heads and kv:
        kind = "mha" if heads == kv else "mqa" if kv == 1 else "gqa"
        job.derive("model.attention", kind, f"{kv} of {heads} heads")
    experts = job.number("model.experts")
    shared, width = job.number("model.shared_experts"), job.number("model.moe_ffn")
    if experts and shared is not None and width is not None:
        job.derive("model.shared_ffn", shared * width, f"{shared} * {width}")
    block = (word_of(tree, "decoder_block") or "").lower()
    if block and block not in ("gpt3", "simple", "simple_mlp"):
        job.default("model.positions", "rope", f"decoder_block {block}")
    if truth_of(tree, "use_random_routing"):
        job.state("switch.routing", "balanced", tree.place("use_random_routing"), override=True)
        return
    factor = tree.value("capacity_factor")
    if experts and not unset(factor) and not isinstance(factor, Open):
        try:
            dropping = real(factor) > 0 and truth_of(tree, "sparse_matmul") is False
        except ValueError:
            return
        choice = "capacity" if dropping else "real"
        job.state("switch.routing", choice, tree.place("capacity_factor"), override=True)


def _quantization(tree: Tree, job: JobBuilder) -> None:
    said = (word_of(tree, "quantization") or "").lower()
    if not said or said == "none":
        return
    place = tree.place("quantization")
    if said not in ARITHMETIC:
        job.not_understood(place, f"quantization {said!r} is none of {', '.join(ARITHMETIC)}")
        job.ask("precision", f"quantization = {said}", "say precision=…")
        return
    precision, scaling = ARITHMETIC[said]
    job.state("precision", precision, place, override=True)
    if scaling:
        job.state("switch.fp8-scaling", scaling, place, override=True)


_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def _states(tree: Tree, job: JobBuilder) -> None:
    kind = word_of(tree, "weight_dtype")
    place = tree.place("weight_dtype")
    size = _BYTES.get(kind or "float32")
    if size is None:
        return
    moment = _BYTES.get(word_of(tree, "mu_dtype") or "", size)
    parts = {"weight": size, "master": 0, "moments": moment + size}
    gradient = word_of(tree, "grad_dtype")
    if gradient in _BYTES:
        parts["gradient"] = _BYTES[gradient]
    for name, value in parts.items():
        if kind is None:
            job.default(f"state.{name}", value, "weight_dtype is float32")
        else:
            job.derive(f"state.{name}", value, f"weight_dtype is {kind}", place)


def _recompute(tree: Tree, job: JobBuilder) -> None:
    policy = (word_of(tree, "remat_policy") or "").lower()
    if not policy:
        return
    place = tree.place("remat_policy")
    if policy in ("full", "none"):
        job.state("recompute", policy, place, override=True)
    elif policy != "custom":
        job.state("recompute", "modules", place, override=True)
    if policy == "custom":
        _custom(tree, job)
    elif "offload" in policy:
        job.state("switch.offload-activations", "on", place, override=True)


_PARTS = ("query_proj", "key_proj", "value_proj", "qkv_proj", "out_proj", "mlpwi", "mlpwi_0",
          "mlpwi_1", "mlpwo", "context", "decoder_layer_input", "kv_proj", "moe_mlpwi_0",
          "moe_mlpwi_1", "moe_mlpwo", "mla_kv", "mla_q", "attention_out",
          "query_wa_proj", "kv_wa_proj")  # fmt: skip


def _custom(tree: Tree, job: JobBuilder) -> None:
    """Each part of a layer is kept on the device, in host memory, or computed again."""
    said = {name: word_of(tree, name) for name in _PARTS}
    place = tree.place("remat_policy")
    kept = [n for n, v in said.items() if v in ("device", "offload") and n != "decoder_layer_input"]
    job.state("recompute", "modules" if kept else "full", place, override=True)
    offloaded = [n for n, v in said.items() if v == "offload"]
    if offloaded:
        job.state("switch.offload-activations", "on", tree.place(offloaded[0]), override=True)
