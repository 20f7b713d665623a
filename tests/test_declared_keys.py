"""Keys of all files: each declaration is read, told, and written down in the same way."""

from __future__ import annotations

import datetime
import importlib.util
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from krzem.errors import GoalError, InputError
from krzem.keys import (
    MOST_FAULTS,
    REQUIRED,
    Key,
    Number,
    Whole,
    anything,
    choice,
    flag,
    listed,
    one_of,
    read_keys,
    read_table,
    schema_of,
    setting,
    stop_at,
    text,
)
from krzem.layout.layout import Precision
from krzem.quantity import parse_count

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("torch", reason="the trainer's tables are among them")

ROOT = Path(__file__).parent.parent
ODD = (None, True, False, -1, 0, 10**30, 0.5, float("nan"), float("inf"), "", " ", "x" * 5000,
       "1 apple", "a\nb", [], [1], {}, {"a": 1}, datetime.date(2027, 1, 1), 3, "2", "50%", "1T",
       "60d", "$5M", ["a"], {"a": "b"}, {"a": 0.7})  # fmt: skip


def declared() -> Mapping[str, tuple[str, Mapping[str, Mapping[str, Key]]]]:
    """The tables of every kind of file, as the reference pages list them."""
    loader = SourceFileLoader("reference", str(ROOT / "scripts" / "reference"))
    spec = importlib.util.spec_from_loader("reference", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    arguments, sys.argv = sys.argv, ["reference", "--check"]
    try:
        loader.exec_module(module)
    except SystemExit:
        pass
    finally:
        sys.argv = arguments
    found: Mapping[str, tuple[str, Mapping[str, Mapping[str, Key]]]] = module.tables()
    return found


def keys() -> Iterator[Any]:
    for kind, (_, tables) in declared().items():
        for table, entries in tables.items():
            for name, key in entries.items():
                yield pytest.param(name, key, id=f"{kind} {table} {name}")


KEYS = tuple(keys())


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_a_key_reads_its_example_and_refuses_what_is_odd_in_words(name: str, key: Key) -> None:
    checker = jsonschema.Draft202012Validator({"properties": schema_of({name: key})})
    if key.example not in ("a table", "[[pool]]", "[[pool.delivery]]", "[[pool.grant]]"):
        written = tomllib.loads(f"x = {key.example.partition(' or ')[0]}")["x"]
        key.value(written)
        checker.validate({name: as_json(written)})
    for odd in ODD:
        faults: list[str] = []
        read_keys({name: odd}, {name: key}, "here", faults)
        assert all(fault.startswith(f"here.{name}: ") for fault in faults)
        assert all(f"{name} = {key.example}" in fault for fault in faults)
        if not faults and key.read is not anything:
            checker.validate({name: as_json(odd)})


def as_json(value: Any) -> Any:
    return str(value) if isinstance(value, datetime.date) else value


@dataclass(frozen=True, kw_only=True)
class Table:
    """Every kind of reader."""

    steps: int = setting(REQUIRED, Whole(1), "10", "how many")
    share: float = setting(0.5, Number(0, 1), "0.5", "of all", key="part")
    on: bool = setting(False, flag, "true", "whether")
    kind: Precision = setting(Precision.BF16, choice(Precision), '"fp8"', "type")  # noqa: RUF009


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ["t.steps is missing (how many): write steps = 10"]),
        ({"steps": 1, "parts": 1}, ["t.parts: unknown key; did you mean part?"]),
        ({"steps": 1, "share": 1}, ["t.share: unknown key; known are steps, part, on, kind"]),
        (3, ["t: it must be a table: write [t] on its own line."]),
        (
            {"steps": 0, "part": 2, "on": "yes", "kind": "fp9"},
            [
                "t.steps: it must be a whole number from 1 to 1,000,000,000, not 0."
                " Here (how many): steps = 10",
                "t.part: it must be a number from 0 to 1, not 2. Here (of all): part = 0.5",
                "t.on: it must be true or false, without quotes, not 'yes'."
                " Here (whether): on = true",
                "t.kind: it must be one of bf16, fp16, fp8, fp8-block, mxfp8, nvfp4, fp32, not"
                " 'fp9'. Here (type): kind = \"fp8\"",
            ],
        ),
    ],
)
def test_all_faults_of_a_table_are_told_at_once(given: object, said: list[str]) -> None:
    faults: list[str] = []
    assert read_table(Table, given, "t", faults) is None
    assert faults == said


def test_a_good_table_is_its_values() -> None:
    faults: list[str] = []
    found = read_table(Table, {"steps": 3, "part": 1, "kind": "fp8"}, "t", faults)
    assert found == Table(steps=3, share=1.0, kind=Precision.FP8)
    assert not faults


def test_bounds_are_written_as_values_of_the_key() -> None:
    key = Key(parse_count, "5", "some", "2", "9")
    assert key.value(2) == 2
    for value, why in ((1, "less than 2"), (10, "more than 9")):
        with pytest.raises(InputError, match=why):
            key.value(value)


def test_a_schema_refuses_what_the_reader_refuses() -> None:
    table = {"n": Key(Whole(1, 5), "2", "n"), "w": Key(one_of("a", "b"), '"a"', "w"),
             "t": Key(text, '"x"', "t"), "f": Key(flag, "true", "f")}  # fmt: skip
    checker = jsonschema.Draft202012Validator({"type": "object", "properties": schema_of(table)})
    for value in ({"n": 0}, {"n": 6}, {"n": "2"}, {"w": "c"}, {"t": 3}, {"f": "true"}):
        faults: list[str] = []
        read_keys(value, table, "", faults)
        assert faults
        assert list(checker.iter_errors(value))


def test_many_faults_are_one_message_with_an_end() -> None:
    assert listed("a.toml", ["one"]) == "a.toml: one"
    assert listed("a.toml", ["one", "two"]) == "a.toml has 2 faults:\n  one\n  two"
    assert listed("a.toml", ["x"] * (MOST_FAULTS + 3)).endswith("\n  and 3 more")
    stop_at([], "a.toml", GoalError)
    with pytest.raises(GoalError, match="one"):
        stop_at(["one"], "a.toml", GoalError)
