import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tests.run.run_helpers import HELD, go, held, run_it, services, stopping, write_run

from krzem.run.controller import run
from krzem.run.gate_settings import Action
from krzem.run.launch.job import Job, Look, Phase
from krzem.run.ledger import Reader
from krzem.run.preflight import plan_pool
from krzem.run.qualify import qualify_pool
from krzem.run.rows import Cause, State
from krzem.run.run_file import read_run
from krzem.run.services import PoolPlan, Qualified, Snapshot
from krzem.run.settings import RunSettings
from krzem.run.verdict import Agreement, Verdict

CONFIG = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 512, "head_dim": 32,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
MEASURED = {
    "bf16_flops": 5e10, "tf32_flops": 6e10, "memory_bytes_per_s": 1e10, "memory_bytes": 8e9,
}  # fmt: skip
TEXT = """
model = "model"
[goal]
tokens = "10M"
sequence = 256
global_batch = 16
[[pool]]
name = "processors"
accelerator = "cpu"
count = 2
precision = "fp32"
[[pool]]
name = "hopper"
accelerator = "h800"
count = 8
"""


def settings_of(tmp_path: Path, text: str = TEXT) -> RunSettings:
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "run.toml").write_text(text)
    return read_run(tmp_path / "run.toml")


def planned(tmp_path: Path, pool: int, text: str = TEXT, **given: Any) -> PoolPlan:
    settings = settings_of(tmp_path, text)
    values = {"tokens_left": 1e7, "days_left": None, "measured": None} | given
    return plan_pool(settings, settings.pools[pool], **values)


class Losing:
    """A launcher whose scheduler loses the first ``lost`` jobs; the others end with ``code``."""

    name, can_exclude = "slurm", True

    def __init__(self, lost: int, code: int = 7) -> None:
        self.lost, self.code, self.started = lost, code, 0

    def start(self, job: Job) -> dict[str, Any]:
        self.started += 1
        return {}

    def look(self, job: Job, handle: object) -> Look:
        if self.started <= self.lost:
            return Look(phase=Phase.GONE, detail="Slurm: NODE_FAIL")
        return Look(phase=Phase.ENDED, exit_code=self.code)

    def kill(self, job: Job, handle: object) -> None:
        pass


@pytest.mark.parametrize(("lost", "tries", "why"), [(1, 2, "ended with 7"), (9, 3, "NODE_FAIL")])
def test_a_probe_that_the_scheduler_lost_is_started_again(
    tmp_path: Path, lost: int, tries: int, why: str
) -> None:
    settings, launcher = settings_of(tmp_path), Losing(lost)
    found = qualify_pool(settings, settings.pools[0], launcher, 1)  # type: ignore[arg-type]
    assert not found.passed
    assert why in found.faults[0]
    assert launcher.started == tries


def test_unmeasured_processors_are_openly_unknown(tmp_path: Path) -> None:
    found = planned(tmp_path, 0)
    assert found.tokens_per_s is None
    assert found.refused is None
    assert "nothing was measured" in found.basis
    assert found.warnings == ("its speed is unknown until it is measured",)
    text = TEXT + "[qualify]\nenabled = false\n"
    assert "gate on speed stays silent" in planned(tmp_path, 0, text).warnings[0]


def test_measured_processors_have_a_plan_with_a_wide_interval(tmp_path: Path) -> None:
    found = planned(tmp_path, 0, measured=MEASURED)
    assert found.tokens_per_s is not None
    assert found.tokens_per_s.high / found.tokens_per_s.low > 4
    faster = planned(tmp_path, 0, measured=MEASURED | {"tf32_flops": 12e10})
    assert faster.tokens_per_s is not None
    assert 1.3 < faster.tokens_per_s.mid / found.tokens_per_s.mid <= 2.01


def test_measured_rates_replace_the_data_sheet(tmp_path: Path) -> None:
    sheet = planned(tmp_path, 1)
    crippled = planned(tmp_path, 1, measured={"bf16_flops": 1e11})
    assert sheet.tokens_per_s is not None
    assert crippled.tokens_per_s is not None
    assert crippled.basis == "plan, with measured rates"
    assert crippled.tokens_per_s.mid < 0.1 * sheet.tokens_per_s.mid
    flops = 6 * 4 * (4 * 256 * 256 + 3 * 256 * 768)
    assert crippled.tokens_per_s.mid * flops < 8 * 1e11, "no faster than the measured rate"


