"""What the files of a training job decide: values, each with the line that decided it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from krzem.engine.switches import switches

Value = bool | int | float | str | tuple[str, ...]

SWITCHES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: switch.choices for name, switch in switches().items()}
)
"""What an engine may do one way or another, and the choices; the first is off or plain."""

PRECISIONS = ("bf16", "fp16", "fp8", "fp8-block", "mxfp8", "nvfp4", "fp32", "int8")

_MODEL: Mapping[str, type] = {
    "name": str, "layers": int, "hidden": int, "ffn": int, "heads": int, "kv_heads": int,
    "head_dim": int, "vocab": int, "gated": bool, "tied": bool, "qk_norm": bool, "attention": str,
    "q_lora_rank": int, "kv_lora_rank": int, "qk_nope": int, "qk_rope": int, "v_head": int,
    "window": int, "experts": int, "top_k": int, "moe_ffn": int, "shared_experts": int,
    "shared_ffn": int, "dense_layers": int, "mtp": int, "positions": str, "bias": bool,
}  # fmt: skip
_RUN: Mapping[str, type] = {
    "tp": int, "cp": int, "pp": int, "vpp": int, "ep": int, "etp": int, "dp": int, "zero": int,
    "shard": int, "mbs": int, "sp": bool, "schedule": str, "first": int, "last": int,
    "recompute": str, "rlayers": int, "recompute_modules": tuple, "cpkind": str, "offload": bool,
    "seq": int, "global_batch": int, "accumulation": int, "train_tokens": int, "train_steps": int,
    "devices": int, "nodes": int, "devices_per_node": int, "device": str,
    "precision": str, "optimizer": str, "finetune": str,
}  # fmt: skip

FIELDS: Mapping[str, type] = MappingProxyType({
    "engine": str,
    "engine_version": str,
    "date": str,
    **{f"model.{name}": kind for name, kind in _MODEL.items()},
    **_RUN,
    **{f"state.{name}": float for name in ("weight", "gradient", "master", "moments")},
    **{f"switch.{name}": str for name in SWITCHES},
})  # fmt: skip
"""Every field that a reader may fill, and the type of its value."""

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "precision": PRECISIONS,
    "finetune": ("none", "full", "lora", "qlora"),
    "schedule": ("1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe", "dualpipev"),
    "recompute": ("none", "attention", "modules", "full"),
    "cpkind": ("ring", "a2a", "allgather"),
    "model.attention": ("mha", "gqa", "mqa", "mla"),
    "model.positions": ("rope", "learned", "alibi", "none"),
    **{f"switch.{name}": choices for name, choices in SWITCHES.items()},
})  # fmt: skip
"""The words that a field of words may hold, where they are a closed list."""


class Basis(enum.StrEnum):
    """What a setting rests on."""

    STATED = "stated"
    """A line of the files says it."""
    DERIVED = "derived"
    """Arithmetic over what other lines say."""
    DEFAULT = "default"
    """The engine's own source decides it where the files are silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A line of a file, as it is written there."""

    file: str = ""
    line: int = 0
    """Counted from 1; 0 where the whole file, or no file, is meant."""
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One field of :data:`FIELDS` and the line that decided it."""

    name: str
    value: Value
    basis: Basis
    file: str = ""
    line: int = 0
    text: str = ""
    """The line as written; for a derived or default value the arithmetic or the reason."""

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(file=self.file, line=self.line, text=self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line that settles no field: irrelevant to the price, or not understood."""

    file: str
    line: int
    text: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A field that the files do not decide and that a price needs."""

    name: str
    why: str
    """What the files say instead."""
    how: str
    """How the user may give it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why the job cannot run as written, and the line to look at."""

    file: str
    line: int
    text: str
    why: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{where}{self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training job as its files decide it."""

    engine: str
    engine_version: str = ""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    ignored: tuple[Line, ...] = ()
    """Lines that say nothing about time or memory: paths, seeds, logging, learning rates."""
    not_understood: tuple[Line, ...] = ()
    asks: tuple[Ask, ...] = ()
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    front: str = ""
    """Whose flags and keys its files take, where the engine has several fronts."""

    @property
    def spelling(self) -> str:
        """Whose words say what may be changed: those of the front, or of the engine."""
        return self.front or self.engine

    def get(self, name: str) -> Value | None:
        """The value of a field, or None where the files leave it open."""
        found = self.settings.get(name)
        return None if found is None else found.value


