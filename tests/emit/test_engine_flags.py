"""Every emitted setting is in the table of its engine's parser, with a value of its type."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest
from tests.emit.engine_cells import PER_MODEL, answered, cells
from tests.emit.test_real_parsers import ROOT, python_of

from krzem.plan.emit.parts import Key, keys_of

TABLES = {"megatron-lm": "megatron-lm-0.19.2", "torchtitan": "torchtitan-0.3.0"}
OF_A_RECIPE = {"recipe", "model_spec"}
"""What a recipe of torchtitan is built on."""
OF_A_REGISTRY = {"dataloader.dataset"}
"""Settings of what a base recipe puts into a general place."""
NUMBERS = {"int": int, "float": float}


@pytest.mark.parametrize("engine", sorted(PER_MODEL))
def test_every_setting_is_known_and_fits(engine: str) -> None:
    keys = keys_of(TABLES[engine])
    fits = word_fits if engine == "megatron-lm" else expression_fits
    wrong = {
        f"{flag.name} {flag.value}"
        for cell in cells(engine)
        for flag in cell.launch().flags
        if flag.name not in OF_A_RECIPE | OF_A_REGISTRY
        and not (flag.name in keys and fits(flag.value, keys[flag.name]))
    }
    assert not wrong


def word_fits(value: str, key: Key) -> bool:
    """Whether the words behind an argument are as many and of the kind it wants."""
    if key.kind == "switch":
        return not value
    words = [answered(value)] if value.startswith("${") else value.split()
    many, kind = key.kind.startswith("list["), key.kind.removeprefix("list[").removesuffix("]")
    if not words or (len(words) > 1 and not many):
        return False
    try:
        [NUMBERS[kind](word) for word in words if kind in NUMBERS]
    except ValueError:
        return False
    return not key.choices or set(words) <= set(key.choices)


def expression_fits(value: str, key: Key) -> bool:
    """Whether a literal has the type it is declared with; what is computed fits."""
    try:
        found = ast.literal_eval(value)
    except ValueError:
        return "(" in value or "[" in value
    if found is None:
        return "None" in key.kind
    if isinstance(found, str) and key.choices:
        return found in key.choices
    return type(found).__name__ in key.kind


@pytest.mark.parametrize(
    ("value", "kind", "choices", "fine"),
    [
        ("1e+06", "int", (), False), ("1000000", "int", (), True), ("", "int", (), False),
        ("1 2", "int", (), False), ("1 2", "list[int]", (), True), ("0.5", "float", (), True),
        ("", "switch", (), True), ("1", "switch", (), False), ("a", "str", ("b",), False),
        ("${LR:?peak learning rate}", "float", (), True),
    ],
)  # fmt: skip
def test_words_are_judged(value: str, kind: str, choices: tuple[str, ...], fine: bool) -> None:
    assert word_fits(value, Key(name="--x", kind=kind, default="", choices=choices)) is fine


@pytest.mark.parametrize("engine", sorted(PER_MODEL))
def test_the_table_is_that_of_the_parser(engine: str) -> None:
    python_of(engine)
    version, text = runpy.run_path(str(ROOT / "scripts" / "engine-flags"))["text_of"](engine)
    file = Path(ROOT, "src/krzem/facts/engine_flags", f"{engine}-{version}.csv")
    assert file.stem == TABLES[engine]
    assert text == file.read_text(encoding="utf-8"), f"scripts/engine-flags {engine} renews it"