def test_a_pool_that_cannot_hold_the_model_is_refused(tmp_path: Path) -> None:
    text = TEXT.replace('"model"', '"deepseek-v3"').replace("16", "64")
    assert "does not fit" in (planned(tmp_path, 1, text).refused or "")


@pytest.mark.parametrize(("rule", "refused"), [("false", False), ("true", True)])
def test_a_late_pool_is_warned_of_or_refused_by_rule(
    tmp_path: Path, rule: str, refused: bool
) -> None:
    text = TEXT.replace("count = 8", "count = 8\ntokens_per_s = 1000")
    text += f"[recovery]\nrefuse_late = {rule}\n"
    found = planned(tmp_path, 1, text, days_left=0.05)
    assert found.in_time == 0.0
    sentence = (found.refused if refused else found.warnings[-1]) or ""
    assert "has a 0% chance of meeting the deadline; at least 50% is required" in sentence
    assert planned(tmp_path, 1, text, days_left=0.2).in_time == 1.0
    past = planned(tmp_path, 1, text, days_left=-1.0)
    assert "the deadline is past" in (past.refused or past.warnings[-1])


def test_qualification_measures_under_the_launcher_and_writes_a_profile(tmp_path: Path) -> None:
    path = write_run(tmp_path, extra="", steps=5)
    text = path.read_text().replace("enabled = false", 'enabled = true\nseconds = "1s"')
    path.write_text(text.replace("look_every", "# look_every"))
    assert run(read_run(path), services(qualify=qualify_pool)) is State.DONE
    with Reader(tmp_path / "run") as reader:
        names = {m.name for m in reader.measurements("first")}
        (decision,) = [d for d in reader.decisions() if d.subject == "qualify first"]
    assert {"tf32_flops", "memory_bytes_per_s"} <= names
    assert decision.choice == "passed"
    assert decision.evidence["ranks"][0]["soak"]["different"] == 0
    assert (tmp_path / "run" / "profiles" / "first.toml").exists()


def test_a_pool_that_fails_its_qualification_is_passed_over(tmp_path: Path) -> None:
    def qualify(settings: Any, pool: Any, launcher: Any, token: int) -> Qualified:
        faults = ("device 3 computes other bits",) if pool.name == "bad" else ()
        return Qualified(passed=not faults, message="measured", faults=faults)

    path = write_run(tmp_path, pools=["bad", "good"], steps=5)
    path.write_text(path.read_text().replace("enabled = false", "enabled = true"))
    assert run_it(path, qualify=qualify) is State.DONE
    with Reader(tmp_path / "run") as reader:
        assert [a.pool for a in reader.attempts()] == ["good"]
        given_up = [d for d in reader.decisions() if d.choice == "given up"]
    assert "device 3 computes other bits" in given_up[0].reason


def witness(fails_on: str) -> Any:
    def check(settings: Any, pool: Any, launcher: Any, token: int, **given: Any) -> Verdict:
        failed = pool.name == fails_on
        return Verdict(
            agreement=Agreement.FAILED if failed else Agreement.PASSED,
            message="layer 3 departs" if failed else "within the floor",
            departs=("layers.3.attention",) if failed else (),
        )

    return check


def test_a_failed_witness_sends_the_run_to_the_pool_after(tmp_path: Path) -> None:
    faults = [{"id": i, "step": 17, "at": "compute", "do": "nan"} for i in "ab"]
    path = write_run(tmp_path, pools=["first", "wrong", "right"], faults=faults)
    assert run_it(path, witness=witness("wrong")) is State.DONE
    with Reader(tmp_path / "run") as reader:
        assert [a.pool for a in reader.attempts()] == ["first", "first", "right"]
        told = [d for d in reader.decisions() if d.subject.startswith("witness")]
    checks = [d for d in told if d.choice != "not recorded"]
    assert [d.choice for d in checks] == ["failed", "passed"]
    assert checks[0].evidence["departs"] == ["layers.3.attention"]


