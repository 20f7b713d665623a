"""Reports: figures that are right, keys that are promised, and held-back errors."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from krzem.accuracy.calibrate import calibrate, summary, table_text, timed_cases
from krzem.accuracy.command import COLUMNS, accuracy_command, rows_csv
from krzem.accuracy.evaluate import (
    Outcome,
    evaluate,
    mean_spearman,
    memory_figures,
    spearman,
    time_figures,
)
from krzem.accuracy.fit import robust
from krzem.cost.coefficients import fitted
from krzem.facts.table import read_table

Row = dict[str, str]
PROMISED = {
    "rows", "used", "skipped", "time", "memory", "by_accelerator", "by_family", "by_source",
}  # fmt: skip
TIME = {"n", "median_ape", "mape", "p90_ape", "bias", "coverage80", "within10", "spearman"}
MEMORY = {"n", "mape", "max_ape", "fits_correct"}


@pytest.fixture(scope="module")
def packaged() -> dict[str, object]:
    return evaluate(read_table("runs.csv")).as_dict()


def outcome(measured: float, mid: float, layout: str = "a", group: str = "g") -> Outcome:
    return Outcome(
        id="x", measured_s=measured, low_s=0.9 * mid, mid_s=mid, high_s=1.1 * mid, layout=layout,
        group=group,
    )  # fmt: skip


def test_promised_keys(packaged: dict[str, dict[str, object]]) -> None:
    assert set(packaged) >= PROMISED
    assert set(packaged["time"]) >= TIME
    assert set(packaged["memory"]) >= MEMORY
    json.dumps(packaged, allow_nan=False)


def test_the_packaged_table_is_judged_by_what_was_held_back(
    packaged: dict[str, dict[str, dict[str, float]]],
) -> None:
    held = packaged["held_back"]
    assert set(held) == {
        f"without_{n}" for n in ("organisation", "accelerator", "family", "engine")
    }
    assert held["without_organisation"]["n"] > 1000
    assert held["without_organisation"]["median_ape"] < 0.17
    assert held["without_accelerator"]["median_ape"] < 0.14
    assert 0.74 <= held["without_organisation"]["coverage80"] <= 0.86


def test_no_published_layout_is_impossible(packaged: dict[str, dict[str, float]]) -> None:
    assert packaged["memory"]["fits_correct"] == 1.0


def test_allocated_memory_is_met() -> None:
    rows = [row for row in read_table("runs.csv") if row["memory_kind"] == "allocated"]
    figures = evaluate(rows).as_dict()["memory"]
    assert figures["n"] > 40
    assert figures["mape"] < 0.03


def test_figures_by_hand() -> None:
    found = time_figures([outcome(1.0, 1.2), outcome(2.0, 2.1, "b"), outcome(4.0, 3.0, "c")])
    assert found["median_ape"] == pytest.approx(0.2)
    assert found["mape"] == pytest.approx((0.2 + 0.05 + 0.25) / 3, abs=1e-4)
    assert found["within10"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["coverage80"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["bias"] == pytest.approx(0.05)
    assert found["spearman"] == 1.0
    assert time_figures([])["n"] == 0
    assert memory_figures([])["mape"] is None


def test_rank_correlation() -> None:
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([9.0, 8.0, 7.0])) == pytest.approx(-1.0)
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 1.0, 5.0])) == pytest.approx(1.0)
    same_layout = [outcome(1.0, 1.0), outcome(2.0, 1.0), outcome(3.0, 1.0)]
    assert mean_spearman(same_layout) is None


def test_rows_as_csv(llama: Row) -> None:
    report = evaluate([llama, llama | {"id": "=cmd()", "seq_len": "", "model_name": "x"}])
    rows = list(csv.DictReader(io.StringIO(rows_csv(report))))
    assert tuple(rows[0]) == COLUMNS
    assert float(rows[0]["predicted_low_s"]) < float(rows[0]["predicted_s"])
    assert float(rows[0]["predicted_s"]) < float(rows[0]["predicted_high_s"])
    assert rows[1]["id"].startswith("'=")
    assert rows[1]["skipped"] == "sequence length not published"


def test_duplicates_are_told(llama: Row) -> None:
    document = evaluate([llama, llama]).as_dict()
    assert document["duplicate_ids"] == 1
    assert document["used"] == 2


def test_chunks_change_nothing(some_runs: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows_csv(evaluate(some_runs))
    monkeypatch.setattr("krzem.accuracy.evaluate.CHUNK", 7)
    assert rows_csv(evaluate(some_runs)) == whole


def test_recalibration_on_a_few_rows(some_runs: list[Row]) -> None:
    found = calibrate(some_runs, fitted().as_dict())
    document = found["coefficients"]
    assert document["rows"] == len(timed_cases(some_runs))
    assert document["summary"]["in_sample"]["median_ape"] < 0.15
    assert len(table_text(found["held_back"]).splitlines()) == document["rows"] + 1


def test_summary_by_hand() -> None:
    found = summary(np.log([1.1, 0.9, 1.0]), np.array([0.2, 0.2, 0.2]))
    assert found["mape"] == pytest.approx(0.2 / 3, abs=1e-4)
    assert found["coverage80"] == 1.0


def test_command(tmp_path: Path, some_runs: list[Row]) -> None:
    table = tmp_path / "runs.csv"
    table.write_text(table_text(some_runs), encoding="utf-8")
    out = tmp_path / "rows.csv"
    run = CliRunner().invoke(accuracy_command, [str(table), "--rows", str(out)])
    assert run.exit_code == 0, run.output
    assert "without organisation" in run.output
    assert max(len(line) for line in run.output.splitlines()) <= 100
    assert len(out.read_text(encoding="utf-8").splitlines()) == len(some_runs) + 1
    run = CliRunner().invoke(accuracy_command, [str(table), "--json"])
    assert json.loads(run.output)["rows"] == len(some_runs)


def test_an_unknown_file_is_said_plainly(tmp_path: Path) -> None:
    run = CliRunner().invoke(accuracy_command, [str(tmp_path / "no.csv")])
    assert "no such file" in str(run.exception)


def test_deepspeed_without_zero_keeps_a_second_copy_of_gradients() -> None:
    """BigScience's 181B in fp16 with ZeRO stage 0: 72 GiB by the device's tool."""
    rows = [row for row in read_table("runs.csv") if row["id"] == "BS-018"]
    (found,) = evaluate(rows).outcomes
    assert found.memory_predicted == pytest.approx(72 * 2**30, rel=0.08)


def test_a_cell_that_is_off_as_a_whole_steers_little() -> None:
    """Twenty rows that are off together weigh less than twenty that are off apart."""
    off, weight = np.full(40, 0.3), np.full(40, 0.25)
    off[20:] = 0.0
    together = robust(off, weight, np.repeat([0, 1], 20))
    apart = robust(off, weight, np.arange(40))
    assert together[:20].sum() < apart[:20].sum() < apart[20:].sum()
    assert together[20:] == pytest.approx(together[39])


def test_the_page_shows_each_figure_of_the_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    rows = [*list(read_table("runs.csv"))[:12], {"id": "<i>", "source": "<b>", "accelerator": "?"}]
    table, target = tmp_path / "runs.csv", tmp_path / "page.html"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    done = CliRunner().invoke(accuracy_command, [str(table), "--json", "--html", str(target)])
    assert done.exit_code == 0, done.output
    document, text = json.loads(done.stdout), target.read_text(encoding="utf-8")
    assert f"{document['used']} of {document['rows']} rows predicted" in text
    assert f"{100 * document['time']['median_ape']:.1f} %" in text
    assert all(f"<td>{reason}</td>" in text for reason in document["skipped"])
    assert f"{document['time']['n']} rows; " in text
    timed = [r for r in evaluate(rows).outcomes if r.measured_s and not r.reason]
    far = [abs(float(np.log(r.mid_s / (r.measured_s or 1.0)))) for r in timed]
    listed = text[text.index("Rows that are furthest off") :]
    order = sorted(range(len(timed)), key=lambda i: -far[i])
    places = [listed.index(f'<th scope="row">{timed[i].id}</th>') for i in order]
    assert places == sorted(places)


def test_a_page_that_cannot_be_written_is_refused_before_the_table_is_read(tmp_path: Path) -> None:
    target = tmp_path / "none" / "page.html"
    done = CliRunner().invoke(accuracy_command, [str(tmp_path / "no.csv"), "--html", str(target)])
    assert "a folder that does not exist" in str(done.exception)
