"""Jobs under any scheduler that has commands: submit, find, look, stop and logs are templates.

Ready ones are in ``facts/launchers.toml``; a run file may give its own, whole or in part.  The job
runs the same supervisor as everywhere, which leaves the exit code in the job's folder, so that a
scheduler is only asked where that file is missing.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from krzem.errors import LaunchError, RunError
from krzem.files import parse_toml
from krzem.run.launch.job import (
    EXIT,
    HOSTS,
    OUTPUT,
    PROCESS,
    SCRIPT,
    Job,
    Look,
    Phase,
    SilentError,
    ask_by_file,
    ended,
)
from krzem.run.pool_settings import Scheduler
from krzem.run.processes import memory_bytes, of_run
from krzem.run.untrusted import printable
from krzem.train.durable import write_atomic

BATCH, FILE = "batch.sh", "job.json.submitted"
ANSWER_SECONDS = 60.0
ENDING_SECONDS = 120.0
_SILENT = re.compile(
    r"(?i)unable to contact|connection (refused|reset|timed out)|timed? ?out|cannot connect|"
    r"could ?n[o']t connect|no route to host|unreachable|temporarily unavailable|try again later|"
    r"unable to (connect|send)|can't connect"
)
"""What a scheduler's commands say when nobody answers them: no word on any job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """A scheduler as its commands; see ``facts/launchers.toml``."""

    title: str
    submit: str
    find: str
    look: str
    stop: str
    logs: str
    job_id: str = r"^(?P<id>\S+)"
    find_job: str = r"^(?P<id>\S+)\s+(?P<name>\S+)$"
    state: str = r"^(?P<state>\S+)(?P<reason>.*)$"
    reason: str = ""
    why: str = ""
    why_line: str = ""
    empty: str = ""
    waiting: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    waiting_pattern: str = ""
    running_pattern: str = ""
    hosts: str = "hostname"
    spread: str = ""
    index: str = ""
    """Where every host runs the script: its number, in the shell's words."""
    file: str = ""
    options: Mapping[str, str] | None = None
    tested: str = "nothing"
    source: str = ""


@cache
def ready() -> Mapping[str, Commands]:
    """The schedulers that krzem brings commands for."""
    text = (files("krzem.facts") / "launchers.toml").read_text(encoding="utf-8")
    tables = parse_toml(text, "launchers.toml")
    return {name: commands_of(table) for name, table in tables.items()}


