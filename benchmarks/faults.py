"""Break runs on purpose, in every way we know, and check that nothing is lost.

``python -m benchmarks.faults --trials 240 --write`` tries faults at random and puts the table into
docs/reliability.md.  Each trial is a run of the reference trainer (tests/run) or of krzem's own
(:mod:`benchmarks.fault_training`), disturbed, and compared with an undisturbed one: same weights
bit for bit, same losses, every sample trained once, at no time two trainers, the newest good
checkpoint never lost, everything in the ledger.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
from benchmarks.fault_schedulers import (
    GRID_ENGINE,
    SLURM,
    Schedulers,
    grid_engine_installed,
    slurm_installed,
)
from benchmarks.fault_training import TRAINING, run_undisturbed
from benchmarks.fault_trial import HELD, ROOT, STEPS, Trial, hold, is_good, lose_ledger
from tests.run.run_helpers import assert_exact, run_it, write_run

from krzem.run.contract import CHECKPOINTS
from krzem.run.ledger import LEDGER, Reader
from krzem.run.processes import LOCK, end_all
from krzem.run.rows import State
from krzem.run.status import read_status
from krzem.train.checkpoint.store import checkpoints

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
POINTS = ("compute", "save.begin", "save.data", "save.manifest", "save.done")


def planted(do: str, *, rank: int | None = None, at: str | None = None) -> Callable[[Trial], None]:
    """A fault inside the trainer, at a random step and point."""

    def disturb(trial: Trial) -> None:
        r = trial.random
        point = at or r.choice(POINTS)
        who = (r.randrange(2) if point == "compute" else 0) if rank is None else rank
        step = r.choice((10, 20, 30)) if point.startswith("save") else r.randrange(1, STEPS)
        step = 0 if point == "load" else step
        trial.write(faults=[{"id": "a", "step": step, "at": point, "do": do, "rank": who}])
        trial.start()

    return disturb


def slow_rank(trial: Trial) -> None:
    fault = {"id": "a", "step": 10, "at": "compute", "do": "slow", "rank": 1, "for": 15}
    trial.write(faults=[fault], gates="straggler = { ratio = 2, steps = 4 }")
    trial.start()
    trial.finish()
    with Reader(trial.run_dir) as reader:
        named = [f.message for f in reader.fired() if f.gate == "straggler"]
    assert any(message.startswith("rank 1 ") for message in named), "the slow rank was not named"
    assert all(message.startswith("rank 1 ") for message in named), "another rank was named"


def kill_controllers(trial: Trial) -> None:
    """The controller, one to three times, at any instant of its life."""
    trial.write()
    for _ in range(trial.random.randint(1, 3)):
        process = trial.start()
        end = time.monotonic() + trial.random.uniform(0.05, 1.2)
        trial.wait(lambda e=end: time.monotonic() > e)  # type: ignore[misc]
        process.kill()
        process.wait()
    trial.start()


def kill_trainer_anywhere(trial: Trial) -> None:
    """All ranks and the supervisor, from outside, at any instant."""
    trial.write()
    trial.start()
    trial.until(trial.random.randrange(0, STEPS - 3))
    time.sleep(trial.random.uniform(0, 0.03))
    trial.kill_trainers()


def kill_everything(trial: Trial) -> None:
    """As a power cut does."""
    trial.write()
    process = trial.start()
    trial.until(trial.random.randrange(0, STEPS - 3))
    process.kill()
    trial.kill_trainers()
    process.wait()
    trial.start()


def kill_while_moving(trial: Trial) -> None:
    """A pool that gives NaN twice is left; the controller is killed again and again meanwhile."""
    faults = [{"id": i, "step": 13, "at": "compute", "do": "nan"} for i in "ab"]
    trial.write(pools=["bad", "good"], faults=faults)
    moving = (State.MOVE, State.QUALIFY)
    trial.start()
    for _ in range(3):
        pause = trial.random.uniform(0, 0.3)
        trial.wait(lambda: trial.state() in moving or trial.controllers[-1].poll() is not None)
        time.sleep(pause * trial.random.random())
        trial.controllers[-1].kill()
        trial.controllers[-1].wait()
        trial.start()


def two_controllers(trial: Trial) -> None:
    hold(trial, trial.random.randrange(1, STEPS))
    second = trial.start()
    trial.wait(lambda: second.poll() is not None)
    assert second.returncode == 2, "it was not turned away"
    trial.refused += 1
    trial.controllers.remove(second)
    (trial.run_dir / "go").touch()


def stale_lock(trial: Trial) -> None:
    trial.write()
    process = trial.start()
    trial.until(trial.random.randrange(1, STEPS // 2))
    process.kill()
    process.wait()
    (trial.run_dir / LOCK).write_text('{"host": "elsewhere", "pid": 1}')
    trial.start()


def clock_jump(trial: Trial) -> None:
    trial.write()
    process = trial.start()
    trial.until(5)
    jump = trial.random.choice((-1, 1)) * trial.random.uniform(1e3, 1e8)
    (trial.folder / "clock-jump").write_text(str(jump))
    trial.until(15)
    if trial.random.random() < 0.5:
        process.kill()
        process.wait()
        trial.start()
    (trial.folder / "clock-jump").write_text("0")


def damage(how: str) -> Callable[[Trial], None]:
    """The newest checkpoint is truncated or has a bit flipped while nothing runs."""

    def disturb(trial: Trial) -> None:
        process = hold(trial, trial.random.randrange(22, STEPS - 3))
        process.kill()
        process.wait()
        trial.kill_trainers()
        end_all(trial.run_dir)
        trial.damaged = True
        _, folder = [c for c in checkpoints(trial.run_dir / CHECKPOINTS) if is_good(c[1])][-1]
        file = trial.random.choice([p for p in folder.iterdir() if p.stat().st_size])
        raw = bytearray(file.read_bytes())
        if how == "truncated":
            del raw[trial.random.randrange(len(raw)) :]
        else:
            raw[trial.random.randrange(len(raw))] ^= 1 << trial.random.randrange(8)
        file.write_bytes(raw)
        trial.start()
        trial.finish()
        with Reader(trial.run_dir) as reader:
            assert reader.events("checkpoint rejected"), "the damage was not noticed"

    return disturb


def disk_full(trial: Trial) -> None:
    """No byte is left for a while, for checkpoints and ledger alike."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", trial.folder], check=True)
    trial.write()
    trial.start()
    trial.until(trial.random.randrange(3, 15))
    ballast = trial.folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"0" * 4096):
            pass
    end = time.monotonic() + trial.random.uniform(0.5, 2.0)
    trial.wait(lambda: time.monotonic() > end)
    ballast.unlink()


