"""Published totals of whole runs: how rows become questions, and the distance fitted on them."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from krzem.accuracy.case import UnusableRowError
from krzem.accuracy.whole_fit import (
    LEAST,
    as_planned,
    as_published,
    figures,
    fit,
    forecasts,
    judged,
)
from krzem.accuracy.whole_runs import FROM_STEPS, TABLE, Total, read_total, totals
from krzem.cost.coefficients import shipped
from krzem.estimate import Estimate
from krzem.facts.table import read_table
from krzem.plan.calendar import Distance
from krzem.plan.request import settle

ROWS = {row["id"]: row for row in read_table(TABLE)}
TOTALS = {total.id: total for total in totals()}


def one(ratio: float, organisation: str, given: bool, sigma: float = 0.1) -> Any:
    total = SimpleNamespace(organisation=organisation)
    return SimpleNamespace(ratio=ratio, total=total, given=given, sigma=sigma)


def test_nearly_every_row_is_a_question() -> None:
    usable = [row for row in ROWS.values() if not row["quality"].startswith("exclude")]
    assert len(TOTALS) >= len(usable) - 1


def test_excluded_rows_and_rows_without_a_total_say_so() -> None:
    row = ROWS["WHOLE-020"]
    with pytest.raises(UnusableRowError, match="exclude"):
        read_total({**row, "quality": "exclude"})
    with pytest.raises(UnusableRowError, match="total"):
        read_total({**row, "published_device_hours": ""})


@pytest.mark.parametrize("total", TOTALS.values(), ids=list(TOTALS))
def test_rows_are_read_whole(total: Total) -> None:
    row = ROWS[total.id]
    assert total.device_hours == float(row["published_device_hours"])
    assert total.kind == row["kind"].removeprefix("whole run: ")
    said = {"batch": row["global_batch"], "devices": row["devices"]}
    assert {name for name, cell in said.items() if not cell} <= set(total.guesses)
    question = total.question
    assert question.global_batch
    assert question.date is not None
    if row["devices"]:
        assert str(question.on).endswith(f":{row['devices']}")


def test_what_is_published_of_a_layout_is_held() -> None:
    held = dict(TOTALS["WHOLE-020"].held)
    assert held["tp"] == "tp == 4"
    assert held["pp"] == "pp == 12"
    assert held["recompute"] == "recompute == 'full' and rlayers * pp >= 70"


def test_a_guessed_batch_fills_the_devices() -> None:
    task = settle(TOTALS["WHOLE-025"].question).task
    assert task.goal.global_batch % (task.cluster.devices // 8) == 0
    assert 2**21 < task.goal.tokens_per_step <= 2**22


def test_the_fit_finds_what_was_put_in() -> None:
    rows = [one(0.25, f"org{i}", False) for i in range(12)]
    rows += [one(-0.05, f"org{i}", True) for i in range(12)]
    far = fit(rows)
    assert far.searched == pytest.approx(0.25, abs=0.02)
    assert far.given == pytest.approx(-0.05, abs=0.02)
    assert far.sigma == pytest.approx(LEAST, abs=1e-3)


def test_totals_that_nobody_can_explain_pull_little() -> None:
    rows = [one(0.2, f"org{i}", False) for i in range(10)]
    assert fit([*rows, one(3.0, "odd", False)]).searched == pytest.approx(0.2, abs=0.05)


def test_many_totals_of_one_organisation_do_not_outvote_the_others() -> None:
    rows = [one(0.1, f"org{i}", False) for i in range(8)]
    assert fit([*rows, *(one(0.9, "many", False) for _ in range(9))]).searched < 0.35


def test_without_totals_the_prior_stands() -> None:
    far = fit([one(0.3, "a", False)])
    assert far.given == 0.0


def test_a_wider_scatter_is_a_wider_distance() -> None:
    rows = [one(0.1 + d, f"org{i}", False) for i, d in enumerate((-0.6, -0.4, -0.2, 0.2, 0.4, 0.6))]
    assert fit(rows).sigma > 0.2


def test_totals_are_judged_without_their_organisation() -> None:
    few = [TOTALS["WHOLE-013"], TOTALS["WHOLE-028"]]
    found = forecasts(few)
    assert {f.total.id for f in found} == {t.id for t in few}
    seen = judged(found)
    moved = [replace(f, total=replace(f.total, device_hours=100 * f.total.device_hours))
             if f.total.organisation == "Microsoft" else f for f in found]  # fmt: skip
    again = judged(moved)
    for before, after in zip(seen, again, strict=True):
        own = before.forecasted.total.organisation == "Microsoft"
        assert (before.hours == after.hours) == own
    assert figures(as_published(seen))["n"] == len(few)
    assert figures(as_planned(seen))["n"] == len(few)


def test_totals_from_the_speed_of_steps_hold_nothing_else() -> None:
    total = TOTALS["WHOLE-013"]
    plain = forecasts([replace(total, kind=next(iter(FROM_STEPS)), held=())])[0]
    whole = forecasts([replace(total, kind="days", held=())])[0]
    assert plain.hours.mid < whole.hours.mid


def test_the_shipped_distance_is_a_fit_that_covers() -> None:
    part = shipped()["whole_run"]
    far = Distance(**{name: part[name] for name in Distance.__slots__})
    assert -0.3 < far.given <= far.searched + 0.05 < 0.6
    assert isinstance(far.estimate(given=True), Estimate)
    assert math.isfinite(far.sigma)
    seen = part["without_organisation"]["published_layouts"]
    assert seen["organisations"] >= 12
    assert seen["inside80"] >= 0.6
