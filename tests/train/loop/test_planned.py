"""Plans and the trainer: plan files, built-in names, the planner's layout, the dry run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.train.loop.folder import tokenised, write

import krzem
from krzem.errors import KrzemError
from krzem.train.checkpoint import checkpoints, load_meta
from krzem.train.command import main
from krzem.train.command.planning import forecast
from krzem.train.describe import checkpoint_bytes, describe
from krzem.train.settings import read_settings
from krzem.train.start import checked, prepare

PROFILE = """
device = "cpu"
devices = 2
memory = "8 GiB"
[measured]
bf16 = "100 GFLOP/s"
tf32 = "50 GFLOP/s"
memory_bandwidth = "10 GB/s"
scale_up_bandwidth = "1 GB/s"
scale_up_latency = "100us"
launch_time = "5us"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenised(tmp_path)
    return tmp_path


def test_a_plan_file_is_a_run_file_without_data(folder: Path) -> None:
    write(folder)
    plan = krzem.plan(
        "qwen3-0.6b", on="h100:8", tokens="10B", seq="1k", batch=64,
        precision="bf16", engine="krzem",
    )  # fmt: skip
    text = plan.script("krzem")
    file = folder / "planned.toml"
    file.write_text(text + '\n[data]\npath = "tokens"\n')
    settings = read_settings(file)
    assert settings.layout == str(plan.best.layout)
    assert settings.model == "qwen3-0.6b"
    assert settings.goal.tokens == 10**10
    told = describe(file, forecast)
    assert (told.parameters, told.ranks) == (596_049_920, 8)
    assert told.forecast is not None
    assert told.forecast.peak_flops == pytest.approx(989e12, rel=0.01)
    assert told.forecast.memory_bytes.mid < told.forecast.capacity_bytes
    # The same file as the layout of another run file.
    (folder / "plan.toml").write_text(text)
    write(folder, layout="plan.toml")
    assert read_settings(folder / "run.toml").layout == str(plan.best.layout)


def test_a_plan_for_krzem_searches_what_the_trainer_runs(folder: Path) -> None:
    asking = {"tokens": "1T", "seq": "32k", "batch": 256, "precision": "bf16"}
    found = krzem.plan("qwen3-8b", on="h100:64", engine="krzem", top=30, **asking)  # type: ignore[arg-type]
    several = [x.layout for x in (found.best, *found.alternatives) if x.layout.cp > 1]
    assert several
    assert {x.context_parallel.value for x in several} == {"a2a"}
    assert "NOTE" not in found.script("krzem")
    ring = krzem.explain(
        "qwen3-8b", on="h100:64", layout="cp=2,cpkind=ring,offload=1", **asking
    ).script("krzem")  # type: ignore[arg-type]
    assert "NOTE: krzem train does not run this: it has no cpkind=ring" in ring


def test_built_in_models_are_trained_by_name(folder: Path) -> None:
    run = write(folder)
    run.write_text(run.read_text().replace("config.json", "deepseek-v3"))
    ready = checked(run, here=False)
    assert ready.spec.arch.name == "deepseek-v3"
    assert ready.config["model_type"] == "deepseek_v3"
    run.write_text(run.read_text().replace("deepseek-v3", "deepsek-v3"))
    with pytest.raises(KrzemError, match=r"unknown model 'deepsek-v3'. Did you mean deepseek-v3"):
        checked(run)


def test_the_planner_chooses_where_a_device_is_named(folder: Path) -> None:
    run = write(folder, layout="auto", top='cluster = "h100:4"')
    told = describe(run, forecast)
    assert told.ranks == 4
    assert told.forecast is not None
    assert "4 x nvidia-h100-sxm, from its data sheet" in told.as_text()["memory"]


def test_measured_processors_are_planned_for(folder: Path) -> None:
    (folder / "profile.toml").write_text(PROFILE)
    run = write(folder, layout="auto", top='cluster = "profile.toml"', tokens=512)
    told = describe(run, forecast)
    assert told.ranks == 2
    assert told.forecast is not None
    assert told.forecast.peak_flops == 50e9
    run = write(folder, layout="mbs=4", top='cluster = "profile.toml"', tokens=512)
    prepare(run, planner=forecast).run()
    last = json.loads((folder / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["mfu"] < 1


def test_unknown_stays_unknown_and_says_how_to_give_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(folder)
    assert main(run, dry_run=True) == 0
    out = capsys.readouterr().out
    assert "memory      unknown: the run file does not say which device" in out
    assert 'cluster = "profile.toml"' in out
    assert main(run, dry_run=True, as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["forecast"] is None
    assert (document["tokens"], document["steps"], document["batch"]) == (2560, 10, [8])
    assert not (folder / "out").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("model", ["deepseek_v3", "deepseek_v4"])
def test_the_size_of_a_checkpoint_is_the_size_of_its_tensors(
    folder: Path, model: str, optimizer: str
) -> None:
    run = write(folder, model, tokens=256, save=0)
    run.write_text(run.read_text().replace("[goal]", f'[goal]\noptimizer = "{optimizer}"'))
    expected = checkpoint_bytes(checked(run).spec, optimizer)
    prepare(run).run()
    ((_, saved),) = checkpoints(folder / "out" / "checkpoints")
    assert load_meta(saved)["step"] == 1
    assert describe(run).resumes == saved.name
    manifest = json.loads((saved / "manifest.json").read_text())
    sizes = {"float32": 4, "int64": 8, "int32": 4, "bool": 1}
    held = 0
    for tensor in manifest["tensors"].values():
        number = 1
        for side in tensor["shape"]:
            number *= side
        held += number * sizes[tensor["dtype"]]
    assert held == expected
