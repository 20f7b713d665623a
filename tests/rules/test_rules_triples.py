"""Chip, day and buyer: verdicts read off the rule texts, and order between chips that dominate."""

from __future__ import annotations

import csv
import datetime as dt
from dataclasses import replace
from itertools import permutations
from operator import ge
from pathlib import Path

import pytest

from krzem.hardware.catalogue import device_ids
from krzem.rules import Buyer, Chip, Rule, Side, Verdict, evaluate, load_chip, load_rules, verdict
from krzem.rules.text import age, clear_words, outcome_words, summary

RULES = load_rules()
TEXT = Path(__file__).with_name("triples.csv").read_text(encoding="utf-8")
TRIPLES = list(csv.DictReader(line for line in TEXT.splitlines() if not line.startswith("#")))
SIDES = (Side.EXPORT, Side.USE, Side.IMPORT)


def judged(row: dict[str, str]) -> Verdict:
    return verdict(
        row["chip"],
        dt.date.fromisoformat(row["on"]),
        row["to"],
        row["parent"] or None,
        state_funded=row["how"] == "state",
        rents=row["how"] == "rent",
    )


def code(v: Verdict, side: Side) -> str:
    status = v.outcomes[side].status
    return status.code if status else "open"


@pytest.mark.parametrize("row", TRIPLES, ids=lambda r: " ".join(list(r.values())[:5]))
def test_triple(row: dict[str, str]) -> None:
    v = judged(row)
    stated = {side: row[side.value] for side in SIDES if row[side.value] != "-"}
    assert {side: code(v, side) for side in stated} == stated, row["because"]


def test_every_status_that_decides_is_in_the_table() -> None:
    stated = {row[side.value] for row in TRIPLES for side in SIDES}
    assert set(RULES.statuses) - stated == {"levy", "share"}
    assert len(TRIPLES) >= 60


DAYS = sorted(
    day
    for day in {rule.period.first for rule in RULES.rules if rule.side is not Side.CONTEXT}
    | {r.period.last + dt.timedelta(1) for r in RULES.rules if r.period.last is not None}
    if day is not None and day.year >= 2022
)
"""Every day on which what is in force changes."""
BUYERS = (("CN", "CN"), ("MY", "CN"), ("AE", "AE"), ("VE", "VE"))
FIGURES = ("tpp", "performance_density", "dram_gb_per_s", "io_gb_per_s")


def dominates(a: Chip, b: Chip) -> bool:
    """At least as capable in every figure that a rule tests, and on sale no earlier."""
    figures = all(getattr(a, f) >= getattr(b, f) for f in FIGURES)
    return figures and a.data_centre >= b.data_centre and a.first_sale >= b.first_sale


def named(rules: tuple[Rule, ...], chip: Chip) -> set[str]:
    """The rules that speak of a chip by its id, its maker or its maker's country."""
    return {r.id for r in rules if not r.out_of_scope(chip.id, chip.vendor, chip.country)}


def test_the_stronger_chip_is_never_judged_milder() -> None:
    """All pairs of the catalogue, all days on which the rules change, four buyers.

    A chip may be judged more strictly than a stronger one where a rule names it or its maker (a
    letter to one company): such pairs are those whose named rules differ, and are left out.
    """
    chips = [load_chip(i, RULES) for i in device_ids()]
    known = [c for c in chips if all(getattr(c, f) is not None for f in FIGURES)]
    pairs = [(a, b) for a, b in permutations(known, 2) if dominates(a, b)]
    assert len(pairs) > 150
    found = []
    compared = 0
    for day in DAYS:
        rules = RULES.in_force(day)
        scope = {c.id: named(rules, c) for c in known}
        same = [(a.id, b.id) for a, b in pairs if scope[b.id] <= scope[a.id]]
        for to, parent in BUYERS:
            buyer = Buyer(on=day, to=to, parent=parent)
            ranks = {c.id: mildest(evaluate(c, RULES, buyer)) for c in known}
            compared += len(same)
            found += [(a, b, day, to) for a, b in same if not all(map(ge, ranks[a], ranks[b]))]
    assert found == []
    assert compared > 15_000


def mildest(v: Verdict) -> tuple[int, ...]:
    """The rank of the mildest status that is possible, by side."""
    return tuple(v.outcomes[side].possible[0].rank for side in (Side.EXPORT, Side.USE))


