"""Whole runs: they learn, stop, resume to the same bits, and refuse what cannot be run."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.configs import ALL

from krzem.errors import CheckpointError, KrzemError, RunError
from krzem.run.contract import EXIT_STORAGE, environment_of, read_heartbeats
from krzem.train.checkpoint import checkpoints, latest_good
from krzem.train.command import main
from krzem.train.data import BuildRequest, TokenDataset, build
from krzem.train.data.tokenizer import ByteTokenizer
from krzem.train.describe import describe
from krzem.train.loop import NotFiniteError, Trainer
from krzem.train.settings import read_settings
from krzem.train.start import checked, prepare

RUN = """
model = "config.json"
layout = "{layout}"
[run]
folder = "out"
[goal]
tokens = {tokens}
sequence = 32
global_batch = 8
precision = "fp32"
[data]
path = "tokens"
documents = true
[optimizer]
rate = 5e-3
[checkpoint]
every = 4
[evaluation]
every = {evaluate}
sequences = 4
[metrics]
every = 0
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a model of 257 tokens, text and a run file of ten steps."""
    lines = [f"the {i}th line of a text that repeats itself, line {i * i}." for i in range(400)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    request = BuildRequest(
        sources=(tmp_path / "text.txt",), out=tmp_path / "tokens", tokenizer="bytes"
    )
    build(request)
    write(tmp_path, ALL["deepseek_v3"])
    return tmp_path / "run.toml"


def write(folder: Path, config: dict[str, Any], **changes: Any) -> None:
    fields = {"layout": "mbs=4", "tokens": 2560, "evaluate": 0, **changes}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 264}))
    (folder / "run.toml").write_text(RUN.format(**fields))


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {h.name: h.part.detach().clone() for h in trainer.engine.held}


@pytest.mark.parametrize("model", ["deepseek_v3", "deepseek_v4"])
def test_a_run_learns_and_says_so(run: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run.parent, ALL[model])
    for name, value in environment_of(run.parent / "out", 1, 1).items():
        monkeypatch.setenv(name, value)
    assert main(run) == 0
    (beat,) = read_heartbeats(run.parent / "out", 1).values()
    assert [step for step, seconds in beat.work if seconds > 0] == list(range(1, 11))
    lines = (run.parent / "out" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records] == list(range(1, 11))
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    assert records[3]["first_sample"] == 24
    assert records[3]["last_sample"] == 31
    assert records[0]["mfu"] is None
    assert records[-1]["memory_bytes"] > 0


def test_resuming_gives_the_same_bits(run: Path) -> None:
    whole = prepare(run)
    whole.run()
    write(run.parent, ALL["deepseek_v3"], tokens=2560)
    (run.parent / "out").rename(run.parent / "whole")
    first = prepare(run)
    for _ in range(4):
        first._one_step()
    with first._saver() as saver:
        first._save(saver)
    second = prepare(run)
    assert second.resume() is not None
    assert second.step == 4
    second.run()
    a, b = weights(whole), weights(second)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_sigterm_saves_and_a_second_start_goes_on(run: Path) -> None:
    write(run.parent, ALL["deepseek_v3"], tokens=256 * 400)

    def stop_soon() -> None:
        while not (run.parent / "out" / "metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_soon)
    thread.start()
    assert main(run) == 75
    thread.join()
    steps = [p.name for p in (run.parent / "out" / "checkpoints").glob("step-*")]
    assert steps
    again = prepare(run)
    again.resume()
    assert 0 < again.step < 400


def test_other_data_is_refused(run: Path) -> None:
    trainer = prepare(run)
    trainer._one_step()
    with trainer._saver() as saver:
        trainer._save(saver)
    run.write_text(run.read_text() + "\n[train]\nseed = 5\n")
    with pytest.raises(CheckpointError, match="other data, or in another order"):
        prepare(run).resume()


def test_a_disk_that_fills_leaves_the_last_good_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, write_really = run.parent / "out" / "checkpoints", os.write

    def full(descriptor: int, data: Any) -> int:
        if (root / "step-000000004" / "manifest.json").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_really(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert main(run) == EXIT_STORAGE
    (told,) = [x for x in capsys.readouterr().err.splitlines() if "cannot write" in x]
    assert "the disk is full" in told
    assert told.endswith(f"the last good checkpoint is {root / 'step-000000004'}")
    assert [step for step, _ in checkpoints(root)] == [4]
    assert latest_good(root) == root / "step-000000004"
    assert main(run) == 0
    assert latest_good(root) == root / "step-000000010"


def test_numbers_that_are_none_end_the_run(run: Path) -> None:
    trainer = prepare(run)
    with torch.no_grad():
        trainer.engine.held[3].part.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"step 1: loss nan.* on rank 0; nothing was saved"):
        trainer.run()
    assert not list((run.parent / "out").glob("checkpoints/step-*"))


def test_all_faults_of_a_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'layout = "dp=x"\n[goal]\ntokens = "10 apples"\nsequence = 32\nprecission = "bf16"\n'
        '[optimizer]\nrate = "fast"\n[sheduel]\n'
    )
    with pytest.raises(RunError) as caught:
        read_settings(file)
    text = str(caught.value)
    for part in ("goal.tokens", "goal.global_batch is missing", "did you mean precision",
                 "optimizer.rate", "did you mean schedule", "model is missing", "dp=x",
                 "data.path is missing"):  # fmt: skip
        assert part in text.replace("'x'", "dp=x"), part


def test_faults_of_the_file_and_of_what_it_names_at_once(run: Path) -> None:
    """A wrong field does not hide that model, data or folder cannot be used either."""
    (run.parent / "out").write_text("")
    text = run.read_text().replace('"fp32"', '"fp12"').replace("config.json", "nowhere.json")
    run.write_text(text.replace('"tokens"', '"no-tokens"'))
    for here in (True, False):
        with pytest.raises(RunError, match=r"run\.toml has 4 faults:\n") as caught:
            checked(run, here=here)
        for part in ("goal.precision", "nowhere.json", "no tokenised data at", "it is a file"):
            assert part in str(caught.value)


def test_a_good_file_with_faults_in_all_that_it_names(run: Path) -> None:
    (run.parent / "out").write_text("")
    run.write_text(run.read_text().replace('"tokens"', '"no-tokens"').replace("mbs=4", "mbs=3"))
    with pytest.raises(RunError, match=r"run\.toml has 3 faults:\n"):
        checked(run)
    assert (run.parent / "out").read_text() == ""


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("rate = 5e-3", "rate = nan", "optimizer.rate: it must be a number of 0 or more, not nan"),
        ("rate = 5e-3", "rate = inf", "optimizer.rate: it must be a number of 0 or more, not inf"),
        (
            "sequences = 4",
            "sequences = 0",
            "evaluation.sequences: it must be a whole number from 1 to .*, not 0",
        ),
        ('path = "tokens"', "path = []", "data.path: it must be a folder in quotes, .* not "),
        ('path = "tokens"', "path = {}", "data.path: it must be a folder in quotes, .* not "),
        ('path = "tokens"', 'path = {"a" = "b"}', "the weight of a must be a number"),
        ('folder = "out"', 'folder = ""', "run.folder: it must be text .* not ''"),
        ('folder = "out"', "folder = 3", "run.folder: it must be text .* not 3"),
        ('folder = "out"', 'foldr = "out"', "run.foldr: unknown key; did you mean folder?"),
        ("[run]", "[[run]]", r"run: it must be a table: write \[run\]"),
    ],
)
def test_a_value_that_cannot_be_is_a_fault(run: Path, old: str, new: str, why: str) -> None:
    text = run.read_text()
    assert old in text
    run.write_text(text.replace(old, new))
    with pytest.raises(RunError, match=why):
        read_settings(run)


def test_a_place_that_may_not_be_written_to_is_a_fault(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only disk; the modes of folders do not bind root."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        RunError, match=r"out cannot be used: .* is read-only here; give one that you"
    ):
        checked(run)


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        ("dp=2,mbs=4", "needs tp*cp*pp*dp = 1*1*1*2 = 2 ranks, 1 is present"),
        ("mbs=3", "global_batch = 8 is not a multiple of dp*mbs = 1*3 = 3"),
        ("tp=3,mbs=8", "does not divide attention heads = 4"),
        ("pp=2,schedule=zb-v,recompute=full,mbs=1", "use recompute=none"),
    ],
)
def test_impossible_layouts_are_refused_before_any_work(run: Path, layout: str, why: str) -> None:
    write(run.parent, ALL["deepseek_v3"], layout=layout)
    with pytest.raises(KrzemError) as caught:
        checked(run)
    assert why in str(caught.value)
    assert not (run.parent / "out").exists()


def test_a_vocabulary_smaller_than_the_tokenizer_s(run: Path) -> None:
    (run.parent / "config.json").write_text(json.dumps(ALL["deepseek_v3"]))
    with pytest.raises(KrzemError, match=r"vocab"):
        checked(run)
    assert ByteTokenizer().vocabulary > 96


def test_the_dry_run_says_what_would_be_run(run: Path) -> None:
    told = describe(run)
    assert told.steps == 10
    assert told.layout == "tp=1,pp=1,dp=1,mbs=4,zero=1"
    assert "(MTP)" in told.as_text()["parameters"]
    assert main(run, dry_run=True) == 0


def test_the_dry_run_tells_of_the_data_and_of_what_is_left(run: Path) -> None:
    told = describe(run)
    (data,) = told.data
    assert (data.path, data.tokens) == ("tokens", TokenDataset.open(run.parent / "tokens").tokens)
    assert data.times == 2560 / data.tokens
    assert told.as_text()["arithmetic"] == "fp32, adamw"
    assert (told.resumes, told.steps_left) == (None, 10)
    prepare(run).run()
    told = describe(run)
    assert (told.resumes, told.steps_left) == ("step-000000010", 0)
    assert told.as_text()["folder"].endswith("nothing is left to train after step-000000010")
    write(run.parent, ALL["deepseek_v3"], tokens=2560 + 256)
    folder = describe(run).as_text()["folder"]
    assert folder.endswith("goes on from step-000000010, 1 step left")


def test_weights_of_data_sets_share_out_the_tokens(run: Path) -> None:
    (run.parent / "more").symlink_to(run.parent / "tokens")
    run.write_text(run.read_text().replace('"tokens"', '{ "tokens" = 3, "more" = 1 }'))
    first, second = describe(run).data
    assert first.times == 3 * second.times
    assert first.times + second.times == pytest.approx(2560 / first.tokens)


def test_a_pool_s_arithmetic_replaces_the_file_s(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KRZEM_PRECISION", "bf16")
    assert prepare(run).engine.dtype is torch.bfloat16
    monkeypatch.setenv("KRZEM_PRECISION", "fp8")
    with pytest.raises(RunError, match="the trainer computes in bf16 or fp32"):
        checked(run)


def spoil(file: Path, what: str) -> None:
    """Make what the run file names unusable."""
    tokens, config = file.parent / "tokens", file.parent / "config.json"
    if what == "no config":
        config.unlink()
    elif what == "config that is no JSON":
        config.write_text("{")
    elif what == "config without a field":
        config.write_text(json.dumps({"model_type": "llama", "vocab_size": 300}))
    elif what == "model of another kind":
        config.write_text(json.dumps({"model_type": "mamba", "vocab_size": 300}))
    elif what == "no data":
        (tokens / "manifest.json").unlink()
    elif what == "data that is no manifest":
        (tokens / "manifest.json").write_text("{}")
    elif what == "shard cut short":
        os.truncate(next(tokens.glob("*.tokens")), 10)
    elif what == "shard missing":
        next(tokens.glob("*.tokens")).unlink()
    elif what == "text for data":
        file.write_text(file.read_text().replace('"tokens"', '"text.txt"'))
    elif what == "sequence longer than the data":
        file.write_text(file.read_text().replace("sequence = 32", "sequence = 320000"))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no config", "config.json"),
        ("config that is no JSON", "is not valid JSON"),
        ("config without a field", "is missing"),
        ("model of another kind", "mamba"),
        ("no data", "krzem data build"),
        ("data that is no manifest", "build the data again"),
        ("shard cut short", "has 10 bytes, the manifest says"),
        ("shard missing", "is missing; build the data again"),
        ("text for data", "text.txt is a file, not tokenised data"),
        ("sequence longer than the data", "shorten the sequence or add text"),
    ],
)
def test_what_the_file_names_and_cannot_be_used_is_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], what: str, says: str
) -> None:
    spoil(run, what)
    assert main(run) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"krzem train: {run}: ")
    assert says in told
    assert len(told.splitlines()) == 1
    assert not (run.parent / "out").exists()


def test_missing_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path / "no.toml") == 2
    assert "does not exist: `krzem train --help`" in capsys.readouterr().err
