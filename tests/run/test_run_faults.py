"""A sample of the fault campaign; benchmarks/faults.py runs it at full length."""

import json
import random
from pathlib import Path

import pytest
from benchmarks import faults
from tests.run.run_helpers import run_it, write_run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_it(write_run(folder))
    return folder / "run"


SAMPLED = (
    "rank 0 killed, in a save",
    "trainer killed from outside, anywhere",
    "controller killed 1 to 3 times, anywhere",
    "controller killed 3 times while moving",
    "two controllers at once",
    "date jumps by up to 3 years",
    "newest checkpoint with a flipped bit",
    "one rank 5 times slower",
)


@pytest.mark.parametrize("scenario", SAMPLED)
def test_a_sample_of_the_campaign(scenario: str, undisturbed: Path) -> None:
    result = faults.try_one(scenario, random.Random(scenario).randrange(1000, 2000), undisturbed)
    assert result.survived, result.fault


def test_the_campaign_notices_a_trainer_that_skips_samples(
    monkeypatch: pytest.MonkeyPatch, undisturbed: Path
) -> None:
    def disturb(trial: faults.Trial) -> None:
        fault = {"id": "a", "step": 17, "at": "compute", "do": "kill"}
        settings = {"step_seconds": 0.015, "skip_after_resume": 3}
        trial.write(faults=[fault], trainer=settings)
        trial.start()

    monkeypatch.setitem(faults.ALL, "planted", (disturb, 1))
    result = faults.try_one("planted", 0, undisturbed)
    assert not result.survived
    assert "3 samples skipped" in result.fault


def test_the_campaign_notices_a_fault_that_the_ledger_does_not_know(
    monkeypatch: pytest.MonkeyPatch, undisturbed: Path
) -> None:
    def disturb(trial: faults.Trial) -> None:
        trial.write()
        trial.start()
        trial.finish()
        (trial.run_dir / "faults.done" / "never").write_text("")

    monkeypatch.setitem(faults.ALL, "planted", (disturb, 1))
    assert "not in the ledger" in faults.try_one("planted", 0, undisturbed).fault


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{faults.BEGIN}\nold\n{faults.END}\nafter\n")
    result = faults.Result(
        scenario="a", seed=1, survived=True, fault="", lost_steps=3, recovery_seconds=(0.5, 1.5),
        seconds=2.0,
    )  # fmt: skip
    faults.write_table([result], page)
    text = page.read_text()
    assert "| a | 1 | 1 | 3 (3) | 1.00 (1.50) |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_parts_of_a_campaign_make_one_table(tmp_path: Path) -> None:
    part = tmp_path / "part.json"
    rows = [
        {"scenario": name, "seed": 1, "survived": survived, "fault": "", "lost_steps": 2,
         "recovery_seconds": [0.5], "seconds": 2.0}
        for name, survived in (("a", True), ("b", False))
    ]  # fmt: skip
    part.write_text(json.dumps(rows))
    table = faults.table([*faults.earlier(part), *faults.earlier(part)])
    assert "| a | 2 | 2 | 2 (2) | 0.50 (0.50) |" in table
    assert "| b | 2 | 0 | 2 (2) | 0.50 (0.50) |" in table
