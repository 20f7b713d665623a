"""A change of a job as edits of its files: each old line and the new one, as text alone.

Nothing is executed.  Edits are proposals until they have been proved: applied to the text of the
files, read back by the job's own reader, and found to say what was meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from krzem.jobs.job import Setting, Value
from krzem.jobs.spellings import HINTS, Target

MOST_WAYS = 6
"""Places that are tried for one flag or key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One line of a file before and after; lines are counted from 1, in the file as given."""

    file: str
    line: int
    old: str
    new: str
    """May hold several lines; equal to ``""`` where the line goes away."""


def applied(files: Mapping[str, str], edits: Sequence[Edit]) -> dict[str, str]:
    """The files with every edit made; lines keep their numbers until all are in place."""
    out = dict(files)
    for name in dict.fromkeys(edit.file for edit in edits):
        lines = files[name].splitlines()
        for edit in edits:
            if edit.file == name:
                while len(lines) < edit.line:
                    lines.append("")
                lines[edit.line - 1] = edit.new
        out[name] = "\n".join(lines) + "\n"
    return out


def merged(before: Sequence[Edit], more: Sequence[Edit]) -> list[Edit]:
    """Edits one after the other: ``more`` was made of the files that ``before`` left.

    Both keep the numbers of lines, so that a line edited twice becomes one edit.
    """
    found = {(e.file, e.line): e for e in before}
    for edit in more:
        first = found.get((edit.file, edit.line))
        old = edit.old if first is None else first.old
        found[edit.file, edit.line] = Edit(file=edit.file, line=edit.line, old=old, new=edit.new)
    return [edit for edit in found.values() if edit.old != edit.new]


class Text:
    """The files of a job while they are edited: lines stay where they were."""

    def __init__(self, files: Mapping[str, str], edits: Sequence[Edit] = ()) -> None:
        self.lines = {name: text.splitlines() for name, text in files.items()}
        for edit in edits:
            self._put(edit)

    def _put(self, edit: Edit) -> None:
        lines = self.lines[edit.file]
        while len(lines) < edit.line:
            lines.append("")
        lines[edit.line - 1] = edit.new

    def every(self) -> Iterator[tuple[str, int, str]]:
        """(file, line, text) of what is no comment."""
        for name, lines in self.lines.items():
            for number, text in enumerate(lines, 1):
                if not text.lstrip().startswith(("#", "//")) or text.lstrip().startswith("#!"):
                    yield name, number, text

    def kind(self, file: str) -> str:
        """``shell``, ``yaml``, ``toml``, ``json`` or ``python``, by the file's name."""
        suffix = PurePosixPath(file).suffix.lower()
        known = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".py": "python"}
        return known.get(suffix, "shell")


def at_place(setting: Setting | None, new: Value, text: Text) -> Iterator[list[Edit]]:
    """The value replaced on the line that decided it, the likeliest place on it first."""
    if setting is None or not setting.line or setting.file not in text.lines:
        return
    lines = text.lines[setting.file]
    if setting.line > len(lines):
        return
    line = lines[setting.line - 1]
    for changed in _replaced(line, setting, new):
        yield [Edit(file=setting.file, line=setting.line, old=line, new=changed)]


def _replaced(line: str, setting: Setting, new: Value) -> Iterator[str]:
    old, hint = setting.value, HINTS.get(setting.name, setting.name)
    if isinstance(old, bool) or not isinstance(old, int):
        return
    comment = re.search(r"\s#", line)
    end = len(line) if comment is None else comment.start()
    found = list(re.finditer(rf"(?<![\w.]){old}(?![\w.])", line[:end]))
    near = re.compile(rf"({hint})[\w\"'{{}}$: -]*[= :]*[\"']?$", re.I)
    found.sort(key=lambda m: near.search(line[: m.start()]) is None)
    for match in found:
        yield f"{line[: match.start()]}{new}{line[match.end() :]}"


def written(way: Sequence[Target], text: Text) -> Iterator[list[Edit]]:
    """Edits that write every target of a way; each of several places where one is open."""
    yield from _all(list(way), text, [])


def _all(way: list[Target], text: Text, done: list[Edit]) -> Iterator[list[Edit]]:
    if not way:
        if done:
            yield done
        return
    (name, value), *rest = way
    tried = 0
    for edits in _one(name, value, text):
        after = Text({n: "\n".join(lines) for n, lines in text.lines.items()}, edits)
        yield from _all(rest, after, merged(done, edits))
        tried += 1
        if tried >= (MOST_WAYS if not rest else 2):
            return
    if not tried and value is None:
        yield from _all(rest, text, done)


