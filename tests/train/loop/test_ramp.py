"""A growing batch: sizes by samples alone, and the same bits after a stop inside the ramp."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.train.loop.folder import tokenised, write

from krzem.errors import GoalError, KrzemError
from krzem.train.loop import Trainer
from krzem.train.settings import Batches
from krzem.train.start import checked, prepare

RAMP = "\n[schedule]\nramp_from = 2\nramp_by = 2\nramp_tokens = 640\n"


@st.composite
def ramps(draw: st.DrawFn) -> Batches:
    full = draw(st.integers(1, 40))
    first = draw(st.integers(1, full))
    return Batches(
        full=full,
        first=first,
        by=draw(st.integers(0, 12)),
        ramp_samples=draw(st.integers(1, 300)),
    )


@given(batches=ramps(), start=st.integers(0, 400), more=st.integers(0, 400))
def test_counted_steps_are_the_steps_that_are_taken(
    batches: Batches, start: int, more: int
) -> None:
    sample, steps = start, 0
    while sample < start + more:
        sample, steps = sample + batches.at(sample), steps + 1
    assert batches.steps(start, start + more) == steps


@given(batches=ramps())
def test_a_ramp_grows_in_equal_parts_to_the_full_batch(batches: Batches) -> None:
    sizes = [batches.at(sample) for sample in range(batches.ramp_samples)]
    assert sizes == sorted(sizes)
    assert sizes[0] == batches.first
    assert set(sizes) <= set(batches.sizes)
    assert batches.at(batches.ramp_samples) == batches.full
    counts = [sizes.count(size) for size in batches.sizes[:-1]]
    assert not counts or max(counts) - min(counts) <= 1 or min(counts) == 0


def test_without_a_ramp_every_step_is_full() -> None:
    assert Batches(full=8).steps(0, 81) == 11
    assert Batches(full=8).sizes == (8,)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"first": 4}, "needs schedule.ramp_from"),
        ({"ramp_samples": 4}, "needs schedule.ramp_from"),
        ({"first": 9, "ramp_samples": 4}, "begins with 9 sequences, more than"),
    ],
)
def test_what_is_no_ramp(changes: dict[str, int], why: str) -> None:
    with pytest.raises(GoalError, match=why):
        Batches(full=8, **changes)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {h.name: h.part.detach().clone() for h in trainer.engine.held}


def test_resuming_inside_the_ramp_gives_the_same_bits(tmp_path: Path) -> None:
    tokenised(tmp_path)
    run = write(tmp_path, layout="mbs=2", save=0, end=RAMP)
    whole = prepare(run)
    whole.run()
    lines = [json.loads(x) for x in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    sizes = [x["last_sample"] - x["first_sample"] + 1 for x in lines]
    assert sizes == [2, 2, 2, 2, 4, 4, 6, *[8] * 8]
    assert [x["tokens"] for x in lines[:5]] == [64, 128, 192, 256, 384]
    assert lines[-1]["last_sample"] == lines[-1]["tokens"] // 32 - 1
    (tmp_path / "out").rename(tmp_path / "whole")
    first = prepare(run)
    for _ in range(5):
        first._one_step()
    with first._saver() as saver:
        first._save(saver)
    second = prepare(run)
    assert second.resume() is not None
    assert (second.step, second.sample) == (5, 12)
    second.run()
    assert second.step == whole.step == len(lines)
    a, b = weights(whole), weights(second)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_each_batch_of_the_ramp_has_to_fit_the_layout(tmp_path: Path) -> None:
    tokenised(tmp_path)
    run = write(tmp_path, layout="mbs=4", end=RAMP)
    with pytest.raises(KrzemError, match=r"a batch of the ramp = 2 is not a multiple of dp\*mbs"):
        checked(run)
    run = write(tmp_path, layout="auto", end=RAMP)
    assert checked(run).layout.micro_batch == 2
