"""What is told beside the files of a job: ``--set field=value``, and what its log says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from krzem.errors import InputError, QuantityError, nearest, shorten
from krzem.jobs.closing import close
from krzem.jobs.job import CHOICES, FIELDS, Basis, Job, JobBuilder, Place, Setting, Value, show
from krzem.quantity import parse_count, parse_length

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
"""Fields that :mod:`krzem.jobs.closing` works out."""


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
        faults=(*faults, *after.faults), notes=after.notes,
    )  # fmt: skip
