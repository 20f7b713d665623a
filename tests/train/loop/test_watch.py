"""What is out of the ordinary is told once and with its place; what passes is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.loop.folder import tokenised, write

from krzem.train.loop import Trainer
from krzem.train.start import prepare
from krzem.train.watch import CollapseWatch, Watch

EVEN = torch.full((8,), 32)
TWO_OF_EIGHT = torch.tensor([128, 128, 0, 0, 0, 0, 0, 0])


def told(loads: list[torch.Tensor], name: str = "layers.3.mlp.gate") -> list[tuple[str, str]]:
    """All events of a run with these loads, at its steps from 1 on."""
    watch, found = CollapseWatch(), []
    for step, load in enumerate(loads, start=1):
        watch.add({"layers.1.mlp.gate": EVEN, name: load})
        if watch.due:
            found += watch.judge(step)
    return found


def test_a_collapse_that_lasts_is_told_once_with_step_and_layer() -> None:
    ((kind, sentence),) = told([EVEN] * 40 + [TWO_OF_EIGHT] * 120)
    assert kind == "warning"
    assert sentence == (
        "step 96: router layers.3.mlp.gate has collapsed: in the last 32 steps 75% of its experts "
        "got less than 1% of an even share, the fullest 4.0 times that share"
    )


def test_a_collapse_from_the_first_step_on_is_told_and_so_is_its_end() -> None:
    events = told([TWO_OF_EIGHT] * 64 + [EVEN] * 64)
    assert [kind for kind, _ in events] == ["warning", "recovered"]
    assert events[0][1].startswith("step 32: router layers.3.mlp.gate has collapsed")
    assert events[1][1].startswith("step 96: router layers.3.mlp.gate has recovered: 100%")


@pytest.mark.parametrize(
    "loads",
    [
        [EVEN] * 7 + [TWO_OF_EIGHT] * 14 + [EVEN] * 60,
        [TWO_OF_EIGHT.roll(step) for step in range(96)],
    ],
    ids=["the first steps", "others at each step"],
)
def test_what_passes_is_no_collapse(loads: list[torch.Tensor]) -> None:
    assert told(loads) == []


def events(folder: Path) -> list[dict[str, Any]]:
    file = folder / "out" / "events.jsonl"
    return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []


def test_a_fresh_run_whose_load_recovers_is_not_warned_of(tmp_path: Path) -> None:
    tokenised(tmp_path)
    trainer = prepare(write(tmp_path, tokens=256 * 32, save=0))
    trainer.run()
    records = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(x)["peak_load"] for x in records) > 3.9  # of 4: two experts have it all
    assert events(tmp_path) == []


def shut(trainer: Trainer, layer: str, experts: slice) -> None:
    router = next(r for name, r in trainer.engine.routers().items() if name == layer)
    router.e_score_correction_bias[experts] = -1e3


def test_a_router_that_shuts_experts_out_is_warned_of(tmp_path: Path) -> None:
    tokenised(tmp_path)
    trainer = prepare(write(tmp_path, tokens=256 * 32, save=0))
    trainer.collapse.span = 4
    for _ in range(5):
        trainer._one_step()
    assert events(tmp_path) == []
    shut(trainer, "layers.2.mlp.gate", slice(2, None))
    for _ in range(11):
        trainer._one_step()
    (event,) = [e for e in events(tmp_path) if "layers.2" in e["message"]]
    assert event["step"] == 12
    assert event["message"].startswith("step 12: router layers.2.mlp.gate has collapsed: in the")


def test_a_spike_is_told_with_its_step() -> None:
    watch = Watch()
    assert not any(watch.spike(step, 2.0 + 0.01 * (step % 3)) for step in range(1, 30))
    assert watch.spike(30, 3.5) == (
        "step 30: loss 3.5000 is a spike: the median of the last 29 is 2.0100"
    )
    assert not watch.spike(31, 2.02)
