"""Trainers of other houses: their logs and checkpoints, a kill, a move; and contract.commit.

The trainers here are stand-ins that print and store as torchtitan and Megatron-LM do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.run.run_helpers import BATCH, SEQUENCE, TRAINER, run_it, write_run

from krzem.errors import RunError
from krzem.run.adapter import ENGINES, adapted
from krzem.run.contract import FencedError, TrainerContract, commit
from krzem.run.contract_check import check_contract
from krzem.run.history import History, prove_samples
from krzem.run.ledger import Reader
from krzem.run.rows import State
from krzem.run.run_file import read_run
from krzem.run.trainer import command_of
from krzem.train.checkpoint.store import checkpoints, verify

STAND_IN = Path(__file__).parent / "stand_in.py"


def foreign(folder: Path, engine: str, pools: list[str], **more: Any) -> Path:
    path = write_run(folder, pools=pools, steps=20, **more)
    command = ["{python}", str(STAND_IN), engine, "{run_dir}/own", "20", "0.02"]
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("command ="))
    lines[at] = (
        f'command = {json.dumps(command)}\nengine = "{engine}"\ncheckpoints = "{{run_dir}}/own"'
    )
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("engine", list(ENGINES))
def test_another_house_s_trainer_is_run_read_and_committed(tmp_path: Path, engine: str) -> None:
    path = foreign(tmp_path, engine, ["first"])
    assert run_it(path) is State.DONE
    run = tmp_path / "run"
    history = History.of(run)
    assert prove_samples(history.kept).exact
    assert history.kept[-1].grad_norm == 1.234
    assert history.tokens == 20 * BATCH * SEQUENCE
    found = checkpoints(run / "checkpoints")
    assert [step for step, _ in found][-1] == 20
    manifest = verify(found[-1][1])
    assert manifest.meta["tokens"] == 20 * BATCH * SEQUENCE
    trained = json.loads((found[-1][1] / "__0_0.distcp").read_text())
    assert trained == list(range(1, 21))


@pytest.mark.parametrize("engine", list(ENGINES))
def test_what_is_not_whole_or_newer_is_not_resumed_from(tmp_path: Path, engine: str) -> None:
    kind, root = ENGINES[engine], tmp_path / "own"
    for step, whole in ((5, True), (10, True), (15, False)):
        folder = root / kind.written.format(step)
        folder.mkdir(parents=True)
        (folder / "data").write_text(str(step))
        if whole:
            (folder / ".metadata").write_text("x")
    if kind.tracker is not None:
        assert not list(kind.checkpoints(root)), "its tracker says nothing yet"
        (root / kind.tracker).write_text("10")
    assert [step for step, _ in kind.checkpoints(root)] == [5, 10]
    good = tmp_path / "step-000000005"
    good.mkdir()
    for name in ("data", ".metadata", "manifest.json"):
        (good / name).write_text("5")
    kind.begin_at(root, good, 5)
    assert [step for step, _ in kind.checkpoints(root)] == [5]
    assert (root / kind.written.format(5) / "data").read_text() == "5"
    assert sum(p.name.startswith("set-aside") for p in root.iterdir()) == 3
    kind.begin_at(root, None, 0)
    assert not list(kind.checkpoints(root))


def test_a_kill_and_a_move_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """The first pool is too slow for its gate: the run moves on from a checkpoint of its own."""
    path = foreign(
        tmp_path, "torchtitan", ["slow", "fast"],
        gates='throughput = { below = 0.99, steps = 3, skip = 0, action = "move" }',
    )  # fmt: skip
    text = path.read_text().replace("throughput = false\n", "")
    text = text.replace("tokens_per_s = 1000", "tokens_per_s = 1e9", 1)
    path.write_text(text)
    assert run_it(path) is State.DONE
    with Reader(tmp_path / "run") as reader:
        assert [a.pool for a in reader.attempts()][-1] == "fast"
        assert len(reader.attempts()) >= 2
    history = History.of(tmp_path / "run")
    assert prove_samples(history.kept).exact
    last = checkpoints(tmp_path / "run" / "checkpoints")[-1][1]
    assert json.loads((last / "__0_0.distcp").read_text()) == list(range(1, 21))


def test_a_trainer_is_told_what_it_lacks_of_the_contract(tmp_path: Path) -> None:
    settings = {
        "steps": 400,
        "batch": BATCH,
        "sequence": SEQUENCE,
        "ranks": 1,
        "step_seconds": 0.02,
    }
    (tmp_path / "one.json").write_text(json.dumps(settings))
    honest = [sys.executable, str(TRAINER), str(tmp_path / "one.json")]
    (tmp_path / "a").mkdir()
    found = check_contract(honest, tmp_path / "a")
    assert all(clause.kept for clause in found), found
    assert len(found) == 6
    (tmp_path / "b").mkdir()
    silent = [sys.executable, "-c", "print('epoch 1, loss 3.2')"]
    told = {c.what: c for c in check_contract(silent, tmp_path / "b", seconds=2)}
    assert told["reports steps"].kept is False
    assert "epoch 1, loss 3.2" in told["reports steps"].how
    assert "krzem.run.contract.commit" in told["commits checkpoints"].how
    assert told["goes on from a checkpoint"].kept is None
    with pytest.raises(RunError, match="cannot be started"):
        check_contract(["/no/such/trainer"], tmp_path / "b")


def test_commit_writes_a_manifest_over_files_that_exist(tmp_path: Path) -> None:
    contract = TrainerContract(run_dir=tmp_path, attempt=1, token=3)
    own = tmp_path / "own"
    (own / "inner").mkdir(parents=True)
    (own / "inner" / "weights.bin").write_bytes(b"abc")
    (tmp_path / "fence.json").write_text('{"token": 4}')
    with pytest.raises(FencedError):
        commit(own, 7, 70, contract=contract)
    (tmp_path / "fence.json").write_text('{"token": 3}')
    folder = commit(own, 7, 70, sample=14, contract=contract)
    manifest = verify(folder)
    assert (manifest.step, manifest.meta["tokens"]) == (7, 70)
    assert set(manifest.files) == {"inner/weights.bin"}
    assert commit(own, 7, 70, contract=contract) == folder, "again is nothing"
    with pytest.raises(ValueError, match="holds no files"):
        commit(tmp_path / "none", 8, 80, contract=contract)


def test_the_layout_of_a_pool_becomes_flags_of_the_engine(tmp_path: Path) -> None:
    path = foreign(tmp_path, "torchtitan", ["first"])
    text = path.read_text().replace('"20", "0.02"]', '"20", "0.02", "{layout_flags}"]')
    path.write_text(text.replace("llama-2-7b", "llama-3.1-8b"))
    settings = read_run(path)
    words = command_of(settings, settings.pools[0], "tp=2,dp=4,mbs=2,zero=3")
    text = " ".join(words)
    assert "-m krzem.run.adapter --engine torchtitan" in text
    assert "--parallelism.tensor_parallel_degree 2" in text
    assert "--parallelism.data_parallel_shard_degree 4" in text
    assert "{layout_flags}" not in command_of(settings, settings.pools[0], None)
    with pytest.raises(RunError, match="not one of command, torchtitan, megatron-lm"):
        adapted("nanotron", "x", ["train"], batch=1, sequence=1)
