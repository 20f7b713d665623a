"""Engine descriptions, read from ``facts/engines/*.toml``: one value an engine."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import krzem.facts
from krzem.engine.conditions import Design, compiled, holds
from krzem.errors import DataError, UnknownNameError

FOLDER = Path(krzem.facts.__file__).parent / "engines"
ALWAYS, NEVER = -1e9, 1e9
"""Years before and after everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A version of an engine and when it came out."""

    version: str
    year: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A combination that the engine's own code refuses."""

    when: str
    why: str
    source: str
    since: float = ALWAYS
    until: float = NEVER

    def in_force(self, year: float) -> bool:
        """Whether software of ``year`` refuses it."""
        return self.since <= year < self.until


@dataclass(frozen=True, slots=True, kw_only=True)
class Omission:
    """A part of a model that an engine trains without."""

    part: str
    when: str
    why: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSwitch:
    """A switch as one engine has it."""

    name: str
    choices: tuple[str, ...]
    default: str
    """What an untouched configuration gets."""
    needs: tuple[tuple[str, str, str], ...] = ()
    """(choice, condition that it needs, reason with its source)."""
    since: Mapping[str, float] = field(default_factory=dict)
    usual: Mapping[str, float] = field(default_factory=dict)
    """How often runs that do not say use each choice; empty: the design's numbers are the usual."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """The engine's own flags or keys by choice."""
    effect: tuple[tuple[str, str, float], ...] = ()
    """Effects of its own, over those of ``facts/switches.toml``."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """GiB per device that a choice takes beyond what the formulas count."""
    log: str = ""

    def at(self, year: float) -> tuple[str, ...]:
        """The choices that software of ``year`` has."""
        return tuple(c for c in self.choices if self.since.get(c, ALWAYS) <= year)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What an engine can run."""

    schedules: tuple[str, ...]
    zero: tuple[int, ...]
    contexts: tuple[str, ...]
    recompute: tuple[str, ...]
    optimizers: tuple[str, ...]
    precisions: tuple[str, ...]
    models: frozenset[str]
    own_families: bool = False
    """Whether it builds the families that krzem describes how to compute, and no others."""
    lacks_source: str = ""
    """Where its source lists models, optimizers and precisions."""
    etp_default: str = "1"
    """``tp`` or ``1``: expert tensor parallelism where nobody says."""
    offload: bool = False
    uneven_stages: bool = False
    empty_end_chunks: bool = False
    selective: str = "modules"
    """What its selective recomputation means: modules, half-layers or attention."""
    finetune: tuple[str, ...] = ()
    """Kinds of fine-tuning that it has, ``none`` included; empty: not read."""
    max_tp: int | None = None
    """1 where it has no tensor parallelism."""
    max_pp: int | None = None
    max_ep: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What its users mostly do where they do not say."""

    interleaves: bool = False
    """They cut stages into chunks where a pipeline would otherwise idle."""
    shards_weights: bool = False
    """They shard weights where there is no tensor parallelism."""
    etp: str = ""
    """``tp`` or ``1``; empty: the engine's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Everything that krzem knows about one training engine."""

    name: str
    title: str
    aliases: tuple[str, ...]
    repository: str
    read: str
    """What the facts were read from."""
    stacks: tuple[str, ...]
    emitter: str
    releases: tuple[Release, ...]
    runs: Runs
    refuses: tuple[Refusal, ...]
    without: tuple[Omission, ...]
    switches: Mapping[str, EngineSwitch]
    habits: Habits
    design: Mapping[str, Any]
    """Numbers of today's design; :meth:`design_at` for those of a date."""
    changes: tuple[Mapping[str, Any], ...]

    def design_at(
        self, year: float, precision: str = "bf16", zero: int = 1, stack: str = "cuda"
    ) -> Design:
        """The design of software of ``year``, every switch as it usually is."""
        return _design_at(self.name, year, precision, zero, stack)

    def _numbers(self, year: float, precision: str, zero: int, stack: str) -> Design:
        numbers = dict(self.design)
        known = {"precision": precision, "zero": zero, "stack": stack}
        for change in self.changes:
            if year < change["until"] and holds(change["when"], known):
                numbers.update({k: v for k, v in change.items() if k not in ("until", "when")})
        flash2_until = numbers.pop("flash2_until", 0.0)
        overlap = numbers.pop("dp_overlap", None)
        if overlap is not None:
            numbers.setdefault("reduce_overlap", overlap)
            numbers.setdefault("gather_overlap", overlap)
        return Design(flash2=float(year < flash2_until), **numbers)

    def release_at(self, year: float) -> str:
        """The newest version of ``year``; empty where it had none yet or none is listed."""
        return next((r.version for r in reversed(self.releases) if r.year <= year), "")

    def defaults_at(self, year: float) -> tuple[tuple[str, str], ...]:
        """What an untouched configuration of ``year`` gets, by switch."""
        found = []
        for name, switch in self.switches.items():
            there = switch.at(year)
            if there:
                found.append((name, switch.default if switch.default in there else there[0]))
        return tuple(found)

    def refusals_at(self, year: float) -> tuple[Refusal, ...]:
        """What software of ``year`` refuses."""
        return tuple(r for r in self.refuses if r.in_force(year))


