"""Megatron-LM's arguments as the keys of a YAML file: destinations in place of options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from krzem.plan.emit.keys import Key
from krzem.plan.emit.launch import Flag, is_asked
from krzem.plan.emit.parts import literal, quoted

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
