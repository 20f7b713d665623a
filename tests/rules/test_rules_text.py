"""Verdicts in words: pure functions on known verdicts."""

from __future__ import annotations

import datetime as dt

import pytest

from krzem.hardware.catalogue import device_ids
from krzem.rules import Side, alternatives, load_rules, verdict
from krzem.rules.document import document
from krzem.rules.ruleset import Period
from krzem.rules.text import (
    WIDTH,
    clear_words,
    format_table,
    format_verdict,
    mark,
    outcome_words,
    place,
    with_figures,
)

DAY = dt.date(2026, 11, 23)


def text_of(chip: str, to: str = "CN", parent: str | None = None) -> str:
    v = verdict(chip, DAY, to, parent)
    return format_verdict(v, load_rules(), alternatives(v, load_rules()))


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("chip", ["h20-sxm-96", "b200-sxm", "mlu590", "rtx-pro-6000d", "910d"])
@pytest.mark.parametrize("to", ["CN", "AE", "DE"])
def test_lines_fit_a_terminal(chip: str, to: str) -> None:
    for line in text_of(chip, to).splitlines():
        assert len(line) <= WIDTH + 10 or "https://" in line


@pytest.mark.parametrize(
    ("chip", "rule", "expected"),
    [
        ("h100", "us_3a090_a", "met"),
        ("h20-sxm-96", "us_3a090_a", "not met"),
        ("google-tpu-v4", "us_3a090_b", "depends"),
        ("910c", "us_3a090_a", "as if met"),
        ("910c", "us_gp10", "met"),
        ("mlu590", "us_3a090_a", "as if depends"),
        ("h100", "us_april_2024", "note"),
    ],
)
def test_marks(chip: str, rule: str, expected: str) -> None:
    found = next(f for f in verdict(chip, DAY).findings if f.rule.id == rule)
    assert mark(found) == expected


def test_figures_stand_in_the_test() -> None:
    v = verdict("mlu590", DAY)
    shown = with_figures("data_centre and tpp >= 4800 and performance_density < 5.92", v.chip)
    assert shown == (
        "data centre [yes] and TPP [4,496] >= 4800 and performance density [unknown] < 5.92"
    )


def test_places() -> None:
    assert place(verdict("h100", DAY, "SG")) == "Singapore"
    assert place(verdict("h100", DAY, "SG", "China")) == "Singapore, ultimate parent in China"
    assert place(verdict("h100", DAY, state_funded=True)) == "China, with state funds"


def test_open_outcomes_name_the_missing_figures() -> None:
    words = outcome_words(verdict("biren-br106m", DAY, "DE").outcomes[Side.USE])
    assert words.startswith("depends on TPP and performance density: ")
    assert "in breach of GP 10" in words


def test_short_answer_in_all_three_cases() -> None:
    assert "no rule listed" in clear_words(verdict("h100", DAY, "DE"))
    assert "authority" in clear_words(verdict("h100", DAY, "CN"))
    assert "missing figure" in clear_words(verdict("google-tpu-v4", DAY, "CN"))


def test_rules_of_other_countries_are_left_out() -> None:
    assert "Customs" not in text_of("h200-sxm", "DE")
    assert "Customs" in text_of("h200-sxm", "CN")


def test_a_replaced_rule_says_so() -> None:
    text = text_of("h200-sxm")
    before = text.index("ECCN 3A090.a (")
    assert "another rule takes its place here" in text[before : before + 600]


def test_a_disagreement_that_decides_is_weighed() -> None:
    decided = "With it: Use (US rules): at home: risk under US law"
    assert decided in one_line(text_of("mlu590"))
    assert "The verdict is the same with it." in one_line(text_of("h100-pcie"))


def test_golden_rows_of_the_table() -> None:
    chips = ["nvidia-h20-sxm-96", "nvidia-b200-sxm", "huawei-ascend-910c", "google-tpu-v4"]
    lines = format_table([verdict(c, DAY) for c in chips], load_rules()).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("chip "))
    assert [line.replace("not barred", "...") for line in lines[start + 2 : start + 6]] == [
        "nvidia-h20-sxm-96    2,368   2.91  licence                       discouraged, ...",
        "nvidia-b200-sxm     36,000  22.11  presumption of denial         discouraged, ...",
        "huawei-ascend-910c  12,032   9.04  at home: risk under US law    -",
        "google-tpu-v4        4,400      ?  depends on PD                 -",
    ]


def test_the_whole_catalogue_fits_100_columns() -> None:
    chips = [verdict(c, DAY) for c in device_ids()]
    lines = format_table(chips, load_rules()).splitlines()
    assert [line for line in lines if len(line) > 100 and "http" not in line] == []


def test_document_holds_every_rule_in_force() -> None:
    v = verdict("h200-sxm", DAY)
    data = document([(v, alternatives(v, load_rules()))], load_rules())
    (one,) = data["verdicts"]
    assert [r["id"] for r in one["rules"]] == [r.id for r in load_rules().in_force(DAY)]
    review = next(r for r in one["rules"] if r["id"] == "us_2026")
    assert review["met"] is True
    assert review["status"] == "case_by_case"
    assert len(review["conditions"]) == 6
    assert one["clear"] is False


def test_document_says_what_is_unknown() -> None:
    v = verdict("google-tpu-v4", DAY)
    (one,) = document([(v, ())], load_rules())["verdicts"]
    assert one["figures"]["die_area_mm2"] is None
    assert one["figures"]["performance_density"] is None
    assert one["outcomes"]["export"]["status"] is None
    assert one["outcomes"]["export"]["depends_on"] == ["performance_density"]
    assert len(one["outcomes"]["export"]["bands"]) == 3
    assert one["clear"] is None


@pytest.mark.parametrize(
    ("day", "inside"),
    [("2025-12-31", False), ("2026-01-01", True), ("2026-01-31", True), ("2026-02-01", False)],
)
def test_both_ends_of_a_period_belong_to_it(day: str, inside: bool) -> None:
    period = Period(first=dt.date(2026, 1, 1), last=dt.date(2026, 1, 31))
    assert period.holds(dt.date.fromisoformat(day)) is inside


def test_groups_are_disjoint_where_they_have_to_be() -> None:
    """No country is treated as embargoed and as licensable with approval on one day."""
    embargoed, approved = load_rules().groups.values()
    for day in (dt.date(2023, 12, 1), dt.date(2025, 1, 1), DAY):
        both = {c for c, _ in embargoed.members if embargoed.holds(c, day)}
        assert not [c for c in both if approved.holds(c, day)]