@cache
def _design_at(name: str, year: float, precision: str, zero: int, stack: str) -> Design:
    return engines()[name]._numbers(year, precision, zero, stack)


class _Engines(Mapping[str, Engine]):
    """All engines by name; a file is read when its engine is first asked for."""

    def __getitem__(self, name: str) -> Engine:
        if name not in _files():
            raise KeyError(name)
        return _loaded(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_files())

    def __len__(self) -> int:
        return len(_files())


_ALL = _Engines()


def engines() -> Mapping[str, Engine]:
    """All engines by name."""
    return _ALL


@cache
def _files() -> Mapping[str, Path]:
    return {p.stem: p for p in sorted(FOLDER.glob("*.toml")) if p.stem != "support"}


@cache
def _loaded(name: str) -> Engine:
    path = _files()[name]
    engine = _engine(tomllib.loads(path.read_text(encoding="utf-8")), path.name)
    if engine.name != name:
        raise DataError(f"{path.name} describes {engine.name!r}: name the file after its engine")
    return engine


_ALIASES = re.compile(r"^aliases\s*=\s*\[(.*?)\]", re.MULTILINE | re.DOTALL)


@cache
def _names() -> Mapping[str, str]:
    """Every way of writing an engine's name, from the heads of the files."""
    found: dict[str, str] = {}
    for name, path in _files().items():
        match = _ALIASES.search(path.read_text(encoding="utf-8")[:4000])
        words = re.findall(r'"([^"]*)"', match.group(1)) if match else []
        found.update(dict.fromkeys((*words, name), name))
    return found


def engine_named(written: str) -> Engine:
    """The engine that ``written`` names; case, underscores and spaces do not matter.

    Raises UnknownNameError with the names that are known.
    """
    word = written.strip().lower().replace("_", "-").replace(" ", "-")
    name = _names().get(word)
    if name is None:
        raise UnknownNameError("engine", written, _names(), f"Known: {', '.join(engines())}.")
    return engines()[name]


USUAL = MappingProxyType(
    {
        "cuda": ("megatron-lm", "megatron-bridge", "torchtitan", "fsdp", "deepseek"),
        "npu": ("mindspeed-llm", "mindformers"),
        "hip": ("primus", "torchtitan", "fsdp"),
        "tpu": ("maxtext",),
        "neuron": ("neuron",),
        "hpu": ("gaudi",),
    }
)  # fmt: skip
"""Engines that large runs on a software stack use, the usual one first (published runs)."""


TUNERS = MappingProxyType({"cuda": "fsdp", "hip": "fsdp"})
"""Engines that fine-tuning runs on, where they differ (almost all rows of the tables of runs)."""