@pytest.mark.parametrize("chip", ["nvidia-h100-sxm", "nvidia-h20-sxm-96", "nvidia-v100-sxm2-32"])
@pytest.mark.parametrize(("to", "parent"), BUYERS)
def test_renting_is_never_judged_harder_than_buying(chip: str, to: str, parent: str) -> None:
    for day in DAYS:
        bought, rented = (verdict(chip, day, to, parent, rents=r) for r in (False, True))
        for side in SIDES:
            before, after = (
                max(s.rank for s in v.outcomes[side].possible) for v in (bought, rented)
            )
            assert after <= max(before, RULES.statuses["rental"].rank)
        assert rented.clear or not bought.clear


def test_four_kinds_of_answer_have_four_kinds_of_words() -> None:
    day = dt.date(2026, 11, 30)
    words = [
        summary(verdict("910b2", day, "DE")),
        summary(verdict("rtx-4090", day, "SA")),
        summary(verdict("h100-sxm", day, "MY", "CN", rents=True)),
        summary(verdict("v100-sxm2-32", day, "CN")),
    ]
    assert words == [
        "use: presumed in breach of GP 10",
        "export: licence exception, no notice",
        "export: rented time: no export, under review",
        "import: discouraged, not barred",
    ]


@pytest.mark.parametrize(
    ("chip", "to", "parent", "rents", "clear"),
    [
        ("910b2", "DE", None, False, False),
        ("rtx-4090", "SA", None, False, True),
        ("h100-sxm", "MY", "CN", True, True),
        ("h100-sxm", "MY", "CN", False, False),
        ("v100-sxm2-32", "CN", None, False, True),
        ("910b2", "SG", "CN", True, False),
    ],
)
def test_what_a_plan_may_count_on_by_kind(
    chip: str, to: str, parent: str | None, rents: bool, clear: bool
) -> None:
    assert verdict(chip, dt.date(2026, 11, 30), to, parent, rents=rents).clear is clear


def test_owned_chips_are_judged_as_an_export_on_their_day_and_as_use_today() -> None:
    today, then = dt.date(2026, 11, 30), dt.date(2024, 6, 1)
    h20 = verdict("h20-sxm-96", today, "CN", acquired=then)
    assert (code(h20, Side.EXPORT), code(h20, Side.IMPORT)) == ("free", "free")
    assert h20.clear is True
    ascend = verdict("910b2", today, "DE", acquired=then)
    assert code(ascend, Side.USE) == "gp10"
    assert code(verdict("910b2", then, "DE"), Side.USE) == "free"


def test_a_day_after_the_search_is_never_certain() -> None:
    late = RULES.searched + dt.timedelta(1)
    for day, certain in ((RULES.searched, True), (late, False), (dt.date(2030, 1, 1), False)):
        v = verdict("v100-sxm2-32", day, "DE")
        assert v.certain is certain
        assert v.text_age_days == (day - RULES.newest_text).days
        assert f"{v.text_age_days:,} days before that day" in age(v)
        assert ("not known" in clear_words(v)) is not certain
        assert ("as the rules stood" in summary(v)) is not certain
    assert age(verdict("v100-sxm2-32", RULES.newest_text, "DE")) == ""


def test_the_newest_text_is_the_newest_of_the_rules_that_count() -> None:
    firsts = [r.period.first for r in RULES.rules if r.side in (Side.EXPORT, Side.USE)]
    assert max(d for d in firsts if d is not None) <= RULES.newest_text <= RULES.newest_report
    assert all(rule.read <= RULES.compiled for rule in RULES.rules)
    assert RULES.newest_report <= RULES.searched <= RULES.compiled


def test_a_bill_never_counts() -> None:
    bills = [rule for rule in RULES.rules if rule.bill]
    assert len(bills) >= 4
    assert all(rule.side is Side.CONTEXT and not rule.effects for rule in bills)


@pytest.mark.parametrize(
    ("released", "first", "last"),
    [
        ("2026", 20260101, 20261231),
        ("2026-01", 20260101, 20260131),
        ("2026-01-15", 20260115, 20260115),
    ],
)
def test_a_release_is_a_range_of_days(released: str, first: int, last: int) -> None:
    chip = replace(load_chip("h200-sxm", RULES), released=released)
    assert chip.first_sale == (first, last)
    v = evaluate(chip, RULES, Buyer(on=dt.date(2026, 11, 30), to="CN", parent="CN"))
    words = outcome_words(v.outcomes[Side.EXPORT])
    if first <= 20260115 < last:
        assert words.startswith("depends on day on sale")
        assert {s.code for s in v.outcomes[Side.EXPORT].possible} == {"case_by_case", "denial"}
    else:
        assert words == "licence, case by case"