def _one(name: str, value: str | None, text: Text) -> Iterator[list[Edit]]:
    flag = name.startswith("--")
    spots = list(_occurrences(name, text))
    if value is None:
        edits = [e for e in (_without(name, *spot, text.kind(spot[0])) for spot in spots) if e]
        if edits:
            yield edits
        return
    if spots and flag and not value:
        yield []
    for spot in spots:
        yield from _with_value(name, value, spot, text)
    if spots:
        return
    if flag:
        yield from _flag_added(name, value, text)
        yield from _key_added(name.lstrip("-").replace("-", "_"), value or "true", text)
    else:
        yield from _key_added(name, value, text)


def there(name: str, text: Text) -> bool:
    """Whether a flag or key stands anywhere in the files."""
    return next(_occurrences(name, text), None) is not None


def _occurrences(name: str, text: Text) -> Iterator[tuple[str, int, str]]:
    """Lines where a flag or key stands; files of settings and scripts alike."""
    for file, number, line in text.every():
        if _pattern(name, text.kind(file)).search(line):
            yield file, number, line


def _pattern(name: str, kind: str) -> re.Pattern[str]:
    bare = name.lstrip("-")
    either, leaf = (
        re.sub(r"[-_]", "[-_]", word.replace(".", r"\."))
        for word in (bare, bare.rsplit(".", 1)[-1])
    )
    if kind in ("yaml", "json"):
        return re.compile(rf"^\s*(?:-\s+)?[\"']?(?:--)?(?:[\w.]*\.)?{leaf}[\"']?\s*:")
    if kind == "toml":
        return re.compile(rf"^\s*(?:[\w.]*\.)?{leaf}\s*=")
    if name.startswith("--"):
        return re.compile(rf"(?<![\w-])--{either}(?![\w-])")
    return re.compile(rf"(?<![\w.])(?:--)?[+]{{0,2}}{either}\s*[= :]")


def _with_value(
    name: str, value: str, spot: tuple[str, int, str], text: Text
) -> Iterator[list[Edit]]:
    file, number, line = spot
    kind = text.kind(file)
    if kind in ("yaml", "json", "toml"):
        sign = "=" if kind == "toml" else ":"
        match = re.match(rf"(.*?{sign}\s*)([^#\n]*?)(\s*,?\s*(?:#.*)?)$", line)
        if match:
            put = _literal(value or "true", kind, match[2])
            yield [Edit(file=file, line=number, old=line, new=f"{match[1]}{put}{match[3]}")]
        return
    found = _pattern(name, kind).search(line)
    if found is None or not value:
        return
    rest = re.match(r"([= :]*)((?:(?!-)[^\s\\'\")(]+\s?)*)", line[found.end() :])
    if rest is None:
        return
    gap = rest[1] or (" " if name.startswith("--") else "")
    tail = line[found.end() + rest.end() :]
    space = " " if rest[2].endswith(" ") else ""
    yield [Edit(file=file, line=number, old=line,
                new=f"{line[: found.end()]}{gap}{value}{space}{tail}")]  # fmt: skip


def _literal(value: str, kind: str, old: str) -> str:
    """A value as the file writes values: ``true`` or ``True``, with quotes or without."""
    bare = value.strip("\"'")
    if bare.lower() in ("true", "false"):
        return bare.capitalize() if old.strip() in ("True", "False") else bare.lower()
    if re.fullmatch(r"-?[\d.]+|null|\[.*\]", bare):
        return bare
    quote = old.strip()[:1] if old.strip()[:1] in ("'", '"') else '"' if kind != "yaml" else ""
    return f"{quote}{bare}{quote}"


def _without(name: str, file: str, number: int, line: str, kind: str) -> Edit | None:
    if kind in ("yaml", "json", "toml"):
        match = re.match(r"(.*?[:=]\s*)([^#\n]*?)(\s*,?\s*(?:#.*)?)$", line)
        if match is None:
            return None
        off = {"yaml": "null", "json": "null"}.get(kind, "")
        if match[2].strip().lower() in ("true", "false"):
            off = _literal("false", kind, match[2])
        if not off or match[2].strip().lower() in ("null", "none", "false", ""):
            return None
        return Edit(file=file, line=number, old=line, new=f"{match[1]}{off}{match[3]}")
    found = _pattern(name, kind).search(line)
    if found is None:
        return None
    rest = re.match(r"(?:[= ]+(?!-)[^\s\\'\")(]+)*", line[found.end() :])
    end = found.end() + (rest.end() if rest else 0)
    before, after = line[: found.start()], line[end:]
    new = f"{before.rstrip()} {after.lstrip()}".rstrip() if before.strip() else before + after
    return Edit(file=file, line=number, old=line, new=new)


