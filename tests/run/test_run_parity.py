"""The witness inside a move: recorded and checked as jobs of pools, here within this process."""

import importlib.util
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.train.loop.folder import tokenised, write

from krzem.errors import RunError
from krzem.run.launch.job import Job, Look, Phase
from krzem.run.parity import announced, check, record
from krzem.run.run_file import read_run
from krzem.run.settings import RunSettings
from krzem.run.trainer import check_trainer
from krzem.run.verdict import Agreement, Verdict
from krzem.train.checkpoint.manifest import read_manifest, write_manifest
from krzem.train.command import main
from krzem.witness import checkpoint as witness_checkpoint
from krzem.witness import read_witness
from krzem.witness.command import witness_command
from krzem.witness.quantity import Kind

POOLS = """
[witness]
sequences = 2
batches = 1
[recovery]
look_every = "1 ms"
""" + "".join(
    f'[[pool]]\nname = "{name}"\naccelerator = "cpu"\ncount = 1\nprecision = "{precision}"\n'
    for name, precision in (("source", "fp32"), ("there", "bf16"))
)


class Here:
    """A launcher that runs ``krzem witness`` in this process, or breaks off."""

    name, can_exclude = "here", False

    def __init__(self, *, breaks: bool = False) -> None:
        self.breaks, self.jobs, self.code = breaks, 0, 0

    def start(self, job: Job) -> Mapping[str, Any]:
        words = shlex.split(" ".join(job.command))
        job.write()
        self.jobs += 1
        if self.breaks:
            self.code = 9
            return {}
        told = CliRunner().invoke(witness_command, words[words.index("witness") + 1 :])
        self.code = told.exit_code
        (job.folder / "output.log").write_text(f"{told.output}{told.exception or ''}")
        return {}

    def look(self, job: Job, handle: Mapping[str, Any]) -> Look:
        return Look(phase=Phase.ENDED, exit_code=self.code)

    def kill(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        """Nothing is left."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    """A run of four steps, with its checkpoint."""
    folder = tmp_path_factory.mktemp("parity")
    tokenised(folder)
    file = write(folder, "llama", tokens=1024, save=2, end=POOLS)
    assert main(file) == 0
    return read_run(file)


@pytest.fixture(scope="module")
def recorded(settings: RunSettings) -> Path:
    """The checkpoint, with the witness that the first pool leaves."""
    folder = sorted((settings.folder / "checkpoints").iterdir())[-1]
    launcher: Any = Here()
    pool = settings.pool("source")
    layouts = ["mbs=4", None]
    told = record(settings, pool, launcher, 1, checkpoint=folder, layouts=layouts)
    assert told is not None
    assert told.recorded, told.message
    assert told.message == "of 2 samples from 32 on, in float32 and bfloat16"
    again = record(settings, pool, launcher, 2, checkpoint=folder, layouts=layouts)
    assert again is None, "it has one"
    return folder


def asked(
    settings: RunSettings, folder: Path, launcher: Any = None, layout: str = "mbs=8"
) -> Verdict:
    pool = settings.pool("there")
    return check(settings, pool, launcher or Here(), 3, checkpoint=folder, layout=layout)


def test_a_dry_run_says_what_a_move_would_be_proved_by(settings: RunSettings) -> None:
    assert announced(settings) == {
        "there": "a move to there is proved by a witness of 1 steps of 2 sequences in float32 and "
        "bfloat16"
    }
    other = tuple(replace(p, command=("python", "-m", "mytrainer")) for p in settings.pools)
    assert announced(replace(settings, pools=other)) == {
        "there": "a move to there would not be proved: the trainer of there is not krzem's, and "
        'the run file gives no witness.export; gates.witness.not_checked = "stop"'
    }
    given = replace(settings.witness, export=("./export.sh", "{checkpoint}", "{export}"))
    (told,) = announced(replace(settings, pools=other, witness=given)).values()
    assert "proved by a witness of the exported Hugging Face model, not of the trainer" in told


def test_a_checkpoint_without_a_witness_is_not_compared(
    settings: RunSettings, recorded: Path, tmp_path: Path
) -> None:
    bare = tmp_path / recorded.name
    shutil.copytree(recorded, bare)
    manifest = read_manifest(bare)
    write_manifest(bare, replace(manifest, attachments={}, files={
        n: f for n, f in manifest.files.items() if n not in manifest.attachments.values()
    }))  # fmt: skip
    found = asked(settings, bare)
    assert found.agreement is Agreement.NOT_CHECKED
    assert "has no witness: it is not compared on there" in found.message


def test_the_witness_is_of_the_samples_that_come_next(
    settings: RunSettings, recorded: Path
) -> None:
    witness, meta = read_witness(recorded), read_manifest(recorded).meta
    assert witness.batches[0].first_sample == meta["sample"] == 32
    assert set(witness.readings) == {"float32", "bfloat16"}, "the arithmetic of the pool to come"
    assert any(q.kind is Kind.MOMENT for q in witness.state.values())
    assert any(q.kind is Kind.STEP for q in witness.readings["bfloat16"].values())
    assert witness.run["rate"] > 0
    assert witness.run["settings"]["data.documents"] is True
    documents = witness.batches[0]
    assert documents.documents_sha256, "the run keeps attention within documents"
    assert witness.run["optimizer"]["clip"] == 1.0


def test_the_same_run_passes_in_the_pool_s_arithmetic(
    settings: RunSettings, recorded: Path
) -> None:
    found = asked(settings, recorded)
    assert found.agreement is Agreement.PASSED, found.message
    assert found.evidence["dtypes"] == ["float32", "bfloat16"]
    assert found.evidence["not_compared"] == []
    assert "data.order" in found.evidence["settings_equal"]
    assert found.evidence["layers"]
    assert "krzem witness: pass" in Path(found.evidence["page"]).read_text()


def test_a_pool_of_the_same_arithmetic_trains_the_last_steps_again(
    settings: RunSettings, recorded: Path
) -> None:
    source, there = settings.pools
    alike = replace(settings, pools=(source, replace(there, precision=source.precision)))
    launcher = Here()
    found = asked(alike, recorded, launcher)
    assert found.agreement is Agreement.PASSED, found.message
    assert launcher.jobs == 2
    assert found.evidence["overlap"]["steps"] == [3, 4]
    assert "steps 3 to 4 again: loss within" in found.message
    file = settings.folder / "metrics.jsonl"
    kept = file.read_text()
    file.write_text(kept.replace('"last_sample": 31', '"last_sample": 32'))
    other = asked(alike, recorded)
    file.write_text(kept)
    assert other.agreement is Agreement.FAILED
    assert "step 4: last_sample is 31 here and was 32" in other.message


def test_a_pool_that_computes_otherwise_fails_and_the_layer_is_named(
    settings: RunSettings, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = witness_checkpoint.model_spec

    def wrong(config: dict[str, Any]) -> Any:
        return right({**config, "rms_norm_eps": 0.3})

    monkeypatch.setattr(witness_checkpoint, "model_spec", wrong)
    found = asked(settings, recorded)
    assert found.agreement is Agreement.FAILED
    assert "layers.0" in found.departs[0]
    assert found.evidence["first_departure"]["direction"] == "forward"


def test_a_check_that_breaks_off_is_tried_again_and_is_no_agreement(
    settings: RunSettings, recorded: Path
) -> None:
    launcher = Here(breaks=True)
    found = asked(settings, recorded, launcher)
    assert found.agreement is Agreement.FAILED
    assert "could not be checked on there" in found.message
    assert launcher.jobs == 2


def test_data_that_are_other_over_there_are_noticed(
    settings: RunSettings, recorded: Path, tmp_path: Path
) -> None:
    lines = Path(settings.path).read_text().replace('"tokens"', '"other"')
    other = settings.path.parent / "other.toml"
    other.write_text(lines)
    found = asked(replace(settings, path=other), recorded)
    assert found.agreement is not Agreement.PASSED


def test_faults_of_the_trainer_s_tables_are_told_before_anything_starts(
    settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_trainer(settings)
    other = settings.path.parent / "broken.toml"
    other.write_text(settings.path.read_text().replace('path = "tokens"', 'path = "nowhere"'))
    with pytest.raises(RunError, match=r"broken.toml cannot be run: data.path: .*nowhere"):
        check_trainer(read_run(other))
    other.write_text(settings.path.read_text().replace("rate = 5e-3", "rat = 5e-3"))
    with pytest.raises(RunError, match="rate"):
        check_trainer(read_run(other))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"which has no torch: pip install 'krzem\[train\]'"):
        check_trainer(settings)
