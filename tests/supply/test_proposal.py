"""Applications: what is computed, what each call gets, what bad input gets."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from krzem.errors import DataError, InputError, KrzemError, UnknownNameError
from krzem.plan.answer import plan_of
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.report.document import plan_document
from krzem.rules import summary, verdict
from krzem.rules.text import age
from krzem.supply.command import CALLS
from krzem.supply.judge import check_suffix, write
from krzem.supply.machines import machine, machines, template, templates
from krzem.supply.proposal import proposal, read_plan
from krzem.supply.proposal_text import proposal_markdown
from krzem.supply.scaling import read_measured


@pytest.fixture(scope="module")
def plan() -> dict[str, Any]:
    asked = settle(Question(model="llama-2-7b", on="a100-80:64", tokens="100B", date="2026-11-01"))
    return plan_document(plan_of(asked, alternatives=0), asked)


@pytest.mark.parametrize("call", CALLS)
def test_every_call_gets_its_sections_with_numbers(plan: dict[str, Any], call: str) -> None:
    document = proposal(plan, call, nodes="8")
    assert set(document["sections"]) >= {"summary", "resources", "scaling", "yours"}
    json.dumps(document, allow_nan=False)
    text = proposal_markdown(document)
    assert text.count("\n## ") == len(document["sections"])
    assert f"{document['resources']['node_hours_total']['mid']:,.0f}" in text
    for source in template(call)["sources"]:
        assert source in text


def test_the_plan_is_told_again(plan: dict[str, Any]) -> None:
    document = proposal(plan, "eurohpc", nodes="8")
    (row,) = document["scaling"]
    assert row["devices"] == 64
    assert row["step_time_s"]["mid"] == pytest.approx(plan["best"]["step_time_s"]["mid"], rel=0.05)
    hours = plan["whole_run"]["node_hours"]["mid"]
    assert document["resources"]["node_hours_training"]["mid"] == pytest.approx(hours, rel=0.05)
    total = document["resources"]["node_hours_total"]["mid"]
    assert total == pytest.approx(document["resources"]["node_hours_training"]["mid"] * 1.05)


def test_efficiency_is_against_the_smallest(plan: dict[str, Any]) -> None:
    rows = proposal(plan, "gcs", nodes="4,16")["scaling"]
    assert [row["nodes"] for row in rows] == [4, 8, 16]
    assert rows[0]["efficiency"] == 1.0
    assert 0.3 < rows[-1]["efficiency"] <= 1.1


def test_measurements_move_and_narrow_the_prediction(plan: dict[str, Any], tmp_path: Path) -> None:
    plain = proposal(plan, "incite", nodes="8")["scaling"][0]["step_time_s"]
    file = tmp_path / "own.csv"
    file.write_text(f"nodes,step_time_s\n8,{plain['mid'] * 1.2}\n", encoding="utf-8")
    document = proposal(plan, "incite", nodes="8", measured=file)
    own = document["scaling"][0]["step_time_s"]
    assert own["mid"] == pytest.approx(plain["mid"] * 1.2)
    assert own["high"] / own["low"] < plain["high"] / plain["low"]
    assert "1.20 times" in proposal_markdown(document)
    file.write_text(f"nodes,step_time_s\n8,{plain['mid'] / 20}\n", encoding="utf-8")
    with pytest.raises(InputError, match="dense peak"):
        proposal(plan, "incite", nodes="8", measured=file)


def test_bands_of_a_public_machine(plan: dict[str, Any]) -> None:
    asked = settle(Question(model="llama-2-7b", on=_lumi(), tokens="50B", date="2026-11-01"))
    document = proposal(plan_document(plan_of(asked, alternatives=0), asked), "eurohpc", nodes="16")
    assert document["machine"] == "lumi-g"
    total = document["resources"]["node_hours_total"]["mid"]
    for band in document["bands"]:
        assert band["fits"] == ((band["least"] or 0) <= total <= band["most"])
    assert "Calls of lumi-g" in proposal_markdown(document)
    here = proposal(plan, "eurohpc", nodes="8", machine="leonardo-booster")
    assert here["bands"]
    assert here["resources"]["nodes"] == 64 // 4
    assert any("planned again" in note for note in here["notes"])


def test_node_hours_are_those_of_the_machines_own_nodes() -> None:
    """A plan on the catalogue's nodes of one superchip, applied for on nodes of four."""
    asked = settle(Question(model="llama-2-7b", on="gh200-96:64", tokens="50B", date="2026-11-01"))
    assert asked.task.cluster.nodes == 64
    document = proposal(plan_document(plan_of(asked, alternatives=0), asked), "eurohpc",
                        nodes="16", machine="jupiter-booster")  # fmt: skip
    assert document["resources"]["nodes"] == 16
    assert document["cluster"]["devices"] == 64
    hours = document["resources"]["node_hours_training"]["mid"]
    assert hours == pytest.approx(document["resources"]["days"]["mid"] * 24 * 16)
    assert document["share"]["of_nodes"] == pytest.approx(16 / machine("jupiter-booster").nodes)


