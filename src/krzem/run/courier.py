"""A pool at another site: behind another login, with a folder and a scheduler of its own.

There a controller of its own runs the run: it plans, measures, asks the witness, trains, restarts.
Here a courier stands in the trainer's place, under the same contract: it sends the checkpoint, has
the run begun there, writes the steps that are done there into this run's metrics, passes a stop
request on, and brings the newest checkpoint back.  It asks the site by the words in ``site.login``
(:mod:`krzem.run.site` answers) and copies by ``site.send`` and ``site.fetch``.  A copy that breaks
off is begun again by the same command, which goes on where it was if its tool can (rsync, Globus);
what arrives is verified byte by byte before it counts.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from krzem.errors import CheckpointError, KrzemError, LaunchError
from krzem.run.clock import duration
from krzem.run.contract import (
    CHECKPOINTS,
    EXIT_CHECKPOINT,
    EXIT_DONE,
    EXIT_FENCED,
    EXIT_SITE,
    EXIT_STOPPED,
    FencedError,
    StepRecord,
    TrainerContract,
    parse_record,
)
from krzem.run.far import (
    ANSWER_SECONDS,
    SITES,
    Far,
    begun_file,
    carry,
    copied,
    rate_file,
    say,
    travel,
)
from krzem.run.history import History
from krzem.run.pool_settings import Pool
from krzem.run.rows import FINAL
from krzem.run.run_file import read_run
from krzem.run.settings import RunSettings
from krzem.run.stored import ARRIVING, checkpoint_name, put_in_place
from krzem.run.untrusted import BadInputError, read_object, whole, words
from krzem.train.checkpoint.manifest import MANIFEST, read_manifest
from krzem.train.durable import write_atomic

_VERIFY_SECONDS = 6 * 3600.0
"""To read a checkpoint there."""
_BEGINS = 5
"""Controllers that are started there without a new step."""


def courier(run_toml: Path, name: str) -> int:
    """One attempt at another site; the exit code of the contract."""
    contract = TrainerContract.from_environment()
    if contract is None:
        raise SystemExit("the courier is started by `krzem run`")
    settings = read_run(run_toml)
    contract.install_signals()
    at_work = _Courier(contract, settings, settings.pool(name))
    try:
        return contract.leave(at_work.run())
    except FencedError as error:
        say(str(error))
        return contract.leave(EXIT_FENCED)
    except CheckpointError as error:
        say(str(error))
        return contract.leave(EXIT_CHECKPOINT)
    except (KrzemError, BadInputError) as error:
        say(str(error))
        return contract.leave(EXIT_SITE)


class _Courier:
    def __init__(self, contract: TrainerContract, settings: RunSettings, pool: Pool) -> None:
        self.contract, self.settings, self.pool = contract, settings, pool
        self.far, self.site = Far(pool), pool.site
        self.begun = time.monotonic()
        history = History.of(settings.folder)
        self.start = history.step
        self.step, self.offset, self.caught_up = self.start, 0, False
        self.behind = History()
        self.asked = False

    def beat(self, phase: str) -> None:
        """A sign of life that differs from the last: the stall gate sees content, not dates."""
        self.contract.beat(self.step, phase, own_seconds=time.monotonic() - self.begun)

    def run(self) -> int:
        """Send, begin, follow, bring back."""
        if self.contract.stop_requested():
            return EXIT_STOPPED
        self._send()
        begun = begun_file(self.settings.folder, self.pool.name)
        begun.parent.mkdir(exist_ok=True)
        write_atomic(begun, b"")
        last = self._follow()
        if last["state"] == "stopped" and self.settings.witness.enabled:
            self._record_witness()
        self._fetch(last.get("newest"))
        self._tell_witness(last)
        if last["state"] == "done":
            return EXIT_DONE
        if self.asked:
            return EXIT_STOPPED
        say(f"the run at {self.pool.name} {last['state']}: {last.get('reason')}")
        return EXIT_SITE

    def _send(self) -> None:
        """The checkpoint to begin from, unless the site went on from it already."""
        good, goal = self.contract.resume_from, self.settings.goal
        name = good.name if good else None
        given = {"name": name, "tokens": int(goal.tokens), "sequence": goal.sequence,
                 "batch": goal.global_batch}  # fmt: skip
        told = self.far.patiently("offer", lambda: self.beat("load"), **given)
        if good is None or "place" not in told:
            return
        say(travel(self.settings, self.pool)[1])
        target = words(told, "place", 4096)
        command = copied(self.site, self.site.send, str(good), target)
        self._timed(command, read_manifest(good).bytes)
        maker = f"{self.settings.name} in {self.settings.folder}"[:250]
        received = {"name": name, "from": maker, "seconds": _VERIFY_SECONDS}
        self._verified(
            command, "load",
            lambda: self.far.patiently("receive", lambda: self.beat("load"), **received),
        )  # fmt: skip

    def _timed(self, command: list[str], size: float) -> None:
        begun = time.monotonic()
        carry(self.site, command, lambda: self.beat("load"))
        seconds = max(time.monotonic() - begun, 1e-3)
        if size:
            say(f"{size / 1e9:,.3g} GB were copied in {duration(seconds)}")
            path = rate_file(self.settings.folder, self.pool.name)
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, json.dumps({"bytes_per_s": size / seconds}).encode())

    def _verified(self, command: list[str], phase: str, check: Callable[[], object]) -> None:
        """``check`` what ``command`` copied; where that finds a fault, copy once more."""
        try:
            check()
        except (CheckpointError, LaunchError) as error:
            say(f"{error}; it is copied once more")
            carry(self.site, command, lambda: self.beat(phase))
            check()

    def _follow(self) -> dict[str, Any]:
        """Keep a controller at work there and write down its steps, until the run has ended."""
        idle, seen, ever = 0, self.step, False
        while True:
            told = self.far.patiently("look", self._each, offset=self.offset)
            self._take(told)
            state = words(told, "state")
            if not told.get("controlled") and not told["lines"]:
                if state in FINAL and (ever or self.asked):
                    return told
                idle, seen = (1 if self.step > seen else idle + 1), self.step
                if idle > _BEGINS:
                    why = told.get("reason")
                    raise LaunchError(f"{_BEGINS} controllers at {self.pool.name} ended: {why}")
                if self.asked and state == "new":
                    return told
                self.far.patiently("begin", self._each)
                ever = True
            time.sleep(self.site.look_every)

    def _each(self) -> None:
        """Live, and pass a stop request on, once."""
        self.beat("compute")
        self.contract.commit_guard()
        if self.contract.stop_requested() and not self.asked:
            self.asked = True
            say(f"asking the run at {self.pool.name} to save and stop")
            self.far.patiently("stop", lambda: self.beat("stop"), how="save")

    def _take(self, told: dict[str, Any]) -> None:
        """Write down steps; those that an earlier courier wrote down are passed over."""
        lines = told.get("lines")
        records = list(_records(lines if isinstance(lines, list) else []))
        if self.caught_up:
            self._log(records)
        else:
            self.behind.add(replace(r, attempt=1) for r in records)
            if not records:
                self.caught_up = True
                self._log([r for r in self.behind.kept if r.step > self.start])
        self.offset = whole(told, "offset")

    def _log(self, records: list[StepRecord]) -> None:
        for record in records:
            self.contract.log_step(replace(record, attempt=self.contract.attempt))
            self.step = record.step

    def _record_witness(self) -> None:
        """For the pool that comes next, while there is still something to record it on."""
        names = ["bfloat16" if (p.precision or self.settings.goal.precision) != "fp32" else ""
                 for p in self.settings.pools]  # fmt: skip
        limit = self.settings.witness.limit_seconds + ANSWER_SECONDS
        told = self.far.patiently("record", lambda: self.beat("save"), seconds=limit,
                                  types=sorted({n for n in names if n}))  # fmt: skip
        say(f"witness at {self.pool.name}: {told.get('message')}")

    def _fetch(self, newest: object) -> None:
        """Bring the newest checkpoint of the site into this run."""
        folder = self.settings.folder
        if not isinstance(newest, str):
            return
        name = checkpoint_name({"name": Path(newest).name})
        if (folder / CHECKPOINTS / name / MANIFEST).exists():
            return
        place = folder / ARRIVING / name
        place.mkdir(parents=True, exist_ok=True)
        command = copied(self.site, self.site.fetch, newest, str(place))
        carry(self.site, command, lambda: self.beat("save"))
        guard = self.contract.commit_guard
        self._verified(command, "save", lambda: put_in_place(folder, name, guard))

    def _tell_witness(self, told: dict[str, Any]) -> None:
        """What the site's controller decided about the checkpoint, for this run's ledger."""
        found = told.get("witness")
        path = self.settings.folder / SITES / f"{self.pool.name}.witness.json"
        if isinstance(found, list) and found:
            write_atomic(path, json.dumps({"checks": found}).encode())


def _records(lines: list[Any]) -> Iterator[StepRecord]:
    for line in lines:
        with contextlib.suppress(BadInputError):
            if isinstance(line, str):
                yield parse_record(line)


def checks_told(folder: Path, pool: str) -> list[tuple[str, str, str]]:
    """Subject, choice and reason of every check of a checkpoint at a pool's site; told once."""
    path = folder / SITES / f"{pool}.witness.json"
    try:
        rows = read_object(path)["checks"]
        path.unlink()
        return [(words(r, "subject"), words(r, "choice"), words(r, "reason", 4000)) for r in rows]
    except (OSError, BadInputError, KeyError, TypeError, AttributeError):
        return []


if __name__ == "__main__":
    sys.exit(courier(Path(sys.argv[1]), sys.argv[2]))
