"""Schedules: which an engine has, and how they are written."""

import pytest

from krzem.engine.description import engines
from krzem.errors import InputError
from krzem.layout.layout import Schedule
from krzem.plan.question import parse_schedules


def test_every_engine_can_run_1f1b() -> None:
    assert all("1f1b" in engine.runs.schedules for engine in engines().values())


def test_only_deepseek_and_what_nobody_named_have_dualpipe() -> None:
    able = {name for name, engine in engines().items() if "dualpipe" in engine.runs.schedules}
    assert able == {"deepseek", "other"}


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
