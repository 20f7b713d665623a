"""The syntax tree of a shell script."""

from __future__ import annotations

from dataclasses import dataclass, field

from krzem.jobs.shell_words import NOWHERE, Origin


@dataclass(frozen=True, slots=True)
class Lit:
    """Text as written; quoted text is neither split nor a pattern."""

    text: str
    quoted: bool
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True)
class Param:
    """``$name``, ``${name[index]op argument}``."""

    name: str
    quoted: bool
    origin: Origin
    source: str
    index: Parts | None = None
    op: str = ""
    """"", "length", "keys", "indirect", ":-" …, "#" …, "/" …, ":", "^" …"""
    argument: Parts = ()
    second: Parts = ()
    """The replacement of ``/``, the length of ``:``."""


@dataclass(frozen=True, slots=True)
class Arith:
    """``$((…))``."""

    parts: Parts
    quoted: bool
    origin: Origin
    source: str


@dataclass(frozen=True, slots=True)
class Sub:
    """``$(…)`` or backquotes: what the commands would print."""

    body: tuple[Node, ...]
    quoted: bool
    origin: Origin
    source: str


Part = Lit | Param | Arith | Sub
Parts = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Word:
    """One word before expansion."""

    parts: Parts
    origin: Origin
    source: str = ""

    @property
    def bare(self) -> str:
        """The text of a word without quotes or expansions, else ''."""
        if any(not isinstance(p, Lit) or p.quoted for p in self.parts):
            return ""
        return "".join(p.text for p in self.parts if isinstance(p, Lit))


@dataclass(frozen=True, slots=True)
class Assign:
    """``name=value``, ``name+=(…)``, ``name[index]=value``."""

    name: str
    origin: Origin
    append: bool
    index: Parts | None = None
    value: Word | None = None
    array: tuple[Word, ...] | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """``> file``, ``<<EOF``, ``<<< word``."""

    op: str
    target: Word
    body: Parts = ()


@dataclass(frozen=True, slots=True)
class Simple:
    """A command with its assignments; a declaration's arguments are assignments too."""

    origin: Origin
    assigns: tuple[Assign, ...] = ()
    words: tuple[Word, ...] = ()
    redirects: tuple[Redirect, ...] = ()
    declares: tuple[Assign, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """``[[ … ]]``: words and operators."""

    origin: Origin
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Calculation:
    """``(( … ))``."""

    origin: Origin
    parts: Parts


@dataclass(frozen=True, slots=True)
class If:
    """``if``, its ``elif`` and ``else``."""

    origin: Origin
    branches: tuple[tuple[Body, Body], ...]
    otherwise: Body = ()


@dataclass(frozen=True, slots=True)
class Case:
    """``case``."""

    origin: Origin
    subject: Word
    arms: tuple[tuple[tuple[Word, ...], Body], ...]


@dataclass(frozen=True, slots=True)
class For:
    """``for name in words``; ``words`` None: the positional arguments."""

    origin: Origin
    name: str
    words: tuple[Word, ...] | None
    body: Body


@dataclass(frozen=True, slots=True)
class Count:
    """``for ((start; test; step))``."""

    origin: Origin
    start: Parts
    test: Parts
    step: Parts
    body: Body


@dataclass(frozen=True, slots=True)
class While:
    """``while`` and ``until``."""

    origin: Origin
    test: Body
    body: Body
    until: bool


@dataclass(frozen=True, slots=True)
class Function:
    """A function's definition."""

    origin: Origin
    name: str
    body: Body


@dataclass(frozen=True, slots=True)
class Group:
    """``{ … }``, or ``( … )`` whose variables do not outlive it."""

    origin: Origin
    body: Body
    subshell: bool
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands joined by ``|``; ``negated`` by ``!``."""

    origin: Origin
    parts: tuple[Node, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """``left && right`` or ``left || right``."""

    origin: Origin
    left: Node
    op: str
    right: Node


Node = (
    Simple | Condition | Calculation | If | Case | For | Count | While | Function | Group | Pipe
    | Chain
)  # fmt: skip
Body = tuple[Node, ...]


@dataclass(slots=True)
class Waiting:
    """A here-document whose text comes after the line."""

    delimiter: str
    quoted: bool
    strip: bool
    parts: list[Part] = field(default_factory=list)
