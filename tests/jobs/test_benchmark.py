"""The judge of the readers: what counts as right, wrong, guessed and left open."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from benchmarks.jobs import BEGIN, END, judge, same, table, write

from krzem.jobs.job import Job, JobBuilder, Place, Value


@pytest.mark.parametrize(("label", "value", "equal"), [
    ("4", 4, True), ("4.0", 4, True), ("four", 4, False), ("true", True, True),
    ("1", True, False), ("False", False, True), ("2", 2.0, True), ("bf16", "bf16", True),
    ("FP8 block", "fp8-block", True), ("mlp+layernorm", ("layernorm", "mlp"), True),
    ("mlp", ("layernorm", "mlp"), False), ("H100", "h100", True), ("ring", "a2a", False),
])  # fmt: skip
def test_labels_and_values(label: str, value: Value, equal: bool) -> None:
    assert same(label, value) is equal


def job() -> Job:
    builder = JobBuilder("megatron-lm", "0.16")
    for name, value in {"tp": 4, "model.vocab": 5}.items():
        builder.state(name, value, Place(file="a", line=1, text="x"))
    return builder.job()


def row(field: str, value: str) -> dict[str, str]:
    return {"id": "a", "field": field, "value": value, "basis": "stated", "evidence": "a:1"}


def test_four_outcomes() -> None:
    labels = [row("tp", "4"), row("engine", "megatron-lm"), row("engine_version", "0.16"),
              row("model.vocab", "open"), row("pp", "2"), row("device", "open"),
              row("tp", "8")]  # fmt: skip
    score = judge(job(), labels)
    assert (score.right, score.wrong, score.guessed, score.missed) == (4, 1, 1, 1)
    assert len(score.errors) == 3


def test_a_job_that_is_not_read_misses_everything_decided() -> None:
    score = judge(None, [row("tp", "4"), row("device", "open")])
    assert (score.right, score.missed) == (1, 1)


def test_the_table_goes_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "engines.md"
    page.write_text(f"a\n{BEGIN}\nold\n{END}\nb\n", encoding="utf-8")
    write(page, "new")
    assert page.read_text(encoding="utf-8") == f"a\n{BEGIN}\nnew\n{END}\nb\n"
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(SystemExit, match="no markers"):
        write(page, "new")


def test_an_engine_is_a_row() -> None:
    score = judge(job(), [row("tp", "4"), row("pp", "2")])
    text = table({"megatron-lm": {"develop": score}}, Counter({("megatron-lm", "develop"): 1}))
    assert "| megatron-lm | develop | 1 | 2 | 50.0 % | 0.0 % | 50.0 % |" in text