def usual_engine(stack: str, parts: frozenset[str] = frozenset(), finetune: str = "none") -> Engine:
    """The engine that runs a model with ``parts`` on a stack where nobody names one."""
    names = USUAL.get(stack, ("other",))
    if finetune != "none" and stack in TUNERS:
        names = (TUNERS[stack], *names)
    able = (engines()[name] for name in names if parts <= engines()[name].runs.models)
    return next(able, engines()[names[0]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """When an engine's releases supported a family of chips."""

    engine: str
    family: str
    since: float
    until: float
    why: str
    source: str


@cache
def support() -> tuple[Support, ...]:
    """All limits of support that are known (``facts/engines/support.toml``)."""
    path = FOLDER / "support.toml"
    if not path.exists():
        return ()
    rows = tomllib.loads(path.read_text(encoding="utf-8")).get("support", [])
    return tuple(
        Support(
            engine=row["engine"], family=row["family"], since=_year(row.get("since"), ALWAYS),
            until=_year(row.get("until"), NEVER), why=row["why"], source=row["source"],
        )
        for row in rows
    )  # fmt: skip


def supported_until(engine: str, family: str) -> Support | None:
    """The end of an engine's support for a family of chips; None where there is none."""
    return next(
        (s for s in support() if s.engine == engine and s.family == family and s.until < NEVER),
        None,
    )


def _engine(raw: Mapping[str, Any], file: str) -> Engine:
    design = dict(raw.get("design", {}))
    changes = [
        {"when": "True", **change, "until": _year(change.get("until"), NEVER)}
        for change in design.pop("change", [])
    ]
    for change in changes:
        _checked(change["when"], file)
    design.setdefault("fits", raw.get("fits", raw["name"]))
    return Engine(
        name=raw["name"],
        title=raw.get("title", raw["name"]),
        aliases=tuple(raw.get("aliases", ())),
        repository=raw.get("repository", ""),
        read=raw.get("read", ""),
        stacks=tuple(raw.get("stacks", ())),
        emitter=raw.get("emitter", ""),
        releases=tuple(
            Release(version=r["version"], year=_year(r["date"], ALWAYS))
            for r in raw.get("release", ())
        ),
        runs=_runs(raw["runs"]),
        habits=Habits(**raw.get("habits", {})),
        refuses=tuple(_refusal(r, file) for r in raw.get("refuses", ())),
        without=tuple(
            Omission(**{**r, "when": _checked(r["when"], file)}) for r in raw.get("without", ())
        ),
        switches=MappingProxyType(
            {name: _switch(name, r, file) for name, r in raw.get("switch", {}).items()}
        ),
        design=MappingProxyType(design),
        changes=tuple(sorted(changes, key=lambda c: -float(c["until"]))),
    )


def _runs(raw: Mapping[str, Any]) -> Runs:
    lists = {"schedules", "zero", "contexts", "recompute", "optimizers", "precisions", "finetune"}
    values: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in raw.items()}
    values["models"] = frozenset(raw.get("models", ()))
    return Runs(**values)


def _refusal(raw: Mapping[str, Any], file: str) -> Refusal:
    _checked(raw["when"], file)
    return Refusal(
        when=raw["when"], why=raw["why"], source=raw.get("source", ""),
        since=_year(raw.get("since"), ALWAYS), until=_year(raw.get("until"), NEVER),
    )  # fmt: skip


def _switch(name: str, raw: Mapping[str, Any], file: str) -> EngineSwitch:
    needs = tuple((str(c), _checked(when, file), str(why)) for c, when, why in raw.get("needs", ()))
    return EngineSwitch(
        name=name,
        choices=tuple(raw["choices"]),
        default=raw["default"],
        needs=needs,
        since={c: _year(date, ALWAYS) for c, date in _pairs(raw.get("since", ()))},
        usual={c: float(share) for c, share in _pairs(raw.get("usual", ()))},
        flags={c: str(flags) for c, flags in _pairs(raw.get("flags", ()))},
        effect=tuple((c, n, float(v)) for c, n, v in raw.get("effect", ())),
        memory={str(row[0]): float(row[1]) for row in raw.get("memory", ())},
        log=raw.get("log", ""),
    )


def _pairs(rows: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    return [(str(row[0]), row[1]) for row in rows]


def _checked(condition: str, file: str) -> str:
    try:
        compiled(condition)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    return condition


def _year(date: Any, missing: float) -> float:
    """``2025-07`` or ``2025`` as a year with its fraction."""
    if date is None or date == "":
        return missing
    year, _, month = str(date).partition("-")
    return float(year) + (float(month.partition("-")[0] or 1) - 1.0) / 12.0