def lost_ledger(how: str) -> Callable[[Trial], None]:
    """The ledger goes while the trainer is alive and its controller is not."""

    def disturb(trial: Trial) -> None:
        process = hold(trial, trial.random.randrange(2, STEPS - 3))
        copy = trial.folder / "copy"
        if how == "put back":
            shutil.copytree(trial.run_dir, copy, ignore=shutil.ignore_patterns("checkpoints"))
            process.kill()
            process.wait()
            trial.kill_trainers()
            end_all(trial.run_dir)
            trial.start()
            trial.wait(lambda: (trial.run_dir / "attempts" / "0002").exists())
            process = trial.controllers[-1]
        process.kill()
        process.wait()
        lose_ledger(trial, how)
        if how == "put back":
            for file in copy.glob(f"{LEDGER}*"):
                shutil.copy(file, trial.run_dir)
        (trial.run_dir / "go").touch()
        trial.start()

    return disturb


_ODD = ('{"step": 3, "loss": null}', "[" * 5000, "null", '{"attempt": 99, "step": 1}', "\x00\xff",
        '{"step": "x"}', "x" * 100_000, "", '{"tokens": 1e999}')  # fmt: skip


def odd_lines(trial: Trial) -> None:
    """Somebody else writes into the metrics, and leaves heartbeats and exit codes that are none."""
    trial.write()
    trial.start()
    for _ in range(trial.random.randint(3, 12)):
        trial.until(trial.random.randrange(0, STEPS - 3))
        with (trial.run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"\n{trial.random.choice(_ODD)}\n")
        name = trial.run_dir / "heartbeat" / f"rank-{trial.random.randrange(2, 9)}"
        with contextlib.suppress(OSError):
            os.mkfifo(name)


def crash_loop(trial: Trial) -> None:
    """The trainer dies at once on the first pool, again and again; the second takes over."""
    faults = [{"id": str(n), "step": trial.random.randrange(1, 9), "at": "compute", "do": "exit"}
              for n in range(3)]  # fmt: skip
    trial.write(pools=["bad", "good"], faults=faults, gates="progress = { times = 3 }")
    trial.start()


