"""A trainer of another house under the contract: ``python -m krzem.run.adapter … -- command``.

The controller starts this in place of the trainer.  It starts the trainer's own command, reads the
steps out of what that prints, commits its checkpoints once they are complete, and hands it the
checkpoint to resume from.  The trainer knows nothing of krzem.

Which checkpoints are complete is known from the formats: torch's distributed checkpoints
(torchtitan) have a ``.metadata`` file that the first rank writes when all ranks have written;
Megatron-LM's ``torch_dist`` has the same, and ``latest_checkpointed_iteration.txt`` names the
newest that is whole.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from krzem.errors import RunError
from krzem.jobs.log_formats import megatron, torchtitan
from krzem.run.committing import link_tree
from krzem.run.contract import (
    EXIT_FENCED,
    EXIT_STOPPED,
    FencedError,
    StepRecord,
    TrainerContract,
    commit,
)

_LOOK_SECONDS = 0.2
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_NUMBER = r"([+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|nan|inf))"
METADATA = ".metadata"
TRACKER = "latest_checkpointed_iteration.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How one engine prints steps and keeps checkpoints."""

    name: str
    reader: Callable[[], Callable[[str], Iterable[dict[str, float]]]]
    """Of lines of its log."""
    norm: re.Pattern[str]
    """The gradient norm in such a line."""
    folder: re.Pattern[str]
    """Name of a checkpoint's folder, with its step."""
    written: str
    """The same, to be filled with a step."""
    tracker: str | None = None
    """File that names the newest whole checkpoint."""

    def checkpoints(self, root: Path) -> Iterator[tuple[int, Path]]:
        """Whole checkpoints in ``root``, oldest first."""
        found = []
        for path in root.iterdir() if root.is_dir() else ():
            match = self.folder.fullmatch(path.name)
            if match and (path / METADATA).is_file():
                found.append((int(match[1]), path))
        newest = self._tracked(root)
        yield from (pair for pair in sorted(found) if newest is None or pair[0] <= newest)

    def _tracked(self, root: Path) -> int | None:
        """What the tracker says; -1 where it says nothing yet, None for engines without one."""
        if self.tracker is None:
            return None
        try:
            return int((root / self.tracker).read_text(encoding="ascii").strip()[:20])
        except (OSError, ValueError):
            return -1

    def begin_at(self, root: Path, checkpoint: Path | None, step: int) -> None:
        """Make ``checkpoint`` the newest in ``root``; without one there is none.

        Folders of later steps, and those that never became whole, are set aside.
        """
        root.mkdir(parents=True, exist_ok=True)
        for path in list(root.iterdir()):
            match = self.folder.fullmatch(path.name)
            if match and (checkpoint is None or int(match[1]) >= step):
                aside = root / f"set-aside-{path.name}-{time.time_ns()}"
                path.rename(aside)
        if checkpoint is not None:
            link_tree(checkpoint, root / self.written.format(step))
            (root / self.written.format(step) / "manifest.json").unlink(missing_ok=True)
        if self.tracker is not None:
            (root / self.tracker).unlink(missing_ok=True)
            if checkpoint is not None:
                (root / self.tracker).write_text(f"{step}\n", encoding="ascii")


ENGINES = MappingProxyType({
    "torchtitan": Engine(
        name="torchtitan", reader=torchtitan,
        norm=re.compile(rf"grad_norm:\s*{_NUMBER}"),
        folder=re.compile(r"step-(\d+)"), written="step-{}",
    ),
    "megatron-lm": Engine(
        name="megatron-lm", reader=megatron, norm=re.compile(rf"grad norm: {_NUMBER}"),
        folder=re.compile(r"iter_(\d{7,})"), written="iter_{:07d}", tracker=TRACKER,
    ),
})  # fmt: skip
"""Engines whose logs and checkpoints are known."""


