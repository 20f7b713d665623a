"""Before anything starts: what is legal, and how fast the trainer itself is on a pool."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.run.run_helpers import write_run

from krzem.errors import RunError
from krzem.rules import summary, verdict
from krzem.run import trial
from krzem.run.command import run_command
from krzem.run.launch.local import LocalLauncher
from krzem.run.preflight import plan_pool
from krzem.run.processes import of_run
from krzem.run.run_file import read_run
from krzem.run.settings import RunSettings
from krzem.run.trial import SPEED, TRIALS, try_steps

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 257,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False,
}  # fmt: skip
MEASURED = {"bf16_flops": 1e11, "tf32_flops": 5e10, "memory_bytes_per_s": 1e10,
            "launch_seconds": 1e-5, "scale_up_bytes_per_s": 1e9,
            "scale_up_latency_seconds": 1e-5}  # fmt: skip


def own_run(folder: Path, count: int, batch: int = 8) -> RunSettings:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    text = (
        'model = "config.json"\n[goal]\ntokens = "20k"\nsequence = 64\n'
        f'global_batch = {batch}\nprecision = "fp32"\n[data]\npath = "tokens"\n'
        f'[[pool]]\nname = "p"\naccelerator = "cpu"\ncount = {count}\n'
        '[pool.limits]\nthreads = 1\nmemory = "4 GiB"\n'
    )
    (folder / "run.toml").write_text(text)
    return read_run(folder / "run.toml")


@pytest.mark.parametrize("measured", [None, MEASURED])
@pytest.mark.parametrize(("count", "batch"), [(3, 8), (5, 8), (7, 16), (2, 8), (4, 8), (8, 8)])
def test_a_batch_that_a_pool_cannot_divide_is_refused(
    tmp_path: Path, count: int, batch: int, measured: dict[str, float] | None
) -> None:
    settings = own_run(tmp_path, count, batch)
    plan = plan_pool(
        settings, settings.pools[0], tokens_left=20_000, days_left=None, measured=measured
    )
    if batch % count:
        assert plan.refused is not None
        assert f"{count} devices divides a batch of {batch} sequences" in plan.refused
        assert "could" in plan.refused, "it says which counts work"
    else:
        assert plan.refused is None
        assert (plan.tokens_per_s is None) == (measured is None)


def test_a_dry_run_has_a_speed_a_reason_or_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_run(tmp_path, 3)
    for place, told in (("check_trainer", None), ("announced", {})):
        monkeypatch.setattr(f"krzem.run.command.running.{place}", lambda *a, t=told, **b: t)
    result = CliRunner().invoke(run_command, [str(tmp_path / "run.toml"), "--dry-run"])
    assert result.exit_code == 1
    assert "p: refused" in result.output
    assert "no pool can take this run" in result.output
    own_run(tmp_path, 2)
    result = CliRunner().invoke(run_command, [str(tmp_path / "run.toml"), "--dry-run"])
    assert result.exit_code == 0
    assert "speed not known yet" in result.output
    assert "None" not in result.output


def test_trial_steps_measure_the_trainer_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "is_own", lambda settings, pool: True)
    settings = read_run(write_run(tmp_path, steps=100_000))
    place = settings.folder / TRIALS
    place.mkdir(parents=True)
    (tmp_path / "first.json").rename(place / "first.json")
    speed, told = try_steps(settings, settings.pools[0], LocalLauncher(), 7, None)
    assert speed is not None
    assert speed > 0
    assert "steps of the trainer itself" in told
    assert [p.name for p in place.iterdir()] == ["first.json"]
    assert not (settings.folder / "metrics.jsonl").exists()
    assert of_run(settings.folder) == []


def test_a_trial_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "is_own", lambda settings, pool: True)
    settings = read_run(write_run(tmp_path, steps=5))  # its settings are not where it looks
    speed, told = try_steps(settings, settings.pools[0], LocalLauncher(), 7, None)
    assert speed is None
    assert "0 trial steps were done, too few" in told


def test_a_plan_takes_the_steps_that_were_tried(tmp_path: Path) -> None:
    settings = own_run(tmp_path, 2)
    given = {**MEASURED, SPEED: 1234.0}
    plan = plan_pool(
        settings, settings.pools[0], tokens_left=20_000, days_left=None, measured=given
    )
    assert plan.tokens_per_s is not None
    assert plan.tokens_per_s.mid == pytest.approx(1234.0)
    assert plan.basis == "measured on steps of the trainer itself"
    assert plan.tokens_per_s.high < 1.5 * plan.tokens_per_s.mid


RULES_RUN = """
model = "llama-3.1-8b"
[goal]
tokens = "1B"
sequence = "4k"
global_batch = 64
[trainer]
command = ["true"]
[[pool]]
name = "first"
accelerator = "{chip}"
count = 8
tokens_per_s = 1e4
{more}
"""


def rules_run(folder: Path, chip: str, more: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(RULES_RUN.format(chip=chip, more=more), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("chip", "more", "asked"),
    [
        ("b200-sxm", 'country = "CN"', {"to": "CN"}),
        ("h800", 'country = "CN"\nacquired = 2023-06-01',
         {"to": "CN", "acquired": date(2023, 6, 1)}),
        ("b200-sxm", 'country = "SG"\nparent = "China"\nrented = true',
         {"to": "SG", "parent": "CN", "rents": True}),
        ("h100", 'country = "DE"', {"to": "DE"}),
    ],
)  # fmt: skip
def test_a_dry_run_says_what_the_rules_judge_says(
    tmp_path: Path, chip: str, more: str, asked: dict[str, Any]
) -> None:
    """One judge: words and verdict are those of ``krzem rules`` for the same chip and buyer."""
    path = rules_run(tmp_path, chip, more)
    found = verdict(chip, date.today(), **asked)
    said = json.loads(CliRunner().invoke(run_command, [str(path), "--dry-run", "--json"]).output)
    assert said[0]["rules"]["lawful"] is (found.clear is True)
    assert said[0]["rules"]["words"].startswith(summary(found))
    shown = CliRunner().invoke(run_command, [str(path), "--dry-run"])
    assert shown.exit_code == 0, "a verdict is stated and refuses nothing"
    assert summary(found) in " ".join(shown.output.split())


def test_rules_need_a_country(tmp_path: Path) -> None:
    with pytest.raises(RunError, match='add country = "CN"'):
        read_run(rules_run(tmp_path, "h100", "rented = true"))
    with pytest.raises(RunError, match="rented devices are not owned"):
        read_run(
            rules_run(tmp_path, "h100", 'country = "CN"\nrented = true\nacquired = 2023-06-01')
        )
    plain = read_run(rules_run(tmp_path, "h100", ""))
    plan = plan_pool(plain, plain.pools[0], tokens_left=1e9, days_left=None, measured=None)
    assert plan.rules is None
