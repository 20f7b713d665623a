"""A ledger that was lost, cut short or put back from a copy: what the run's folder still shows.

The ledger is believed only where nothing contradicts it.  Every start looks at the fence, at what
attempts left in their folders, at the metrics and at living processes; where one of them knows of
a newer token than the ledger, the ledger is behind.  Then the next token lies above everything that
was seen, attempts that only their folders know are entered, and the report says what is unknown.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from krzem.errors import CheckpointError, RunError, shorten
from krzem.run.attempts import raise_fence
from krzem.run.contract import ATTEMPTS, CHECKPOINTS, ENV_ATTEMPT, ENV_TOKEN, read_fence
from krzem.run.history import History, Metrics
from krzem.run.launch.job import JOB
from krzem.run.ledger import LEDGER, Ledger, LedgerDamagedError
from krzem.run.processes import variables_of_run
from krzem.run.rows import RunRow, State
from krzem.run.run_file import identity
from krzem.run.settings import RunSettings
from krzem.run.status import UNKNOWN
from krzem.run.stored import arrived
from krzem.run.untrusted import MOST, BadInputError, read_object, whole, words
from krzem.train.checkpoint.manifest import read_manifest
from krzem.train.checkpoint.store import checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenAttempt:
    """An attempt as its folder tells of it."""

    id: int
    token: int
    pool: str | None
    launcher: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the folder of a run shows, whatever its ledger says."""

    token: int
    """The largest of any fence, attempt or living process."""
    last_attempt: int
    attempts: Mapping[int, SeenAttempt]
    history: History


def look(folder: Path) -> Seen:
    """Look at everything but the ledger."""
    attempts = {a.id: a for path in (folder / ATTEMPTS).glob("*") if (a := _attempt(path))}
    numbers = [int(p.name) for p in (folder / ATTEMPTS).glob("*") if _is_number(p.name)]
    living = variables_of_run(folder)
    tokens = [_number(v.get(ENV_TOKEN)) for v in living] + [a.token for a in attempts.values()]
    numbers += [_number(v.get(ENV_ATTEMPT)) for v in living]
    metrics = Metrics(folder)
    metrics.newest_attempt = max(numbers, default=0) or MOST
    metrics.read()
    numbers += [r.attempt for r in metrics.history.kept[-1:]]
    return Seen(
        token=max([_fence(folder), *tokens]),
        last_attempt=max(numbers, default=0),
        attempts=attempts,
        history=metrics.history,
    )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= 9


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else 0


def _fence(folder: Path) -> int:
    try:
        return read_fence(folder)
    except BadInputError:
        return 0


def _attempt(folder: Path) -> SeenAttempt | None:
    with contextlib.suppress(OSError, BadInputError):
        if _is_number(folder.name):
            value = read_object(folder / JOB)
            return SeenAttempt(
                id=int(folder.name),
                token=whole(value, "token", 1),
                pool=words(value, "pool") if "pool" in value else None,
                launcher=words(value, "launcher") if "launcher" in value else "local",
            )
    return None


def open_ledger(folder: Path) -> tuple[Ledger, str]:
    """The ledger of a run, and what is to be said of the one that was there before.

    A damaged one is kept beside the new one: nothing can be read from it any more.
    """
    try:
        ledger = Ledger(folder)
        ledger.check()
    except LedgerDamagedError as error:
        number = 1
        while (folder / f"{LEDGER}.damaged-{number}").exists():
            number += 1
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                path = folder / f"{LEDGER}{ending}"
                path.rename(folder / f"{LEDGER}.damaged-{number}{ending}")
        return Ledger(folder), f"{error}; it is kept as {LEDGER}.damaged-{number}"
    return ledger, ""


def reconcile(settings: RunSettings, ledger: Ledger, why: str) -> bool:
    """Bring the ledger up to what its folder shows; whether it was behind.

    Nothing of the run is taken to be alive afterwards: the caller ends whatever is.
    """
    row, seen = ledger.run(), look(settings.folder)
    known = {a.id for a in ledger.attempts()}
    if row is None or (seen.token <= row.token and seen.last_attempt <= max(known, default=0)):
        return False
    what = why or ("the ledger is older than the run" if known else "the ledger was lost")
    with ledger.writing():
        ledger.catch_up(seen.token, _missing(seen, known, settings), seen.last_attempt)
        _note_checkpoints(ledger, seen)
        _set_clock(ledger, seen.history)
        pool = _last_pool(settings, seen)
        state = State.QUALIFY if pool else State.BEFORE
        for sentence in _unknown(what, seen, known):
            ledger.event(UNKNOWN, sentence)
        ledger.set_state(state, pool, f"{what}: going on from what the folder shows")
    return True


