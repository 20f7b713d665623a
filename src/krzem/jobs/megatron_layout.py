"""What Megatron's arguments say about how the work is cut and how long it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping

from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.megatron_arguments import LONGEST_PATTERN, Arguments

_OWN = ("megatron-lm", "mindspeed-llm")
"""Engines whose optimizer is Megatron's own."""
_CONTEXT: Mapping[str, str] = {
    "p2p": "ring", "a2a": "a2a", "allgather": "allgather", "all_gather": "allgather",
    "ulysses_cp_algo": "a2a", "megatron_cp_algo": "ring", "kvallgather_cp_algo": "allgather",
}  # fmt: skip
_STRATEGIES: Mapping[str, int] = {
    "no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3,
}  # fmt: skip
_CHUNKS = ("--num-layers-per-virtual-pipeline-stage", "--num-virtual-stages-per-pipeline-rank")
_LAYOUT = "--pipeline-model-parallel-layout"
_MODULES = ("--recompute-activation-function", "--recompute-norm", "--moe-layer-recompute",
            "--recompute-mla-up-proj")  # fmt: skip
_WHOLE = ("--checkpoint-activations", "--deepspeed-activation-checkpointing")


def layout(args: Arguments, job: JobBuilder, mindspeed: bool) -> None:
    """Every field of the layout that the arguments decide."""
    _experts(args, job)
    flat = args.find("--no-pipeline-parallel")
    if flat is not None:
        job.state("pp", 1, flat.place, override=True)
    _pipeline(args, job, mindspeed)
    _sequence(args, job)
    _context(args, job, mindspeed)
    _zero(args, job)
    _recompute(args, job)
    _length(args, job)


def _experts(args: Arguments, job: JobBuilder) -> None:
    if job.setting("model.experts") is None:
        args.find("--expert-model-parallel-size", "--expert-tensor-parallel-size")
        return
    ep = args.number("ep", "--expert-model-parallel-size", "--moe-expert-parallel-size")
    etp = args.number("etp", "--expert-tensor-parallel-size")
    extended = args.find("--moe-tp-extend-ep")
    tp = job.number("tp")
    if extended is not None and tp and ep is not None:
        why = f"--moe-tp-extend-ep: {ep[0]} * tp = {tp}"
        job.derive("ep", ep[0] * tp, why, ep[1])
        job.derive("etp", 1, "--moe-tp-extend-ep: experts are not cut", extended.place)
        return
    if ep is not None:
        job.state("ep", *ep)
    else:
        job.default("ep", 1, "--expert-model-parallel-size 1")
    if etp is not None:
        job.state("etp", *etp)
    elif tp:
        job.default("etp", tp, "--expert-tensor-parallel-size: that of the tensor degree")


def _pipeline(args: Arguments, job: JobBuilder, mindspeed: bool) -> None:
    text = args.text("vpp", _LAYOUT)
    pp, layers = job.number("pp"), job.padded_layers or job.number("model.layers")
    _ends(args, job)
    if job.engine == "megatron-deepspeed":
        _partition(args, job, pp, layers)
    if mindspeed:
        _listed(args, job, pp)
    if text is not None and pp:
        _laid_out(text[0], text[1], job, pp)
    elif not args.open(_LAYOUT, *_CHUNKS) and pp:
        _virtual(args, job, pp, layers)
    _schedule(args, job)
    _emptied(args, job, pp)


_MOST_LAYERS = 10_000


def _emptied(args: Arguments, job: JobBuilder, pp: int | None) -> None:
    """Layers of the end ranks, where layers that do nothing make chunks equally deep."""
    found, padded, vpp = args.find("--noop-layers"), job.padded_layers, job.number("vpp")
    if found is None or not padded or padded < 1 or not pp or pp < 1 or not vpp or vpp < 1:
        return
    if padded > _MOST_LAYERS or padded % (pp * vpp):
        return
    deep, folded = padded // (pp * vpp), job.get("schedule") == "dualpipev"
    ranks = [0] * pp
    for place in set(range(padded)) - job.empty_layers:
        stage = place // deep
        back = folded and stage >= pp
        ranks[2 * pp - 1 - stage if back else stage % pp] += 1
    if len(set(ranks)) > 1:
        job.derive("first", ranks[0], "layers of the first rank that do something", found.place)
        job.derive("last", ranks[-1], "layers of the last rank that do something", found.place)


