"""krzem's own files: a plan that was emitted, and a run file."""

from __future__ import annotations

import re

from krzem.engine.switches import switches
from krzem.errors import DataError, KrzemError, shorten
from krzem.jobs.documents import toml_tree
from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.tree import (
    KEPT,
    Defaults,
    Entry,
    Found,
    Read,
    Table,
    Tree,
    UnclearError,
    apply,
    count,
    fall_back,
    real,
    settle,
    some,
    switch,
    text,
    unset,
    whole,
    words,
    yes_no,
)
from krzem.quantity import parse_count, parse_length

ENGINE = "krzem"
_PRECISIONS = ("bf16", "fp16", "fp8", "fp8-block", "mxfp8", "nvfp4", "fp32", "int8")
_OPTIMIZERS = ("adamw", "muon", "adafactor", "sgd", "lion", "adam8bit")
_SCHEDULES = ("1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe", "dualpipev")
_TABLES = {"goal", "layout", "model", "pool", "cluster", "run", "train", "data", "gates"}


def _same(words_: tuple[str, ...]) -> dict[str, str]:
    return {word: word for word in words_}


def _quantity(name: str, length: bool = False) -> Read:
    def parse(value: object) -> Found:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {name: whole(value)}
        try:
            return {name: int((parse_length if length else parse_count)(str(value)))}
        except KrzemError as error:
            raise UnclearError(shorten(str(error), 100)) from None

    return Read((name,), parse)


def _states(name: str) -> Read:
    return Read((f"state.{name}",), lambda value: {f"state.{name}": real(value)})


_TABLE = Table(
    keys={
        "model": text("model.name"),
        "model.name": text("model.name"),
        "model.config": text("model.name"),
        "goal.tokens": _quantity("train_tokens"),
        "goal.sequence": _quantity("seq", length=True),
        "goal.global_batch": _quantity("global_batch"),
        "goal.precision": words("precision", _same(_PRECISIONS)),
        "goal.optimizer": words("optimizer", _same(_OPTIMIZERS)),
        **{f"goal.states.{name}": _states(name)
           for name in ("weight", "gradient", "master", "moments")},
        "cluster.device": text("device"),
        "cluster.devices": count("devices"),
        "cluster.devices_per_node": count("devices_per_node"),
        "train.compile": switch("compile"),
        **{f"switches.{name}": words(f"switch.{name}", _same(s.choices))
           for name, s in switches().items()},
        "layout": KEPT, "layout.text": KEPT, "layout.devices": KEPT, "pool": KEPT,
    },
    ignored=(
        r"(run|data|train|optimizer|schedule|checkpoint|evaluation|metrics|gates|qualify|witness"
        r"|recovery|trainer|model\.source|goal\.(deadline.*|budget.*|states.*)|goal\.states"
        r"|cluster)(\..*)?",
    ),
)  # fmt: skip

_LAYOUT: dict[str, Read] = {
    **{name: count(name) for name in ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "mbs", "first",
                                      "last", "rlayers")},
    "micro_batch": count("mbs"),
    "zero": some("zero"),
    "shard": some("shard", 1),
    "sp": yes_no("sp"), "sequence_parallel": yes_no("sp"),
    "schedule": words("schedule", _same(_SCHEDULES)),
    "recompute": words("recompute", _same(("none", "attention", "modules", "full"))),
    "cpkind": words("cpkind", _same(("ring", "a2a", "allgather"))),
    "offload": yes_no("offload"),
}  # fmt: skip
"""Names of a layout, as ``--layout`` reads them."""
_UNSAID: Defaults = {
    "tp": (1, "a layout's tp is 1"), "cp": (1, "a layout's cp is 1"),
    "pp": (1, "a layout's pp is 1"), "vpp": (1, "a layout's vpp is 1"),
    "ep": (1, "a layout's ep is 1"), "dp": (1, "a layout's dp is 1"),
    "mbs": (1, "a layout's mbs is 1"), "zero": (1, "a layout's zero is 1"),
    "schedule": ("1f1b", "a layout's schedule is 1f1b"),
    "recompute": ("none", "a layout's recompute is none"),
    "offload": (False, "a layout's offload is 0"),
}  # fmt: skip


def claim(sources: Sources) -> Claim | None:
    """A goal beside a layout, a pool or a cluster: tables that only krzem writes."""
    for name, content in sources.with_suffix(".toml").items():
        try:
            tree = toml_tree(content, name)
        except DataError:
            continue
        tops = tree.tops()
        if tree.has("goal.tokens", "goal.global_batch") and len(tops & _TABLES) >= 3:
            return Claim(engine=ENGINE, strength=90, why=f"krzem's own tables in {name}")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The first TOML file with a goal."""
    for name, content in sources.with_suffix(".toml").items():
        tree = toml_tree(content, name)
        if tree.has("goal"):
            _read(tree, job)
            describe(sources, job)
            return


def _read(tree: Tree, job: JobBuilder) -> None:
    apply(tree, _TABLE, job)
    pool = _pool(tree, job)
    said, place = _layout_of(tree, pool)
    if said in ("", "auto"):
        job.ask("tp", "the layout is auto: a plan decides it", "give a layout, or plan first")
    else:
        _layout(said, place, job)
        fall_back(job, _UNSAID)
        if job.number("tp") is not None:
            job.default("sp", job.number("tp") != 1, "a layout's sp is on where tp cuts")
    job.default("precision", "bf16", "goal.precision is bf16")
    job.default("optimizer", "adamw", "goal.optimizer is adamw")
    job.default("finetune", "none", "all weights are trained")


def _pool(tree: Tree, job: JobBuilder) -> dict[str, object]:
    """The first pool of a run file, the one that is preferred."""
    value, place = tree.value("pool"), tree.place("pool")
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return {}
    first: dict[str, object] = value[0]
    if len(value) > 1:
        job.note(f"the first of {len(value)} pools is read: {shorten(str(first.get('name')), 40)}")
    for key, read_as in (("accelerator", text("device")), ("count", _quantity("devices"))):
        if not unset(first.get(key)):
            settle(Entry(key=f"pool.{key}", value=first[key], place=place), read_as, job)
    return first


def _layout_of(tree: Tree, pool: dict[str, object]) -> tuple[str, Place]:
    own = pool.get("layout")
    if isinstance(own, str) and own != "auto":
        return own, tree.place("pool")
    value = tree.value("layout.text", "layout")
    place = tree.place("layout.text", "layout")
    return (value if isinstance(value, str) else "auto"), place


def _layout(said: str, place: Place, job: JobBuilder) -> None:
    """``tp=1,pp=16,mbs=1``: each part settles a field."""
    for part in said.split(",")[:60]:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        read_as = _LAYOUT.get(name)
        if not name:
            continue
        if not equals or read_as is None:
            job.not_understood(place, f"{shorten(part, 40)!r} is no part of a layout")
            continue
        settle(Entry(key=f"layout.{name}", value=_plain(value), place=place), read_as, job)


def _plain(value: str) -> object:
    return int(value) if re.fullmatch(r"\d{1,12}", value) else value


READERS = (Reader(kind="krzem", engines=(ENGINE,), claim=claim, read=read),)