def _missing(seen: Seen, known: set[int], settings: RunSettings) -> Sequence[SeenAttempt]:
    """Attempts that only their folders know, of pools that there are."""
    names = {p.name for p in settings.pools}
    return [a for a in seen.attempts.values() if a.id not in known and a.pool in names]


def _note_checkpoints(ledger: Ledger, seen: Seen) -> None:
    """Who made a checkpoint is who logged its step; else nobody knows."""
    by_step = {r.step: r.attempt for r in seen.history.kept}
    attempts = {a.id for a in ledger.attempts()}
    rows = {c.folder for c in ledger.checkpoints()}
    for step, folder in checkpoints(ledger.folder / CHECKPOINTS):
        if folder.name in rows:
            continue
        with contextlib.suppress(CheckpointError):
            maker = by_step.get(step)
            size = read_manifest(folder).bytes
            ledger.checkpoint(folder.name, step, maker if maker in attempts else None, size, "")


def _set_clock(ledger: Ledger, history: History) -> None:
    """A new ledger's clock begins with the first step that was written down, by its date."""
    if history.kept:
        ledger.clock.at_least(time.time() - history.kept[0].time)


def _last_pool(settings: RunSettings, seen: Seen) -> str | None:
    """The pool that the newest attempt was on."""
    names = {p.name for p in settings.pools}
    newest = [seen.attempts[n].pool for n in sorted(seen.attempts, reverse=True)]
    return next((pool for pool in newest if pool in names), None)


def _unknown(what: str, seen: Seen, known: set[int]) -> list[str]:
    told = f"{what}; fencing tokens go on above {seen.token}, the largest that was seen"
    lost = sorted(set(range(1, seen.last_attempt + 1)) - known)
    found = [told]
    if lost:
        shown = ", ".join(map(str, lost[:8])) + (" …" if len(lost) > 8 else "")
        found.append(
            f"how attempts {shown} ended, which gates fired in them, and whether a pool had been "
            "given up is not known; when the run began is taken from its first step's date"
        )
    return found


def check_same_run(settings: RunSettings, row: RunRow | None) -> None:
    """A folder belongs to one run; everything but its identity may be edited between starts."""
    if row is None:
        return
    mine = identity(settings)
    differing = [k for k in mine if mine[k] != row.settings.get(k)]
    if differing:
        shown = "; ".join(f"{k}: {row.settings.get(k)} there, {mine[k]} here" for k in differing)
        raise RunError(
            f"{settings.folder} holds another run ({shorten(shown, 300)}): give another [run] "
            "folder, or put the run file back as it was"
        )
    names = [p.name for p in settings.pools]
    if row.pool is not None and row.pool not in names:
        raise RunError(
            f"the run is on pool {row.pool!r}, which {settings.path.name} no longer has; it has "
            f"{', '.join(names)}. Put it back, or begin in another folder"
        )


def take_up(ledger: Ledger, row: RunRow) -> None:
    """Begin, or go on where an earlier controller left off."""
    raise_fence(ledger, row.token)
    if (came := arrived(ledger.folder)) is not None:
        known = [d.subject for d in ledger.decisions() if d.choice == "arrived"]
        if f"checkpoint {came[0]}" not in known:
            ledger.decide(f"checkpoint {came[0]}", "arrived", f"from {came[1]}")
            ledger.set_state(State.BEFORE, None, f"{came[0]} arrived from {came[1]}")
            return
    if row.state is State.STOPPED:
        trained = row.pool is not None and bool(ledger.attempts(row.pool))
        begun = State.QUALIFY if row.pool else State.BEFORE
        ledger.set_state(State.TRAIN if trained else begun, row.pool, "going on after a stop")
    elif row.state is State.FAILED:
        ledger.set_state(State.BEFORE, None, "trying every pool again")