_ANCHORS = (
    "--micro-batch-size", "--tensor-model-parallel-size", "--num-layers", "--seq-length",
    "--global-batch-size", "--bf16", "--fp16", "--hidden-size",
)  # fmt: skip
"""Flags of every Megatron job: another flag may stand before any of them."""


_KEYS = (
    "micro_batch_size", "seq_length", "per_device_train_batch_size", "per_device_batch_size",
    "bf16",
)  # fmt: skip
"""Keys of YAML files that hold a job's settings on one level: another may stand beside them."""


def _flag_added(name: str, value: str, text: Text) -> Iterator[list[Edit]]:
    """The flag before another one of the same command."""
    for anchor in _ANCHORS:
        for file, number, line in _occurrences(anchor, text):
            if text.kind(file) != "shell":
                continue
            found = _pattern(anchor, "shell").search(line)
            assert found is not None
            new = f"{line[: found.start()]}{name}{' ' if value else ''}{value} "
            yield [Edit(file=file, line=number, old=line, new=new + line[found.start() :])]


def _key_added(name: str, value: str, text: Text) -> Iterator[list[Edit]]:
    """The key in its table: below the table's head, or beside a key of the same table."""
    *parents, leaf = name.split(".")
    for file in text.lines:
        kind, lines = text.kind(file), text.lines[file]
        if kind == "toml" and parents:
            yield from _toml_added(file, lines, ".".join(parents), leaf, value)
        elif kind == "yaml":
            yield from _yaml_added(file, lines, parents, leaf, value)
        elif kind == "json" and parents:
            yield from _json_added(file, lines, parents[-1], leaf, value)
    for file, number, line in text.every():
        path = name.rpartition(".")[0]
        if text.kind(file) == "shell" and path and (
            found := re.search(rf"(?<![\w.]){re.escape(path)}\.\w+=", line)
        ):  # fmt: skip
            start = found.start()
            new = f"{line[:start]}{name}={value} {line[start:]}"
            yield [Edit(file=file, line=number, old=line, new=new)]


def _toml_added(
    file: str, lines: list[str], table: str, leaf: str, value: str
) -> Iterator[list[Edit]]:
    head = re.compile(rf"^\s*\[\s*{re.escape(table)}\s*\]")
    row = f"{leaf} = {_literal(value, 'toml', '')}"
    for number, line in enumerate(lines, 1):
        if head.match(line):
            yield [Edit(file=file, line=number, old=line, new=f"{line}\n{row}")]
            return
    new = f"\n[{table}]\n{row}"
    yield [Edit(file=file, line=len(lines) + 1, old="", new=new)]


def _yaml_added(
    file: str, lines: list[str], parents: list[str], leaf: str, value: str
) -> Iterator[list[Edit]]:
    put = _literal(value, "yaml", "")
    if not parents:
        for anchor in _KEYS:
            for number, line in enumerate(lines, 1):
                if found := re.match(rf"(\s*){anchor}\s*:", line):
                    row = f"{line}\n{found[1]}{leaf}: {put}"
                    yield [Edit(file=file, line=number, old=line, new=row)]
        return
    head = re.compile(rf"^(\s*){re.escape(parents[-1])}\s*:\s*(#.*)?$")
    for number, line in enumerate(lines, 1):
        if found := head.match(line):
            below = next((n for n in lines[number:] if n.strip()), "")
            indent = len(below) - len(below.lstrip())
            deeper = indent if indent > len(found[1]) else len(found[1]) + 2
            yield [Edit(file=file, line=number, old=line,
                        new=f"{line}\n{' ' * deeper}{leaf}: {put}")]  # fmt: skip


def _json_added(
    file: str, lines: list[str], parent: str, leaf: str, value: str
) -> Iterator[list[Edit]]:
    for number, line in enumerate(lines, 1):
        if re.search(rf'"{re.escape(parent)}"\s*:\s*{{\s*$', line):
            indent = len(line) - len(line.lstrip()) + 2
            row = f'{" " * indent}"{leaf}": {_literal(value, "json", "")},'
            yield [Edit(file=file, line=number, old=line, new=f"{line}\n{row}")]
