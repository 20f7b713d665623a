"""JSON documents: complete, documented, finite."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.api import compare, explain
from krzem.estimate import Estimate
from krzem.layout.layout import Layout, parse_layout
from krzem.report.document import TERMS, clean

Document = dict[str, Any]
PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
INTERVALS = ("step_time_s", "tokens_per_s_per_device", "mfu", "memory_gib")


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item)


def test_a_plan_holds_what_is_promised(small_document: Document) -> None:
    document = small_document
    assert document["schema"] == "krzem.plan/1"
    assert document["layouts_evaluated"] > 1000
    assert document["search_seconds"] > 0
    best = document["best"]
    for name in INTERVALS:
        assert best[name]["low"] <= best[name]["mid"] <= best[name]["high"]
    assert 0.9 <= best["fits_probability"] <= 1
    assert best["wall"] == document["gains"][0]["resource"]
    for name in ("days", "device_hours", "energy_mwh", "cost_usd"):
        assert set(document["whole_run"][name]) == {"low", "mid", "high"}


def test_every_key_is_documented(small_document: Document) -> None:
    words = set(re.findall(r"[a-z_][a-z_0-9-]*[a-z_0-9]|[a-z]", PAGE))
    data = {"by_module", "peak_tflops", "state_bytes"}
    shown = {k: v for k, v in small_document.items() if k not in data}
    for part in data:
        for holder in ("model", "cluster", "goal"):
            shown[holder] = {k: v for k, v in shown[holder].items() if k != part}
    assert {key for key in keys(shown) if key not in words} == set()


def test_the_breakdown_adds_up(small_document: Document) -> None:
    best = small_document["best"]
    assert {term["term"] for term in best["breakdown"]} == set(TERMS)
    assert math.isclose(
        sum(t["seconds"] for t in best["breakdown"]), best["step_time_s"]["mid"], rel_tol=1e-9
    )
    assert math.isclose(sum(t["share"] for t in best["breakdown"]), 1.0, rel_tol=1e-9)
    for rank in best["ranks"]:
        parts = [v for k, v in rank.items() if k.endswith("_gib") and k != "total_gib"]
        assert math.isclose(sum(parts), rank["total_gib"], rel_tol=1e-9)


def test_layouts_are_objects_and_text_alike(small_document: Document) -> None:
    for shown in (small_document["best"], *small_document["alternatives"]):
        assert clean(parse_layout(shown["layout_text"])) == shown["layout"]
        assert set(shown["layout"]) == set(Layout.__slots__)


def test_facts_carry_unit_source_and_confidence(small_document: Document) -> None:
    facts = {fact["what"]: fact for fact in small_document["facts"]}
    assert facts["recipe: sequence"]["value"] == 4096
    assert facts["memory per device"]["unit"] == "GiB"
    assert "bf16 dense peak per device" in facts
    for fact in facts.values():
        assert fact["source"]
        assert fact["confidence"] in ("high", "medium", "low", "given", "measured")


def test_what_the_user_gives_is_marked_as_given(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('device = "h100"\ndevices = 16\nscale_out_bandwidth = "100 Gbit/s"\n'
                    'price = "$2/h"\n[measured]\nbf16 = "650 TFLOP/s"\n')  # fmt: skip
    found = explain("qwen3-0.6b", on=file, layout="tp=1", batch=64).as_dict()
    facts = {fact["what"]: fact for fact in found["facts"]}
    assert facts["scale-out bandwidth per device"]["confidence"] == "given"
    assert facts["usd per device hour"]["confidence"] == "given"
    assert facts["memory per device"]["confidence"] == "high"
    assert facts["measured bf16 flops"]["value"] == 650e12


def test_what_nobody_published_is_null_with_a_sentence() -> None:
    run = explain("qwen3-0.6b", on="v100:16", layout="tp=1", batch=64).as_dict()["whole_run"]
    assert run["cost_usd"] is None
    assert any("price" in sentence for sentence in run["unknown"])


def test_a_comparison_says_who_is_best_and_who_makes_it() -> None:
    found = compare("qwen3-0.6b", on=["h100:16", "a100:16"], batch=64, deadline="900d",
                    top=1).as_dict()  # fmt: skip
    assert found["schema"] == "krzem.compare/1"
    assert found["best"]["days"] == 0
    assert len(found["makes_deadline"]) == len(found["plans"]) == 2
    days = [entry["plan"]["whole_run"]["days"]["mid"] for entry in found["plans"]]
    assert days[0] < days[1]
    assert [entry["plan"]["schema"] for entry in found["plans"]] == ["krzem.plan/1"] * 2
    json.dumps(found, allow_nan=False)


def test_mfu_of_different_precisions_is_not_ranked() -> None:
    alike = compare("qwen3-0.6b", on=["h100:16", "a100:16"], batch=64).as_dict()
    apart = compare("qwen3-0.6b", on=["h100:16", "v100:16"], batch=64).as_dict()
    assert alike["best"]["mfu"] is not None
    assert apart["best"]["mfu"] is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
)


@given(VALUES)
def test_nothing_in_a_document_is_nan_or_infinite(value: Any) -> None:
    json.dumps(clean(value), allow_nan=False)


def test_values_become_plain() -> None:
    assert clean(Estimate(1.0, 2.0, float("inf"))) == {"low": 1.0, "mid": 2.0, "high": None}
    assert clean({"a": (Layout(),)})["a"][0]["schedule"] == "1f1b"


@pytest.mark.parametrize("name", ["plan", "explain", "compare", "devices", "models"])
def test_every_schema_has_its_section(name: str) -> None:
    assert f"`krzem.{name}/1`" in PAGE