def _ends(args: Arguments, job: JobBuilder) -> None:
    ends = {
        "first": ("--decoder-first-pipeline-num-layers", "--num-layers-in-first-pipeline-stage"),
        "last": ("--decoder-last-pipeline-num-layers", "--num-layers-in-last-pipeline-stage"),
    }
    for field, flags in ends.items():
        found = args.number(field, *flags)
        if found is not None:
            job.state(field, *found)
            job.uneven = "the end stages hold their own numbers of layers"
    for flag in ("embedding", "loss"):
        if args.has(f"--account-for-{flag}-in-pipeline-split"):
            job.uneven = f"the {flag} counts as a layer of its stage"


def _partition(args: Arguments, job: JobBuilder, pp: int | None, layers: int | None) -> None:
    """DeepSpeed's pipeline takes any number of layers; embeddings may count as layers."""
    job.uneven = "DeepSpeed divides the layers itself"
    method = args.find("--pp-partition-method", "--pipe-partition-method")
    items = method is not None and "embedding" in method.text and layers and pp and pp > 1
    if method is not None and items and layers and pp and (layers + 2) % pp == 0:
        each = (layers + 2) // pp
        why = f"({layers} layers + 2 embeddings) / {pp} stages, less the embedding"
        job.derive("first", each - 1, why, method.place)
        job.derive("last", each - 1, why, method.place)


