"""What is told beside the files of a job: ``--set field=value``, and what its log says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from krzem.errors import InputError, QuantityError, nearest, shorten
from krzem.jobs.job import CHOICES, FIELDS, Basis, Job, JobBuilder, Place, Setting, Value, show
from krzem.quantity import parse_count, parse_length

# Arithmetic that must close
# --------------------------


def close(job: JobBuilder) -> None:
    """Derive what follows and record a fault, with its line, where the numbers cannot be.

    ``devices = nodes * devices_per_node = tp * cp * pp * dp`` and
    ``global_batch = mbs * dp * accumulation``; both are applied until nothing new follows.
    """
    _products(job)
    if job.whole_batch and job.number("global_batch") is None:
        job.default("accumulation", 1, job.whole_batch)
        _product(job, "global_batch", ("mbs", "dp", "accumulation"))
    _experts(job)
    _stages(job)
    _heads(job)
    _shards(job)
    _micro_batches(job)
    _attention(job)
    _length(job)


def _products(job: JobBuilder) -> None:
    """Devices and the batch, each from the other factors, until nothing new follows."""
    for _ in range(4):
        _product(job, "devices", ("nodes", "devices_per_node"))
        _product(job, "devices", ("tp", "cp", "pp", "dp"), job.same_data)
        _product(job, "global_batch", ("mbs", "dp", "accumulation"))


def _product(job: JobBuilder, whole: str, parts: tuple[str, ...], times: int = 1) -> None:
    """``whole`` is ``times`` the product of ``parts``: find one that is missing, or check all."""
    values = {name: job.number(name) for name in parts}
    total = job.number(whole)
    missing = [name for name, value in values.items() if value is None]
    known = times
    for value in values.values():
        known *= 1 if value is None else value
    if known <= 0 or (total is not None and total <= 0):
        return
    factor = [] if times == 1 else [f"{times} that read the same data"]
    text = " * ".join([*(f"{n} = {v}" for n, v in values.items() if v is not None), *factor])
    if total is None and not missing:
        job.derive(whole, known, f"{' * '.join((*parts, *factor))} = {known}")
    elif total is not None and len(missing) <= 1:
        if total % known or (not missing and total != known):
            _mismatch(job, whole, parts, f"{whole} = {total} is not a multiple of {text}"
                      if missing else f"{whole} = {total}, but {text} gives {known}")  # fmt: skip
        elif missing:
            job.derive(missing[0], total // known, f"{whole} = {total} / ({text})")


def _mismatch(job: JobBuilder, whole: str, parts: tuple[str, ...], why: str) -> None:
    place = job.line(whole, *parts)
    if not job.has_fault(why):
        job.fault(place, why)


def _experts(job: JobBuilder) -> None:
    """Experts are cut inside the ranks of one pipeline stage."""
    ep, experts = job.number("ep"), job.number("model.experts")
    if ep is None or ep < 1:
        return
    if experts and experts % ep:
        job.fault(
            job.line("ep", "model.experts"),
            f"ep = {ep} does not divide model.experts = {experts}",
        )
    devices, pp = job.number("devices"), job.number("pp")
    etp = job.number("etp") or 1
    if devices and pp and experts and devices % (ep * etp * pp):
        job.fault(
            job.line("ep", "devices"),
            f"devices = {devices} is not a multiple of ep * etp * pp = {ep} * {etp} * {pp}",
        )


def _stages(job: JobBuilder) -> None:
    layers, pp = job.number("model.layers"), job.number("pp")
    if layers is None or pp is None or pp < 1:
        return
    chunks = pp * (job.number("vpp") or 1)
    ends = job.number("first") is None and job.number("last") is None
    if layers < pp and ends and job.uneven is None:
        job.fault(
            job.line("pp", "model.layers"),
            f"pp = {pp} stages are more than model.layers = {layers}",
        )
    elif layers % chunks and job.uneven is None and job.number("first") is None:
        job.note(f"{layers} layers do not divide evenly over {chunks} pipeline chunks")


def _heads(job: JobBuilder) -> None:
    tp = job.number("tp")
    for name in ("model.heads", "model.kv_heads"):
        heads = job.number(name)
        fits = not heads or not tp or heads % tp == 0
        if not fits and not (name == "model.kv_heads" and tp and heads and tp % heads == 0):
            job.fault(job.line("tp", name), f"tp = {tp} does not divide {name} = {heads}")


def _shards(job: JobBuilder) -> None:
    ranks = (job.number("dp") or 0) * (job.number("cp") or 1)
    if job.instances is not None and ranks and ranks % job.instances[0] == 0:
        count, place = job.instances
        job.derive("shard", ranks // count, f"{ranks} ranks / {count} copies", place)
    shard = job.number("shard")
    if shard and ranks and ranks % shard:
        job.fault(job.line("shard", "dp"), f"shard = {shard} does not divide dp * cp = {ranks}")


def _micro_batches(job: JobBuilder) -> None:
    pp, micro = job.number("pp"), job.number("accumulation")
    if pp is None or micro is None or pp <= 1 or micro >= pp:
        return
    if (job.number("vpp") or 1) > 1:
        job.fault(
            job.line("global_batch", "accumulation", "pp"),
            f"{micro} micro-batches are fewer than pp = {pp} stages:"
            " an interleaved pipeline needs at least as many",
        )
    else:
        job.note(f"{micro} micro-batches on pp = {pp} stages: some stages always wait")


def _attention(job: JobBuilder) -> None:
    heads, kv = job.number("model.heads"), job.number("model.kv_heads")
    if job.number("model.kv_lora_rank"):
        job.derive("model.attention", "mla", "keys and values have a latent rank")
    elif heads and kv:
        kind = "mha" if kv == heads else "mqa" if kv == 1 else "gqa"
        job.derive("model.attention", kind, f"{kv} key-value heads for {heads} heads")


def _length(job: JobBuilder) -> None:
    batch, seq = job.number("global_batch"), job.number("seq")
    if not batch or not seq:
        return
    steps, tokens = job.number("train_steps"), job.number("train_tokens")
    if steps and tokens is None:
        job.derive("train_tokens", steps * batch * seq, f"{steps} steps * {batch} * {seq}")
    elif tokens and steps is None and tokens >= batch * seq:
        job.derive("train_steps", tokens // (batch * seq), f"{tokens} tokens / ({batch} * {seq})")


# What is told beside the files of a job: ``--set field=value``, and what its log says
# ------------------------------------------------------------------------------------

GIVES_WAY: Mapping[str, tuple[str, ...]] = {
    "devices": ("nodes", "dp", "accumulation"),
    "nodes": ("devices", "dp", "accumulation"),
    "devices_per_node": ("nodes",),
    "tp": ("dp", "accumulation"), "pp": ("dp", "accumulation"), "cp": ("dp", "accumulation"),
    "dp": ("devices", "nodes", "accumulation"),
    "mbs": ("accumulation",), "global_batch": ("accumulation", "train_tokens"),
    "accumulation": ("global_batch", "train_tokens"),
    "seq": ("train_tokens",), "train_steps": ("train_tokens",), "train_tokens": ("train_steps",),
    "model.layers": ("rlayers",), "vpp": ("schedule",), "recompute": ("rlayers",),
}  # fmt: skip
"""Whose place is taken by arithmetic where another field is given."""
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_given(texts: Iterable[str]) -> dict[str, Value]:
    """``field=value``, one a text.

    Raises InputError with the fields or choices that there are.
    """
    found: dict[str, Value] = {}
    for text in texts:
        name, equals, raw = (piece.strip() for piece in text.partition("="))
        name = _field(name)
        if not equals or not raw:
            raise InputError(f"--set {shorten(text, 60)!r}: write --set {name}=VALUE")
        if name in found:
            raise InputError(f"--set {name} is given twice: keep one of them")
        found[name] = _value(name, raw)
    return found


def _field(name: str) -> str:
    word = name.replace("model_", "model.") if name.startswith("model_") else name
    for known in (word, f"model.{word}", f"switch.{word}", f"switch.{word.replace('_', '-')}"):
        if known in FIELDS:
            return known
    near = nearest(name, FIELDS)
    offer = f" Did you mean {', '.join(near)}?" if near else ""
    raise InputError(
        f"--set {shorten(name, 40)!r}: no field of a job has that name.{offer} Fields are devices,"
        " device, tp, pp, mbs, global_batch, seq, precision, recompute, model.layers, switch.loss"
        " and others (docs/check.md lists them all)"
    )


def _value(name: str, raw: str) -> Value:
    kind, word = FIELDS[name], raw.lower()
    if name in CHOICES and word not in CHOICES[name]:
        raise InputError(f"--set {name}={shorten(raw, 40)}: choose from {', '.join(CHOICES[name])}")
    if kind is bool:
        if word not in TRUE + FALSE:
            raise InputError(f"--set {name}={shorten(raw, 40)}: write yes or no")
        return word in TRUE
    try:
        if kind is int:
            number = int((parse_length if name == "seq" else parse_count)(raw))
            if not 0 <= number <= 10**18:
                raise QuantityError("it is out of range")
            return number
        if kind is float:
            return float(raw)
    except (QuantityError, ValueError) as error:
        raise InputError(f"--set {name}={shorten(raw, 40)}: {error}") from None
    if kind is tuple:
        return tuple(part.strip() for part in raw.split("+") if part.strip())
    return word if name in CHOICES else raw


def completed(job: Job, given: Mapping[str, Value], log: Mapping[str, Setting]) -> Job:
    """The job with what was given, and with what its log says where the files leave it open.

    What follows by arithmetic is worked out again.
    """
    told = {n: s for n, s in log.items() if n not in job.settings and n not in given}
    if not given and not told:
        return job
    gone = {other for name in given for other in GIVES_WAY.get(name, ())} - set(given)
    if "accumulation" in gone and not _batch_is_said(job) and "global_batch" not in given:
        gone = (gone - {"accumulation"}) | {"global_batch", "train_tokens"}
    kept, derived = {}, {}
    for name, setting in job.settings.items():
        arithmetic = setting.basis is Basis.DERIVED and not setting.line
        if name in given or name in gone or (arithmetic and name in _CLOSED):
            derived[name] = setting
        else:
            kept[name] = setting
    builder = _again(job, kept.values())
    for name, value in given.items():
        builder.state(name, value, Place(file="--set", text=f"{name}={show(value)}"), override=True)
    for name, setting in told.items():
        builder.derive(name, setting.value, f"the log: {setting.text}"[:400])
    close(builder)
    for name, setting in derived.items():
        if name not in gone and name not in given:
            builder.derive(name, setting.value, setting.text)
    _products(builder)
    found = builder.job()
    return _with_faults(job, found)


def _batch_is_said(job: Job) -> bool:
    """Whether the files state the global batch, rather than the passes that make one."""
    batch, passes = job.settings.get("global_batch"), job.settings.get("accumulation")
    if passes is None:
        return True
    return batch is not None and (batch.basis is Basis.STATED or passes.basis is Basis.DERIVED)


_CLOSED = frozenset({
    "devices", "nodes", "dp", "accumulation", "global_batch", "train_steps", "train_tokens",
    "model.attention",
})  # fmt: skip
"""Fields that :mod:`krzem.jobs.given` works out."""


def _again(job: Job, settings: Iterable[Setting]) -> JobBuilder:
    builder = JobBuilder(job.engine, job.engine_version)
    for s in settings:
        if s.basis is Basis.STATED:
            builder.state(s.name, s.value, s.place, override=True)
        elif s.basis is Basis.DERIVED:
            builder.derive(s.name, s.value, s.text, s.place)
        else:
            builder.default(s.name, s.value, s.text)
    for line in job.ignored:
        builder.ignore(Place(file=line.file, line=line.line, text=line.text), line.why)
    for line in job.not_understood:
        builder.not_understood(Place(file=line.file, line=line.line, text=line.text), line.why)
    for ask in job.asks:
        builder.ask(ask.name, ask.why, ask.how)
    for note in job.notes:
        builder.note(note)
    return builder


def _with_faults(before: Job, after: Job) -> Job:
    """Faults that are not of the arithmetic stay; those of the arithmetic were found again."""
    builder = _again(before, before.settings.values())
    close(builder)
    arithmetic = {fault.why for fault in builder.job().faults}
    faults = [f for f in before.faults if f.why not in arithmetic]
    return Job(
        engine=after.engine, engine_version=after.engine_version, settings=after.settings,
        ignored=after.ignored, not_understood=after.not_understood, asks=after.asks,
        faults=(*faults, *after.faults), notes=after.notes, front=before.front,
    )  # fmt: skip
