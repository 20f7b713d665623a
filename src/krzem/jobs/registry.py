"""The seam between files and the readers of single engines."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from krzem.engine.switches import switches
from krzem.errors import DataError, InputError, KrzemError, shorten
from krzem.jobs.documents import toml_tree, yaml_tree
from krzem.jobs.job import JobBuilder, Place
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The text of a job's files by the name that the user gave, in the order given."""

    files: Mapping[str, str]
    engine: str | None = None
    """The canonical engine the user names; None: to be found out."""
    opened: dict[str, object] = field(default_factory=dict, compare=False)
    """What readers parsed already (by a key of their own), so that no file is parsed twice."""

    def with_suffix(self, *suffixes: str) -> dict[str, str]:
        """The files whose name ends so (``.yaml``); ``""`` means names without a suffix."""
        return {n: t for n, t in self.files.items() if PurePosixPath(n).suffix.lower() in suffixes}

    def find(self, reference: str) -> str | None:
        """The given file that a path in another file means: the longest common tail wins."""
        want = PurePosixPath(reference.strip()).parts
        best: tuple[int, str] | None = None
        for name in self.files:
            have = PurePosixPath(name).parts
            same = 0
            while same < min(len(want), len(have)) and want[-1 - same] == have[-1 - same]:
                same += 1
            if same and (best is None or same > best[0]):
                best = (same, name)
        return None if best is None else best[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A reader says that the files are a job of its engine."""

    engine: str
    """Canonical name."""
    strength: int
    """100: the engine's own program is started; 80: its configuration's tables are there;
    50: keys that others have too; 20: a guess from one key.  The highest claim reads the job."""
    why: str
    """What in the files shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One family of engines; a module of this room lists its own in ``READERS``."""

    kind: str
    """Name of the family, for messages."""
    engines: tuple[str, ...]
    """Canonical engines it reads."""
    claim: Callable[[Sources], Claim | None]
    """Finds its engine in the files, never from comments; must be quick and must not raise."""
    read: Callable[[Sources, JobBuilder], None]
    """Fills the builder (whose engine is set); arithmetic over its settings is closed later."""


# What stands around a job: a card that describes the workload, and names in the path of ...
# ------------------------------------------------------------------------------------------

_CARD: Mapping[str, Read] = {
    "workload.model.model_arch.num_layers": count("model.layers"),
    "workload.model.model_arch.num_heads": count("model.heads"),
    "workload.model.model_arch.head_dim": count("model.head_dim"),
    "workload.hardware.xpu_spec.model": text("device"),
    "workload.hardware.xpu_spec.total_count": count("devices"),
    "workload.hardware.xpu_spec.count_per_node": count("devices_per_node"),
}
"""Keys of the cards that collections of workloads keep beside each job."""
_PLAN = "Model-executor.model_plan_parallelization"
_DEGREES = ("tp", "pp", "cp", "ep")
_MARK = "workload.hardware.xpu_spec.model"

_CHIP = re.compile(
    r"(?<![a-z0-9])(?:\d+x|dgx|hgx)?(gb200|gb300|b200|b300|h100|h200|h800|h20|a100|a800|v100"
    r"|mi210|mi250x?|mi300[xa]|mi325x|mi355x|v5e|v5p|v6e|tpu7x)(?![a-z0-9])",
)
_MACHINES = {"a3ultra": "H200", "a3mega": "H100", "a4x": "GB200", "trillium": "v6e",
             "ironwood": "tpu7x"}  # fmt: skip
"""Names that a cloud gives machines, and their chip."""
_LOWER = ("v5e", "v5p", "v6e", "tpu7x")


def read_card(sources: Sources, job: JobBuilder) -> None:
    """What a card says; the job's own files, read later, win."""
    for name, content in sources.with_suffix(".yaml", ".yml").items():
        if "xpu_spec" not in content:
            continue
        try:
            tree = yaml_tree(content, name)
        except (DataError, InputError):
            continue
        if not unset(tree.value(_MARK)):
            _settle(tree, job)


def describe(sources: Sources, job: JobBuilder) -> None:
    """The chip by a name in the path of the main file, where nothing else says it."""
    main = next(iter(sources.files), "")
    found = {chip(match[1]) for match in _CHIP.finditer(main.lower())}
    found |= {c for word, c in _MACHINES.items() if word in re.split(r"[/_.-]", main.lower())}
    if len(found) == 1 and job.get("device") is None:
        job.derive("device", found.pop(), "a name in the path of the file", Place(file=main))


def chip(name: str) -> str:
    """A chip as its vendor writes it."""
    return name if name in _LOWER else name.upper()


def _settle(tree: Tree, job: JobBuilder) -> None:
    keys = {**_CARD, **{f"{_PLAN}.{name}": count(name) for name in _DEGREES}}
    for key, read in keys.items():
        if unset(tree.value(key)):
            continue
        try:
            found = read.parse(tree.value(key))
        except UnclearError:
            continue
        for name, value in found.items():
            place = tree.place(key)
            job.derive(name, value, place.text, place)


# krzem's own files: a plan that was emitted, and a run file
# ----------------------------------------------------------

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
