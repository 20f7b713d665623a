"""The judge of the log reader: what counts as right, wrong and left open."""

from __future__ import annotations

from collections import Counter

import pytest
from benchmarks.job_logs import Found, judge_log, left_out, logs_table, read_text_of_log, stored

LINES = "".join(
    f" [2025-01-01 00:00:{n:02}] iteration {n:8}/ 100 | consumed samples: {8 * n} |"
    f" elapsed time per iteration (ms): {9000.0 if n == 1 else 1000.0 + n % 3:.1f} |"
    " throughput per GPU (TFLOP/s/GPU): 400.0 | global batch size: 8 |\n"
    for n in range(1, 21)
).encode()


def row(**values: str) -> dict[str, str]:
    empty = {"tokens_per_s_per_device": "", "tflops_per_device": "", "memory_gib": ""}
    return {"step_seconds": "1.001", "step_low": "1.0", "step_high": "1.002", **empty, **values}


@pytest.mark.parametrize(("labels", "counts"), [
    ({}, (1, 0, 0)),
    ({"step_low": "2", "step_high": "3"}, (0, 1, 0)),
    ({"step_seconds": "none", "step_low": "", "step_high": ""}, (0, 1, 0)),
    ({"tflops_per_device": "404"}, (2, 0, 0)),
    ({"tflops_per_device": "440"}, (1, 1, 0)),
    ({"memory_gib": "70"}, (1, 0, 1)),
])  # fmt: skip
def test_outcomes(labels: dict[str, str], counts: tuple[int, int, int]) -> None:
    log, why = read_text_of_log(LINES)
    score = judge_log(log, row(**labels))
    assert not why
    assert (score.right, score.wrong, score.missed) == counts
    assert len(score.errors) == score.wrong + score.missed


def test_a_refused_log_is_right_only_where_nothing_is_steady() -> None:
    log, why = read_text_of_log(b"nothing here\n")
    assert log is None
    assert "step" in why
    assert judge_log(log, row()).missed == 1
    assert judge_log(log, row(step_seconds="none")).right == 1


def test_table_and_what_is_left_out() -> None:
    text = logs_table({("maxtext", "aside"): Found(logs=2, right=3, wrong=1)})
    assert "| maxtext | aside | 2 | 4 | 75.0 % | 25.0 % | 0.0 % |" in text
    assert "| all | aside | 2 | 4 |" in text
    assert left_out(Counter({"without a copy": 2})) == "Not read: 2 without a copy."
    assert left_out(Counter()) == ""
    assert [stored({"revision": r}) for r in ("thread", "stored", "0a1b")] == [False, False, True]
