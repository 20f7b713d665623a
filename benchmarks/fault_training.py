"""Faults in runs of krzem's own trainer: ``torchrun -m krzem.train`` on two ranks, by a controller.

The model is a small DeepSeek-V3 (latent attention, routed experts, prediction of two tokens) in
float32, sharded over two processes by FSDP2.  Everything strikes from outside, at random instants.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.fault_trial import Trial
from tests.run.run_helpers import run_it
from tests.train.loop.folder import tokenised, write

from krzem.run.contract import Heartbeat

STEPS, SAVES = 20, (5, 10, 15)
_TOKENS = 8 * 32
_SURE = STEPS - 4
"""A rank that is struck no later than here cannot have ended by itself before it was."""
_RUN = """
[qualify]
enabled = false
[recovery]
wait_first = "20 ms"
wait_most = "200 ms"
look_every = "20 ms"
[gates]
throughput = false
stall = { seconds = "4s", load = "2 min" }
restarts = { per_day = 50 }
[[pool]]
name = "first"
accelerator = "cpu"
count = 2
layout = "dp=2,mbs=4"
tokens_per_s = 1000
[pool.limits]
threads = 1
"""


def write_training(folder: Path) -> Path:
    """A run file of krzem's trainer for two ranks, and its data."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenised(folder)
    return write(folder, end=_RUN, tokens=STEPS * _TOKENS, save=SAVES[0])


def run_undisturbed(folder: Path) -> Path:
    """The run to compare with."""
    run_it(write_training(folder))
    return folder / "out"


def _begin(trial: Trial) -> None:
    trial.run_folder = "out"
    trial.path = write_training(trial.folder)
    trial.start()


def _strike(trial: Trial, everyone: bool, number: int = signal.SIGKILL) -> None:
    """Send a signal to a random rank, or SIGKILL to every process of the run."""
    beats = trial.beats()
    if not beats:
        return
    trial.struck += max(beat.step for beat in beats.values()) <= _SURE
    if everyone:
        trial.kill_trainers()
    else:
        os.kill(trial.random.choice(sorted(beats.items()))[1].pid, number)


def _somewhere(trial: Trial) -> None:
    """Any instant of any step."""
    trial.until(trial.random.randrange(1, STEPS - 6))
    time.sleep(trial.random.uniform(0, 0.1))


def _in_a_save(trial: Trial) -> None:
    """Within a tenth of a second of the start of a save; the writing goes on beside the steps."""
    step = trial.random.choice(SAVES)

    def saving(beat: Heartbeat) -> bool:
        return beat.step > step or (beat.step == step and beat.phase in ("save", "data", "compute"))

    trial.wait(lambda: any(saving(beat) for beat in trial.beats().values()))
    time.sleep(trial.random.uniform(0, 0.1))


def killed(when: Callable[[Trial], None], *, everyone: bool) -> Callable[[Trial], None]:
    """One rank or all of them."""

    def disturb(trial: Trial) -> None:
        _begin(trial)
        when(trial)
        _strike(trial, everyone)

    return disturb


def killed_in_a_load(trial: Trial) -> None:
    """Killed in a step, and again while it starts and loads."""
    _begin(trial)
    trial.until(trial.random.randrange(SAVES[0] + 1, STEPS - 6))
    _strike(trial, everyone=True)
    trial.wait(lambda: (trial.run_dir / "attempts" / "0002" / "process.json").exists())
    time.sleep(trial.random.uniform(0, 8))
    trial.kill_trainers()


def killed_with_the_controller(trial: Trial) -> None:
    """As a power cut does."""
    _begin(trial)
    _somewhere(trial)
    trial.controllers[-1].kill()
    _strike(trial, everyone=True)
    trial.controllers[-1].wait()
    trial.start()


def controller_killed(trial: Trial) -> None:
    """The controller alone, once or twice; training goes on without it."""
    _begin(trial)
    for _ in range(trial.random.randint(1, 2)):
        time.sleep(trial.random.uniform(0, 6))
        trial.controllers[-1].kill()
        trial.controllers[-1].wait()
        trial.start()


def stopped(trial: Trial) -> None:
    """A rank that hangs: it is alive and does nothing."""
    _begin(trial)
    _somewhere(trial)
    _strike(trial, everyone=False, number=signal.SIGSTOP)


TRAINING: dict[str, tuple[Callable[[Trial], None], int]] = {
    "krzem train: one rank killed, in a step": (killed(_somewhere, everyone=False), 4),
    "krzem train: all ranks killed, in a step": (killed(_somewhere, everyone=True), 4),
    "krzem train: one rank killed, in a save": (killed(_in_a_save, everyone=False), 4),
    "krzem train: all ranks killed, in a save": (killed(_in_a_save, everyone=True), 4),
    "krzem train: all ranks killed, in a load": (killed_in_a_load, 3),
    "krzem train: controller killed": (controller_killed, 3),
    "krzem train: controller and trainer killed": (killed_with_the_controller, 3),
    "krzem train: one rank hangs": (stopped, 3),
}
"""Name: how to disturb, and its share of the trials."""
