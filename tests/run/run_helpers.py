"""A run of the reference trainer, ready to be started, disturbed and compared."""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from krzem.errors import DataError
from krzem.estimate import Estimate
from krzem.run.controller import run
from krzem.run.history import History, prove_samples
from krzem.run.ledger import Reader
from krzem.run.qualify import real_services
from krzem.run.rows import State
from krzem.run.run_file import read_run
from krzem.run.services import PoolPlan, Qualified, Services
from krzem.run.settings import RunSettings
from krzem.train.checkpoint.manifest import read_manifest
from krzem.train.checkpoint.store import checkpoints

TRAINER = Path(__file__).parent / "reference_trainer.py"
BATCH, SEQUENCE = 8, 16

RUN_FILE = """
model = "llama-2-7b"
[run]
folder = "run"
[goal]
tokens = {tokens}
sequence = {sequence}
global_batch = {batch}
[trainer]
command = ["{{python}}", "{trainer}", "{{run_dir}}/../{{pool}}.json"]
stop = 1
[qualify]
enabled = false
[recovery]
wait_first = "20 ms"
wait_most = "200 ms"
look_every = "10 ms"
"""

POOL = """
[[pool]]
name = "{name}"
accelerator = "cpu"
count = {ranks}
launcher = "{launcher}"
tokens_per_s = 1000
"""


def write_run(
    folder: Path,
    *,
    steps: int = 40,
    pools: Sequence[str] = ("first",),
    ranks: int = 1,
    launcher: str = "local",
    faults: Sequence[dict[str, Any]] = (),
    gates: str = "",
    extra: str = "",
    trainer: dict[str, Any] | None = None,
    nodes: int = 1,
    pool_extra: dict[str, str] | None = None,
    pool_trainer: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """A run file in ``folder``, with the settings of the trainer of each pool beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = RUN_FILE.format(
        tokens=steps * BATCH * SEQUENCE, sequence=SEQUENCE, batch=BATCH, trainer=TRAINER
    ).replace("stop = 1\n", "")
    for name in pools:
        values = {"steps": steps, "batch": BATCH, "sequence": SEQUENCE, "ranks": ranks}
        values |= (trainer or {}) | (pool_trainer or {}).get(name, {})
        (folder / f"{name}.json").write_text(json.dumps(values))
        text += POOL.format(name=name, ranks=ranks, launcher=launcher)
        text += (pool_extra or {}).get(name, "")
        if launcher == "slurm":
            text += f'\n[pool.slurm]\nnodes = {nodes}\nnotice = "1s"\n'
    if "witness" not in gates:  # the reference trainer's model is none that krzem builds
        gates = f'witness = {{ not_checked = "warn" }}\n{gates}'
    text += f"\n[gates]\nthroughput = false\n{gates}\n{extra}"
    (folder / "run.toml").write_text(text)
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "faults.json").write_text(json.dumps(list(faults)))
    return folder / "run.toml"


def stated_plan(settings: RunSettings, pool: Any, **given: Any) -> PoolPlan:
    """A plan that takes the pool's stated speed."""
    speed = pool.tokens_per_s
    return PoolPlan(pool=pool.name, tokens_per_s=Estimate(speed, speed, speed), basis="stated")


def trust(settings: RunSettings, pool: Any, launcher: Any, token: int) -> Qualified:
    """A qualification that everything passes."""
    return Qualified(passed=True, message="as the test says")


def services(**changes: Any) -> Services:
    """Real launchers, stated plans."""
    return real_services(**{"plan": stated_plan, "qualify": trust, **changes})


def run_it(path: Path, **changes: Any) -> State:
    """Run it to its end in this process."""
    return run(read_run(path), services(**changes))


def final_state(run_dir: Path) -> tuple[int, dict[str, str]]:
    """Step and data hashes of the newest checkpoint."""
    step, folder = checkpoints(run_dir / "checkpoints")[-1]
    files = read_manifest(folder).files
    return step, {name.partition("-")[2]: f.sha256 for name, f in files.items()}


def losses(run_dir: Path) -> list[float]:
    """Of every step that counts."""
    return [record.loss for record in History.of(run_dir).kept]


def assert_exact(run_dir: Path, undisturbed: Path) -> None:
    """The run ended as if nothing had happened: same weights, same losses, no sample twice."""
    gaps = prove_samples(History.of(run_dir).kept).gaps
    assert not gaps, "; ".join(gaps)
    assert losses(run_dir) == losses(undisturbed), "other losses than undisturbed"
    assert final_state(run_dir) == final_state(undisturbed), "other weights than undisturbed"


def kinds(run_dir: Path) -> list[str]:
    """Kinds of all events."""
    with Reader(run_dir) as reader:
        return [event.kind for event in reader.events()]


HELD = [{"id": "held", "step": 6, "at": "compute", "do": "wait"}]
"""The trainer waits in step 6 until :func:`go`: whatever is done before, is done to a live one."""


def held(folder: Path) -> bool:
    """Whether the trainer of the run in ``folder/run`` waits, its steps before known."""
    with contextlib.suppress(DataError), Reader(folder / "run") as reader:
        waits = (folder / "run" / "faults.done" / "held").exists()
        return waits and any(a.last_step == 5 for a in reader.attempts())
    return False


def asked_to_stop(folder: Path) -> bool:
    """Whether the first attempt was."""
    return (folder / "run" / "attempts" / "0001" / "stop").exists()


def go(folder: Path) -> None:
    """Let the trainer go on."""
    (folder / "run" / "go").touch()


def wait_for(what: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait as long as a loaded machine may take; nothing is judged by time."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def stopping(folder: Path, ask: Callable[[], None]) -> Callable[[object], None]:
    """For ``on_look``: ``ask`` once the trainer waits; it goes on when it was asked to stop."""
    asked: list[bool] = []

    def look(snapshot: object) -> None:
        if not asked and held(folder):
            asked.append(True)
            ask()
        if asked_to_stop(folder):
            go(folder)

    return look
