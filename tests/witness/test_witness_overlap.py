"""Steps done twice: the same pass, and what one step cannot show does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tests.train.loop.folder import tokenised, write

from krzem.errors import DataError
from krzem.train.command import main
from krzem.witness.command import witness_command
from krzem.witness.overlap import compare_steps, read_steps, start_of_overlap


def steps(count: int = 20, **changes: Any) -> dict[int, dict[str, Any]]:
    """Records of a run whose loss falls; a change is a function of the step."""
    found = {}
    for n in range(1, count + 1):
        record = {"step": n, "tokens": 256 * n, "first_sample": 8 * n - 8, "last_sample": 8 * n - 1,
                  "rate": 1e-3, "loss": 4.0 - 0.01 * n, "grad_norm": 1.0}  # fmt: skip
        found[n] = record | {name: change(n) for name, change in changes.items()}
    return found


def test_the_same_steps_pass_with_noise() -> None:
    noisy = steps(loss=lambda n: (4.0 - 0.01 * n) * (1 + 1e-4 * (-1) ** n))
    found = compare_steps(steps(), noisy)
    assert found.passed, found.departs
    assert len(found.steps) == 20


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("loss", lambda n: (4.0 - 0.01 * n) * (1.02 if n == 7 else 1), "step 7: loss"),
        ("loss", lambda n: (4.0 - 0.01 * n) * (1 + 3e-4 * n), "the loss drifts"),
        ("loss", lambda n: float("nan") if n > 4 else 4.0 - 0.01 * n, "step 5: loss"),
        ("grad_norm", lambda n: 1.2, "gradient norm"),
        ("rate", lambda n: 1e-3 if n < 15 else 9e-4, "step 15: rate is 0.0009 here"),
        ("last_sample", lambda n: 8 * n - 1 + (n > 9), "step 10: last_sample"),
    ],
)
def test_what_one_step_cannot_show_does_not_pass(name: str, change: Any, words: str) -> None:
    found = compare_steps(steps(), steps(**{name: change}))
    assert not found.passed
    assert any(words in sentence for sentence in found.departs), found.departs


@given(st.dictionaries(st.integers(1, 9), st.sampled_from([None, "x", 1.0, float("nan"), True])))
def test_odd_records_are_judged_and_never_end_the_check(odd: dict[int, Any]) -> None:
    new = steps(9)
    for step, value in odd.items():
        new[step]["loss"] = value
    found = compare_steps(steps(9), new)
    assert found.passed is (not odd)


def test_where_an_overlap_begins(tmp_path: Path) -> None:
    saved = [(step, tmp_path / str(step)) for step in (5, 10, 15, 20)]
    assert start_of_overlap(saved, steps(20), 10) == tmp_path / "10"
    assert start_of_overlap(saved, steps(20), 100) == tmp_path / "5"
    assert start_of_overlap(saved[-1:], steps(20), 10) is None
    with pytest.raises(DataError, match="nothing to compare"):
        compare_steps(steps(3), {})


def test_steps_are_trained_again_from_a_checkpoint(tmp_path: Path) -> None:
    tokenised(tmp_path)
    file = write(tmp_path, "llama", tokens=1536, save=2)
    assert main(file) == 0
    out = tmp_path / "out"
    (folder,) = [p for p in (out / "checkpoints").iterdir() if p.name.endswith("2")]
    before = (out / "metrics.jsonl").read_bytes()

    def asked(*more: str) -> Any:
        words = ["overlap", str(folder), "--run-file", str(file), "--metrics",
                 str(out / "metrics.jsonl"), "--steps", "3", "--json", *more]  # fmt: skip
        command: Any = witness_command
        return CliRunner().invoke(command, words)

    result = asked()
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["steps"] == [3, 4, 5]
    assert found["worst_loss"] < 1e-6
    assert (out / "metrics.jsonl").read_bytes() == before
    assert read_steps(out / "metrics.jsonl")[6]["step"] == 6
    file.write_text(file.read_text().replace("rate = 5e-3", "rate = 4e-3"))
    assert asked().exit_code == 1