def test_the_rules_judge_is_asked_about_the_machines_chip(plan: dict[str, Any]) -> None:
    """Granted time is time on chips of others; no country, no verdict."""
    unplaced = plan | {"cluster": plan["cluster"] | {"devices_per_node": 2}}
    assert "Not judged" in proposal_markdown(proposal(unplaced, "eurohpc", nodes="32"))
    document = proposal(plan, "eurohpc", nodes="8", country="AE", parent="CN")
    found = verdict("a100-80", dt.date.today(), "AE", "CN", rents=True)
    assert document["rules"]["lawful"] is (found.clear is True)
    assert document["rules"]["words"].startswith(summary(found))
    assert found.certain == ("as the rules stood" not in document["rules"]["words"])
    assert document["rules"]["words"] in proposal_markdown(document)
    assert age(found) in proposal_markdown(document)


def test_a_machine_that_the_call_does_not_grant_is_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="frontier"):
        proposal(plan, "incite", nodes="8", machine="leonardo-booster")
    big = plan | {"cluster": plan["cluster"] | {"devices": 10**6, "nodes": 125_000}}
    with pytest.raises(InputError, match="plan on fewer"):
        proposal(big, "eurohpc", nodes="8", machine="leonardo-booster")


def test_what_was_measured_is_marked_as_measured(plan: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("nodes,step_time_s\n8,9.5\n", encoding="utf-8")
    document = proposal(plan, "gcs", nodes="8,16", measured=file)
    marks = {row["nodes"]: row["measured"] for row in document["scaling"]}
    assert marks == {8: True, 16: False}
    assert document["scaling"][0]["step_time_s"]["mid"] == pytest.approx(9.5)
    assert not any(row["measured"] for row in document["weak_scaling"])


def test_jobs_milestones_and_weak_scaling_add_up(plan: dict[str, Any]) -> None:
    document = proposal(plan, "gcs", nodes="4,8", job_hours=10)
    days = document["resources"]["days"]["mid"]
    assert document["jobs"]["count"]["mid"] == -(-days * 24 // 10)
    last = document["milestones"][-1]
    assert last["tokens"] == document["goal"]["tokens"]
    assert last["node_hours"]["mid"] == document["resources"]["node_hours_training"]["mid"]
    per_node = {row["nodes"]: row["global_batch"] / row["nodes"]
                for row in document["weak_scaling"]}  # fmt: skip
    assert set(per_node) == {4, 8}
    assert len(set(per_node.values())) == 1


def test_files_by_their_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"\.docx"):
        check_suffix(tmp_path / "x.xls")
    for name, start in (("a.md", "# T"), ("a.html", "<p>")):
        write(tmp_path / name, "# T\n", lambda: "<p>")
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)
    if shutil.which("pandoc"):
        write(tmp_path / "a.docx", "# T\n\n| a |\n| - |\n| 1 |\n", lambda: "")
        assert (tmp_path / "a.docx").read_bytes()[:2] == b"PK"
        write(tmp_path / "a.tex", "# T\n", lambda: "")
        assert "documentclass" in (tmp_path / "a.tex").read_text(encoding="utf-8")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KrzemError, match="pandoc"):
        check_suffix(tmp_path / "x.pdf")


def test_a_plan_for_another_accelerator_is_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="plan is for nvidia-a100-sxm-80, and LUMI-G has amd"):
        proposal(plan, "eurohpc", nodes="8", machine="lumi")


def _lumi() -> Any:
    from krzem.hardware.cluster_reader import cluster_of

    given = {"nodes": 16, "device_days_between_interruptions": 1000}
    return cluster_of(dict(machine("lumi-g").cluster) | given)


def test_bad_plans(tmp_path: Path, plan: dict[str, Any]) -> None:
    file = tmp_path / "plan.json"
    for text, words in (
        ("{", "not JSON"),
        ("[]", "krzem plan"),
        ('{"schema": "x"}', "krzem.plan/1"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=words):
            read_plan(file)
    with pytest.raises(DataError, match="not a plan"):
        read_plan(tmp_path / "none.json")
    for part in ("goal", "cluster", "engine", "model"):
        with pytest.raises(DataError, match="lacks or garbles"):
            proposal({key: value for key, value in plan.items() if key != part}, "gcs")
    with pytest.raises(UnknownNameError, match="eurohpc"):
        proposal(plan, "eurohcp")


@pytest.mark.parametrize(
    "text", ["", "nodes\n8\n", "nodes,step_time_s\n8,x\n", "nodes,step_time_s\n0,1\n"]
)
def test_bad_measurements(tmp_path: Path, text: str) -> None:
    file = tmp_path / "own.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError):
        read_measured(file)


def test_templates_are_sourced() -> None:
    assert sorted(CALLS) == sorted(templates())
    for call in templates().values():
        assert set(call["machines"]) <= set(machines())
        assert call["sources"]
        assert call["asks"]
        assert call["date"]
