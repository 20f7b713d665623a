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
from krzem.run import parity
from krzem.run.adapter import ENGINES, adapted
from krzem.run.contract import FencedError, TrainerContract, commit
from krzem.run.contract_check import check_contract
from krzem.run.history import History, prove_samples
from krzem.run.launch.local import LocalLauncher
from krzem.run.ledger import Reader
from krzem.run.parity import announced
from krzem.run.rows import State
from krzem.run.run_file import read_run
from krzem.run.trainer import command_of
from krzem.run.verdict import Agreement
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


RECORD = ["sh", "-c", 'cp "$1/__0_0.distcp" "$2"', "-", "{checkpoint}", "{witness}"]
CHECK = ["sh", "-c", 'cmp "$1/__0_0.distcp" "$2" && test "$SPOILT" != 1 || '
         '{{ echo "layers.3 departs"; exit 1; }}', "-", "{checkpoint}", "{witness}"]  # fmt: skip


def test_a_move_is_proved_by_the_user_s_own_record_and_check(tmp_path: Path) -> None:
    """Recorded where the run comes from, checked on each pool: one departs, the next agrees."""
    path = foreign(
        tmp_path, "torchtitan", ["slow", "bad", "fast"],
        gates='witness = { action = "move" }\n'
        'throughput = { below = 0.99, steps = 3, skip = 0, action = "move" }',
        extra=f"[witness]\nrecord = {json.dumps(RECORD)}\ncheck = {json.dumps(CHECK)}\n",
        pool_extra={"bad": '[pool.environment]\nvariables = { SPOILT = "1" }\n'},
    )  # fmt: skip
    text = path.read_text().replace("throughput = false\n", "")
    path.write_text(text.replace("tokens_per_s = 1000", "tokens_per_s = 1e9", 1))
    (told, _) = announced(read_run(path)).values()
    assert told == "a move to bad is proved by the run file's own witness.record and witness.check"
    assert run_it(path) is State.DONE
    with Reader(tmp_path / "run") as reader:
        assert {a.pool for a in reader.attempts()} == {"slow", "fast"}
        proofs = [d for d in reader.decisions() if d.subject.startswith("witness of")]
    said = {d.subject.rpartition(" ")[2]: d for d in proofs}
    assert "layers.3 departs" in said["bad"].reason
    assert (said["slow"].choice, said["fast"].choice) == ("recorded", "passed")
    assert list((tmp_path / "run" / "parity").glob("step-*.witness"))


EXPORT = """
import json, os, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
assert json.loads((Path(sys.argv[1]) / "__0_0.distcp").read_text())
torch.manual_seed(1)
model = AutoModelForCausalLM.from_config(LlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2))
if os.environ.get("SPOILT"):
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1.001)
model.save_pretrained(sys.argv[2])
"""


@pytest.mark.long
def test_a_move_is_proved_through_a_hugging_face_export(tmp_path: Path) -> None:
    (tmp_path / "export.py").write_text(EXPORT)
    export = ["{python}", str(tmp_path / "export.py"), "{checkpoint}", "{export}"]
    path = foreign(
        tmp_path, "megatron-lm", ["first", "bad", "good"],
        extra=f"[witness]\nsequences = 2\nbatches = 1\nexport = {json.dumps(export)}\n",
        pool_extra={"bad": '[pool.environment]\nvariables = { SPOILT = "1" }\n'},
    )  # fmt: skip
    settings = read_run(path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__0_0.distcp").write_text("[1]")
    contract = TrainerContract(run_dir=tmp_path / "run", attempt=1, token=1)
    folder = commit(tmp_path / "own", 5, 5, contract=contract)
    first, bad, good = settings.pools
    given: dict[str, Any] = {"checkpoint": folder}
    recorded = parity.record(settings, first, LocalLauncher(), 1, layouts=[None], **given)
    assert recorded is not None
    assert recorded.recorded, recorded.message
    departs = parity.check(settings, bad, LocalLauncher(), 2, layout=None, **given)
    assert departs.agreement is Agreement.FAILED
    assert departs.departs[0] == "model.layers.1.mlp.up_proj.weight"
    agrees = parity.check(settings, good, LocalLauncher(), 3, layout=None, **given)
    assert agrees.agreement is Agreement.PASSED, agrees.message
    assert [p.parent.name for p in tmp_path.glob("run/parity/*/export")] == ["bad-2"]
    assert len(list((tmp_path / "run" / "certificates").glob("*.json"))) == 2


def test_half_a_way_to_prove_a_move_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path, "torchtitan", ["first"],
                   extra=f"[witness]\nrecord = {json.dumps(RECORD)}\n")  # fmt: skip
    with pytest.raises(RunError, match="record and check go together"):
        read_run(path)
    for word in ("{chekpoint}", "{ exit 1; }", "{"):
        text = path.read_text().replace("record = ", f'export = ["{word}"]\n# ')
        (tmp_path / "other.toml").write_text(text)
        with pytest.raises(RunError, match=r"witness.export: .* write \{\{ for a brace"):
            read_run(tmp_path / "other.toml")


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
