from pathlib import Path

import pytest

from krzem.errors import DataError, RunError
from krzem.layout.layout import Precision
from krzem.run.gate_settings import Action
from krzem.run.pool_settings import SLURM
from krzem.run.run_file import identity, read_run
from krzem.run.settings import RunSettings

GOOD = """
model = "deepseek-v3"
[goal]
tokens = "14.8T"
sequence = "4k"
global_batch = 15360
deadline = "60d"
budget = "$6M"
[[pool]]
name = "ascend"
accelerator = "ascend-910c"
count = "16k"
launcher = "slurm"
[pool.slurm]
nodes = 1024
partition = "train"
notice = "5 min"
[pool.environment]
modules = ["cann/8.2"]
variables = { HCCL_EXEC_TIMEOUT = 600 }
[[pool]]
name = "hopper"
accelerator = "h800"
count = 2048
precision = "fp8-block"
[pool.limits]
time = "24h"
memory = "70 GiB"
[gates]
throughput = { below = "70%", steps = 500 }
straggler = false
[train]
anything = "is the trainer's"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "flagship.toml"
    path.write_text(text)
    return path


def read(tmp_path: Path, text: str = GOOD) -> RunSettings:
    return read_run(written(tmp_path, text))


def test_a_run_file_is_read_into_base_units(tmp_path: Path) -> None:
    run = read(tmp_path)
    assert run.name == "flagship"
    assert run.folder == tmp_path / "runs" / "flagship"
    assert (run.goal.tokens, run.goal.sequence, run.goal.deadline_days) == (14.8e12, 4096, 60)
    ascend, hopper = run.pools
    assert (ascend.launcher, ascend.count, ascend.slurm.notice_seconds) == (
        SLURM, 16384, 300,
    )  # fmt: skip
    assert ascend.environment.variables == {"HCCL_EXEC_TIMEOUT": "600"}
    assert hopper.precision is Precision.FP8_BLOCK
    assert (hopper.limits.time_seconds, hopper.limits.memory_bytes) == (86400, 70 * 2**30)
    assert run.after("ascend") == (hopper,)
    assert run.steps == 235_240


def test_gates_have_defaults_can_be_changed_and_switched_off(tmp_path: Path) -> None:
    gates = read(tmp_path).gates
    assert gates.throughput is not None
    assert gates.throughput.below == 0.7
    assert (gates.throughput.steps, gates.throughput.action) == (500, Action.MOVE)
    assert gates.straggler is None
    assert gates.restarts is not None
    assert gates.restarts.per_day == 6


BAD = """
modle = "deepseek-v3"
[goal]
tokens = "lots"
sequence = 4096
gloabl_batch = 8
[[pool]]
name = "a"
accelerator = "h8000"
count = 8
launcher = "pbspro"
[pool.limits]
threads = 0
[[pool]]
name = "b"
accelerator = "h800"
[[pool]]
name = "b"
accelerator = "h800"
count = 3
launcher = "slurm"
[pool.slurm]
nodes = 2
[gates]
throughput = { below = "sixty" }
speed = { steps = 3 }
[recovery]
wait_first = "soon"
[qualify]
numerics = "yes"
[run]
folder = 7
"""


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        read(tmp_path, BAD)
    text = str(caught.value)
    for part in (
        "flagship.toml has 15 faults",
        "modle: unknown key; did you mean model?",
        "goal.tokens: cannot read 'lots' as a count",
        "goal.gloabl_batch: unknown key; did you mean global_batch",
        "goal.global_batch is missing (sequences per optimizer step): write global_batch = 4096",
        "pool 1.launcher: 'pbspro' is none of local, slurm, grid-engine, pbs",
        "pool 1.limits.threads: it must be a whole number from 1",
        "pool 2 (b): count is missing",
        "pool 3 (b): 3 processes over 2 nodes leave 1 over",
        "pool: 2 of them are called 'b'",
        "gates.speed: unknown gate; did you mean",
        "gates.throughput.below: cannot read 'sixty' as a ratio",
        "recovery.wait_first: cannot read 'soon' as a duration",
        "qualify.numerics: it must be true or false, without quotes, not 'yes'.",
        "run.folder: it must be text",
        "model is missing",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = [", "is not valid TOML"),
        ("model = 'deepseek-v3'", "pool: there is none"),
        (GOOD.replace("[goal]", "[goals]"), "unknown table; did you mean [goal] or [gates]?"),
        (GOOD.replace('"ascend-910c"', '"ascend-911"'), "unknown device 'ascend-911'"),
        (GOOD.replace('"14.8T"', "1000"), "less than one batch"),
        (GOOD.replace('accelerator = "h800"', 'cluster = "none.toml"'), "does not exist"),
        (GOOD.replace('"deepseek-v3"', '"deepseek-v9"'), "model: unknown model 'deepseek-v9'"),
    ],
)
def test_one_fault_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises((RunError, DataError)) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_run(tmp_path / "absent.toml")


def test_gates_and_pools_may_change_but_not_the_run(tmp_path: Path) -> None:
    first = identity(read(tmp_path))
    assert identity(read(tmp_path, GOOD.replace("steps = 500", "steps = 50"))) == first
    assert identity(read(tmp_path, GOOD.replace("15360", "7680"))) != first