LOCAL: dict[str, tuple[Callable[[Trial], None], int]] = {
    "one rank killed, in a step": (planted("kill", at="compute"), 24),
    "rank 0 killed, in a save": (planted("kill", rank=0), 30),
    "all ranks killed, in a step or save": (planted("kill-all", rank=0), 30),
    "rank 0 killed, in a load": (planted("kill", rank=0, at="load"), 8),
    "trainer killed from outside, anywhere": (kill_trainer_anywhere, 24),
    "controller killed 1 to 3 times, anywhere": (kill_controllers, 30),
    "controller and trainer killed together": (kill_everything, 24),
    "controller killed 3 times while moving": (kill_while_moving, 16),
    "two controllers at once": (two_controllers, 6),
    "stale lock of a dead controller": (stale_lock, 6),
    "date jumps by up to 3 years": (clock_jump, 8),
    "newest checkpoint truncated": (damage("truncated"), 8),
    "newest checkpoint with a flipped bit": (damage("flipped"), 8),
    "disk full for a while": (disk_full, 8),
    "ledger lost under a living trainer": (lost_ledger("lost"), 16),
    "ledger's log lost under a living trainer": (lost_ledger("log lost"), 12),
    "ledger cut short under a living trainer": (lost_ledger("cut short"), 12),
    "ledger put back from a copy": (lost_ledger("put back"), 12),
    "odd lines and files in the run's folder": (odd_lines, 16),
    "trainer dies again and again on a pool": (crash_loop, 12),
    "NaN injected": (planted("nan", at="compute", rank=0), 8),
    "one rank 5 times slower": (slow_rank, 6),
    "one rank hangs": (planted("hang", at="compute"), 8),
}
"""Name: how to disturb, and its share of the trials."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a trial."""

    scenario: str
    seed: int
    survived: bool
    fault: str
    """What was not as it must be."""
    lost_steps: int
    recovery_seconds: tuple[float, ...]
    seconds: float


ALL = LOCAL | SLURM | GRID_ENGINE | TRAINING


def try_one(scenario: str, seed: int, undisturbed: Path, keep: Path | None = None) -> Result:
    """One trial of a scenario; a failure is a result, and its folder is kept for a look."""
    disturb, _ = ALL[scenario]
    folder = Path(tempfile.mkdtemp(prefix="krzem-faults-"))
    trial = Trial(folder=folder / "t", random=random.Random(f"{scenario} {seed}"))
    begun = time.monotonic()
    fault = ""
    try:
        disturb(trial)
        trial.finish()
        check(trial, undisturbed)
    except Exception as error:
        fault = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        for process in trial.controllers:
            process.kill()
            process.wait()
        end_all(trial.run_dir)
    lost, recovery = _cost(trial.run_dir)
    if fault and keep is not None:
        shutil.copytree(trial.folder, keep / f"{scenario.replace(' ', '-')}-{seed}",
                        dirs_exist_ok=True)  # fmt: skip
    if os.path.ismount(trial.folder):
        subprocess.run(["umount", "-l", trial.folder], check=False)
    shutil.rmtree(folder, ignore_errors=True)
    return Result(
        scenario=scenario,
        seed=seed,
        survived=not fault,
        fault=fault,
        lost_steps=lost,
        recovery_seconds=recovery,
        seconds=time.monotonic() - begun,
    )


def check(trial: Trial, undisturbed: Path) -> None:
    """Everything that must hold after a trial."""
    assert_exact(trial.run_dir, undisturbed)
    assert trial.most_trainers <= 1, f"{trial.most_trainers} trainers at once"
    with Reader(trial.run_dir) as reader:
        attempts = reader.attempts()
        controllers = max(e.epoch for e in reader.events())
        told = {e.attempt for e in reader.events()}
    assert all(a.cause for a in attempts), "an attempt has no end in the ledger"
    if trial.forgotten:
        assert read_status(trial.run_dir).unknown, "a ledger was lost and nobody says so"
        return
    assert {a.id for a in attempts} <= told, "an attempt has no event in the ledger"
    assert controllers <= len(trial.controllers), "a controller that was never started"
    planted = {mark.name for mark in (trial.run_dir / "faults.done").glob("*")} - {HELD}
    struck = trial.struck + len(planted)
    assert sum(a.is_fault for a in attempts) >= struck, "a fault is not in the ledger"