def unchecked(*_: Any, **__: Any) -> Verdict:
    return Verdict(agreement=Agreement.NOT_CHECKED, message="step-17 has no witness")


def test_nothing_moves_unproven_unless_it_is_said_so(tmp_path: Path) -> None:
    faults = [{"id": i, "step": 17, "at": "compute", "do": "nan"} for i in "ab"]
    path = write_run(tmp_path, pools=["first", "second"], faults=faults)
    text = path.read_text()
    path.write_text(text.replace('witness = { not_checked = "warn" }', ""))
    for _ in range(2):  # asked again, it stops again
        assert run_it(path, witness=unchecked) is State.STOPPED
        with Reader(tmp_path / "run") as reader:
            assert {a.pool for a in reader.attempts()} == {"first"}
            row = reader.run()
            last = reader.events()[-1].message
        assert row is not None
        assert last.startswith("witness not checked: step-17 has no witness")
        assert 'set gates.witness.not_checked = "warn" and start the run again' in last
    path.write_text(text)
    assert run_it(path, witness=unchecked) is State.DONE


def test_without_another_pool_a_failed_witness_fails_the_run(tmp_path: Path) -> None:
    faults = [{"id": i, "step": 17, "at": "compute", "do": "nan"} for i in "ab"]
    path = write_run(tmp_path, pools=["first", "wrong"], faults=faults)
    assert run_it(path, witness=witness("wrong")) is State.FAILED
    with Reader(tmp_path / "run") as reader:
        assert "no pool is left" in reader.events()[-1].message


def test_memory_above_the_limit_ends_the_attempt_and_moves_the_run(tmp_path: Path) -> None:
    path = write_run(
        tmp_path,
        pools=["tight", "roomy"],
        faults=HELD,
        pool_extra={"tight": '[pool.limits]\nmemory = "1 MiB"\n'},
        gates="restarts = { per_day = 1 }",
    )

    def look(snapshot: Snapshot) -> None:
        if snapshot.attempt.pool == "roomy":
            go(tmp_path)

    assert run_it(path, on_look=look) is State.DONE
    with Reader(tmp_path / "run") as reader:
        assert [(a.pool, a.cause) for a in reader.attempts()] == [
            ("tight", Cause.MEMORY), ("tight", Cause.MEMORY), ("roomy", Cause.DONE),
        ]  # fmt: skip
    rows = (tmp_path / "run" / "measured.csv").read_text().splitlines()
    assert len(rows) == 2
    assert rows[1].startswith("run-roomy,")


def test_memory_near_the_limit_is_warned_of(tmp_path: Path) -> None:
    path = write_run(
        tmp_path,
        faults=HELD,
        pool_extra={"first": '[pool.limits]\nmemory = "8 GiB"\n'},
        gates="memory = { above = 0.0001, steps = 2 }",
    )
    looks = itertools.count()

    def look(snapshot: object) -> None:
        if held(tmp_path) and next(looks) == 3:
            go(tmp_path)

    assert run_it(path, on_look=look) is State.DONE
    with Reader(tmp_path / "run") as reader:
        (fired,) = reader.fired()
    assert (fired.gate, fired.action) == ("memory", Action.WARN)
    assert fired.evidence[0]["memory_bytes"] > 2**20


def test_an_attempt_is_renewed_at_its_time_limit(tmp_path: Path) -> None:
    hours = [0.0]

    def an_hour_passes() -> None:
        hours[0] += 1.0

    limit = '[pool.limits]\ntime = "50min"\n'
    path = write_run(tmp_path, faults=HELD, gates="stall = false", pool_extra={"first": limit})
    look = stopping(tmp_path, an_hour_passes)
    assert run_it(path, on_look=look, clock=lambda: 3600 * hours[0]) is State.DONE
    with Reader(tmp_path / "run") as reader:
        first, second = reader.attempts()
    assert (first.cause, first.last_step) == (Cause.STOPPED, 6)
    assert (second.cause, second.from_step) == (Cause.DONE, 6)
