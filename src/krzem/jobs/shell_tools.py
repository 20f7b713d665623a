"""Harmless commands whose output a script uses as a value, computed here on known text."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence

from krzem.jobs.shell_arithmetic import Arithmetic, NotKnownError
from krzem.jobs.shell_words import ShellError

Tool = Callable[[Sequence[str], str | None], str | None]
"""Output for arguments and standard input, or None where that is not known."""


def output(name: str, args: Sequence[str], stdin: str | None) -> str | None:
    """What the command prints; None for a command or a use of it that is not modelled."""
    tool = TOOLS.get(posixpath.basename(name))
    return None if tool is None else tool(args, stdin)


def is_tool(name: str) -> bool:
    """Whether the command only prints."""
    return posixpath.basename(name) in TOOLS


def squeezes(name: str, args: Sequence[str]) -> bool:
    """Whether a filter only joins blanks, so that the words stay what they are."""
    line = " ".join([posixpath.basename(name), *args])
    return line in _SQUEEZES


_SQUEEZES = {
    "sed -e s/  */ /g", "sed s/  */ /g", "sed -e s/ \\+/ /g", "sed s/ \\+/ /g", "sed -E s/ +/ /g",
    "sed -r s/ +/ /g", "sed -e s/[[:space:]]\\+/ /g", "tr -s  ", "tr -s [:space:]", "xargs",
    "tr -s [:blank:]", "tr \\n  ", "tr -d \\n\\r", "xargs echo", "envsubst",
}  # fmt: skip


def _echo(args: Sequence[str], stdin: str | None) -> str | None:
    rest, end = list(args), "\n"
    escapes = False
    while rest and re.fullmatch(r"-[neE]+", rest[0]):
        end = "" if "n" in rest[0] else end
        escapes = escapes or "e" in rest[0]
        rest.pop(0)
    text = " ".join(rest)
    return (_unescaped(text) if escapes else text) + end


def _unescaped(text: str) -> str:
    return re.sub(r"\\([nt\\])", lambda m: {"n": "\n", "t": "\t", "\\": "\\"}[m[1]], text)


def _printf(args: Sequence[str], stdin: str | None) -> str | None:
    if not args:
        return None
    rest = [a for a in args if a != "--"]
    pattern, values = _unescaped(rest[0]), rest[1:]
    holes = re.findall(r"%(?:%|0?\d*(?:\.\d+)?[sdif])", pattern)
    needs = [h for h in holes if h != "%%"]
    out, at = [], 0
    while True:
        take = values[at : at + len(needs)] + [""] * max(0, len(needs) - len(values[at:]))
        at += len(needs)
        try:
            fill = tuple(
                v if h[-1] == "s" else _as_number(v, h) for h, v in zip(needs, take, strict=True)
            )
            out.append(re.sub(r"%(0?\d{0,4}(?:\.\d{1,4})?)i", r"%\1d", pattern) % fill)
        except (ValueError, TypeError, KeyError):
            return None
        if at >= len(values) or not needs:
            return "".join(out)


def _as_number(text: str, hole: str) -> float | int:
    if len(hole) > 8:
        raise ValueError
    return float(text or 0) if hole[-1] == "f" else int(text or 0)


def _basename(args: Sequence[str], stdin: str | None) -> str | None:
    if not args or args[0].startswith("-"):
        return None
    name = posixpath.basename(args[0].rstrip("/"))
    return (name.removesuffix(args[1]) if len(args) > 1 else name) + "\n"


def _dirname(args: Sequence[str], stdin: str | None) -> str | None:
    return (posixpath.dirname(args[0].rstrip("/")) or ".") + "\n" if len(args) == 1 else None


def _seq(args: Sequence[str], stdin: str | None) -> str | None:
    if not args or not all(re.fullmatch(r"-?\d{1,12}", a) for a in args) or len(args) > 3:
        return None
    numbers = [int(a) for a in args]
    first = numbers[0] if len(numbers) > 1 else 1
    step = numbers[1] if len(numbers) == 3 else 1
    if step == 0:
        return None
    values = range(first, numbers[-1] + (1 if step > 0 else -1), step)
    if len(values) > 10_000:
        raise ShellError(f"seq counts {len(values):,} numbers; no job needs that")
    return "".join(f"{v}\n" for v in values)


def _expr(args: Sequence[str], stdin: str | None) -> str | None:
    return _calculated(" ".join(args))


def _calculated(text: str) -> str | None:
    def look(name: str) -> int:
        raise NotKnownError(name)

    try:
        return f"{Arithmetic(text, look, lambda name, value: None).value()}\n"
    except NotKnownError:
        return None


def _bc(args: Sequence[str], stdin: str | None) -> str | None:
    if stdin is None:
        return None
    lines = [line.strip() for line in re.split(r"[;\n]", stdin) if line.strip()]
    lines = [line for line in lines if not re.fullmatch(r"scale\s*=\s*0", line)]
    exact = len(lines) == 1 and "-l" not in args and re.fullmatch(r"[\d\s+*/()-]+", lines[0])
    return _calculated(lines[0]) if exact else None


def _tr(args: Sequence[str], stdin: str | None) -> str | None:
    if stdin is None or not args:
        return None
    rest = [_unescaped(a).replace("[:space:]", " \t\n") for a in args]
    if rest[0] in ("-d", "-s") and len(rest) == 2:
        if "-" in rest[1][1:] or "[" in rest[1]:
            return None
        if rest[0] == "-d":
            return "".join(c for c in stdin if c not in rest[1])
        return re.sub("([" + re.escape(rest[1]) + r"])\1+", r"\1", stdin)
    if rest[:2] == ["[:upper:]", "[:lower:]"] or rest[:2] == ["A-Z", "a-z"]:
        return stdin.lower()
    if rest[:2] == ["[:lower:]", "[:upper:]"] or rest[:2] == ["a-z", "A-Z"]:
        return stdin.upper()
    if len(rest) != 2 or "[" in rest[0] or "-" in rest[0][1:] or not rest[1]:
        return None
    target = rest[1] + rest[1][-1] * len(rest[0])
    return stdin.translate({ord(a): b for a, b in zip(rest[0], target, strict=False)})


def _wc(args: Sequence[str], stdin: str | None) -> str | None:
    if stdin is None or len(args) != 1:
        return None
    if args[0] == "-l":
        return f"{stdin.count(chr(10))}\n"
    if args[0] == "-w":
        return f"{len(stdin.split())}\n"
    return f"{len(stdin)}\n" if args[0] in ("-c", "-m") else None


def _cat(args: Sequence[str], stdin: str | None) -> str | None:
    return stdin if not args or list(args) == ["-"] else None


def _cut(args: Sequence[str], stdin: str | None) -> str | None:
    match = re.fullmatch(r"-d ?(.) -f ?(\d{1,3})|-f ?(\d{1,3}) -d ?(.)", " ".join(args))
    if stdin is None or match is None:
        return None
    mark, field = match[1] or match[4], int(match[2] or match[3])
    lines = []
    for line in stdin.splitlines():
        parts = line.split(mark)
        lines.append(line if len(parts) == 1 else parts[field - 1] if field <= len(parts) else "")
    return "".join(f"{line}\n" for line in lines)


def _awk(args: Sequence[str], stdin: str | None) -> str | None:
    """Only the count of fields: ``awk -F, '{print NF}'``."""
    match = re.fullmatch(r"-F ?(\S) *\{ *print +NF *;? *\}", " ".join(args))
    if stdin is None or match is None:
        return None
    return "".join(f"{len(line.split(match[1]))}\n" for line in stdin.splitlines())


def _head(args: Sequence[str], stdin: str | None) -> str | None:
    match = re.fullmatch(r"-n ?(\d{1,6})|-(\d{1,6})|", " ".join(args))
    if stdin is None or match is None:
        return None
    return "".join(stdin.splitlines(keepends=True)[: int(match[1] or match[2] or 10)])


def _unknown(args: Sequence[str], stdin: str | None) -> str | None:
    return None


def _sed(args: Sequence[str], stdin: str | None) -> str | None:
    """Only ``s/text/other/g`` with literal text on both sides."""
    rest = [a for a in args if a != "-e"]
    match = re.fullmatch(r"s([/|,#:@])((?:(?!\1).)+)\1((?:(?!\1).)*)\1(g?)", " ".join(rest))
    if stdin is None or match is None or len(rest) != 1:
        return None
    old, new = match[2], match[3]
    if re.search(r"[\\*.\[\]^$&+?(){}]", old) or "\\" in new or "&" in new:
        return None
    times = -1 if match[4] else 1
    return "".join(line.replace(old, new, times) for line in stdin.splitlines(keepends=True))


def _xargs(args: Sequence[str], stdin: str | None) -> str | None:
    return None if args or stdin is None else " ".join(stdin.split()) + "\n"


TOOLS: Mapping[str, Tool] = {
    "echo": _echo, "printf": _printf, "basename": _basename, "dirname": _dirname, "seq": _seq,
    "expr": _expr, "bc": _bc, "tr": _tr, "wc": _wc, "cat": _cat, "cut": _cut, "awk": _awk,
    "head": _head, "xargs": _xargs, "sed": _sed, "envsubst": _unknown,
}  # fmt: skip
