"""Local factors: found again, shrunk, kept in a file, and used by plan, explain and check."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.jobs.check_jobs import MEGATRON, megatron_log

from krzem.cost.coefficients import fitted
from krzem.cost.local import FACTORS, Factor, Local, moved, prior_sigma, read_local
from krzem.errors import DataError, InputError
from krzem.jobs.answer import Answer, Asking, answer
from krzem.jobs.calibrate import NAMES, Run, added, calibrated, file_text, fit_local, narrowed
from krzem.jobs.calibrate import read_runs as runs_in
from krzem.jobs.priced import price_all
from krzem.jobs.question import pose
from krzem.jobs.reading import read_job
from krzem.plan.price import Pricer

VARIANTS = {
    "a": {}, "b": {"TP=8": "TP=4"}, "c": {"TP=8": "TP=2", "MBS=1": "MBS=2"},
    "d": {"NNODES=2": "NNODES=8"}, "e": {"TP=8": "TP=1", "NNODES=2": "NNODES=4"},
    "f": {"--num-layers 32": "--num-layers 16"}, "g": {"TP=8": "TP=4", "PP=1": "PP=2"},
    "h": {"--seq-length 8192": "--seq-length 4096"},
}  # fmt: skip


def local(**factors: float) -> Local:
    return Local(
        cluster="mine", device="nvidia-h100-sxm", family="nvidia-hopper", engine="megatron-core",
        factors={n.replace("_", "-"): Factor(log=v, sigma=0.0) for n, v in factors.items()},
        runs=1, narrowed=1.0,
    )  # fmt: skip


def run(name: str, truth: Local, noise: float = 0.0) -> Run:
    """A run as a cluster with the factors ``truth`` would have measured it."""
    text = MEGATRON
    for old, new in VARIANTS[name].items():
        text = text.replace(old, new)
    posed = pose(read_job(text={"run.sh": text}), given={"date": "2026-01"}, on="h100")
    coefficients = moved(fitted(), truth.offsets(truth.engine))
    pricer = Pricer(posed.task, coefficients)
    seconds = price_all(pricer, [(posed.layout, posed.task.setup)])[0].seconds
    fields = {n: s.value for n, s in posed.job.settings.items()} | {"device": "h100"}
    return Run(name=name, seconds=seconds * math.exp(noise), error=0.0, fields=fields,
               engine="megatron-lm", on=None, model=None)  # fmt: skip


@pytest.fixture(scope="module")
def slow() -> tuple[Run, ...]:
    """Eight runs of a cluster that computes 12 % slower and has half the network."""
    truth = local(compute=-0.12, scale_out=-0.3, engine=0.06)
    return tuple(run(name, truth) for name in VARIANTS)


def test_runs_of_a_cluster_are_predicted_by_its_other_runs(slow: tuple[Run, ...]) -> None:
    found = calibrated(slow)
    before, left = np.abs(found.fit.before), np.abs(found.fit.left_out)
    assert np.median(before) > 0.05
    assert np.median(left) < 0.4 * np.median(before)
    assert np.max(np.abs(found.fit.after)) < np.max(before)
    assert found.local.narrowed < 0.7
    assert found.local.factors["compute"].log < 0.0


def test_what_needs_no_factor_gets_none() -> None:
    found = calibrated([run(name, local()) for name in ("a", "b", "c")])
    assert all(abs(f.log) < 0.01 for f in found.local.factors.values())


def test_one_run_is_not_believed_whole(slow: tuple[Run, ...]) -> None:
    found = calibrated(slow[:1])
    before, after = found.fit.before[0], found.fit.after[0]
    assert 0.0 < abs(after) < abs(before)
    assert abs(found.fit.left_out[0]) == pytest.approx(abs(before), rel=0.3)


def test_a_blunder_does_not_steer(slow: tuple[Run, ...]) -> None:
    wrong = replace(slow[0], name="wrong", seconds=slow[0].seconds * 3.0)
    clean, mixed = calibrated(slow), calibrated((*slow, wrong))
    for name in NAMES:
        moved_by = abs(clean.local.factors[name].log - mixed.local.factors[name].log)
        assert moved_by < 0.12


def test_factors_are_shrunk_by_their_priors() -> None:
    """With one residual that two factors explain alike, they share it as their priors do."""
    prior = np.array([0.1, 0.3])
    found = fit_local(lambda theta: np.array([0.2 - theta[0] - theta[1]]), prior, np.ones(1))
    assert found.theta[1] / found.theta[0] == pytest.approx(9.0, rel=0.05)
    assert 0.0 < found.theta.sum() < 0.2
    assert np.all(found.sigma <= prior)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=30))
@settings(max_examples=50)
def test_intervals_never_widen_and_never_vanish(scaled: list[float]) -> None:
    shipped = np.full(len(scaled), 0.15)
    ratio = narrowed(np.array(scaled) * shipped, shipped)
    assert 0.4 <= ratio <= 1.0
    closer = narrowed(np.array(scaled) * shipped * 0.5, shipped)
    assert closer <= ratio


def test_every_factor_moves_known_coefficients() -> None:
    names = local(**{name.replace("-", "_"): 0.1 for name in FACTORS}).offsets("megatron-core")
    assert len(names) == sum(len(v) for v in FACTORS.values())
    other = local(**{name.replace("-", "_"): 0.1 for name in FACTORS}).offsets("torchtitan")
    assert "host" not in other
    assert not any(name.startswith("engine/") for name in other)
    assert all(0.0 < prior_sigma(name) < 0.5 for name in FACTORS)


# -- the file


def judged(folder: Path, log: str, **more: Any) -> Answer:
    (folder / "run.sh").write_text(MEGATRON)
    (folder / "train.log").write_text(log)
    return answer(Asking(files=(folder / "run.sh",), logs=(folder / "train.log",), on="h100",
                         most=0, **more))  # fmt: skip


def test_the_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    found = judged(tmp_path, megatron_log(15.0), calibrate=path).calibration
    assert found is not None
    path.write_text(file_text(found))
    again = read_local(path, "nvidia-h100-sxm")
    assert again.factors == found.local.factors
    assert again.narrowed == pytest.approx(found.local.narrowed, abs=1e-3)
    (kept,) = runs_in(path)
    assert kept.seconds == pytest.approx(found.runs[0].seconds, rel=1e-4)
    assert dict(kept.fields) == dict(found.runs[0].fields)
    assert added((kept,), replace(kept, seconds=1.0)) == (replace(kept, seconds=1.0),)


def test_all_verbs_use_it_and_say_so(krzem: Callable[..., Any], tmp_path: Path) -> None:
    import json

    (tmp_path / "run.sh").write_text(MEGATRON)
    (tmp_path / "train.log").write_text(megatron_log(16.0))
    path, run_sh = str(tmp_path / "mine.toml"), str(tmp_path / "run.sh")
    said = krzem("check", run_sh, "--on", "h100", "--log", str(tmp_path / "train.log"),
                 "--calibrate", path, "--top", "0", "--quiet")  # fmt: skip
    assert said.code == 0, said.err
    layout = ("llama-3.1-8b", "--on", "h100:16", "--batch", "128", "--seq", "8k", "--precision",
              "bf16", "--engine", "megatron-lm", "--json", "--layout", "tp=8,mbs=1")  # fmt: skip
    plain, local_ = (json.loads(krzem("explain", *layout, *more).out)
                     for more in ((), ("--calibration", path)))  # fmt: skip
    wide, narrow = (d["layout_plan"]["step_time_s"] for d in (plain, local_))
    assert narrow["high"] / narrow["low"] < wide["high"] / wide["low"]
    assert any("calibrated by" in note for note in local_["notes"])
    checked = json.loads(
        krzem("check", run_sh, "--on", "h100", "--calibration", path, "--top", "0", "--json").out
    )
    assert any("calibrated by" in note for note in checked["notes"])
    planned = krzem("plan", "qwen3-0.6b", "--on", "h100:16", "--batch", "64", "--tokens", "1B",
                    "--calibration", path, "--json")  # fmt: skip
    assert any("calibrated by" in note for note in json.loads(planned.out)["notes"])
    (tmp_path / "cluster.toml").write_text(
        'device = "h100"\ndevices = 16\ncalibration = "mine.toml"'
    )
    own = krzem("check", run_sh, "--on", str(tmp_path / "cluster.toml"), "--top", "0", "--json")
    assert any("calibrated by" in note for note in json.loads(own.out)["notes"])
    also = krzem("explain", *(str(tmp_path / "cluster.toml") if a == "h100:16" else a
                              for a in layout))  # fmt: skip
    assert any("calibrated by" in note for note in json.loads(also.out)["notes"])
    other = krzem("plan", "qwen3-0.6b", "--on", "a100:16", "--batch", "64", "--calibration", path)
    assert other.code == 2
    assert "is of nvidia-h100-sxm" in other.err


def test_what_cannot_be_learnt_from_is_refused(tmp_path: Path, slow: tuple[Run, ...]) -> None:
    with pytest.raises(InputError, match="of two jobs"):
        judged(tmp_path, megatron_log(5.0, gbs=64), calibrate=tmp_path / "x.toml")
    on_a100 = replace(slow[0], fields={**slow[0].fields, "device": "a100"})
    with pytest.raises(InputError, match="several devices"):
        calibrated((slow[1], on_a100))
    other = replace(slow[0], engine="torchtitan")
    with pytest.raises(InputError, match="several engines"):
        calibrated((slow[1], other))


@pytest.mark.parametrize(
    "text",
    ["", "schema = 'krzem.calibration/1'", "schema = 'other'", "x", "schema = 3\n[factor]"],
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(DataError):
        read_local(path)


def test_hostile_numbers_are_refused(tmp_path: Path, slow: tuple[Run, ...]) -> None:
    text = file_text(calibrated(slow[:1]))
    path = tmp_path / "a.toml"
    for old, new in (
        ("narrowed = ", "narrowed = 9"),
        ("log = ", "log = 9"),
        ("runs = ", "runs = x"),
    ):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(DataError):
            read_local(path)
    path.write_text(text.replace('"tp" = 8', '"tp" = "$(id)"'))
    with pytest.raises(DataError):
        runs_in(path)
