"""Another site as seen from here: requests by its login, copies by its tools, and its launcher.

:mod:`krzem.run.site` answers the requests; :mod:`krzem.run.courier` is who makes most of them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from krzem.errors import CheckpointError, LaunchError
from krzem.run.clock import DAY, duration
from krzem.run.contract import CHECKPOINTS
from krzem.run.launch.job import Job, SilentError
from krzem.run.launch.local import LocalLauncher
from krzem.run.pool_settings import Pool, Site
from krzem.run.rows import FINAL
from krzem.run.services import PoolPlan
from krzem.run.settings import RunSettings
from krzem.run.untrusted import BadInputError, parse_object, printable, read_object
from krzem.train.checkpoint.manifest import read_manifest
from krzem.train.checkpoint.store import committed

SITES = "sites"
ANSWER_SECONDS = 120.0
_ENDING_SECONDS = 120.0
_BEAT_SECONDS = 2.0
_TRIES, _RETRY_SECONDS = 5, 5.0


class Far:
    """The other site, as seen from here."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.site = pool.name, pool.site

    def ask(
        self,
        verb: str,
        seconds: float = ANSWER_SECONDS,
        each: Callable[[], None] = lambda: None,
        **given: Any,
    ) -> dict[str, Any]:
        """The answer to a request; ``each`` is called while it is waited for.

        Raises:
            SilentError: the login does not answer, or says something else.
            LaunchError: the site says why it does not do it.
        """
        asked = {"verb": verb, "run_file": self.site.run_file, **given}
        word = base64.b64encode(json.dumps(asked).encode()).decode()
        command = [*self.site.login, *shlex.split(self.site.python), "-m", "krzem.run.site", word]
        try:
            code, out, errors = _ran(command, seconds, each)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SilentError(f"{self.pool} does not answer: {error}") from None
        try:
            told = parse_object(out.strip().rpartition(b"\n")[2])
        except BadInputError:
            said = printable((errors or out).decode(errors="replace").strip()[-300:])
            raise SilentError(f"{self.pool} does not answer ({code}): {said}") from None
        if "error" in told:
            raise LaunchError(f"{self.pool}: {printable(str(told['error']))[:600]}")
        return told

    def patiently(self, verb: str, each: Callable[[], None], **given: Any) -> dict[str, Any]:
        """The same, asked again and again until somebody answers."""
        while True:
            try:
                return self.ask(verb, each=each, **given)
            except SilentError as error:
                say(str(error))
                time.sleep(self.site.look_every)


def _ran(command: list[str], seconds: float, each: Callable[[], None]) -> tuple[int, bytes, bytes]:
    """Exit code and what a command printed; ``each`` is called every two seconds.

    Raises:
        OSError: it cannot be started.
        TimeoutExpired: it took longer than ``seconds`` and was ended.
    """
    limit = time.monotonic() + seconds
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:  # fmt: skip
        while True:
            each()
            try:
                out, errors = process.communicate(timeout=_BEAT_SECONDS)
                return process.returncode, out, errors
            except subprocess.TimeoutExpired:
                if time.monotonic() > limit:
                    process.kill()
                    raise


def copied(site: Site, command: tuple[str, ...], source: str, target: str) -> list[str]:
    """A copying command with its places filled in."""
    return [w.format(source=source, target=target, place=site.place) for w in command]


def carry(site: Site, command: list[str], each: Callable[[], None]) -> None:
    """Run a copying command until it succeeds, a few times; ``each`` is called meanwhile.

    Raises:
        LaunchError: it failed every time.
    """
    said = ""
    for number in range(_TRIES):
        try:
            code, out, errors = _ran(command, math.inf, each)
        except OSError as error:
            raise LaunchError(f"{command[0]}: {error.strerror}") from None
        if code == 0:
            return
        said = printable((errors or out).decode(errors="replace").strip()[-300:])
        say(f"copying broke off ({code}), {number + 1} of {_TRIES} tries: {said}")
        time.sleep(min(_RETRY_SECONDS, site.look_every) * 2**number)
    raise LaunchError(f"`{shlex.join(command)}` failed {_TRIES} times: {said}")


