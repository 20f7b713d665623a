"""YAML, JSON, TOML and Python recipes as trees: lines, bounds, and nothing executed."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.errors import DataError
from krzem.jobs.documents import LARGEST, json_tree, toml_tree, yaml_tree
from krzem.jobs.recipe import Recipe
from krzem.jobs.recipe_values import MOST_STEPS, Node
from krzem.jobs.tree import Call, Open, Tree

LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
MERGES = "m0: &m0 {}\n" + "".join(
    f"m{i}: &m{i}\n  <<: [{','.join([f'*m{i - 1}'] * 9)}]\n" for i in range(1, 20)
)


def values(tree: Tree) -> dict[str, object]:
    return {key: entry.value for key, entry in tree.entries.items()}


# -- the three formats


def test_one_content_in_three_formats() -> None:
    want = {"a.b": 1, "a.c": [1, 2], "d": "x", "e": 2.5, "f": True}
    yaml = "a:\n  b: 1\n  c: [1, 2]\nd: x\ne: 2.5\nf: true\n"
    toml = 'd = "x"\ne = 2.5\nf = true\n[a]\nb = 1\nc = [1, 2]\n'
    text = json.dumps({"a": {"b": 1, "c": [1, 2]}, "d": "x", "e": 2.5, "f": True}, indent=1)
    for tree in (yaml_tree(yaml, "a.yaml"), toml_tree(toml, "a.toml"), json_tree(text, "a.json")):
        assert values(tree) == want
        for key, entry in tree.entries.items():
            assert key.rpartition(".")[2] in entry.place.text


def test_each_leaf_knows_its_line() -> None:
    text = "a:\n  x: 1\nb:\n  x: 2\n# x: 9\nc:\n  x: 3\n"
    lines = {k: e.place.line for k, e in yaml_tree(text, "a.yaml").entries.items()}
    assert lines == {"a.x": 2, "b.x": 4, "c.x": 7}
    toml = "[a]\nx = 1\n[b]\nx = 2\n"
    lines = {k: e.place.line for k, e in toml_tree(toml, "a.toml").entries.items()}
    assert lines == {"a.x": 2, "b.x": 4}


@pytest.mark.parametrize(("written", "value"), [
    ("1", 1), ("0x10", 16), ("010", 8), ("1_000", 1000), ("1.5", 1.5), ("1e-4", "1e-4"),
    ("on", True), ("No", False), ("~", None), ("", None), ("2:00:00", "2:00:00"), ("'1'", "1"),
    ("-3", -3), ("[1, a]", [1, "a"]), ("{}", {}),
])  # fmt: skip
def test_yaml_values_are_those_of_the_engines(written: str, value: object) -> None:
    assert values(yaml_tree(f"a: {written}\n", "a.yaml")) == {"a": value}


@pytest.mark.parametrize("written", ["!ENV x", "!!python/object/apply:os.system [ls]",
                                     "!Include {a: 1}", "!!python/name:os.system"])  # fmt: skip
def test_other_tags_leave_a_value_open(written: str) -> None:
    assert isinstance(values(yaml_tree(f"a: {written}\n", "a.yaml"))["a"], Open)


def test_anchors_merge_and_later_documents_win() -> None:
    text = "b: &b {x: 1, y: 2}\na:\n  <<: *b\n  y: 3\n---\nb: {x: 9}\n"
    assert values(yaml_tree(text, "a.yaml")) == {"b.x": 9, "b.y": 2, "a.x": 1, "a.y": 3}


@pytest.mark.parametrize(("text", "why"), [
    (LAUGHS, "unfold"), (MERGES, "unfold"), ("[" * 5000, "nests"), ("{a: " * 5000, "nests"),
    ("".join("  " * i + "a:\n" for i in range(200)), "nests"), ("a: &a\n  <<: *a\n", "merges"),
    ("a: &a [*a]\n", "itself"), ("a: [1,\nb: 2", "line 2"), ("a: \x01", "not valid"),
    ("a: *x\n", "alias"), ("a: 1\n" * (LARGEST // 5 + 1), "characters"),
])  # fmt: skip
def test_hostile_yaml_ends_in_a_sentence(text: str, why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        yaml_tree(text, "a.yaml")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[1]", "{", '{"a": 1e999999'])
def test_hostile_json_ends_in_a_sentence(text: str) -> None:
    with pytest.raises(DataError, match=r"a\.json"):
        json_tree(text, "a.json")


@given(st.text(alphabet="ab:&*<[]{}-,|>#!%@ \n\t'\"0.1", max_size=200))
@settings(deadline=None)
def test_any_text_is_a_tree_or_a_sentence(text: str) -> None:
    for read in (yaml_tree, json_tree, toml_tree):
        with suppress(DataError):
            assert all(e.key == k for k, e in read(text, "a").entries.items())


# -- Python


RECIPE = """
import dataclasses, os
from titan import SelectiveAC, base

