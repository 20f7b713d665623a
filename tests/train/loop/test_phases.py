"""Mid-training: phases with other data, lengths, rotations, batches and rates; killed in each."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.train.configs import DEEPSEEK_V3
from tests.train.loop.folder import tokenised, write

from krzem.errors import RunError
from krzem.run.contract import EXIT_DONE, EXIT_STOPPED
from krzem.run.run_file import read_run
from krzem.train import loop
from krzem.train.checkpoint import latest_good, load_meta, read_manifest
from krzem.train.command import main
from krzem.train.data import BuildRequest, build
from krzem.train.loop import Trainer
from krzem.train.phases import add_phases, phases_of
from krzem.train.settings import read_settings
from krzem.train.start import checked, prepare

PHASES = """
[[phase]]
at = 1024
name = "longer"
sequence = 64
data = { tokens = 1, other = 2 }
max_positions = 128
[phase.rope]
rope_type = "yarn"
rope_theta = 10000.0
factor = 2.0
original_max_position_embeddings = 64
[[phase]]
at = 2304
sequence = 128
global_batch = 4
rate = 1e-3
schedule = { kind = "cosine", warmup = 512 }
layout = "mbs=2"
"""
MODEL: dict[str, Any] = {**DEEPSEEK_V3, "rope_parameters": None, "max_position_embeddings": 64}


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """V3's class over sequences of 32, then of 64 and 128 tokens."""
    return prepared(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, trained to its end at a stretch."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(prepared(folder)) == EXIT_DONE
    return folder


def prepared(tmp_path: Path) -> Path:
    tokenised(tmp_path)
    text = tmp_path / "other.txt"
    text.write_text("".join(f"another text altogether, {i * 7919 % 10007}; " for i in range(900)))
    build(BuildRequest(sources=(text,), out=tmp_path / "other", tokenizer="bytes"))
    file = write(tmp_path, tokens=4352, save=1, end=PHASES)
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, "vocab_size": 264}))
    return file


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "out" / "metrics.jsonl").read_text().splitlines()]


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int | None) -> None:
    """Ask the run to stop, as SIGTERM does, once it has taken ``step``."""
    plain = loop.Trainer._one_step

    def one(trainer: Trainer) -> Any:
        result = plain(trainer)
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(loop.Trainer, "_one_step", one)


def weights(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Checksums of all tensors, moments included, of the newest checkpoint."""
    found = latest_good(folder / "out" / "checkpoints")
    assert found is not None
    tensors = read_manifest(found).tensors
    return {n: tuple(c.crc32 for c in t.chunks) for n, t in tensors.items()}


def test_phases_are_exact_in_tokens(run_file: Path) -> None:
    phases = phases_of(read_settings(run_file))
    assert [p.begin for p in phases] == [0, 1024, 2560]  # 1024, then steps of 512 past 2304
    assert [p.steps for p in phases] == [4, 3, 4]
    assert [p.first_sample for p in phases] == [0, 16, 20]
    assert phases[2].tokens_at(phases[2].last_sample) == 4608
    assert [p.goal.sequence for p in phases] == [32, 64, 128]


def test_a_run_through_three_phases(whole: Path) -> None:
    """Batch, length, data, rotation and rate change at their tokens; moments are kept."""
    folder = whole
    found = lines(folder)
    assert [x["step"] for x in found] == list(range(1, 12))
    assert [x["phase"] for x in found] == [0] * 4 + [1] * 3 + [2] * 4
    taken = np.diff([0, *(x["tokens"] for x in found)])
    assert taken.tolist() == [256] * 4 + [512] * 7
    rates = [x["rate"] for x in found[7:]]
    assert rates[0] == pytest.approx(1e-3)  # the warm-up of 512 tokens ends with this step
    assert rates == sorted(rates, reverse=True)
    last = latest_good(folder / "out" / "checkpoints")
    assert last is not None
    meta = load_meta(last)
    assert (meta["phase"], meta["updates"], len(meta["phases"])) == (2, 11, 2)
    manifest = read_manifest(last)
    assert manifest.config is not None
    assert manifest.config["max_position_embeddings"] == 128
    events = (folder / "out" / "events.jsonl").read_text()
    assert "longer begins at 1,024 tokens: 8 sequences of 64 tokens from" in events
    ready = checked(whole / "run.toml")
    assert (ready.settings.phase, ready.spec.rope.kind, ready.spec.rope.factor) == (2, "yarn", 2.0)


@pytest.mark.parametrize("step", [2, 4, 6, 9])
def test_stopped_in_any_phase_it_ends_as_it_would_have(
    run_file: Path, whole: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at a phase's last step: weights, moments and losses are those of one stretch."""
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert main(run_file) == EXIT_STOPPED
    assert len(lines(run_file.parent)) == step
    assert main(run_file) == EXIT_DONE
    assert weights(run_file.parent) == weights(whole)
    kept = lines(run_file.parent)
    assert [x["loss"] for x in kept] == [x["loss"] for x in lines(whole)]
    assert not any("repeated" in x for x in kept)


def test_a_step_that_was_lost_and_taken_again_is_marked(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class KilledError(Exception):
        pass

    plain = loop.Trainer._one_step

    def one(trainer: Trainer) -> Any:
        result = plain(trainer)
        if trainer.step == 6:
            raise KilledError("at once")
        return result

    text = run_file.read_text().replace("every = 1\n", "every = 4\n", 1)
    run_file.write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_one_step", one)
        assert main(run_file) not in (EXIT_DONE, EXIT_STOPPED)
    told = capsys.readouterr().err.splitlines()[-1]
    crash = run_file.parent / "out" / "crash-rank-0.txt"
    assert (
        "step 7 under layout tp=1,pp=1,dp=1,mbs=4,zero=1 broke on rank 0: KilledError: at" in told
    )
    assert str(crash) in told
    assert "raise KilledError" in crash.read_text()
    assert main(run_file) == EXIT_DONE
    marked = [(x["step"], x.get("repeated", False)) for x in lines(run_file.parent)]
    assert marked[:6] == [(n, False) for n in range(1, 7)]
    assert marked[6:8] == [(5, True), (6, True)]
    assert marked[8:] == [(n, False) for n in range(7, 12)]


def test_a_phase_may_be_added_when_the_run_goes_on(run_file: Path, tmp_path: Path) -> None:
    text = run_file.read_text()
    run_file.write_text(text[: text.index("[[phase]]")].replace("tokens = 4352", "tokens = 1024"))
    assert main(run_file) == EXIT_DONE
    run_file.write_text(run_file.read_text().replace("tokens = 1024", "tokens = 2048"))
    added = tmp_path / "phase.toml"
    added.write_text('sequence = 64\nname = "cooldown"\nrate = 1e-4\n')
    assert add_phases(run_file, added) == (1024,)
    assert add_phases(run_file, added) == (1024,)  # the same command again adds nothing
    assert main(run_file) == EXIT_DONE
    assert [x.get("phase") for x in lines(tmp_path)][-2:] == [1, 1]
    added.write_text("at = 512\nsequence = 16\n")
    with pytest.raises(RunError, match="that has to grow"):
        add_phases(run_file, added)


def test_a_file_may_hold_several_phases(run_file: Path, tmp_path: Path) -> None:
    text = run_file.read_text()
    run_file.write_text(text[: text.index("[[phase]]")])
    added = tmp_path / "phases.toml"
    added.write_text(PHASES)
    assert add_phases(run_file, added) == (1024, 2304)
    assert add_phases(run_file, added) == (1024, 2304)
    assert [p.goal.sequence for p in phases_of(read_settings(run_file))] == [32, 64, 128]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("phase = []", "write \\[\\[phase"),
        ("phase = 3", "write \\[\\[phase"),
        ("phase = [1, 2]", "write \\[\\[phase"),
        ("sequence = 64\n[[phase]]\nat = 1024", "sequence beside"),
        ("[[phase]]\nsequence = 64\n[[phase]]\nsequence = 16", "that has to grow"),
    ],
)
def test_a_file_of_phases_that_says_nothing_is_taught(
    run_file: Path, tmp_path: Path, text: str, said: str
) -> None:
    added = tmp_path / "phases.toml"
    added.write_text(text)
    with pytest.raises(RunError, match=said):
        add_phases(run_file, added)


