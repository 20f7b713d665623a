"""Pages: rendered from documents alone, self-contained, readable by machines and safe."""

import copy
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from krzem.errors import DataError, KrzemError, StorageError
from krzem.layout.layout import parse_layout
from krzem.layout.space import Space
from krzem.plan.plan import explain, plan
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.report.document import explain_document, plan_document
from krzem.report.html import render, write_html

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> $x_1$ 昇腾 \x07'
VOID = {"meta", "br", "wbr", "img", "link", "hr", "input"}


@pytest.fixture(scope="module")
def planned() -> dict[str, Any]:
    asked = settle(Question(model="llama-2-7b", on="a100:16", tokens="2T", sequence="4k",
                            global_batch=1024, precision="bf16", start="2026-01-01",
                            deadline="400d"))  # fmt: skip
    found = plan(asked.task, space=Space(domain=8), start=asked.start)
    return json.loads(json.dumps(plan_document(found, asked)))


@pytest.fixture(scope="module")
def explained() -> dict[str, Any]:
    asked = settle(Question(model="llama-2-7b", on="a100:16", tokens="2T", sequence="4k",
                            global_batch=1024, precision="bf16"))  # fmt: skip
    layout = parse_layout("tp=2,pp=4,dp=2,mbs=1,zero=1")
    return json.loads(json.dumps(explain_document(explain(asked.task, layout), asked)))


@pytest.fixture
def compared(planned: dict[str, Any]) -> dict[str, Any]:
    other = copy.deepcopy(planned)
    other["cluster"]["device_name"] = "Other Card"
    for key in ("days", "cost_usd", "device_hours", "energy_mwh", "goodput"):
        other["whole_run"][key] = None
    return {
        "schema": "krzem.compare/1",
        "model": planned["model"],
        "plans": [
            {"cluster": "a100:16", "plan": planned, "error": None},
            {"cluster": "other:16", "plan": other, "error": None},
            {"cluster": "tiny:1", "plan": None, "error": "it does not fit 1 x tiny"},
        ],
        "best": dict.fromkeys(("days", "device_hours", "energy_mwh", "cost_usd", "mfu")),
        "makes_deadline": [True, None, None],
        "makes_budget": [None, None, None],
    }


