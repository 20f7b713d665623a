"""The rules file against the rules written out a second time, by hand, as plain functions."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.rules import Buyer, Chip, Side, evaluate, load_chip, load_rules

BASE = load_chip("h100", load_rules())

# Near the thresholds rather than anywhere: that is where a slip would show.
TPP = st.one_of(
    st.sampled_from([1600, 2400, 4800, 14000, 17500, 20800, 21000, 21100]).flatmap(
        lambda x: st.sampled_from([x - 1.0, float(x), x + 1.0])
    ),
    st.floats(1, 1e5),
)
DENSITY = st.sampled_from([1.59, 1.6, 1.61, 3.19, 3.2, 3.21, 5.91, 5.92, 5.93, 40.0])
DRAM = st.sampled_from([100.0, 1399, 1400, 4500, 4501, 4999, 5000, 5801, 6199, 6499, 6500, 9000])
IO = st.sampled_from([10.0, 299, 300, 599, 600, 700, 1099, 1100, 1800])


@st.composite
def chips(draw: st.DrawFn) -> Chip:
    tpp, density = draw(TPP), draw(DENSITY)
    return replace(
        BASE,
        tpp=tpp,
        die_area_mm2=tpp / density,
        dram_gb_per_s=draw(DRAM),
        io_gb_per_s=draw(IO),
        data_centre=draw(st.booleans()),
        vendor=draw(st.sampled_from(["NVIDIA", "AMD", "Google"])),
    )


def numbers(chip: Chip) -> tuple[float, float, float, float]:
    density = chip.performance_density
    assert chip.tpp is not None
    assert density is not None
    assert chip.dram_gb_per_s is not None
    assert chip.io_gb_per_s is not None
    return chip.tpp, density, chip.dram_gb_per_s, chip.io_gb_per_s


def paragraph(chip: Chip) -> str:
    """Which paragraph of 3A090 holds since November 2023: a, a_other, b or none."""
    tpp, density, _, _ = numbers(chip)
    if not chip.data_centre:
        return "a_other" if tpp >= 4800 else "none"
    if tpp >= 4800:
        return "a"
    if tpp >= 1600 and density >= 5.92:
        return "a"
    if 2400 <= tpp < 4800 and 1.6 <= density < 5.92:
        return "b"
    return "b" if tpp >= 1600 and 3.2 <= density < 5.92 else "none"


def letters(chip: Chip) -> bool:
    _, _, dram, io = numbers(chip)
    return chip.vendor != "Google" and (dram >= 1400 or io >= 1100 or dram + io >= 1700)


def taxed(chip: Chip) -> bool:
    tpp, _, dram, _ = numbers(chip)
    return (14000 < tpp < 17500 and 4500 < dram < 5000) or (
        20800 < tpp < 21100 and 5800 < dram < 6200
    )


def to_china(chip: Chip, day: dt.date) -> str:
    """The status of an export to China, written out by hand."""
    if day < dt.date(2023, 11, 17):
        return before_2023_11_17(chip, day)
    tpp, _, dram, _ = numbers(chip)
    where = paragraph(chip)
    if where == "a":
        reviewed = day >= dt.date(2026, 1, 15) and tpp < 21000 and dram < 6500
        return "case_by_case" if reviewed else "denial"
    if day >= dt.date(2025, 4, 9) and letters(chip):
        return "licence"
    if where in ("a_other", "b"):
        return "exception"
    return "levy" if day >= dt.date(2026, 1, 15) and taxed(chip) else "free"


def before_2023_11_17(chip: Chip, day: dt.date) -> str:
    """3A090 of 2022, the letter before it and the one that brought its successor forward."""
    tpp, _, _, io = numbers(chip)
    nvidia, big = chip.vendor == "NVIDIA", tpp >= 4800 and io >= 600
    if big and day >= dt.date(2022, 10, 21):
        return "denial"
    if nvidia and day >= dt.date(2023, 10, 23) and chip.data_centre and tpp >= 4800:
        return "denial"
    return "licence" if big and nvidia and day >= dt.date(2022, 8, 26) else "free"


DAYS = st.one_of(
    st.dates(dt.date(2022, 1, 1), dt.date(2026, 12, 31)),
    st.sampled_from([
        dt.date(2022, 8, 25), dt.date(2022, 8, 26), dt.date(2022, 10, 20), dt.date(2022, 10, 21),
        dt.date(2023, 10, 22), dt.date(2023, 10, 23), dt.date(2023, 11, 16), dt.date(2023, 11, 17),
        dt.date(2025, 4, 8), dt.date(2025, 4, 9), dt.date(2026, 1, 14), dt.date(2026, 1, 15),
    ]),
)  # fmt: skip


@given(chips(), DAYS)
def test_every_chip_on_every_day(chip: Chip, day: dt.date) -> None:
    buyer = Buyer(on=day, to="CN", parent="CN")
    outcome = evaluate(chip, load_rules(), buyer).outcomes[Side.EXPORT]
    assert outcome.status is not None
    assert outcome.status.code == to_china(chip, day)


@given(chips(), DAYS)
def test_destinations_without_concern_are_free(chip: Chip, day: dt.date) -> None:
    outcome = evaluate(chip, load_rules(), Buyer(on=day, to="DE", parent="JP"))
    assert outcome.clear is True
    assert all(o.status is not None and o.status.rank == 0 for o in outcome.outcomes.values())


@given(chips(), DAYS)
def test_a_parent_never_makes_it_easier(chip: Chip, day: dt.date) -> None:
    alone, owned = (
        evaluate(chip, load_rules(), Buyer(on=day, to="SG", parent=parent))
        for parent in ("SG", "CN")
    )
    before, after = (v.outcomes[Side.EXPORT].possible[0].rank for v in (alone, owned))
    assert after >= before


@pytest.mark.parametrize("side", [Side.EXPORT, Side.USE, Side.IMPORT])
def test_outcomes_of_all_sides_are_given(side: Side) -> None:
    found = evaluate(BASE, load_rules(), Buyer(on=dt.date(2026, 1, 1), to="CN", parent="CN"))
    assert side in found.outcomes