def say(text: str) -> None:
    """A line of the attempt's log."""
    print(text, flush=True)


def rate_file(folder: Path, pool: str) -> Path:
    """Where the speed of the last copy to or from a pool's site is kept."""
    return folder / SITES / f"{pool}.json"


def bytes_per_s(settings: RunSettings, pool: Pool) -> tuple[float | None, str]:
    """Bytes/s between the sites, and where that is from: stated, or the last copy's."""
    if pool.site.bytes_per_s is not None:
        return pool.site.bytes_per_s, "stated in the run file"
    try:
        rate = float(read_object(rate_file(settings.folder, pool.name))["bytes_per_s"])
        return rate, "measured on the last copy"
    except (OSError, BadInputError, KeyError, TypeError, ValueError):
        return None, "not known before the first copy: give site.bytes_per_s"


def checkpoint_bytes(settings: RunSettings) -> tuple[float, str]:
    """Size of a checkpoint of this run: of the newest, or of weights and moments in float32."""
    found = committed(settings.folder / CHECKPOINTS)
    with contextlib.suppress(CheckpointError, IndexError):
        return float(read_manifest(found[-1][1]).bytes), "the newest checkpoint"
    from krzem.model import count, load_model

    counted = count(load_model(settings.model))
    kept = 12 if settings.goal.optimizer == "adamw" else 8
    return float(kept * (counted.total + counted.mtp)), f"{kept} bytes a parameter"


def travel(settings: RunSettings, pool: Pool) -> tuple[float | None, str]:
    """Seconds that a checkpoint takes to the pool's site, and a sentence with the arithmetic."""
    size, of = checkpoint_bytes(settings)
    rate, origin = bytes_per_s(settings, pool)
    told = f"a checkpoint of {size / 1e9:,.3g} GB ({of}) travels to {pool.name}"
    if rate is None:
        return None, f"{told}; its speed is {origin}"
    return (
        size / rate,
        f"{told} in about {duration(size / rate)}, at {rate / 1e9:,.3g} GB/s {origin}",
    )


class SiteLauncher(LocalLauncher):
    """Starts the courier here; what ends it also ends the run there."""

    name = "site"

    def __init__(self, pool: Pool) -> None:
        self.far = Far(pool)

    def kill(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        """End the courier, then the run over there, and return when both have ended."""
        super().kill(job, handle)
        self._end(job.run_dir)

    def end_run(self, run_dir: Path, prefix: str) -> None:
        """The same of every attempt."""
        super().end_run(run_dir, prefix)
        self._end(run_dir)

    def _end(self, run_dir: Path) -> None:
        if not begun_file(run_dir, self.far.pool).exists():
            return
        limit = time.monotonic() + _ENDING_SECONDS
        while True:
            told = self.far.ask("stop", how="now")
            if told.get("state") in ("new", *FINAL) and not told.get("controlled"):
                begun_file(run_dir, self.far.pool).unlink(missing_ok=True)
                return
            if time.monotonic() > limit:
                raise LaunchError(f"the run at {self.far.pool} does not end: {told.get('state')}")
            time.sleep(0.5)


def begun_file(folder: Path, pool: str) -> Path:
    """There while something of the run may live at the pool's site."""
    return folder / SITES / f"{pool}.begun"


def with_travel(settings: RunSettings, pool: Pool, plan: PoolPlan) -> PoolPlan:
    """The plan with the time that a checkpoint takes to the pool's site."""
    seconds, sentence = travel(settings, pool)
    away = (seconds or 0.0) / DAY
    days = plan.days and replace(
        plan.days, low=plan.days.low + away, mid=plan.days.mid + away, high=plan.days.high + away
    )
    return replace(plan, days=days, warnings=(*plan.warnings, sentence))