class Page(HTMLParser):
    """Tags with their attributes, the text a reader sees, and tags that do not balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.seen = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def every_text(document: Any) -> list[str]:
    """Every string of a document that came from people or facts."""
    if isinstance(document, dict):
        return [text for value in document.values() for text in every_text(value)]
    if isinstance(document, list):
        return [text for value in document for text in every_text(value)]
    return [document] if isinstance(document, str) else []


@pytest.fixture(params=["plan", "explain", "compare"])
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    name = {"plan": "planned", "explain": "explained", "compare": "compared"}[request.param]
    return copy.deepcopy(request.getfixturevalue(name))


def test_page_loads_nothing_and_stays_small(document: dict[str, Any]) -> None:
    text = render(document)
    page = Page(text)
    assert not page.open
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"} == set()
    for tag, attributes in page.tags:
        assert "src" not in attributes
        target = str(attributes.get("xlink:href") or attributes.get("href") or "#")
        assert target.startswith("#") or (tag == "a" and target.startswith("https://"))
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert len(text.encode()) < 1_000_000


def test_charts_are_xml_with_names_that_resolve(document: dict[str, Any]) -> None:
    text = render(document)
    charts = [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(charts) >= 3
    ids = Counter(re.findall(r'\bid="([^"]+)"', text))
    assert max(ids.values()) == 1
    for chart in charts:
        assert chart.get("role") == "img"
        assert set(chart.attrib["aria-labelledby"].split()) <= set(ids)
        for name in ("title", "desc"):
            found = chart.find(SVG + name)
            assert found is not None
            assert found.text
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)) <= {
        pair for name in ids for pair in ((name, ""), ("", name))
    }


def test_charts_use_colours_that_every_theme_defines(document: dict[str, Any]) -> None:
    text = render(document)
    style, _, body = text.partition("</style>")
    light, dark, printed = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", body)) - {"tone"}
    for theme in (light, dark, printed):
        assert used <= set(re.findall(r"--([a-z0-9]+):", theme))
    assert not re.findall(r"#0102[0-9a-f]{2}", body)


def test_same_document_same_bytes(planned: dict[str, Any]) -> None:
    assert render(planned) == render(copy.deepcopy(planned))


def test_page_shows_the_numbers_of_the_document(planned: dict[str, Any]) -> None:
    seen = Page(render(planned)).seen
    run, best = planned["whole_run"], planned["best"]
    assert f"{run['days']['mid']:.0f} (" in seen
    assert f"{run['steps']:,}" in seen
    assert f"{planned['layouts_evaluated']:,} legal layouts" in seen
    for item in best["breakdown"]:
        assert item["seconds"] == 0 or item["label"] in seen
    for gain in planned["gains"]:
        assert gain["label"] in seen
    joined = seen.replace(", ", ",").replace(" ", "")
    for layout in [best, *planned["alternatives"]]:
        assert layout["layout_text"] in joined


def test_facts_notes_and_sources_are_all_there(planned: dict[str, Any]) -> None:
    seen = Page(render(planned)).seen
    for fact in planned["facts"]:
        assert fact["what"] in seen
        assert fact["confidence"] in seen
        assert " ".join(fact["source"].split()) in seen
    for note in planned["notes"]:
        assert " ".join(note.split()) in seen


def test_every_text_of_the_document_is_escaped(document: dict[str, Any]) -> None:
    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        fixed = {"schema", "early", "middle", "late", "start", "term", "resource", "wall", "rank"}
        return HOSTILE if isinstance(value, str) and key not in fixed else value

    text = render(poison(document))
    page = Page(text)
    assert {tag for tag, _ in page.tags} & {"script", "img"} == set()
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert "<script>alert(1)</script>" in unescape(text)


def test_links_are_web_addresses_only(planned: dict[str, Any]) -> None:
    document = copy.deepcopy(planned)
    document["facts"][0]["source"] = "javascript:alert(1) https://example.org/a?b=1&c=2"
    targets = [a["href"] for tag, a in Page(render(document)).tags if tag == "a"]
    assert "https://example.org/a?b=1&c=2" in targets
    assert not [target for target in targets if str(target).startswith("javascript")]


def test_unknown_is_said(planned: dict[str, Any]) -> None:
    document = copy.deepcopy(planned)
    run = document["whole_run"]
    for key in ("days", "device_hours", "node_hours", "energy_mwh", "cost_usd", "goodput",
                "interruptions", "recovery_s", "finish", "deadline_probability"):  # fmt: skip
        run[key] = None
    run["checkpoint"] |= {"write_s": None, "interval_s": None, "interval_steps": None}
    run["unknown"] = ["Nobody has published the failure rate: give failures_per_device_day"]
    seen = Page(render(document)).seen
    assert "days in steps alone" in seen
    assert seen.count("unknown") >= 8
    assert run["unknown"][0] in seen


def test_a_negative_part_keeps_its_sign(planned: dict[str, Any]) -> None:
    document = copy.deepcopy(planned)
    document["best"]["breakdown"][-1] |= {"seconds": -0.25, "share": -0.125}
    assert "-0.25 s" in Page(render(document)).seen


def test_stages_are_named(explained: dict[str, Any], planned: dict[str, Any]) -> None:
    seen = Page(render(explained)).seen
    assert all(f"{rank} stage" in seen for rank in ("first", "middle", "last"))
    alone = copy.deepcopy(planned)
    alone["best"]["ranks"] = alone["best"]["ranks"][:1]
    assert "every device" in Page(render(alone)).seen


def test_explanations_have_no_search(explained: dict[str, Any]) -> None:
    seen = Page(render(explained)).seen
    assert "Time against memory" not in seen
    assert "Where the time of a step goes" in seen


def test_launch_script_is_shown(planned: dict[str, Any]) -> None:
    launch = {"engine": "megatron-lm", "script": "torchrun pretrain_gpt.py --bf16 # <flags>"}
    assert "--bf16 # <flags>" in Page(render(planned | {"launch": launch})).seen


def test_compare_says_why_there_is_no_plan(compared: dict[str, Any]) -> None:
    seen = Page(render(compared)).seen
    assert "No plan: it does not fit 1 x tiny" in seen
    assert "Unknown for 16 × Other Card" in seen
    assert "keeps the deadline" in seen


def test_compare_without_any_plan(compared: dict[str, Any]) -> None:
    for entry in compared["plans"]:
        entry["plan"], entry["error"] = None, "it does not fit"
    assert Page(render(compared)).seen.count("No plan: it does not fit") == 3


def test_awards_follow_the_document(compared: dict[str, Any]) -> None:
    compared["best"] |= {"days": 0, "cost_usd": 1, "mfu": 1}
    compared["plans"][1]["plan"]["whole_run"]["cost_usd"] = {"low": 1e3, "mid": 2e3, "high": 3e3}
    seen = Page(render(compared)).seen
    assert "Soonest done: 16 × NVIDIA A100" in seen
    assert "Cheapest: 16 × Other Card, $2k ($1k–$3k)." in seen


def test_overlapping_intervals_are_not_called_a_clear_win(compared: dict[str, Any]) -> None:
    compared["best"] |= {"days": 0, "cost_usd": 0}
    for key in ("days", "cost_usd"):
        value = compared["plans"][0]["plan"]["whole_run"][key]
        compared["plans"][1]["plan"]["whole_run"][key] = {k: 1.01 * v for k, v in value.items()}
    seen = Page(render(compared)).seen
    assert "Soonest done and cheapest: 16 × NVIDIA A100" in seen
    assert "another's interval of days and cost overlaps" in seen


def test_write_is_whole_or_nothing(planned: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_html(planned, file)
    before = file.read_bytes()
    with pytest.raises(DataError, match=r"no page for .* krzem\.plan/1"):
        write_html(planned | {"schema": "krzem.devices/1"}, file)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(StorageError, match="cannot be written"):
        write_html(planned, tmp_path / "missing" / "page.html")


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_without_the_extra_one_sentence_says_what_to_install(
    module: str, planned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(KrzemError, match=r"pip install 'krzem\[report\]'") as caught:
        render(planned)
    assert caught.value.exit_code == 2
