"""The command: text, JSON, page, and what bad input gets."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from krzem.errors import InputError, KrzemError
from krzem.rules.command import rules_command


def run(*arguments: str) -> Result:
    return CliRunner().invoke(rules_command, arguments, catch_exceptions=False)


def test_one_chip_shows_arithmetic_rule_source_and_disclaimer() -> None:
    text = run("--chip", "h20-sxm-96", "--on", "2026-11-23").output
    assert "not legal advice" in text
    assert "TPP = 148 TFLOPS (FP16) x 16 bit = 2,368" in text
    assert "performance density = 2,368 / 814 mm2 = 2.91" in text
    assert "I/O bandwidth = 2 x 450 GB/s (NVLink4) = 900 GB/s" in text
    assert "NVIDIA Form 8-K" in text
    assert "Export (US rules)         licence\n" in text


def test_case_by_case_lists_the_conditions() -> None:
    text = run("--chip", "h200-sxm", "--on", "2026-11-23").output
    assert "[met] January 2026 rule" in text
    assert text.count("condition, for the parties to show") == 6
    assert "25 % on entry" in text


def test_unknown_die_area_gives_the_die_that_would_decide() -> None:
    text = run("--chip", "mlu590", "--on", "2026-11-23").output
    assert "depends on performance density" in text
    assert "to 1.6 (a die of at least 2,810 mm2)" in text  # 4,496 / 1.6
    assert "from 1.6 (a die of at most 2,810 mm2)" in text


def test_table_has_every_chip_and_marks_those_to_come() -> None:
    from krzem.hardware.catalogue import device_ids

    lines = run("--on", "2023-05-01").output.splitlines()
    for device in device_ids():
        assert any(line.startswith((f"{device} ", f"{device}* ")) for line in lines)
    assert any(line.startswith("nvidia-b200-sxm* ") for line in lines)
    assert any(line.startswith("nvidia-h100-sxm ") for line in lines)


def test_a_day_before_all_rules() -> None:
    assert "No rule of this file spoke of that buyer" in run("--on", "2020-01-01").output


def test_json_is_versioned_and_complete() -> None:
    data = json.loads(run("--json", "--on", "2026-11-23").output)
    assert data["schema"] == "krzem.rules/1"
    h200 = next(v for v in data["verdicts"] if v["chip"] == "nvidia-h200-sxm")
    assert h200["outcomes"]["export"]["status"] == "case_by_case"
    assert h200["figures"]["tpp"] == 15832
    assert all(rule["source"] for rule in h200["rules"])


@pytest.mark.parametrize("arguments", [["--chip", "h200-sxm"], []])
def test_page_is_self_contained(tmp_path: Path, arguments: list[str]) -> None:
    target = tmp_path / "rules.html"
    assert run(*arguments, "--html", str(target)).exit_code == 0
    text = target.read_text(encoding="utf-8")
    assert "<svg" in text
    assert "not legal advice" in text
    for marker in ("<script", "<link", "src=", "@import"):
        assert marker not in text
    assert [p.name for p in tmp_path.iterdir()] == ["rules.html"]


def test_a_page_without_the_extra_names_the_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(KrzemError, match=r"pip install 'krzem\[report\]'"):
        run("--html", str(tmp_path / "x.html"))


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder that does not exist"):
        run("--chip", "h100", "--html", str(tmp_path / "none" / "x.html"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chip", "h2000"], "unknown device"),
        (["--to", "Atlantis"], "unknown country"),
        (["--parent", "??"], "unknown country"),
        (["--on", "yesterday"], "not year-month-day"),
        (["--on", "2026-02-30"], "no such day"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        run(*arguments)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_the_legend_of_the_page_stays_short(tmp_path: Path) -> None:
    page = tmp_path / "all.html"
    run("--html", str(page))
    figure = page.read_text().partition("<figure>")[2].partition("</figure>")[0]
    words = re.findall(r"<text[^>]*>([^<]+)</text>", figure)
    assert "licence, presumption of denial" in words
    assert max(map(len, words)) < 40