class Adapter:
    """One attempt: the trainer's process, its log and its checkpoints."""

    def __init__(
        self, engine: Engine, contract: TrainerContract, root: Path, *, batch: int, sequence: int
    ) -> None:
        self.engine, self.contract, self.root = engine, contract, root
        self.batch, self.sequence = batch, sequence
        self._read = engine.reader()
        self._last = 0
        self._at = time.monotonic()
        self._asked = False
        self._fenced: FencedError | None = None
        self._committed: set[int] = set()

    def run(self, command: Sequence[str]) -> int:
        """Train to the end of ``command``; the exit code of the contract."""
        self.contract.beat(0, "load")
        resume = self.contract.resume_from
        self._last = 0 if resume is None else step_of(resume)
        self.engine.begin_at(self.root, resume, self._last)
        self._committed = {step for step, _ in self.engine.checkpoints(self.root)}
        self.contract.install_signals()
        self._at = time.monotonic()
        self.contract.beat(self._last, "start")
        process = subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        )  # fmt: skip
        watch = threading.Thread(target=self._watch, args=(process,), daemon=True)
        watch.start()
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            self._take(line)
        code = process.wait()
        watch.join()
        self._commit_new()
        return self.contract.leave(self._code(code))

    def _code(self, code: int) -> int:
        if self._fenced is not None:
            return EXIT_FENCED
        if self._asked and code in (0, -15, 128 + 15):
            return EXIT_STOPPED
        return code if code >= 0 else 128 - code

    def _take(self, line: str) -> None:
        """Report the steps that a line tells; engines colour them, also where nobody looks."""
        line = _COLOURS.sub("", line)
        for values in self._read(line):
            step = int(values.get("number", 0))
            if step <= self._last or "loss" not in values:
                continue
            now = time.monotonic()
            steps, begun = step - self._last, self._last * self.batch
            seconds = (now - self._at) / steps
            norm = self.engine.norm.search(line)
            self.contract.log_step(
                StepRecord(
                    step=step,
                    tokens=step * self.batch * self.sequence,
                    loss=float(values["loss"]),
                    grad_norm=None if norm is None else float(norm[1]),
                    seconds=values.get("seconds", seconds),
                    tokens_per_s=steps * self.batch * self.sequence / max(now - self._at, 1e-9),
                    first_sample=begun,
                    last_sample=step * self.batch - 1,
                    attempt=self.contract.attempt,
                    time=time.time(),
                )
            )
            self.contract.beat(step, "compute", own_seconds=seconds)
            self._last, self._at = step, now

    def _watch(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            if self.contract.stop_requested() and not self._asked:
                self._asked = True
                process.terminate()
            self._commit_new()
            if self._fenced is not None:
                process.kill()
                return
            time.sleep(_LOOK_SECONDS)

    def _commit_new(self) -> None:
        """Commit what has become whole since the last look."""
        for step, folder in self.engine.checkpoints(self.root):
            if step in self._committed:
                continue
            tokens = step * self.batch * self.sequence
            try:
                commit(folder, step, tokens, sample=step * self.batch, contract=self.contract)
            except FencedError as error:
                self._fenced = error
                return
            self._committed.add(step)


def step_of(folder: Path) -> int:
    """The step of a checkpoint of the run.

    Raises:
        RunError: the folder is none.
    """
    match = re.fullmatch(r"step-(\d+)", folder.name)
    if match is None:
        raise RunError(f"{folder} is no checkpoint of a run: it is not called step-…")
    return int(match[1])


def adapted(
    engine: str, checkpoints: str, command: Sequence[str], *, batch: int, sequence: int
) -> tuple[str, ...]:
    """The command that runs ``command`` under the contract.

    Raises:
        RunError: an engine that is not known.
    """
    if engine not in ENGINES:
        raise RunError(f"trainer.engine = {engine!r} is not one of command, {', '.join(ENGINES)}")
    return ("{python}", "-m", "krzem.run.adapter", "--engine", engine, "--checkpoints",
            checkpoints, "--batch", str(batch), "--sequence", str(sequence), "--",
            *command)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a process; only the first node's copy speaks for the attempt."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(prog="python -m krzem.run.adapter")
    parser.add_argument("--engine", required=True, choices=list(ENGINES))
    parser.add_argument("--checkpoints", required=True, type=Path)
    parser.add_argument("--batch", required=True, type=int)
    parser.add_argument("--sequence", required=True, type=int)
    asked, command = parser.parse_args(given[:at]), given[at + 1 :]
    contract = TrainerContract.from_environment()
    if contract is None or not command:
        parser.error("it is started by `krzem run`, with the trainer's command after --")
    if os.environ.get("SLURM_NODEID", os.environ.get("KRZEM_NODE", "0")) != "0":
        os.execvp(command[0], command)
    adapter = Adapter(
        ENGINES[asked.engine], contract, asked.checkpoints, batch=asked.batch,
        sequence=asked.sequence,
    )  # fmt: skip
    return adapter.run(command)


if __name__ == "__main__":
    sys.exit(main())