def test_phases_that_have_begun_cannot_be_changed(run_file: Path) -> None:
    assert main(run_file) == EXIT_DONE
    run_file.write_text(run_file.read_text().replace("at = 1024", "at = 768"))
    with pytest.raises(RunError, match="phases that have begun cannot be changed"):
        prepare(run_file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("at = 1024", "at = 4096"), "that has to grow"),
        (("at = 2304", "at = 9999"), "between 0 and goal.tokens"),
        (("sequence = 64", "sequense = 64"), "did you mean sequence"),
        (("data = { tokens = 1, other = 2 }", 'data = "nowhere"'), "no tokenised data"),
        (("global_batch = 4", "global_batch = 3"), "not a multiple of dp"),
        (('kind = "cosine"', 'kind = "sine"'), "schedule.kind"),
        (('rope_type = "yarn"', 'rope_type = "spiral"'), "spiral"),
        (('layout = "mbs=2"', 'layout = "mbs=two"'), "micro_batch=two"),
    ],
)
def test_faults_of_later_phases_are_told_before_the_first_step(
    run_file: Path, change: tuple[str, str], said: str
) -> None:
    run_file.write_text(run_file.read_text().replace(*change))
    with pytest.raises(RunError) as told:
        checked(run_file)
    assert said in str(told.value)


def test_sequences_beyond_the_models_positions_are_said(tmp_path: Path) -> None:
    tokenised(tmp_path)
    file = write(tmp_path, "llama", tokens=256)
    file.write_text(file.read_text().replace("sequence = 32", "sequence = 128"))
    file.write_text(file.read_text().replace("global_batch = 8", "global_batch = 4"))
    assert main(file) == EXIT_DONE
    events = (tmp_path / "out" / "events.jsonl").read_text()
    assert "sequences of 128 tokens go beyond the model's max_position_embeddings = 64" in events


def test_a_controller_passes_phases_on(run_file: Path) -> None:
    """The run file is read by ``krzem run`` as well, which leaves phases to the trainer."""
    text = run_file.read_text().replace("[run]\n", '[run]\nname = "phased"\n', 1)
    pool = '\n[[pool]]\nname = "here"\naccelerator = "cpu"\ncount = 1\n'
    run_file.write_text(text + pool)
    settings = read_run(run_file)
    assert [p["at"] for p in settings.raw["phase"]] == [1024, 2304]
    assert len(phases_of(read_settings(run_file))) == 3