class JobBuilder:
    """Collects settings while files are read.

    A field is set once.  A second line that says the same is nothing new; one that says something
    else is a fault, unless the engine lets the later win (``override``).  What is stated replaces
    what is derived, and both replace a default.
    """

    def __init__(self, engine: str, version: str = "") -> None:
        self.engine = engine
        self.version = version
        self._settings: dict[str, Setting] = {}
        self._ignored: list[Line] = []
        self._unknown: list[Line] = []
        self._asks: dict[str, Ask] = {}
        self._faults: list[Fault] = []
        self._notes: dict[str, None] = {}
        self.front = ""
        """Whose flags and keys the files take, where the engine has several fronts."""
        self.uneven: str | None = None
        """Why stages may hold unequal numbers of layers; None: they must be equal."""
        self.padded_layers: int | None = None
        """Layers with those that do nothing, where an engine pads its pipeline."""
        self.empty_layers: frozenset[int] = frozenset()
        """Places of those that do nothing."""
        self.instances: tuple[int, Place] | None = None
        """Copies of the sharded state, where more than one; ``shard`` follows from it."""
        self.every = 0
        """Of so many layers one is computed again; 0: none, or it is not known which."""
        self.same_data = 1
        """Ranks that read the same data although no tensor, context or pipeline degree says so."""
        self.doubtful = ""
        """Why settings may be missing from what was read; tuning is then not taken as default."""
        self.helpers = ""
        """A script that is run but not given, and that may set variables."""
        self.whole_batch = ""
        """Why one micro-batch per data-parallel rank makes a step where no batch is stated."""

    # -- settings

    def state(self, name: str, value: Value, place: Place, *, override: bool = False) -> None:
        """A line says ``value``; ``override``: the engine lets a later line win."""
        before = self._settings.get(name)
        if before is not None and before.basis is Basis.STATED and not override:
            if before.value != value:
                self.fault(
                    place,
                    f"{name} = {show(value)} here, but {show(before.value)} at {before.place}:"
                    " one of the two lines must go",
                )
            return
        self._put(name, value, Basis.STATED, place)

    def derive(self, name: str, value: Value, why: str, place: Place | None = None) -> None:
        """Arithmetic gives ``value``; nothing happens where a line or arithmetic already did."""
        before = self._settings.get(name)
        if before is None or before.basis is Basis.DEFAULT:
            at = place or Place()
            self._put(name, value, Basis.DERIVED, Place(file=at.file, line=at.line, text=why))

    def default(self, name: str, value: Value, why: str) -> None:
        """The engine's source gives ``value`` where nothing else did."""
        if self.doubtful and name.startswith(_TUNING):
            self.ask(name, self.doubtful, f"give {name}")
        elif name not in self._settings and name not in self._asks:
            self._put(name, value, Basis.DEFAULT, Place(text=why))

    def named(self, prefix: str) -> tuple[str, ...]:
        """The fields that are filled and whose name begins so."""
        return tuple(name for name in self._settings if name.startswith(prefix))

    def drop(self, name: str) -> None:
        """Leave a field open again."""
        self._settings.pop(name, None)

    def _put(self, name: str, value: Value, basis: Basis, place: Place) -> None:
        kind = FIELDS[name]
        if kind is float and isinstance(value, int):
            value = float(value)
        assert type(value) is kind, f"{name}: {value!r} is no {kind.__name__}"
        assert value in CHOICES.get(name, (value,)), f"{name}: {value!r} is no choice"
        self._asks.pop(name, None)
        self._settings[name] = Setting(
            name=name, value=value, basis=basis,
            file=place.file, line=place.line, text=place.text,
        )  # fmt: skip

    def get(self, name: str) -> Value | None:
        """The value of a field so far."""
        found = self._settings.get(name)
        return None if found is None else found.value

    def number(self, name: str) -> int | None:
        """The value of a field of counts so far."""
        value = self.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def setting(self, name: str) -> Setting | None:
        """The setting of a field so far."""
        return self._settings.get(name)

    def line(self, *names: str) -> Place:
        """The line of the first of these fields that has one."""
        found = [s for s in map(self.setting, names) if s is not None]
        best = next((s for s in found if s.line), found[0] if found else None)
        return Place() if best is None else best.place

    # -- lines

    def ignore(self, place: Place, why: str) -> None:
        """A line that the price does not depend on."""
        self._ignored.append(Line(file=place.file, line=place.line, text=place.text, why=why))

    def not_understood(self, place: Place, why: str) -> None:
        """A line that may matter and that no table knows."""
        self._unknown.append(Line(file=place.file, line=place.line, text=place.text, why=why))

    def ask(self, name: str, why: str, how: str) -> None:
        """A field that the files leave open; a default of the engine no longer applies."""
        before = self._settings.get(name)
        if before is not None and before.basis is Basis.DEFAULT:
            del self._settings[name]
        if name not in self._settings:
            self._asks.setdefault(name, Ask(name=name, why=why, how=how))

    def fault(self, place: Place, why: str) -> None:
        """The job cannot run as written."""
        self._faults.append(Fault(file=place.file, line=place.line, text=place.text, why=why))

    def has_fault(self, why: str) -> bool:
        """Whether this very fault is recorded."""
        return any(fault.why == why for fault in self._faults)

    def note(self, text: str) -> None:
        """Something a reader of the answer should know."""
        self._notes[text] = None

    def job(self) -> Job:
        """The job as far as it was read; :func:`krzem.jobs.given.close` finishes it first."""
        return Job(
            engine=self.engine,
            engine_version=self.version,
            settings=MappingProxyType(dict(sorted(self._settings.items(), key=_order))),
            ignored=tuple(self._ignored),
            not_understood=tuple(self._unknown),
            asks=tuple(self._asks.values()),
            faults=tuple(self._faults),
            notes=tuple(self._notes),
            front=self.front,
        )


_TUNING = ("switch.", "zero", "sp", "recompute", "offload", "precision", "state.")
"""Fields that further arguments of a command are likely to change."""
_RANK = {name: index for index, name in enumerate(FIELDS)}


def _order(item: tuple[str, Setting]) -> int:
    return _RANK[item[0]]


def show(value: Value) -> str:
    """A value as it is printed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
