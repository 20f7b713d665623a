"""Shapes of models that a row names without repeating them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from krzem.accuracy.cells import Row, number, text, whole
from krzem.accuracy.spellings import attention_of
from krzem.facts.table import read_table

SHAPE = (
    "layers", "hidden", "ffn_hidden", "heads", "kv_heads", "head_dim", "vocab", "experts",
    "experts_per_token", "shared_experts", "moe_ffn_hidden", "dense_layers",
)  # fmt: skip
_TELLING = ("hidden", "ffn_hidden", "heads", "kv_heads", "experts", "moe_ffn_hidden")
"""Columns in which a row must not differ from a model to be that model."""
_TRAILING = re.compile(
    r"(base|instruct|chat|hf|pre-?train(ing|ed)?|train(ing)?|mlperf|proxy|\d+l|sft|full|reduced|"
    r"fine-?tun\w*|dense|model|it|pt|q?lora|peft|v\d(p\d)?|dropless|mtp|bf16|fp8|\d+k|seq\w*)$"
)


_CUT = r"reduced|cut-?down|proxy|\b\d+l(ayers?)?\b"


def model_of(row: Row) -> str:
    """The model of a row: column ``model``, or ``model_name`` where there is no such column.

    A table with a column ``model`` is never looked up by ``model_name``, which is then a label.
    """
    return (row.get("model" if "model" in row else "model_name") or "").strip()


def completed(row: Row) -> Row:
    """``row`` with blank cells of its shape filled in where its name says which model it is.

    Layers are left alone where the row has them: a cut-down model keeps the widths of the whole.
    """
    name = model_of(row)
    known = known_shape(name)
    if known is None or not _agrees(row, known):
        return row
    cut = whole(row, "layers") not in (None, whole(known, "layers"))
    filled = {name: known[name] for name in SHAPE if not text(row, name)}
    if re.search(_CUT, name.lower()):
        filled.pop("layers", None)
    if not attention_of(text(row, "attention")):
        filled["attention"] = known["attention"]
    if cut:
        filled["dense_layers"] = row.get("dense_layers") or ""
    else:
        filled |= {n: known[n] for n in ("params_b", "active_params_b") if not number(row, n)}
    return {**row, **filled}


def _agrees(row: Row, known: Row) -> bool:
    pairs = ((whole(row, name), whole(known, name)) for name in _TELLING)
    return all(given is None or have is None or given == have for given, have in pairs)


def known_shape(name: str) -> Mapping[str, str] | None:
    """The row of ``facts/shapes.csv`` that ``name`` means, however it is spelled.

    >>> (known_shape("meta-llama/Llama 3.1 70B Instruct") or {})["id"]
    'llama-3-70b'
    """
    return _known(name[:120])


@cache
def _known(name: str) -> Mapping[str, str] | None:
    words = _words(name)
    while words:
        squeezed = "".join(words)
        for pattern, shape in _patterns():
            if pattern.fullmatch(squeezed):
                return shape
        if not _TRAILING.search(words[-1]):
            return None
        words = words[:-1]
    return None


def _words(name: str) -> list[str]:
    """``org/Llama-3.1-8B (proxy)`` as ["llama", "3p1", "8b"]."""
    bare = re.sub(r"[(\[].*", "", name.lower().rsplit("/", 1)[-1])
    bare = re.sub(r"(?<=\d)\.(?=\d)", "p", bare)
    return re.findall(r"[a-z0-9]+", bare)


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], Mapping[str, str]], ...]:
    return tuple((re.compile(row["match"]), row) for row in read_table("shapes.csv"))
