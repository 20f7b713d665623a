"""Compositions of Hydra and interpolations of OmegaConf, without running either."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.jobs.documents import yaml_tree
from krzem.jobs.hydra import Resolver, compose, has_defaults, literal, pieces, split
from krzem.jobs.job import Place
from krzem.jobs.reading import read_job
from krzem.jobs.tree import Entry, Open


def resolved(text: str, **environment: str) -> dict[str, object]:
    tree = Resolver(yaml_tree(text, "a.yaml"), environment).resolved()
    return {key: entry.value for key, entry in tree.entries.items()}


@pytest.mark.parametrize(("expression", "value"), [
    ("${h}", 4096), ("${multiply:4,${h}}", 16384), ("${multiply:4, ${.h}}", 16384),
    ("${floor_div:7,2}", 3), ("${ceil_div:7,2}", 4), ("${add:1,${multiply:2,3}}", 7),
    ("${div:9,2}", 4.5), ("${min:3,${h}}", 3), ("${if:${eq:a,a},1,2}", 1),
    ("${if:${neq:a,a},1,2}", 2), ("${oc.env:NO,5}", "5"), ("${oc.decode:${oc.env:NO,5}}", 5),
    ("${oc.decode:${oc.env:N}}", 8), ("${oc.env:N}", "8"), ("${oc.decode:${oc.env:NO,null}}", None),
    ("${oc.decode:${oc.env:NO,False}}", False), ("${oc.select:nowhere,3}", 3), ("x${h}y", "x4096y"),
    ("${int_div:9,2}", 4), ("${sub:9,2}", 7),
])  # fmt: skip
def test_what_an_expression_gives(expression: str, value: object) -> None:
    assert resolved(f"h: 4096\na: '{expression}'\n", N="8")["a"] == value


@pytest.mark.parametrize("expression", [
    "${nowhere}", "${oc.env:NO}", "${unknown_resolver:1}", "${multiply:a,2}", "${div:1,0}", "${a}",
    "${h", "${multiply:${nowhere},2}", "x${nowhere}", "${multiply:1e300,1e300,1e300}", "${}",
])  # fmt: skip
def test_what_is_not_known_stays_open(expression: str) -> None:
    assert isinstance(resolved(f"h: 4096\na: '{expression}'\n")["a"], Open)


def test_siblings_and_parents() -> None:
    got = resolved("m:\n  h: 4\n  f: ${multiply:4,${.h}}\n  n:\n    k: ${..h}\n    t: ${m.n.k}\n")
    assert got == {"m.h": 4, "m.f": 16, "m.n.k": 4, "m.n.t": 4}


def test_circles_end() -> None:
    got = resolved("a: ${b}\nb: ${a}\nc: ${c}\nd: ${add:${d},1}\n")
    assert all(isinstance(value, Open) for value in got.values())


@given(st.text(alphabet="ab.:,{}$'0123 ", max_size=60))
@settings(deadline=None)
def test_any_expression_ends(text: str) -> None:
    tree = yaml_tree("a: x\nb: 3\n", "a.yaml")
    tree.put(Entry(key="a", value=text, place=Place()))
    Resolver(tree, {}).resolved()
    assert pieces(text) is None or "".join(
        f"${{{inner}}}" if inside else inner for inside, inner in pieces(text) or []
    ) == text  # fmt: skip


@given(st.lists(st.text(alphabet="ab12", min_size=1, max_size=4), min_size=1, max_size=5))
def test_arguments_are_split_at_commas(words: list[str]) -> None:
    assert split(",".join(words)) == words
    assert split(f"{{{','.join(words)}}},x") == [f"{{{','.join(words)}}}", "x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("null", None), ("True", True), ("1_000", 1000), ("1.5", 1.5), ("'a'", "a"), ("b c", "b c")],
)
def test_literals(text: str, value: object) -> None:
    assert literal(text) == value


FILES = {
    "config/experiments/one.yaml": "# @package _global_\ndefaults:\n  - base\n  - /backend: engine"
    "\n  - /slurm: big\n  - /backend/engine: [small, fast]\n  - _self_\nbackend:\n  engine:\n"
    "    steps: 5\n",
    "config/backend/engine.yaml": "defaults:\n  - engine: base\n  - _self_\n"
    "nodes: ${slurm.nodes}\n",
    "config/backend/engine/base.yaml": "layers: 1\nsteps: 1\nrate: 1\n",
    "config/backend/engine/small.yaml": "defaults:\n  - _self_\nlayers: 2\nsteps: 2\n",
    "config/backend/engine/fast.yaml": "steps: 3\n",
    "config/slurm/big.yaml": "nodes: 4\n",
}


def test_a_defaults_list_is_composed_in_its_order() -> None:
    made = compose(FILES, "config/experiments/one.yaml")
    got = {key: entry.value for key, entry in made.tree.entries.items()}
    assert got == {"backend.engine.layers": 2, "backend.engine.rate": 1,
                   "backend.engine.steps": 5, "backend.nodes": 4, "slurm.nodes": 4}  # fmt: skip
    assert made.missing == ["base"]


def test_a_package_is_said_or_global() -> None:
    files = {
        "main.yaml": "defaults:\n  - optional data@model.data: small\n  - _self_\nx: 1\n",
        "data/small.yaml": "y: 2\n",
    }
    got = {k: e.value for k, e in compose(files, "main.yaml").tree.entries.items()}
    assert got == {"model.data.y": 2, "x": 1}


def test_files_that_name_each_other_end() -> None:
    files = {"a.yaml": "defaults:\n  - b\nx: 1\n", "b.yaml": "defaults:\n  - a\ny: 1\n"}
    assert compose(files, "a.yaml").tree.entries["x"].value == 1


def test_a_defaults_list_is_seen() -> None:
    assert has_defaults("a: 1\ndefaults:\n  - b\n")
    assert not has_defaults("# defaults:\nx_defaults: 1\n")


def test_a_torchtitan_template_is_composed_before_it_is_read() -> None:
    own = "backend:\n  titan:\n    training:\n      local_batch_size: 3\n      seq_len: 4096\n"
    files = {
        "exp/one.yaml": f"defaults:\n  - base\n  - _self_\n{own}",
        "exp/base.yaml": "backend:\n  titan:\n    parallelism:\n      tensor_parallel_degree: 4\n",
    }
    job = read_job(text=files, engine="torchtitan")
    assert (job.get("mbs"), job.get("seq"), job.get("tp")) == (3, 4096, 4)
