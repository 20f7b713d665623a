"""The verbs: text, JSON, page, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.supply.fleet_cases import made_goal, made_pool, made_slots, made_speed

from krzem.errors import GoalError, InputError, KrzemError
from krzem.supply.command import fleet_command, infer_command, proposal_command
from krzem.supply.document import fleet_document
from krzem.supply.fleet import solve
from krzem.supply.page import fleet_page
from krzem.supply.text import fleet_text, percent

GOAL = """
model = "llama-2-7b"
tokens = "200B"
start = 2027-01-01
deadline = "60d"
[[pool]]
name = "A100"
on = "a100-80:128"
sizes = [64, 128]
[[pool]]
name = "H100"
on = "h100:64"
sizes = [64]
"""


@pytest.fixture
def goal(tmp_path: Path) -> Path:
    file = tmp_path / "goal.toml"
    file.write_text(GOAL, encoding="utf-8")
    return file


def run(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)  # type: ignore[call-overload, no-any-return]


def test_fleet_as_text_json_and_page(goal: Path, tmp_path: Path) -> None:
    page = tmp_path / "fleet.html"
    shown = run(fleet_command, goal, "--html", page)
    assert shown.exit_code == 0
    assert "Cheapest" in shown.output
    html = page.read_text(encoding="utf-8")
    assert "<svg" in html
    assert not any(mark in html for mark in ("<script", "src=", 'href="http'))
    document = json.loads(run(fleet_command, goal, "--json").output)
    assert document["schema"] == "krzem.fleet/1"
    assert document["feasible"]
    assert sum(document["cheapest"]["shares"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize("ask", ["largest", "fewest"])
def test_inverse_questions(goal: Path, ask: str) -> None:
    document = json.loads(run(fleet_command, goal, "--ask", ask, "--json").output)
    assert document["schema"] == "krzem.inverse/1"
    assert bool(document["largest"]) == (ask == "largest")
    assert bool(document["fewest"]) == (ask == "fewest")


def test_an_impossible_goal_says_what_to_relax() -> None:
    answer = solve(made_goal([made_pool("a")], days=50), made_slots(made_speed(100)))
    document = fleet_document(answer)
    json.dumps(document, allow_nan=False)
    assert "No plan keeps every limit" in fleet_text(document)
    assert "date" in fleet_page(document)
    left_out = {name: f"{name} needs the 16-bit peak of {name}" for name in ("t20", "s60")}
    html = fleet_page({**document, "left_out": left_out})
    assert "16-bit peak of it: t20, s60" in html, "one point for one reason"


def test_infer(tmp_path: Path) -> None:
    page = tmp_path / "infer.html"
    given = ("llama-2-7b", "--hours", "184320", "--days", "20-40", "--done", "2023-07",
             "--devices", "a100-80,h100", "--stock", "h100=100")  # fmt: skip
    document = json.loads(run(infer_command, *given, "--json").output)
    assert document["schema"] == "krzem.infer/1"
    assert document["kinds"][0]["device"] == "nvidia-a100-sxm-80"
    assert "nvidia-a100" in run(infer_command, *given, "--html", page).output
    assert "<svg" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (fleet_command, ["none.toml"], "does not exist"),
        (infer_command, ["llama-2-7b"], "nothing to infer"),
        (infer_command, ["llama-2-7b", "--days", "30"], "two numbers"),
        (infer_command, ["llama-2-7b", "--days", "x-y"], "ratio"),
        (infer_command, ["llama-2-7b", "--hours", "1M", "--stock", "h100"], "h800=10000"),
        (infer_command, ["lama-2", "--hours", "1M"], "unknown model"),
        (proposal_command, ["none.json", "--for", "gcs"], "not a plan"),
        (fleet_command, ["none.toml", "--html", "/no/such/folder/x.html"], "folder"),
    ],
)
def test_bad_input_is_one_sentence(command: object, arguments: list[str], words: str) -> None:
    with pytest.raises(KrzemError, match=words) as error:
        run(command, *arguments)
    assert error.value.exit_code == 2


def test_an_option_that_does_not_belong(goal: Path) -> None:
    with pytest.raises(InputError, match="--ask largest"):
        run(fleet_command, goal, "--tokens-per-parameter", 20)


def test_lawful_only_needs_places(goal: Path) -> None:
    goal.write_text("lawful_only = true\n" + GOAL, encoding="utf-8")
    with pytest.raises(GoalError, match="has none"):
        run(fleet_command, goal)


def test_percent_is_never_certain_by_rounding() -> None:
    assert percent(0.9999) == "over 99 %"
    assert percent(1.0) == "100 %"
    assert percent(None) == "–"
