"""Tables, figures and JSON values: what is shown is what was computed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from krzem.outlook import Outlook, outlook, shipped
from krzem.outlook.backtest import FAMILIES
from krzem.outlook.figures import fan_figure, lag_figure, odds_figure, tornado_figure
from krzem.outlook.page import _blocks
from krzem.outlook.text import (
    _percent,
    _three_digits,
    back_test_table,
    fan_table,
    odds_table,
    sections,
    table,
)
from krzem.outlook.whole import document, plain

FEW = shipped().with_run(
    paths=4000, lever_paths=400, fan_paths=2000, chunk_paths=1000, horizon_years=6.0
)


@pytest.fixture(scope="module")
def result() -> Outlook:
    return outlook(FEW, lever_years=5.0)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def test_table_aligns_and_marks_numbers() -> None:
    shown = table(("name", "x"), [("a", "1"), ("long name", "1,000")], 1).splitlines()
    assert shown == [
        "| name      |     x |",
        "| --------- | ----: |",
        "| a         |     1 |",
        "| long name | 1,000 |",
    ]


@pytest.mark.parametrize(
    ("chance", "words"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.5, "50 %"), (0.081, "8.1 %"), (0.0004, "< 0.1 %"),
     (math.nan, "-")],
)  # fmt: skip
def test_chances_in_words(chance: float, words: str) -> None:
    assert _percent(chance) == words


def test_odds_table_gives_the_odds(result: Outlook) -> None:
    lines = odds_table(result.forecast).splitlines()
    years = [cells(line)[0] for line in lines[2:]]
    assert years == ["1", "2", "3", "4", "5"]  # 7 and 10 lie beyond the horizon
    five = cells(lines[6])
    assert five[1] == "2031-09"
    assert five[2] == _percent(result.forecast.odds(5.0))
    assert len(five) == 5 + sum(map(len, FEW.scenarios.values()))


def test_fan_table_starts_at_the_origin(result: Outlook) -> None:
    first = cells(fan_table(result.forecast).splitlines()[2])
    fan = result.forecast.fans["gap_points"][0]
    assert first[:2] == ["0", "2026-09"]
    assert first[3] == " / ".join(f"{fan[i]:.1f}" for i in (0, 3, 6))


def test_back_test_table_counts(result: Outlook) -> None:
    text = back_test_table(result.back_test)
    families, coverage, targets = (
        [line for line in part.splitlines() if line.startswith("| ")][2:]
        for part in text.split("\n\n")
        if part.startswith("| ")
    )
    assert [cells(row)[0] for row in families] == list(FAMILIES)
    assert len(coverage) == len(result.back_test.cutoffs) == 4
    assert len(targets) == len(result.back_test.targets)
    assert sum(int(cells(row)[1]) for row in families) == len(targets)


def test_sections_name_every_strong_assumption(result: Outlook) -> None:
    parts = dict(sections(result))
    assert result.levers is not None
    levers = parts["Levers of the odds within 5 years"]
    assert levers.count("\n|") - 1 == len(result.levers.levers)
    order = [cells(line)[0] for line in levers.splitlines() if line.startswith("| ")][2:]
    assert order == [lever.name for lever in result.levers.levers]


def test_page_reads_its_tables_back(result: Outlook) -> None:
    for _, body in sections(result):
        for block in _blocks(body):
            if isinstance(block, dict):
                head, rows = block["head"], block["rows"]
                assert isinstance(head, list)
                assert isinstance(rows, list)
                assert rows
                assert all(len(row) == len(head) for row in rows)


def test_odds_figure_draws_the_curves(result: Outlook) -> None:
    (axes,) = odds_figure(result.forecast).axes
    drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.get_lines()}
    assert drawn["all, ever ahead"] == pytest.approx(100 * result.forecast.ever)
    assert "export: as now" in drawn


def test_fan_and_lag_figures_hold_both_past_and_future(result: Outlook) -> None:
    (levels,) = fan_figure(result.forecast).axes
    assert [t.get_text() for t in levels.get_legend().get_texts()] == [FEW.leader, FEW.follower]
    (lag,) = lag_figure(result.forecast).axes
    measured = lag.get_lines()[0].get_ydata()
    assert max(measured) == pytest.approx(18.2, abs=0.3)  # the longest lag, in 2024
    assert len(lag.collections) == 3  # 50, 80 and 90 %


def test_tornado_bars_reach_from_the_base_to_the_odds(result: Outlook) -> None:
    assert result.levers is not None
    (axes,) = tornado_figure(result.levers).axes
    strongest = result.levers.levers[0]
    ends = sorted(100 * x for x in (strongest.at_low, strongest.at_high))
    top = [p for p in axes.patches if round(p.get_y() + p.get_height() / 2) == 14]
    reached = sorted(p.get_x() + p.get_width() for p in top)
    assert reached == pytest.approx(ends)
    assert axes.get_yticklabels()[-1].get_text() == strongest.name


def test_document_survives_json(result: Outlook) -> None:
    data = json.loads(json.dumps(document(result), allow_nan=False))
    assert data["forecast"]["ever_ahead"] == result.forecast.ever.tolist()
    assert len(data["assumptions"]["quantities"]) == len(FEW.quantities)
    assert data["levers"]["within_years"] == 5.0
    assert {s["statement"]["who"] for s in data["statements"]} >= {
        "Justin Lin (Qwen)",
        "Polymarket",
    }


def test_plain_values() -> None:
    assert plain({"a": (1, 2.5, math.inf), "b": None}) == {"a": [1, 2.5, None], "b": None}
    assert plain(FEW.run)["paths"] == 4000
    assert plain(FEW.origin) == "2026-09-10"


def test_a_gap_in_nats_shrinks_with_effective_compute(result: Outlook) -> None:
    for law in ("besiroglu_2024", "hoffmann_2022"):
        rows = [n for n in result.nats if n.law == law]
        assert all(n.follower_loss > n.leader_loss for n in rows)
        leaders = [n.leader_loss for n in rows]
        assert leaders == sorted(leaders, reverse=True)


def test_progress_of_all_parts_adds_up() -> None:
    done: dict[str, float] = {}

    def advance(part: str, share: float) -> None:
        done[part] = done.get(part, 0.0) + share

    outlook(FEW.with_run(paths=1000, lever_paths=200), lever_years=2.0, advance=advance)
    assert done == pytest.approx({"paths": 1.0, "levers": 1.0, "beliefs": 1.0})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.63e3, "1,630"),
        (195_432.0, "195,000"),
        (16.44, "16.4"),
        (0.0123, "0.0123"),
        (99.96, "100"),
    ],
)
def test_large_numbers_have_no_exponent(value: float, shown: str) -> None:
    assert _three_digits(value) == shown
