"""Arithmetic that must close: what follows from what is stated, and where it contradicts itself."""

from __future__ import annotations

from krzem.jobs.job import JobBuilder


def close(job: JobBuilder) -> None:
    """Derive what follows and record a fault, with its line, where the numbers cannot be.

    ``devices = nodes * devices_per_node = tp * cp * pp * dp`` and
    ``global_batch = mbs * dp * accumulation``; both are applied until nothing new follows.
    """
    for _ in range(4):
        _product(job, "devices", ("nodes", "devices_per_node"))
        _product(job, "devices", ("tp", "cp", "pp", "dp"), job.same_data)
        _product(job, "global_batch", ("mbs", "dp", "accumulation"))
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
