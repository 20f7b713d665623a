"""Verdicts as texts that are kept: what a change of words, marks, dates or figures moves.

``python -m tests.rules.test_rules_golden`` writes them anew; read the difference before it is kept.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest

from krzem.rules import alternatives, load_rules, verdict
from krzem.rules.chip import load_chip
from krzem.rules.page import limits, rules_page
from krzem.rules.standing import standing
from krzem.rules.text import format_table, format_verdict
from krzem.rules.verdicts import _sale_days

KEPT = Path(__file__).with_name("texts")
BOUGHT = {"acquired": dt.date(2022, 7, 1)}
CASES = {
    "h100 to China": ("h100", "CN", "2026-11-23", {}),
    "h100 to China, bought in 2022": (
        "h100",
        "CN",
        "2026-11-23",
        {"acquired": dt.date(2022, 7, 1)},
    ),
    "h20 to China, 2024": ("h20-sxm-96", "CN", "2024-06-01", {}),
    "h20 to China, 2026": ("h20-sxm-96", "CN", "2026-11-23", {}),
    "h200 to China with state funds": ("h200", "CN", "2026-11-23", {"state_funded": True}),
    "910c to Germany": ("910c", "DE", "2026-11-23", {}),
    "mlu590 to the Emirates": ("mlu590", "AE", "2026-11-23", {}),
    "biren to Germany": ("biren-br106m", "DE", "2026-11-23", {}),
    "b200 rented in Singapore": ("b200-sxm", "SG", "2026-11-23", {"parent": "CN", "rents": True}),
    "rtx pro to China": ("rtx-pro-6000d", "CN", "2026-11-23", {}),
    "tpu v4 to China": ("google-tpu-v4", "CN", "2026-11-23", {}),
}
TABLES = {"CN": "2025-07-20", "AE": "2025-03-01"}
SHOWN = ("h100", "h20-sxm-96", "910c", "mlu590", "b200-sxm", "biren-br106m", "google-tpu-v4")


def text_of(case: str) -> str:
    """The whole text of one case."""
    chip, to, day, more = CASES[case]
    found = verdict(chip, dt.date.fromisoformat(day), to, **more)
    return format_verdict(found, load_rules(), alternatives(found, load_rules()))


def table_of(to: str) -> str:
    """The table of some chips, on a day between two rules."""
    day = dt.date.fromisoformat(TABLES[to])
    return format_table([verdict(chip, day, to) for chip in SHOWN], load_rules())


def texts() -> dict[str, str]:
    """Every text that is kept, by the name of its file."""
    verdicts = {f"{case.replace(' ', '-').replace(',', '')}.txt": text_of(case) for case in CASES}
    return verdicts | {f"table-{to}.txt": table_of(to) for to in TABLES}


@pytest.mark.parametrize("name", sorted(texts()))
def test_the_text_is_as_kept(name: str) -> None:
    assert texts()[name] == (KEPT / name).read_text(encoding="utf-8")


def test_what_is_bought_later_is_judged_as_bought_today() -> None:
    day = dt.date(2026, 11, 23)
    plain = standing("h100", day, "CN")
    later = standing("h100", day, "CN", acquired=dt.date(2027, 3, 1))
    same = standing("h100", day, "CN", acquired=day)
    early = standing("h100", day, "CN", acquired=dt.date(2022, 7, 1))
    assert later.lawful == same.lawful == plain.lawful is False
    assert early.lawful is not plain.lawful
    assert "owned since 2022-07-01" in early.words
    assert "parent" not in plain.words
    assert "parent in US" in standing("h100", day, "SG", "US").words


@pytest.mark.parametrize(
    ("day", "tpp", "density"),
    [
        ("2022-12-01", [4800], []),
        ("2024-01-01", [1600, 2400, 4800], [1.6, 3.2, 5.92]),
        (
            "2026-11-23",
            [1600, 2400, 4800, 14_000, 17_500, 20_800, 21_000, 21_100],
            [1.6, 3.2, 5.92],
        ),
    ],
)
def test_the_chart_draws_the_thresholds_of_its_day(
    day: str, tpp: list[float], density: list[float]
) -> None:
    rules = load_rules().in_force(dt.date.fromisoformat(day))
    assert list(limits(rules, "tpp")) == tpp
    assert list(limits(rules, "performance_density")) == density


@pytest.mark.parametrize(
    ("chip", "words"),
    [
        ("h100", "nvidia-h100-sxm: TPP 15,832, density 19.45"),
        ("biren-br106m", "no chip has both figures"),
    ],
)
def test_the_chart_is_told_in_words(chip: str, words: str) -> None:
    found = verdict(chip, dt.date(2026, 11, 23), "CN")
    assert words in rules_page([(found, ())], load_rules())


@pytest.mark.parametrize(
    ("released", "days"),
    [
        ("2026-01-16", [20260116.0]),
        ("2026-01-15", [20260115.0]),
        ("2026-01", [20260101.0, 20260115.0, 20260115.5]),
        ("2026", [20260101.0, 20260115.0, 20260115.5]),
        ("2025", [20250101.0]),
        ("", [0.0, 20260115.0, 20260115.5]),
    ],
)
def test_a_chip_without_a_day_is_judged_on_both_sides_of_a_turn(
    released: str, days: list[float]
) -> None:
    """The one day that a test names is 15 January 2026, that day included."""
    chip = replace(load_chip("h100", load_rules()), released=released)
    assert _sale_days(chip, load_rules().rules) == days


if __name__ == "__main__":
    KEPT.mkdir(exist_ok=True)
    for name, text in texts().items():
        (KEPT / name).write_text(text, encoding="utf-8")