BATCH = 4

def stages(counts):
    names = [[f"layers.{i}" for i in range(n)] for n in counts]
    return names

def made(n=2, *, k=3, **rest):
    cfg = T.Config(a=n * k, b=dict(x=1), **rest)
    return cfg

def run():
    config = base()
    config.p.tp = 2 * BATCH
    config.ac = SelectiveAC.Config(q=1)
    config.p.split = stages([4, 4])
    config.c = [A.Config(x=1)]
    config.lr = float(os.environ["LR"])
    config.n = os.environ.get("N", 8)
    if os.path.exists("x"):
        config.open = 1
    if BATCH == 4:
        config.closed = 1
    config.made = made(5, z=9)
    return dataclasses.replace(config, last=True)
"""


def read(text: str) -> dict[str, object]:
    recipe = Recipe(text, "recipe.py")
    made = recipe.call("run")
    assert isinstance(made, Node)
    return values(recipe.tree(made))


def test_a_recipe_is_followed() -> None:
    got = read(RECIPE)
    want = {"_target_": "base", "p.tp": 8, "ac._target_": "SelectiveAC.Config", "ac.q": 1,
            "p.split._target_": "stages", "p.split.0": [4, 4], "n": 8, "closed": 1,
            "made._target_": "T.Config", "made.a": 15, "made.b.x": 1, "made.z": 9,
            "last": True}  # fmt: skip
    assert {k: got[k] for k in want} == want
    assert got["c"] == [Call("A.Config", (), (("x", 1),))]
    assert isinstance(got["lr"], Open)
    assert isinstance(got["open"], Open)


def test_lines_of_a_recipe() -> None:
    recipe = Recipe(RECIPE, "recipe.py")
    made = recipe.call("run")
    assert isinstance(made, Node)
    lines = RECIPE.splitlines()
    for key, entry in recipe.tree(made).entries.items():
        assert entry.place.text == lines[entry.place.line - 1].strip(), key


def test_nothing_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    attack = f"open({str(mark)!r}, 'w').close()"
    text = f"""
import os
{attack}
__import__('os').system('touch {mark}')
class Evil:
    x = {attack}
def run(x={attack}):
    cfg = T.Config(a=(lambda: {attack})(), b=[{attack} for _ in range(3)])
    exec({attack!r})
    eval({attack!r})
    return cfg
"""
    read(text)
    assert not mark.exists()


@pytest.mark.parametrize("text", [
    "x = " + "-" * 100_000 + "1", "x = a" + ".b" * 100_000, "x = " + "1+" * 50_000 + "1",
    "x = " + "(" * 1000, "def f(: pass", "a\0", "for i in range(200):\n for j in range(200):\n"
    "  for k in range(200):\n   x = 1\n", "x = [" * 5000,
])  # fmt: skip
def test_hostile_recipes_end_in_a_sentence(text: str) -> None:
    with pytest.raises(DataError, match=r"recipe\.py") as caught:
        Recipe(text, "recipe.py")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", [
    "x = 9**9**9\ny = 'a' * 10**12\nz = [0] * 10**12\n", "def f(): return f()\nx = f()\n",
    "while True: pass\n", "x = 0x" + "f" * 50_000, "def f(n): return f(n) + f(n)\nx = f(1)\n",
    "a = T.Config()\na.a = a\na.b = a\nimport copy\nb = copy.deepcopy(a)\n",
])  # fmt: skip
def test_work_without_end_is_left_open(text: str) -> None:
    recipe = Recipe(text, "recipe.py")
    for value in list(recipe.names.values()):
        if isinstance(value, Node):
            with suppress(DataError):
                assert len(recipe.tree(value).entries) < MOST_STEPS


@given(st.text(alphabet="abcx=.()[]{}:,'\"0123 \n+-*/%<>", max_size=120))
@settings(deadline=None)
def test_any_text_is_a_recipe_or_a_sentence(text: str) -> None:
    with suppress(DataError):
        assert "run" in Recipe(f"def run():\n return 1\n{text}", "recipe.py").names
