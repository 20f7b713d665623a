"""Files that a launch writes (YAML, JSON, Python by here-documents) and tables of their keys."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from krzem.errors import DataError
from krzem.facts.table import read_table
from krzem.plan.emit.launch import Flag, Installed, Launch, Part, is_asked

ASKED = re.compile(r"\$\{([A-Z_]+):\?([^}]*)\}")
Tree = dict[str, "Tree | Flag"]

_WRITER = (
    "write() {  # whole or not at all: several nodes may share this folder",
    '  cat > "$1.$(hostname).$$" && mv -f "$1.$(hostname).$$" "$1"',
    "}",
)


def literal(value: object) -> str:
    """A value as YAML and JSON both read it; a float keeps its point, so that YAML sees one."""
    if isinstance(value, float):
        mantissa, e, exponent = f"{value:.12g}".partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}{e}{exponent}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{literal(k)}: {literal(v)}' for k, v in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)


def quoted(asked: str) -> str:
    """A text that is asked of the user, in the quotes of YAML and JSON."""
    return f'"{asked}"'


def python_package(name: str) -> str:
    """A command that prints the version of an installed Python package."""
    code = f'from importlib.metadata import version; print(version("{name}"))'
    return f"python3 -c {shlex.quote(code)}"


def installed(programs: Sequence[Installed]) -> Iterator[str]:
    """Lines that stop the script under another version, with one sentence."""
    for program in programs:
        text = (
            f"written for {program.name} {program.version}, found ${{found:-none}}: install it,"
            " emit again for yours, or set ANY_VERSION=1"
        )
        yield f"found=$({program.command} 2>/dev/null || true)"
        yield (
            f'[[ "$found" == {program.version}* || -n "${{ANY_VERSION:-}}" ]] ||'
            f' {{ echo "{text}" >&2; exit 1; }}'
        )
    if programs:
        yield ""


def asked(launch: Launch) -> Iterator[str]:
    """One line for each value that only the user has, before any file is written."""
    texts = [flag.value for flag in launch.flags]
    found: dict[str, str] = {}
    for hit in (hit for text in texts for hit in ASKED.finditer(text)):
        found.setdefault(hit[1], hit[2])
    for name, what in found.items():
        yield f': "${{{name}:?{what}}}"'
    if found:
        yield ""


def files(launch: Launch, explain: bool) -> Iterator[str]:
    """The here-documents of all parts."""
    if launch.parts:
        yield from _WRITER
        yield ""
    for part in launch.parts:
        mark = part.syntax.upper()
        quotes = "'" if part.syntax == "python" else ""
        if explain and part.syntax == "json":
            yield from _reasons(part)
        yield f"write {shlex.quote(part.path)} <<{quotes}{mark}{quotes}"
        found = lines(part, explain)
        yield from found if quotes else map(escaped, found)
        yield mark
        yield ""


def lines(part: Part, explain: bool) -> Iterator[str]:
    """The text of a part as its engine reads it, values that are asked for apart."""
    return _WRITERS[part.syntax](part, explain)


def escaped(line: str) -> str:
    """A line of an open here-document: only values that were asked for are expanded."""
    pieces, end = [], 0
    for hit in ASKED.finditer(line):
        pieces += [_escape(line[end : hit.start()]), f"${{{hit[1]}}}"]
        end = hit.end()
    return "".join((*pieces, _escape(line[end:])))


def _escape(text: str) -> str:
    return re.sub(r"([\\$`])", r"\\\1", text)


def _reasons(part: Part) -> Iterator[str]:
    """JSON has no comments: the reasons stand before it."""
    for section in part.sections:
        for flag in section.flags:
            yield f"# {flag.name}: {flag.why}"


def tree(part: Part) -> Tree:
    """The settings of a part by their dotted names, in order."""
    root: Tree = {}
    for section in part.sections:
        for flag in section.flags:
            *folders, leaf = flag.name.split(".")
            place = root
            for name in folders:
                inner = place.setdefault(name, {})
                assert isinstance(inner, dict), f"{flag.name} lies within a value"
                place = inner
            place[leaf] = flag
    return root


def _yaml(part: Part, explain: bool) -> Iterator[str]:
    titles = {s.flags[0].name: s.title for s in part.sections if s.flags} if explain else {}
    yield from _branch(tree(part), "", titles, explain)


def _branch(branch: Tree, indent: str, titles: Mapping[str, str], explain: bool) -> Iterator[str]:
    for name, inner in branch.items():
        if isinstance(inner, dict):
            yield f"{indent}{name}:"
            yield from _branch(inner, f"{indent}  ", titles, explain)
            continue
        if inner.name in titles:
            yield f"{indent}# {titles[inner.name]}"
        why = f"  # {inner.why}" if explain else ""
        yield f"{indent}{name}: {inner.value}{why}"


def _json(part: Part, explain: bool) -> Iterator[str]:
    yield from _object(tree(part), "")


def _object(branch: Tree, indent: str) -> Iterator[str]:
    yield f"{indent}{{" if not indent else "{"
    last = len(branch) - 1
    for place, (name, inner) in enumerate(branch.items()):
        comma = "," if place < last else ""
        head = f"{indent}  {json.dumps(name)}: "
        if isinstance(inner, Flag):
            yield f"{head}{inner.value}{comma}"
        else:
            first, *rest = _object(inner, f"{indent}  ")
            yield head + first
            yield from rest[:-1]
            yield rest[-1] + comma
    yield f"{indent}}}"


def _python(part: Part, explain: bool) -> Iterator[str]:
    yield from part.preamble
    for section in part.sections:
        if explain:
            yield f"    # {section.title}"
        for flag in section.flags:
            why = f"  # {flag.why}" if explain else ""
            yield f"    {flag.name} = {flag.value}{why}"
    yield from part.ending


_WRITERS = {"yaml": _yaml, "json": _json, "python": _python}

# Tables of an engine's keys: names, types and choices, as its source declares them
# ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One setting of an engine."""

    name: str
    kind: str
    """Its type as declared."""
    default: str
    """JSON, or Python where it is computed."""
    choices: tuple[str, ...]


