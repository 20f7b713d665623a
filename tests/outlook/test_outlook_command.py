"""The command, its page, its JSON, and the worked study."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from krzem.errors import InputError, KrzemError
from krzem.outlook import shipped
from krzem.outlook.command import outlook_command
from krzem.outlook.study import assumption_lines, main, write_study

FEW = (
    "[run]\npaths = 2000\nlever_paths = 200\nfan_paths = 1000\nchunk_paths = 1000\n"
    "horizon_years = 6.0\n"
)


@pytest.fixture
def few(tmp_path: Path) -> str:
    file = tmp_path / "few.toml"
    file.write_text(FEW, encoding="utf-8")
    return str(file)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(outlook_command, arguments, catch_exceptions=False)


def test_text_has_every_part(few: str) -> None:
    text = run(few).stdout
    for words in (
        "Chance of having been ahead", "Levers of the odds within 5 years", "What others said",
        "Justin Lin", "Polymarket", "What one must believe", "is right up to here",
        "Back-test", "CRPS: lower is better",
        "Published figures reproduced", "besiroglu_2024", "are our judgement",
    ):  # fmt: skip
        assert words in text


def test_json_is_versioned_valid_and_holds_the_assumptions(few: str) -> None:
    data = json.loads(run(few, "--json", "--no-levers").stdout)
    assert data["schema"] == "krzem.outlook/1"
    assert data["levers"] is None
    assert data["forecast"]["paths"] == 2000
    assert len(data["forecast"]["ever_ahead"]) == len(data["forecast"]["years"])
    quantity = data["assumptions"]["quantities"]["catch_up"]
    assert quantity["mid"] == 10.0
    assert quantity["source"]
    model, trended, count = data["back_test"]["covered"]["0.9"]
    assert max(model, trended) <= count == len(data["back_test"]["targets"])
    assert data["definitions"][0]["odds"][0][1] == pytest.approx(
        data["forecast"]["ever_ahead"][4], abs=1e-9
    )


def test_the_back_test_alone() -> None:
    shown = run("--back-test").stdout
    assert "Chance of having been ahead" not in shown
    data = json.loads(run("--back-test", "--json").stdout)
    assert {v["family"] for v in data["verdicts"]} == {t["family"] for t in data["targets"]}


def test_json_has_no_nan_where_an_option_is_excluded(few: str) -> None:
    with Path(few).open("a", encoding="utf-8") as file:
        file.write("[scenario.export]\ntight = 1.0\n")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(run(few, "--json", "--no-levers").stdout, parse_constant=refuse)


def test_the_same_seed_prints_the_same(few: str) -> None:
    arguments = (few, "--no-levers", "--seed", "7")
    assert run(*arguments).stdout == run(*arguments).stdout
    assert run(*arguments).stdout != run(few, "--no-levers", "--seed", "8").stdout


def test_page_is_self_contained_with_four_plots(few: str, tmp_path: Path) -> None:
    target = tmp_path / "outlook.html"
    assert run(few, "--html", str(target)).exit_code == 0
    text = target.read_text(encoding="utf-8")
    assert text.count("<svg") == 4
    assert "CC BY" in text
    assert "compute_weight" in text
    for marker in ("<script", "<link", "src=", "@import"):
        assert marker not in text


def test_a_page_without_the_extra_names_the_install(
    few: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(KrzemError, match=r"pip install 'krzem\[report\]'"):
        run(few, "--no-levers", "--html", str(tmp_path / "x.html"))


def test_assumptions_are_printed_as_a_file_that_works(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(run("--assumptions").stdout, encoding="utf-8")
    assert run(str(file), "--paths", "500", "--no-levers").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.toml"], "none.toml does not exist"),
        (["--years", "50"], "outside"),
        (["--years", "0"], "outside"),
        (["--years", "-3", "--no-levers"], "outside"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        run(*arguments)
    assert caught.value.exit_code == 2


def test_study_is_written_with_its_figures(tmp_path: Path) -> None:
    few = shipped().with_run(
        paths=2000, lever_paths=200, fan_paths=1000, chunk_paths=1000, horizon_years=6.0
    )
    written = write_study(tmp_path / "outlook.md", few)
    assert {p.name for p in written} == {
        "outlook.md", "outlook-odds.svg", "outlook-fan.svg", "outlook-lag.svg",
        "outlook-tornado.svg",
    }  # fmt: skip
    text = (tmp_path / "outlook.md").read_text(encoding="utf-8")
    for path in written[:-1]:
        assert f"({path.name})" in text
    assert all(f"`{name}`" in text for name in few.quantities)


def test_study_without_a_target_says_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "docs/studies/outlook.md" in capsys.readouterr().err


def test_the_written_study_rests_on_the_shipped_assumptions() -> None:
    """Fails when the assumptions change and the study is not written anew."""
    study = Path(__file__).parents[2] / "docs/studies/outlook.md"
    text = study.read_text(encoding="utf-8")
    assert [line for line in assumption_lines(shipped()) if line not in text] == []