def _virtual(args: Arguments, job: JobBuilder, pp: int, layers: int | None) -> None:
    count = args.number("vpp", _CHUNKS[1])
    each = args.number("vpp", _CHUNKS[0])
    if count is not None:
        job.state("vpp", *count)
    elif each is None:
        job.default("vpp", 1, f"no {_CHUNKS[0]}")
    elif args.has("--num-layer-list"):
        job.note("stages of unequal size are cut into chunks: how many follows from the engine")
    elif layers:
        extra = sum(
            args.has(f"--account-for-{part}-in-pipeline-split") for part in ("embedding", "loss")
        )
        size, place = each
        counted = layers + extra
        if size < 1 or counted % pp or counted // pp % size:
            job.fault(
                place,
                f"{counted} layers / {pp} stages / {size} layers per virtual stage is no whole"
                " number of virtual stages",
            )
        elif pp == 1:
            job.fault(place, f"{_CHUNKS[0]} needs more than one pipeline stage")
        else:
            why = f"{counted} layers / {pp} stages / {size} per virtual stage"
            job.derive("vpp", counted // pp // size, why, place)
    if layers and pp > 1:
        _counted_ends(args, job, pp, layers)
    if count is None and each is None and job.uneven is None and layers and layers % pp:
        job.fault(
            job.line("pp", "model.layers"), f"{layers} layers do not divide by pp = {pp} stages"
        )


def _counted_ends(args: Arguments, job: JobBuilder, pp: int, layers: int) -> None:
    """Layers of the end stages where the embedding, the loss or both count as one."""
    ends = {"first": "embedding", "last": "loss"}
    counted = {f: n for f, n in ends.items() if args.has(f"--account-for-{n}-in-pipeline-split")}
    total = layers + len(counted)
    if total % pp or job.number("first") is not None or job.number("last") is not None:
        return
    for field, name in counted.items():
        job.derive(field, total // pp - 1, f"{total} / {pp} stages, the {name} counted as a layer")


def stage_sizes(text: str) -> list[int] | None:
    """Decoder layers of each chunk of a layout string such as ``Et*3|(tt|)*29,mL``."""
    if len(text) > LONGEST_PATTERN:
        return None
    flat = _expanded(text.strip("'\" ").replace(",", "").replace(" ", ""))
    if flat is None or not re.fullmatch(r"[EtmL|]+", flat):
        return None
    return [chunk.count("t") for chunk in flat.split("|")]


def _expanded(text: str) -> str | None:
    """The string with every ``(…)*n`` and ``t*n`` written out; None where it is too long."""
    while (match := re.search(r"\(([^()]*)\)\*(\d{1,4})|([EtmL|])\*(\d{1,4})", text)) is not None:
        body, times = (match[1], match[2]) if match[2] else (match[3], match[4])
        if len(body) * int(times) + len(text) > 100_000:
            return None
        text = text[: match.start()] + body * int(times) + text[match.end() :]
    return text


def _laid_out(text: str, place: Place, job: JobBuilder, pp: int) -> None:
    sizes = stage_sizes(text)
    if sizes is None:
        job.not_understood(place, f"{text[:60]!r} is no layout of a pipeline")
        return
    if len(sizes) % pp:
        job.fault(place, f"the layout has {len(sizes)} chunks, no multiple of pp = {pp}")
        return
    layers = job.number("model.layers")
    if layers is not None and sum(sizes) != layers:
        job.fault(place, f"the layout holds {sum(sizes)} layers, but the model has {layers}")
    job.derive("vpp", len(sizes) // pp, f"{len(sizes)} chunks on {pp} stages", place)
    ranks = [sum(sizes[rank::pp]) for rank in range(pp)]
    job.uneven = "stages as the layout says"
    if len(set(ranks)) > 1:
        job.derive("first", ranks[0], "layers of the chunks of the first rank", place)
        job.derive("last", ranks[-1], "layers of the chunks of the last rank", place)


def _listed(args: Arguments, job: JobBuilder, pp: int | None) -> None:
    """MindSpeed's ``--num-layer-list 8,7,7,6``."""
    found = args.find("--num-layer-list")
    if found is None or not re.fullmatch(r"\d{1,4}(,\d{1,4})*", found.text):
        return
    total, layers = sum(map(int, found.text.split(","))), job.number("model.layers")
    if layers is not None and total not in (layers, job.padded_layers):
        job.fault(found.place, f"--num-layer-list holds {total} layers, the model has {layers}")
    sizes = [int(part) for part in found.text.split(",")]
    if pp is not None and len(sizes) != pp:
        job.fault(found.place, f"--num-layer-list has {len(sizes)} stages, but pp = {pp}")
    job.uneven = "stages as --num-layer-list says"
    job.state("first", sizes[0], found.place)
    job.state("last", sizes[-1], found.place)


def _schedule(args: Arguments, job: JobBuilder) -> None:
    method = args.text("schedule", "--schedules-method")
    if method is not None and method[0] == "dualpipev":
        job.state("schedule", "dualpipev", method[1])
        job.derive("vpp", 2, "DualPipeV holds two chunks on every rank", method[1])
        return
    if args.has("--enable-zbh1-pipeline", "--use-zb-h1"):
        job.derive("schedule", "zb-h1", "--enable-zbh1-pipeline")
    chunks = job.number("vpp")
    if chunks is None:
        return
    if chunks > 1:
        job.derive("schedule", "interleaved", f"{chunks} chunks on a pipeline rank")
    else:
        job.default("schedule", "1f1b", "no virtual stages")


def _sequence(args: Arguments, job: JobBuilder) -> None:
    flag = args.find("--sequence-parallel")
    tp = job.number("tp")
    if tp == 1:
        job.derive("sp", False, "sequence parallelism does nothing with tp = 1")
    elif flag is not None:
        job.state("sp", True, flag.place)
    elif not args.doubt("sp", "--sequence-parallel"):
        job.default("sp", False, "no --sequence-parallel")


def _context(args: Arguments, job: JobBuilder, mindspeed: bool) -> None:
    cp = job.number("cp")
    if args.has("--ds-sequence-parallel-size") and cp and cp > 1:
        job.derive("cpkind", "a2a", "DeepSpeed's sequence parallelism (Ulysses)")
        return
    kinds = args.find("--cp-comm-type", "--context-parallel-algo")
    if cp is None or cp <= 1:
        return
    if kinds is None:
        why = "--context-parallel-algo megatron_cp_algo" if mindspeed else "--cp-comm-type p2p"
        job.default("cpkind", "ring", why)
        return
    words = {_CONTEXT.get(value) for value in kinds.values}
    if len(words) == 1 and (word := words.pop()) is not None:
        job.state("cpkind", word, kinds.value_place)
    else:
        job.not_understood(kinds.place, f"{kinds.text[:60]!r} mixes kinds of context parallelism")


def _zero(args: Arguments, job: JobBuilder) -> None:
    plain = args.find("--use-distributed-optimizer")
    sharded = args.find("--use-megatron-fsdp", "--use-custom-fsdp")
    full = args.find("--use-torch-fsdp2")
    strategy = args.text("zero", "--data-parallel-sharding-strategy")
    stage = args.number("zero", "--zero-stage")
    if stage is not None and args.has("--deepspeed"):
        job.state("zero", *stage)
    elif full is not None:
        job.state("zero", 3, full.place)
    elif sharded is not None and (strategy is None or strategy[0] in _STRATEGIES):
        level = 3 if strategy is None else _STRATEGIES[strategy[0]]
        job.state("zero", level, sharded.place if strategy is None else strategy[1])
    elif plain is not None:
        job.state("zero", 1, plain.place)
    elif not args.doubt("zero", "--use-distributed-optimizer") and job.engine in _OWN:
        job.default("zero", 0, "no --use-distributed-optimizer")
    instances = args.number("shard", "--num-distributed-optimizer-instances")
    if instances is not None and instances[0] > 1:
        job.instances = instances


def _recompute(args: Arguments, job: JobBuilder) -> None:
    kind = args.text("recompute", "--recompute-granularity", "--checkpoint-granularity")
    method = args.find("--recompute-method", "--checkpoint-method")
    count = args.number("rlayers", "--recompute-num-layers", "--checkpoint-num-layers")
    modules = args.find("--recompute-modules")
    short = args.find("--recompute-activations")
    old = args.find("--checkpoint-activations")
    args.find(*_WHOLE)
    cheap = args.find(*_MODULES)
    if kind is not None and kind[0] == "full":
        job.state("recompute", "full", kind[1])
        _depth(job, method.text if method is not None else "uniform", count, kind[1], args)
    elif old is not None:
        job.state("recompute", "full", old.place)
        _depth(job, method.text if method is not None else "uniform", count, old.place, args)
    elif kind is not None or short is not None:
        place = kind[1] if kind is not None else short.place if short is not None else Place()
        _selected(job, modules.values if modules is not None else ("core_attn",), place)
    elif cheap is not None:
        job.state("recompute", "modules", cheap.place)
        names = tuple(flag.removeprefix("--") for flag in _MODULES if args.has(flag))
        job.state("recompute_modules", names, cheap.place)
    elif not args.open("--recompute-granularity", "--checkpoint-activations") and not (
        args.doubt("recompute", "--recompute-activations")
    ):
        job.default("recompute", "none", "no --recompute-granularity")


def _selected(job: JobBuilder, modules: tuple[str, ...], place: Place) -> None:
    names = tuple(dict.fromkeys(m for value in modules for m in value.split(",") if m))
    if names == ("core_attn",):
        job.state("recompute", "attention", place)
        return
    job.state("recompute", "modules", place)
    job.state("recompute_modules", names, place)


def _depth(
    job: JobBuilder, method: str, count: tuple[int, Place] | None, place: Place, args: Arguments
) -> None:
    """Layers of a pipeline rank that are computed again."""
    layers, pp = job.number("model.layers"), job.number("pp")
    if layers is None or not pp:
        return
    rank = max(job.number("first") or 0, -(-layers // pp))
    if method == "block" and count is not None:
        chunks = 1 if args.has("--enable-recompute-layers-per-pp-rank") else job.number("vpp") or 1
        each = min(count[0] * chunks, rank)
        job.derive("rlayers", each, f"{count[0]} per chunk, {chunks} chunks", count[1])
    elif method == "uniform" and layers % pp == 0:
        job.derive("rlayers", rank, f"uniform: all {rank} layers of a stage", place)


def _length(args: Arguments, job: JobBuilder) -> None:
    samples = args.number("train_tokens", "--train-samples")
    tokens = args.number("train_tokens", "--train-tokens")
    seq = job.number("seq")
    if tokens is not None:
        job.state("train_tokens", *tokens)
    elif samples is not None and seq:
        job.derive("train_tokens", samples[0] * seq, f"{samples[0]} samples * {seq}", samples[1])
    ramp = args.find("--rampup-batch-size")
    if ramp is not None:
        job.note(f"the batch grows first (--rampup-batch-size {ramp.text[:60]}); full size is read")
