"""Days, destinations, unknown figures: the evaluator against cases worked by hand."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import DataError, UnknownNameError
from krzem.rules import Buyer, Chip, Side, evaluate, find_country, load_chip, load_rules, verdict
from krzem.rules.ruleset import parse, read_rules

TODAY = dt.date(2026, 11, 23)


def export(chip: str, day: str = "2026-11-23", to: str = "CN", parent: str | None = None) -> str:
    outcome = verdict(chip, dt.date.fromisoformat(day), to, parent).outcomes[Side.EXPORT]
    return outcome.status.code if outcome.status else "open"


@pytest.mark.parametrize(
    ("chip", "history"),
    [
        ("nvidia-a800-sxm-80", ["free", "denial", "denial", "denial", "case_by_case"]),
        ("nvidia-h100-sxm", ["licence", "denial", "denial", "denial", "case_by_case"]),
        ("nvidia-h20-sxm-96", ["free", "free", "free", "licence", "licence"]),
        ("nvidia-b200-sxm", ["licence", "denial", "denial", "denial", "denial"]),
        ("nvidia-l40", ["free", "free", "exception", "exception", "exception"]),
        ("nvidia-rtx-4090", ["free", "free", "exception", "exception", "exception"]),
        ("nvidia-rtx-4090d", ["free", "free", "free", "free", "free"]),
        ("nvidia-rtx-5090d", ["free", "free", "free", "licence", "licence"]),
        ("google-tpu-v4", ["free", "free", "open", "open", "open"]),
    ],
)
def test_one_chip_through_the_years(chip: str, history: list[str]) -> None:
    days = ["2022-10-06", "2023-11-16", "2023-11-17", "2025-06-01", "2026-02-01"]
    assert [export(chip, day) for day in days] == history


@pytest.mark.parametrize(
    ("to", "parent", "expected"),
    [
        ("CN", None, "case_by_case"),
        ("MO", None, "case_by_case"),
        ("HK", None, "case_by_case"),
        ("RU", None, "denial"),
        ("AE", None, "approval"),
        ("DE", None, "free"),
        ("DE", "CN", "denial"),
        ("SG", "CN", "denial"),
    ],
)
def test_destination_and_parent(to: str, parent: str | None, expected: str) -> None:
    assert export("nvidia-h200-sxm", to=to, parent=parent) == expected


def test_macau_joined_the_2022_rule_later() -> None:
    assert export("nvidia-h100-sxm", "2023-01-16", "MO") == "free"
    assert export("nvidia-h100-sxm", "2023-01-17", "MO") == "denial"


@pytest.mark.parametrize(
    ("day", "expected"), [("2026-02-03", "denial"), ("2026-02-04", "approval")]
)
def test_a_country_can_leave_a_group(day: str, expected: str) -> None:
    assert export("nvidia-h200-sxm", day, "KH") == expected


def test_exception_without_notification_towards_d1_and_d4() -> None:
    assert export("nvidia-l40", "2024-04-03", "SA") == "exception_aca"
    assert export("nvidia-l40", "2024-04-03", "VE") == "exception"
    assert export("nvidia-l40", "2024-04-04", "SA") == "exception_aca"


@pytest.mark.parametrize(
    ("chip", "day", "expected"),
    [
        ("nvidia-h200-sxm", "2026-01-20", "barred"),
        ("nvidia-h200-sxm", "2026-02-01", "conditional"),
        ("nvidia-rtx-pro-6000d", "2025-09-17", "barred"),
        ("nvidia-h20-sxm-96", "2025-08-15", "discouraged"),
        ("nvidia-h20-sxm-96", "2025-07-15", "free"),
        ("huawei-ascend-910c", "2026-11-23", "free"),
    ],
)
def test_the_importing_side(chip: str, day: str, expected: str) -> None:
    status = verdict(chip, dt.date.fromisoformat(day)).outcomes[Side.IMPORT].status
    assert status is not None
    assert status.code == expected


def test_chinese_chips_fall_under_the_2025_guidance_and_not_under_licences() -> None:
    v = verdict("910c", TODAY)
    assert v.outcomes[Side.EXPORT].status == load_rules().statuses["free"]
    assert v.outcomes[Side.USE].status == load_rules().statuses["gp10_home"]
    abroad = verdict("910c", TODAY, "DE").outcomes[Side.USE].status
    assert abroad == load_rules().statuses["gp10"]
    assert verdict("910c", dt.date(2025, 5, 12)).outcomes[Side.USE].possible[0].code == "free"


def test_state_funds_bar_foreign_chips() -> None:
    private, state = (verdict("h20-sxm-96", TODAY, state_funded=s) for s in (False, True))
    words = [v.outcomes[Side.IMPORT].possible[0].code for v in (private, state)]
    assert words == ["discouraged", "barred"]
    assert verdict("910c", TODAY, state_funded=True).outcomes[Side.IMPORT].possible[0].rank == 0


@pytest.mark.parametrize(
    ("chip", "to", "clear"),
    [
        ("nvidia-h100-sxm", "DE", True),
        ("nvidia-h100-sxm", "AE", False),
        ("nvidia-h20-sxm-96", "CN", False),
        ("nvidia-l40", "CN", True),  # exception NAC: notify, then ship
        ("nvidia-rtx-pro-6000d", "CN", False),  # export is open, import is stopped
        ("google-tpu-v4", "CN", None),
        ("huawei-ascend-910c", "CN", True),
        ("huawei-ascend-910c", "DE", False),
        ("huawei-ascend-910d", "DE", False),  # named in the guidance
        ("biren-br106m", "DE", None),
        ("nvidia-v100-sxm2-16", "IR", False),  # no threshold, but an embargo
    ],
)
def test_what_a_lawful_plan_may_count_on(chip: str, to: str, clear: bool | None) -> None:
    assert verdict(chip, TODAY, to).clear is clear


def test_missing_die_area_is_said_with_its_turning_points() -> None:
    outcome = verdict("google-tpu-v4", TODAY).outcomes[Side.EXPORT]
    assert outcome.depends_on == ("performance_density",)
    assert [(b.low, b.high, b.status.code) for b in outcome.bands] == [
        (None, 1.6, "free"),
        (1.6, 5.92, "exception"),
        (5.92, None, "case_by_case"),
    ]


def test_missing_tpp_moves_the_density_with_it() -> None:
    outcome = verdict("nvidia-rtx-pro-6000d", TODAY).outcomes[Side.EXPORT]
    assert outcome.depends_on == ("tpp",)
    turns = [b.high for b in outcome.bands[:-1]]
    # a die of 750 mm2: density 3.2 is TPP 2,400 and density 5.92 is TPP 4,440
    assert turns == pytest.approx([2400, 4440, 21000])


@st.composite
def chips(draw: st.DrawFn) -> Chip:
    """A chip of random figures; any of them may be unknown."""
    unknown = st.none()
    known = load_chip("h100", load_rules())
    return replace(
        known,
        tpp=draw(unknown | st.floats(1, 2e5)),
        die_area_mm2=draw(unknown | st.floats(50, 3000)),
        dram_gb_per_s=draw(unknown | st.floats(50, 3e4)),
        io_gb_per_s=draw(unknown | st.floats(10, 4000)),
        data_centre=draw(st.booleans()),
    )


@given(chips(), st.floats(1, 2e5), st.floats(50, 3000), st.floats(50, 3e4), st.floats(10, 4000))
def test_learning_a_figure_only_narrows_the_verdict(
    chip: Chip, tpp: float, area: float, dram: float, io: float
) -> None:
    """Whatever the missing figures turn out to be, the verdict is among those called possible."""
    rules = load_rules()
    complete = replace(
        chip,
        tpp=chip.tpp or tpp,
        die_area_mm2=chip.die_area_mm2 or area,
        dram_gb_per_s=chip.dram_gb_per_s or dram,
        io_gb_per_s=chip.io_gb_per_s or io,
    )
    open_, closed = (
        evaluate(c, rules, Buyer(on=TODAY, to="CN", parent="CN")).outcomes[Side.EXPORT]
        for c in (chip, complete)
    )
    assert closed.status in open_.possible
    assert closed.depends_on == ()


@given(chips(), st.floats(1.0, 4.0))
def test_more_performance_is_never_less_controlled(chip: Chip, factor: float) -> None:
    rules = load_rules()
    known = replace(chip, tpp=chip.tpp or 3000.0, die_area_mm2=chip.die_area_mm2 or 800.0)
    faster = replace(known, tpp=known.tpp and known.tpp * factor)
    before, after = (
        evaluate(c, rules, Buyer(on=dt.date(2024, 1, 1), to="CN", parent="CN"))
        .outcomes[Side.EXPORT]
        .possible[0]
        for c in (known, faster)
    )
    assert after.rank >= before.rank


@pytest.mark.parametrize(
    ("text", "code"),
    [("cn", "CN"), (" China ", "CN"), ("uae", "AE"), ("South Korea", "KR"), ("Germany", "DE")],
)
def test_countries(text: str, code: str) -> None:
    assert find_country(text) == code


def test_an_unknown_country_is_refused_with_neighbours() -> None:
    with pytest.raises(UnknownNameError, match="Germany"):
        find_country("Germny")


@pytest.mark.parametrize(
    "text", ["tpp >", "__import__('os')", "tpp < 1 < 2", "tpp * 2 > 3", "tpp > 'x'", "x.y > 1"]
)
def test_a_test_that_is_not_in_the_language_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="test"):
        parse(text)


@given(st.text(max_size=200))
def test_hostile_rules_files_are_refused(text: str) -> None:
    with pytest.raises(DataError):
        read_rules(text)


def test_a_rule_cannot_name_a_rule_below_it() -> None:
    from importlib import resources

    text = resources.files("krzem.facts").joinpath("rules.toml").read_text(encoding="utf-8")
    broken = text.replace('test = "tpp >= 4800 and io_gb_per_s >= 600"', 'test = "us_2026"')
    with pytest.raises(DataError, match="us_2026"):
        read_rules(broken)


def test_every_rule_is_dated_and_sourced() -> None:
    for rule in load_rules().rules:
        assert rule.period.first is not None
        assert rule.source
        assert rule.confidence in {"high", "medium", "low"}
        assert rule.period.last is None or rule.period.first <= rule.period.last
