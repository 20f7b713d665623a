"""Where one rank fails all end, and the first cause is what is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.train.loop.folder import tokenised, write
from tests.train.parallel import failing_ranks as failing

from krzem.errors import InputError
from krzem.run.contract import EXIT_DONE, EXIT_NONFINITE, EXIT_STORAGE
from krzem.train.command import lost_rank
from krzem.train.device import find_device, start_ranks

GONE = "krzem train (rank 0): another rank is gone ("


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenised(tmp_path)
    return tmp_path


def steps(folder: Path) -> int:
    return len((folder / "out" / "metrics.jsonl").read_text().splitlines())


def test_an_error_on_one_rank_ends_the_others_with_a_sentence(folder: Path) -> None:
    run = write(folder, layout="dp=2,ep=2,mbs=4", save=0)
    codes, (first, second) = failing.run(run, failing.disk_full)
    assert codes == [2, EXIT_STORAGE]
    says = "cannot write x: the disk is full; no checkpoint is there yet"
    assert second == f"krzem train (rank 1): {says}\n"
    assert first.startswith(GONE)
    assert len(first.splitlines()) == 1
    assert steps(folder) == failing.AT


def test_a_rank_that_dies_ends_the_others_with_a_sentence(folder: Path) -> None:
    run = write(folder, "llama", layout="dp=2,zero=3,mbs=4", save=0)
    codes, (first, _) = failing.run(run, failing.dies)
    assert codes == [2, 7]
    assert first.startswith(GONE)
    assert len(first.splitlines()) == 1


def test_the_rank_and_the_parameter_where_numbers_broke_are_named(folder: Path) -> None:
    """Although every loss and every gradient is broken by then, through experts and sums."""
    run = write(folder, layout="dp=2,ep=2,mbs=4", save=0)
    codes, said = failing.run(run, failing.breaks)
    assert codes == [EXIT_NONFINITE] * 2
    for text in said:
        assert "step 4: loss nan, gradient norm nan: first in the parameter layers.0" in text
        assert "on rank 1; nothing was saved after step 3" in text


def test_a_router_that_another_stage_holds_is_told_as_well(folder: Path) -> None:
    run = write(folder, layout="pp=2,mbs=4", save=0, tokens=256 * 8)
    codes, _ = failing.run(run, failing.shuts_experts_out)
    assert codes == [EXIT_DONE] * 2
    events = [json.loads(x) for x in (folder / "out" / "events.jsonl").read_text().splitlines()]
    assert {e["step"] for e in events} == {8}
    told = [e["message"] for e in events]
    assert any("router layers.3.mlp.gate has collapsed" in message for message in told)
    assert len(told) == len(set(told))


def test_other_errors_are_not_taken_for_a_lost_rank() -> None:
    assert lost_rank(RuntimeError("shapes do not match")) == ""
    assert lost_rank(ValueError("Connection closed by peer")) == ""
    outer = RuntimeError("stage 1 failed")
    outer.__cause__ = RuntimeError("[gloo/pair.cc:553] Connection closed by peer [::1]:5")
    assert lost_rank(outer) == "connection closed by peer"


def test_ranks_without_a_launcher_are_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"variable RANK expected.*start all with torchrun"):
        start_ranks(find_device("cpu"))
