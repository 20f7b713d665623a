"""Schedules by engine."""

import pytest

from krzem.cost.engines import engines
from krzem.errors import InputError
from krzem.layout.layout import Schedule
from krzem.plan.support import ALIASES, SUPPORT, parse_schedules, schedules_of


def test_every_engine_of_the_cost_model_has_a_row_with_a_source() -> None:
    assert set(SUPPORT) == set(engines())
    assert all(row.schedules and row.source for row in SUPPORT.values())


def test_every_engine_can_run_1f1b() -> None:
    assert all(Schedule.ONE_F_ONE_B in row.schedules for row in SUPPORT.values())


def test_aliases_are_other_names_of_known_engines() -> None:
    assert set(ALIASES.values()) <= set(SUPPORT)
    assert not set(ALIASES) & set(SUPPORT)


def test_only_deepseek_has_dualpipe() -> None:
    assert [n for n, row in SUPPORT.items() if Schedule.DUALPIPE in row.schedules] == ["deepseek"]
    assert Schedule.DUALPIPE not in schedules_of("an engine of tomorrow")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", tuple(Schedule)),
        (" 1F1B , interleaved,", (Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED)),
        ("zb-v,zb-v", (Schedule.ZB_V,)),
    ],
)
def test_schedules_read(text: str, expected: tuple[Schedule, ...]) -> None:
    assert parse_schedules(text) == expected


@pytest.mark.parametrize("text", ["", ",", "zb", "all,1f1b"])
def test_wrong_schedules_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(InputError, match="Known: 1f1b, interleaved"):
        parse_schedules(text)
