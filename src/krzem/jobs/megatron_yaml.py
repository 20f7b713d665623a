"""Arguments of Megatron-LM that a script takes out of a YAML table by ``yq``.

The benchmark scripts of the Megatron MoE model zoo keep them under ``MODEL_ARGS``, with variables
of the script in the values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from krzem.jobs.registry import Sources
from krzem.jobs.shell_words import Origin, ShellWord, State

_ENTRY = re.compile(r"^\s+[\"']?(--?[\w-]+)[\"']?\s*:\s*(.*?)\s*$")
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


def tabled(
    word: ShellWord, variables: Mapping[str, ShellWord], sources: Sources
) -> list[ShellWord] | None:
    """The words that the table holds, where this unknown word reads one; None for others."""
    if word.state is not State.UNKNOWN or "yq" not in word.text or "MODEL_ARGS" not in word.text:
        return None
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if re.search(r"^MODEL_ARGS\s*:", text, re.M):
            return _words(name, text, variables)
    return None


def _words(name: str, text: str, variables: Mapping[str, ShellWord]) -> list[ShellWord]:
    words: list[ShellWord] = []
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\S", line) and not line.startswith("#"):
            inside = re.match(r"MODEL_ARGS\s*:", line) is not None
        match = _ENTRY.match(re.sub(r"\s#.*$", "", line)) if inside else None
        if match is None:
            continue
        words.extend(_entry(match[1], match[2], Origin(name, number), variables))
    return words


def _entry(
    flag: str, value: str, origin: Origin, variables: Mapping[str, ShellWord]
) -> list[ShellWord]:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    if value in ("false", ""):
        return []
    head = ShellWord(flag, origin)
    if value == "true":
        return [head]
    if not _VARIABLE.search(value):
        return [head, ShellWord(value, origin)]
    used = [variables.get(m[1] or m[2]) for m in _VARIABLE.finditer(value)]
    state = max((State.UNSET if v is None else v.state for v in used), default=State.KNOWN)
    filled = _VARIABLE.sub(lambda m: _text(m, variables), value)
    if filled == "false":
        return []
    if filled == "true":
        return [head]
    source = used[0].origin if len(used) == 1 and used[0] is not None else origin
    return [head, ShellWord(filled, source if source.line else origin, state)]


def _text(match: re.Match[str], variables: Mapping[str, ShellWord]) -> str:
    word = variables.get(match[1] or match[2])
    return match[0] if word is None else word.text