@cache
def keys_of(table: str) -> Mapping[str, Key]:
    """The keys of ``facts/engine_flags/<table>.csv`` by name."""
    rows = read_table(f"engine_flags/{table}.csv")
    return {
        row["name"]: Key(
            name=row["name"], kind=row["type"], default=row["default"],
            choices=tuple(row["choices"].split()),
        )
        for row in rows
    }  # fmt: skip


def known(flags: Iterable[Flag], table: str, prefix: str = "") -> Iterator[Flag]:
    """``flags`` with ``prefix`` before their names, each found in the table.

    Raises DataError for a name that the engine does not have.
    """
    keys = keys_of(table)
    for flag in flags:
        if flag.name not in keys:
            raise DataError(f"{flag.name} is no key of {table}")
        yield Flag(f"{prefix}{flag.name}", flag.value, flag.why)


def fits(value: str, key: Key) -> bool:
    """Whether a value, written as JSON, has the type and is among the choices of ``key``.

    What is asked of the user stands for a value that fits.
    """
    if ASKED.fullmatch(value.strip('"')):
        return True
    found = json.loads(value)
    kind = key.kind.lower()
    if found is None:
        return "none" in kind or "optional" in kind or key.default == "null" or kind == "any"
    if kind == "any":
        return True
    if isinstance(found, bool):
        return "bool" in kind or key.default in ('"true"', '"false"')
    if isinstance(found, int) and str(found) in key.choices:
        return True
    if isinstance(found, int | float):
        return "float" in kind or (
            isinstance(found, int) and any(w in kind for w in ("int", "freq", "stage"))
        )
    if isinstance(found, list):
        return any(word in kind for word in ("list", "tuple", "freq", "sequence"))
    if isinstance(found, dict):
        return "dict" in kind or key.kind[:1].isupper()
    numeric = kind in ("int", "float", "bool", "int | none", "float | none")
    empty = found == "" and key.default == '""'
    return not numeric and (empty or not key.choices or found in key.choices)


# Megatron-LM's arguments as the keys of a YAML file: destinations in place of options
# ------------------------------------------------------------------------------------

_RENAMED = {
    "--disable-bias-linear": ("add_bias_linear", "false"),
    "--no-gradient-accumulation-fusion": ("gradient_accumulation_fusion", "false"),
    "--no-rope-fusion": ("apply_rope_fusion", "false"),
    "--no-masked-softmax-fusion": ("masked_softmax_fusion", "false"),
    "--fp8-format": ("fp8", ""),
    "--fp4-format": ("fp4", ""),
    "--data-path": ("train_data_path", ""),
}


def keyed(flags: Iterable[Flag], keys: Mapping[str, Key]) -> Iterator[Flag]:
    """Every flag under the name of its destination, its value typed as the table says."""
    for flag in flags:
        name, value = _RENAMED.get(flag.name, (flag.name.lstrip("-").replace("-", "_"), ""))
        if not value:
            value = _typed(flag.value, keys.get(name))
        yield Flag(name, value, flag.why)


def _typed(text: str, key: Key | None) -> str:
    """As :func:`typed`; a list that a preset writes as one word stays a word."""
    if key is None:
        return typed(text, "str")
    word = key.default.startswith('"') and " " not in text
    return typed(text, "str" if word else key.kind)


def typed(text: str, kind: str) -> str:
    """``text`` of a command line as YAML; a switch is true."""
    kind = kind.lower()
    number = any(word in kind for word in ("int", "float"))
    if text in ("", "true", "false"):
        return text or "true"
    if is_asked(text):
        return text if number and "str" not in kind else quoted(text)
    if "list" in kind or "tuple" in kind:
        return literal([_number(word) for word in text.replace(",", " ").split()])
    if number:
        return literal(float(text) if "float" in kind else int(float(text)))
    return literal(text)


def _number(word: str) -> int | str:
    return int(word) if word.lstrip("-").isdigit() else word


def merged(flags: Iterable[Flag], *, over: Iterable[Flag] = ()) -> tuple[Flag, ...]:
    """Each name once: the last that says it, where the first stood; ``over`` replaces."""
    found: dict[str, Flag] = {}
    for flag in flags:
        found[flag.name] = flag
    names = {flag.name for flag in over}
    return tuple(flag for name, flag in found.items() if name not in names)
