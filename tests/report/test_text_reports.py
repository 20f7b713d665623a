"""Reports: the answer first, nothing wider than the terminal, unknown said, ties marked."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krzem.report.text import format_explanation, format_plan, format_sentence, memory_bar, tied
from krzem.report.text_compare import (
    format_comparison,
    format_comparison_table,
    format_device,
    format_devices,
    format_model,
    format_models,
)
from krzem.report.text_table import columns

HERE = Path(__file__).parent
UNKNOWN = (
    "days", "device_hours", "node_hours", "cost_usd", "energy_mwh", "goodput", "interruptions",
    "finish", "deadline_probability", "budget_probability",
)  # fmt: skip
Document = dict[str, Any]


@pytest.fixture
def golden() -> Document:
    document: Document = json.loads((HERE / "golden_plan.json").read_text(encoding="utf-8"))
    return document


def wide(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > 100]


def test_the_golden_report(golden: Document) -> None:
    """Meant to change? Run make_golden.py beside this file and read the diff."""
    assert format_plan(golden) == (HERE / "golden_plan.txt").read_text(encoding="utf-8")


def test_the_answer_comes_first(golden: Document) -> None:
    first = " ".join(format_plan(golden).split("\n\n")[0].split())
    assert first.startswith("deepseek-v3, 14.8T tokens on 2,048 huawei-ascend-910c (one die of 2")
    for part in ("days", "device-hours", "MFU", "layout tp=", "wall: "):
        assert part in first
    assert "% chance of meeting the deadline of 180 days." in first
    assert "% chance of staying within the budget of $6M." in first


def test_a_new_plan_has_every_section(small_document: Document) -> None:
    text = format_plan(small_document)
    assert not wide(text)
    for title in ("Model  ", "Step ", "Memory ", "Layouts", "What a tenth more", "Whole run",
                  "Facts used", "Notes", "legal layouts priced"):  # fmt: skip
        assert title in text
    assert "596M parameters" in text
    assert "finish" in text


def test_terms_of_the_step_are_all_shown(golden: Document) -> None:
    text = format_plan(golden)
    for term in golden["best"]["breakdown"]:
        assert (term["label"] in text) == (abs(term["seconds"]) >= 5e-4)


def test_unknown_quantities_are_said_and_explained(golden: Document) -> None:
    run = golden["whole_run"]
    for name in UNKNOWN:
        run[name] = None
    run["checkpoint"].update(interval_s=None, interval_steps=None, write_s=None)
    run["unknown"] = ["Cost is not known: give price"]
    text = format_plan(golden)
    assert "days of steps (failures unknown)" in " ".join(text.split())
    assert "cannot be judged" in text
    assert "Cost is not known: give price" in text
    assert text.count("unknown") >= 7
    assert not wide(text)


def test_hostile_names_stay_in_their_columns(golden: Document) -> None:
    golden["model"]["name"] = "a\x1b[2J" + "x" * 300
    golden["notes"].append("y" * 500)
    golden["facts"][0]["source"] = "z\r\n" * 200
    text = format_plan(golden)
    assert "\x1b" not in text
    assert "\r" not in text
    assert not wide(text)
    assert "\x1b" not in format_sentence(golden, golden["best"])


def test_ties_are_marked_and_slower_layouts_are_not(golden: Document) -> None:
    near, far = {"relative_time": 1.01}, {"relative_time": 1.2}
    assert tied(near, golden)
    assert not tied(far, golden)
    golden["alternatives"][0]["relative_time"] = 1.2
    assert "+20 %" in format_plan(golden)


def test_memory_bars_show_overflow() -> None:
    assert memory_bar(40, 80, 4) == "▕██  ▏"
    assert memory_bar(90, 80, 4) == "▕████>"


def test_an_explanation(krzem: Callable[..., Any]) -> None:
    said = krzem("explain", "qwen3-0.6b", "--on", "h100:16", "--batch", "64", "--layout", "tp=2",
                 "--json")  # fmt: skip
    text = format_explanation(json.loads(said.out))
    assert not wide(text)
    assert "Layouts" not in text
    assert "dp=8 follows from 16 devices" in text


def comparison(golden: Document) -> Document:
    other = copy.deepcopy(golden)
    other["cluster"]["name"] = "other:2048"
    other["whole_run"]["days"] = {"low": 10.0, "mid": 11.0, "high": 12.0}
    other["whole_run"]["deadline_probability"] = 0.99
    return {
        "schema": "krzem.compare/1",
        "model": golden["model"],
        "plans": [
            {"cluster": golden["cluster"]["name"], "plan": golden, "error": None},
            {"cluster": "other:2048", "plan": other, "error": None},
            {"cluster": "tiny:8", "plan": None, "error": "it does not fit"},
        ],
        "best": {"days": 1, "device_hours": 0, "energy_mwh": None, "cost_usd": 0, "mfu": 0},
        "makes_deadline": [False, True, None],
        "makes_budget": [None, None, None],
    }


def test_a_comparison_marks_the_best_and_says_why_there_is_no_plan(golden: Document) -> None:
    text = format_comparison(comparison(golden))
    assert not wide(text)
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("other:2048"))
    assert "11 (10–12)*" in row
    assert "other:2048 keeps it (99 %)" in " ".join(text.split())
    assert "no plan" in next(line for line in lines if line.startswith("tiny:8"))
    assert "tiny:8: it does not fit" in text
    assert format_comparison_table(comparison(golden)) in text


def test_the_catalogues(krzem: Callable[..., Any]) -> None:
    models = json.loads(krzem("models", "--json").out)
    devices = json.loads(krzem("devices", "--json").out)
    for text in (
        format_models(models),
        format_devices(devices),
        *(format_model(model) for model in models["models"]),
        *(format_device(device) for device in devices["devices"]),
    ):
        assert not wide(text)
    assert "deepseek-v4-pro" in format_models(models)
    assert "arXiv 2412.19437" in format_model(
        next(m for m in models["models"] if m["id"] == "deepseek-v3")
    )


def figures(text: str) -> set[str]:
    """The numbers in a report."""
    return set(re.findall(r"\d(?:[\d.,]*\d)?", text))


@pytest.mark.parametrize("narrow_to", [60, 61, 73, 88])
def test_a_narrow_terminal_loses_no_figure(
    golden: Document, narrow_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden["facts"] = []  # their sources are cut to what is left
    texts = {}
    for width in (100, narrow_to):
        monkeypatch.setenv("COLUMNS", str(width))
        texts[width] = format_plan(golden), format_comparison(comparison(golden))
    for whole, narrow in zip(texts[100], texts[narrow_to], strict=True):
        assert max(map(len, narrow.splitlines())) <= narrow_to
        assert figures(whole) <= figures(narrow)


def test_a_terminal_of_any_width_is_filled_from_60_to_100(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for given in (20, 60, 80, 100, 250):
        monkeypatch.setenv("COLUMNS", str(given))
        found.append(columns())
    assert found == [60, 60, 80, 100, 100]