def commands_of(table: Mapping[str, Any], base: Commands | None = None) -> Commands:
    """Commands as a table states them; what it leaves out is ``base``'s.

    Raises RunError for a key that is none, and for a command that is missing.
    """
    known = {f.name for f in fields(Commands)}
    unknown = [name for name in table if name not in known]
    if unknown:
        raise RunError(f"commands.{unknown[0]} is unknown; known are {', '.join(sorted(known))}")
    given = {} if base is None else {name: getattr(base, name) for name in known}
    given |= {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    given.setdefault("title", "a scheduler of the run file's own")
    missing = [n for n in ("submit", "find", "look", "stop", "logs") if n not in given]
    if missing:
        raise RunError(f"commands.{missing[0]} is missing: give submit, find, look, stop and logs")
    return Commands(**given)


class CommandLauncher:
    """Talks to a scheduler through its commands."""

    can_exclude = False

    def __init__(self, name: str, commands: Commands) -> None:
        self.name = name
        self.commands = commands

    def start(self, job: Job) -> Mapping[str, Any]:
        """Submit ``job``."""
        c = self.commands
        job.write(spread=_words(c.spread, _values(job)) if job.nodes > 1 else [])
        for name in (PROCESS, EXIT):
            (job.folder / name).unlink(missing_ok=True)
        write_atomic(job.folder / BATCH, batch_script(job, c).encode())
        if c.file:
            write_atomic(job.folder / FILE, filled(c.file, _values(job)).encode())
        answer = self._ask(self.submit_words(job))
        found = re.search(c.job_id, answer, re.MULTILINE)
        if found is None:
            said = printable(answer.strip())[:200]
            raise LaunchError(f"{c.title} took {job.name} but named no job: it said {said!r}")
        return {"job_id": next(g for g in found.groups() if g)}

    def submit_words(self, job: Job) -> list[str]:
        """The command that submits ``job``."""
        values = _values(job)
        words: list[str] = []
        for word in shlex.split(self.commands.submit):
            if word == "{options}":
                words += self._options(values)
            else:
                words.append(_fill(word, values))
        return words

    def _options(self, values: Mapping[str, str]) -> Iterator[str]:
        """Those whose values are known, then the run file's own."""
        for key, text in (self.commands.options or {}).items():
            if all(values.get(name) for name in (*_placeholders(text), key) if name in values):
                yield from _words(text, values)
        yield from json.loads(values["own_options"])

    def find(self, job: Job) -> Mapping[str, Any] | None:
        """By the job's unique name."""
        found = [number for number, name in self._jobs() if name == job.name]
        return {"job_id": found[0]} if found else None

    def _jobs(self) -> list[tuple[str, str]]:
        answer = self._ask(_words(self.commands.find, {}))
        return [
            (m["id"], m["name"]) for m in re.finditer(self.commands.find_job, answer, re.MULTILINE)
        ]

    def look(self, job: Job, handle: Mapping[str, Any]) -> Look:
        """By exit code, else by what the scheduler says."""
        if (seen := ended(job)) is not None:
            return seen
        try:
            return self._state(job, str(handle["job_id"]))
        except SilentError as error:
            return ended(job) or Look(phase=Phase.UNKNOWN, detail=str(error))

    def _state(self, job: Job, number: str) -> Look:
        c = self.commands
        answer = self._ask(_words(c.look, {"job": number}), quiet=True)
        found = re.search(c.state.replace("{job}", re.escape(number)), answer, re.MULTILINE)
        state = found["state"].strip() if found else ""
        told = f"{state} {self._reason(found, answer)}".strip()
        if state and _is(state, c.waiting, c.waiting_pattern):
            return Look(phase=Phase.PENDING, detail=told)
        if state and _is(state, c.running, c.running_pattern):
            return Look(phase=Phase.RUNNING)
        if state in c.broken:
            told = f"{told} {self._why(number)}".strip()
            return Look(phase=Phase.GONE, detail=f"{c.title} will not start it: {told}")
        if not state and number in [n for n, _ in self._jobs()]:
            return Look(phase=Phase.UNKNOWN, detail=f"{c.title} lists the job but tells no state")
        return ended(job) or Look(phase=Phase.GONE, detail=f"{c.title}: {told or 'no such job'}")

    def _reason(self, found: re.Match[str] | None, answer: str) -> str:
        groups = found.groupdict() if found else {}
        if not groups.get("reason") and self.commands.reason:
            more = re.search(self.commands.reason, answer, re.MULTILINE)
            groups = more.groupdict() if more else {}
        return printable((groups.get("reason") or "").strip())[:300]

    def _why(self, number: str) -> str:
        if not self.commands.why:
            return ""
        answer = self._ask(_words(self.commands.why, {"job": number}), quiet=True)
        found = re.search(self.commands.why_line, answer, re.MULTILINE)
        return printable(next((g for g in found.groups() if g), ""))[:300] if found else ""

    def ask_to_stop(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        """Trainers look for the file; a job that still waits in the queue is taken out of it."""
        ask_by_file(job, "asked")
        if handle is not None and self.look(job, handle).phase is Phase.PENDING:
            self._ask(_words(self.commands.stop, {"job": str(handle["job_id"])}), quiet=True)

    def kill(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        """Stop every job of this name and wait until the scheduler has none of them."""
        self._stop_all(lambda name: name == job.name)

    def end_run(self, run_dir: Path, prefix: str) -> None:
        """Stop every job of the run."""
        self._stop_all(lambda name: name.startswith(prefix))

    def _stop_all(self, mine: Any) -> None:
        limit = time.monotonic() + ENDING_SECONDS
        while alive := [number for number, name in self._jobs() if mine(name)]:
            if time.monotonic() > limit:
                raise LaunchError(f"{self.commands.title} jobs {', '.join(alive)} do not end")
            for number in alive:
                self._ask(_words(self.commands.stop, {"job": number}), quiet=True)
            time.sleep(0.3)

    def memory_bytes(self, job: Job) -> int | None:
        """Only what happens to run on this host; elsewhere heartbeats tell."""
        here = of_run(job.run_dir)
        return memory_bytes(here) if here else None

    def tail(self, job: Job, handle: Mapping[str, Any]) -> str:
        """What the job printed last, as the scheduler gives it."""
        values = {**_values(job), "job": str(handle["job_id"])}
        return self._ask(_words(self.commands.logs, values), quiet=True)

    def _ask(self, command: Sequence[str], *, quiet: bool = False) -> str:
        """What a command prints; ``quiet`` takes a refusal for an empty answer.

        Raises SilentError where nobody answers, LaunchError where it refuses.
        """
        c = self.commands
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False,
                timeout=ANSWER_SECONDS, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (FileNotFoundError, PermissionError):
            raise LaunchError(
                f"{command[0]} is not installed here: a pool with launcher = {self.name!r} must be "
                f"run from a machine where the commands of {c.title} work"
            ) from None
        except subprocess.TimeoutExpired:
            raise SilentError(f"{command[0]} did not answer in {ANSWER_SECONDS:.0f} s") from None
        said = printable(done.stderr.strip()[-500:])
        if done.returncode == 0 or (c.empty and c.empty in done.stderr + done.stdout):
            return done.stdout
        if _SILENT.search(done.stderr):
            raise SilentError(f"{c.title} does not answer: {said}")
        if quiet:
            return done.stdout
        raise LaunchError(f"`{shlex.join(command)}` was refused: {said or done.returncode}")


def _is(state: str, words: Sequence[str], pattern: str) -> bool:
    return state in words or bool(pattern and re.search(pattern, state))


def batch_script(job: Job, commands: Commands) -> str:
    """What the scheduler runs on the first host: the supervisor, which spreads the job's script."""
    hosts = shlex.quote(str(job.folder / HOSTS))
    supervisor = [sys.executable, "-m", "krzem.run.launch.supervise", str(job.folder), "--notice"]
    script = shlex.quote(str(job.folder / SCRIPT))
    others = [f'[ "{commands.index}" = 0 ] || exec bash {script}'] if commands.index else []
    lines = [
        "#!/bin/bash",
        *(f"export {k}={shlex.quote(v)}" for k, v in sorted(job.variables.items())),
        f"export KRZEM_NODES={job.nodes} KRZEM_JOB={shlex.quote(job.name)}",
        f"{{ {commands.hosts}; }} > {hosts}.$$ && mv {hosts}.$$ {hosts}",
        *others,
        f"exec {shlex.join(supervisor)} >> {shlex.quote(str(job.folder / OUTPUT))} 2>&1",
    ]
    return "\n".join([*lines, ""])


def node_rank() -> int:
    """The place of this host among the job's hosts, as the batch script wrote them down."""
    import os

    path, names = os.environ.get("KRZEM_HOSTS"), {socket.gethostname()}
    names |= {name.partition(".")[0] for name in names}
    try:
        hosts = Path(path or "").read_text(encoding="utf-8").split()
    except OSError:
        return 0
    short = [host.partition(".")[0] for host in hosts]
    return next((n for n, host in enumerate(short) if host in names), 0)


_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{(\w+)\}")


def _placeholders(text: str) -> list[str]:
    return [m[1] for m in _PLACEHOLDER.finditer(text) if m[1]]


def _words(template: str, values: Mapping[str, str]) -> list[str]:
    """A template split as a shell would, then filled: a value stays one word."""
    return [_fill(word, values) for word in shlex.split(template)]


def _fill(text: str, values: Mapping[str, str]) -> str:
    def put(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        if match[1] not in values:
            raise RunError(
                f"a command asks for {{{match[1]}}}, which is not known; known are "
                f"{', '.join(sorted(values))}"
            )
        return values[match[1]]

    return _PLACEHOLDER.sub(put, text)


def filled(template: str, values: Mapping[str, str]) -> str:
    """A JSON file with its placeholders filled in, whatever characters the values have."""
    inside = {k: json.dumps(v)[1:-1] for k, v in values.items()}
    text = re.sub(r"\{([a-z_]+)\}", lambda m: inside.get(m[1], m[0]), template)
    json.loads(text)
    return text.strip() + "\n"


def _values(job: Job) -> dict[str, str]:
    s, seconds = job.scheduler or Scheduler(), job.time_seconds
    whole = None if seconds is None else max(60, round(seconds))
    select = ":".join(
        [str(job.nodes), *([f"ncpus={s.cpus}"] if s.cpus else []),
         *([f"ngpus={s.gpus}"] if s.gpus else [])]
    )  # fmt: skip
    values: dict[str, object] = {
        "name": job.name,
        "log": job.folder / "scheduler.log",
        "script": job.folder / BATCH,
        "quoted_script": shlex.quote(str(job.folder / BATCH)),
        "file": job.folder / FILE,
        "folder": job.folder,
        "run_dir": job.run_dir,
        "nodes": job.nodes,
        "several_nodes": "yes" if job.nodes > 1 else "",
        "select": select,
        "queue": s.queue,
        "account": s.account,
        "cpus": s.cpus,
        "gpus": s.gpus,
        "image": s.image,
        "volume": s.volume,
        "gpu_resource": s.gpu_resource,
        "notice": round(s.notice_seconds),
        "notice_minutes": max(1, round(s.notice_seconds / 60)),
        "seconds": whole,
        "minutes": None if whole is None else max(1, whole // 60),
        "hms": None if whole is None else f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}",
        "own_options": json.dumps(list(s.options)),
    }
    return {name: "" if value is None else str(value) for name, value in values.items()}