def _cost(run_dir: Path) -> tuple[int, tuple[float, ...]]:
    try:
        status = read_status(run_dir)
    except Exception:
        return 0, ()
    seconds = [i.recovery_seconds for i in status.interruptions if i.recovery_seconds is not None]
    return sum(i.lost_steps for i in status.interruptions), tuple(seconds)


def schedule(trials: int) -> list[tuple[str, int]]:
    """(scenario, seed) of each trial, scenarios in proportion to their shares.

    One of each scenario comes before the second of any, so that a campaign that is cut off has
    tried them all.
    """
    chosen = dict(LOCAL)
    chosen |= SLURM if slurm_installed() else {}
    chosen |= GRID_ENGINE if grid_engine_installed() else {}
    chosen |= TRAINING if find_spec("torch") else {}
    total = sum(share for _, share in chosen.values())
    pairs = [
        (name, seed)
        for name, (_, share) in chosen.items()
        for seed in range(max(1, round(trials * share / total)))
    ]
    return sorted(pairs, key=lambda pair: pair[1])


def table(results: list[Result]) -> str:
    """The results as Markdown."""
    lines = [
        "| fault | tried | survived | steps done again: median (most) "
        "| recovery, s: median (most) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(r.scenario for r in results):
        mine = [r for r in results if r.scenario == name]
        lines.append(f"| {name} | {_cells(mine)} |")
    lines.append(f"| **all** | {_cells(results)} |")
    return "\n".join(lines)


def _cells(results: list[Result]) -> str:
    lost = [r.lost_steps for r in results]
    recovery = [s for r in results for s in r.recovery_seconds]
    times = f"{statistics.median(recovery):.2f} ({max(recovery):.2f})" if recovery else "–"
    survived = sum(r.survived for r in results)
    return f"{len(results)} | {survived} | {statistics.median(lost):g} ({max(lost)}) | {times}"


def write_table(results: list[Result], page: Path = PAGE) -> None:
    """Put the table between the marks of the page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


@click.command()
@click.option("--trials", default=240, show_default=True, help="About how many in all.")
@click.option("--only", help="Scenarios whose name holds this text.")
@click.option("--skip", help="Scenarios whose name does not hold this text.")
@click.option("--write", is_flag=True, help="Put the table into docs/reliability.md.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the folders of failures here.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write every result here.")
@click.option(
    "--part", default="1/1", show_default=True, help="Every n-th trial: 2/3 the second of three."
)
@click.option("--minutes", type=float, help="Begin no trial after so many.")
@click.option("--seeds-from", default=0, show_default=True, help="The first seed of each fault.")
@click.option("--also", type=click.Path(path_type=Path, exists=True), multiple=True,
              help="Results (--json) of another part, to be counted too.")  # fmt: skip
def main(
    trials: int, only: str | None, skip: str | None, write: bool, keep: Path | None,
    out: Path | None, part: str, minutes: float | None, seeds_from: int, also: tuple[Path, ...],
) -> None:  # fmt: skip
    """Try faults at random and print what came of them."""
    first, of = map(int, part.split("/"))
    planned = [
        p
        for p in schedule(trials)
        if (only is None or only in p[0]) and (skip is None or skip not in p[0])
    ][first - 1 :: of]
    results = [result for path in also for result in earlier(path)]
    end = time.monotonic() + (minutes or 1e6) * 60
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        schedulers = Schedulers(stack)
        run_it(write_run(Path(name), steps=STEPS))
        undisturbed = dict.fromkeys(ALL, Path(name) / "run")
        if any(scenario in TRAINING for scenario, _ in planned):
            undisturbed |= dict.fromkeys(TRAINING, run_undisturbed(Path(name) / "training"))
        for number, (scenario, seed) in enumerate(planned, 1):
            if time.monotonic() > end:
                break
            with schedulers.ready_for(scenario):
                result = try_one(scenario, seeds_from + seed, undisturbed[scenario], keep)
            results.append(result)
            click.echo(f"{number}/{len(planned)} {scenario} {result.seed}: "
                       f"{result.fault or 'survived'} ({result.seconds:.1f} s)")  # fmt: skip
            if out is not None:
                out.write_text(json.dumps([vars(r) for r in results], indent=1))
    results.sort(key=lambda result: list(ALL).index(result.scenario))
    click.echo(table(results))
    if write:
        write_table(results)
    raise SystemExit(0 if all(r.survived for r in results) else 1)


def earlier(path: Path) -> list[Result]:
    """Results that another part wrote."""
    return [Result(**row) for row in json.loads(path.read_text())]


if __name__ == "__main__":
    main()
