"""The controller: takes a run from its plan to its last token, over faults, gates and pools.

It is a loop over the state in the ledger.  Each state's handler may be cut off at any instant and
begun again by another controller: what it did is in the ledger or can be found, what it did not do
is done then.  Every change of state is one transaction with its reason.
"""

from __future__ import annotations

import errno
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from krzem.errors import KrzemError, LaunchError, StorageError
from krzem.run import gates
from krzem.run.attempts import Started, adopt, start
from krzem.run.contract import StepRecord
from krzem.run.gate_settings import Action, describe
from krzem.run.history import History
from krzem.run.launch.job import SilentError
from krzem.run.ledger import Ledger
from krzem.run.measured_rows import write_back
from krzem.run.pool_settings import Pool
from krzem.run.processes import RunLock
from krzem.run.recovery import check_same_run, open_ledger, reconcile, take_up
from krzem.run.requests import Operated
from krzem.run.rows import Attempt, Cause, Fired, Request, RunRow, State
from krzem.run.run_file import identity
from krzem.run.services import Services
from krzem.run.settings import RunSettings, Verify
from krzem.run.status import UNKNOWN
from krzem.run.stored import last_good, note_new
from krzem.run.watch import SAVES_FIRST, Outcome, Watch

_TRIES = 3
"""Before what will not mend itself ends the run."""
_RETRY_SECONDS = (1.0, 60.0)
"""First and longest wait while the disk or a launcher does not do its part."""


_ON_FAULTS = ("restarts", "nonfinite", "progress")
"""Gates that judge the faults of a pool."""
_TELLING = frozenset(
    {Cause.CRASH, Cause.SITE, Cause.NOT_STARTED, Cause.LOST, Cause.CHECKPOINT, Cause.STORAGE}
)
"""Ends of which the trainer's last line says more."""
_NO_WAIT = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
                      errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP})  # fmt: skip


def is_lasting(error: KrzemError, cause: BaseException | None = None) -> bool:
    """Whether waiting will not mend it: no right to write, a file in the way, no such command."""
    if isinstance(error, LaunchError):
        return not isinstance(error, SilentError)
    cause = cause or error.__cause__
    return isinstance(cause, OSError) and cause.errno in _NO_WAIT


def _says_stop(fired: Sequence[Fired]) -> str:
    last = next(f for f in reversed(fired) if f.action == Action.STOP)
    return f"gate {last.gate} says stop: {last.message}"


class Controller(Operated):
    """Runs a run; use :func:`run`."""

    def __init__(self, settings: RunSettings, services: Services, ledger: Ledger) -> None:
        super().__init__(settings, services, ledger)
        self._troubles = 0
        self._trouble_since = 0.0

    def run(self) -> State:
        """Until the run is done, stopped or out of pools."""
        handlers: Mapping[State, Callable[[RunRow], None]] = {
            State.BEFORE: self._before,
            State.QUALIFY: self._qualify,
            State.TRAIN: self._train,
            State.MOVE: self._move,
            State.AFTER: self._after,
            State.PAUSED: lambda row: self.wait_for_resume(row.pool),
        }
        while not (row := self.row()).state.final:
            try:
                if self._stopped_while_idle(row) or self._asked_while_idle(row):
                    continue
                handlers[row.state](row)
                self._troubles = 0
            except (StorageError, LaunchError) as error:
                self._wait_out(error)
            except OSError as error:
                self._wait_out(
                    StorageError(f"{error.filename or 'a file'}: {error.strerror}"), error
                )
        return row.state

    def _wait_out(self, error: KrzemError, cause: BaseException | None = None) -> None:
        """A full disk or a silent scheduler: nothing is lost by waiting, so wait and try again.

        What no waiting mends ends the run after a few tries, everything else after a day.
        """
        now = self.services.clock()
        self._trouble_since = now if self._troubles == 0 else self._trouble_since
        waited = now - self._trouble_since
        tries = _TRIES if is_lasting(error, cause) else math.inf
        if self._troubles >= tries or waited > self.settings.recovery.wait_limit:
            self.fail(f"given up after {self._troubles + 1} tries: {error}", None)
            return
        first, most = _RETRY_SECONDS
        seconds = min(first * 2**self._troubles, most, self._most_wait())
        self._troubles += 1
        self.services.say(f"waiting {seconds:,.0f} s: {error}")
        if not isinstance(error, StorageError):
            self.ledger.event("waiting", str(error))
        self.services.sleep(seconds)

    def _most_wait(self) -> float:
        return max(self.settings.recovery.wait_most, self.settings.recovery.look_every)

    # Before ---------------------------------------------------------------------------------

    def _before(self, row: RunRow) -> None:
        """Plan every pool, then begin with the first that is not refused."""
        plans = [self.plan(pool) for pool in self.settings.pools]
        self.ledger.decide("gates", "declared", "as the run file says",
                           describe(self.settings.gates))  # fmt: skip
        self.take_next(plans, "the run begins")

    # Qualify --------------------------------------------------------------------------------

    def _qualify(self, row: RunRow) -> None:
        """Measure the pool, plan it anew, ask the witness where the run comes from elsewhere."""
        pool = self.settings.pool(row.pool or "")
        self.leave_nothing_alive()
        found = self.measure(pool)
        if not found.passed:
            self.give_up(pool, "qualification failed: " + "; ".join(found.faults))
            return
        plan = self.plan(pool, found.measured or None)
        if plan.refused:
            self.give_up(pool, plan.refused)
            return
        if not self.agrees(pool):
            return
        self.ledger.set_state(State.TRAIN, pool.name, f"{pool.name}: {found.message}")

    # Train ----------------------------------------------------------------------------------

    def _train(self, row: RunRow) -> None:
        """Find the running attempt or start one, watch it to its end, and judge the end."""
        pool = self.settings.pool(row.pool or "")
        attempt = self.ledger.open_attempt()
        if attempt is None:
            if self._judge_faults(pool):
                return
            started = self._start(pool)
        else:
            started = adopt(self.settings, self.services, self.ledger, attempt)
        if started is None:
            return
        watch = Watch(self.settings, self.services, self.ledger, started, self.expected(pool))
        outcome = watch.until_end(self._at_each_look)
        self._close(pool, started, outcome)

    def _at_each_look(self, watch: Watch) -> None:
        self.while_it_trains(watch)

    def _asked_while_idle(self, row: RunRow) -> bool:
        """What operators ask for while no trainer runs; whether the state changed."""
        idle = row.state in (State.QUALIFY, State.TRAIN) and self.ledger.open_attempt() is None
        return idle and self.obey(row.pool)

    def _stopped_while_idle(self, row: RunRow) -> bool:
        """Stop before anything new is started; a move that is under way is finished first."""
        busy = row.state in (State.MOVE, State.AFTER) or self.ledger.open_attempt() is not None
        if row.stop_requested is None or busy:
            return False
        self._stop(row.pool)
        return True

    def _start(self, pool: Pool) -> Started | None:
        wait = self._backoff(pool)
        if wait > 0:
            self.services.sleep(min(wait, self.settings.recovery.look_every))
            return None
        self.leave_nothing_alive()
        attempts = self.ledger.attempts()
        if attempts:
            note_new(self.ledger, attempts[-1].id)
        good = last_good(self.ledger, deep=self._deep(attempts))
        if good and (good.tokens or 0) >= self.settings.goal.tokens:
            self.ledger.set_state(State.AFTER, pool.name, "every token is trained")
            return None
        return start(
            self.settings,
            self.services,
            self.ledger,
            pool,
            good=good,
            layout=self.layout(pool),
            exclude=self.excluded(pool),
        )

    def _deep(self, attempts: list[Attempt]) -> bool:
        """Whether to read all of a checkpoint: as declared, or because a trainer refused one."""
        refused = bool(attempts) and attempts[-1].cause is Cause.CHECKPOINT
        return self.settings.recovery.verify is Verify.CONTENTS or refused

    def _backoff(self, pool: Pool) -> float:
        """Seconds still to wait: doubling with each fault in a row that brought no checkpoint."""
        saved = {c.attempt for c in self.ledger.checkpoints()}
        row = 0
        attempts = self.ledger.attempts(pool.name)
        for attempt in reversed(attempts):
            troubled = attempt.is_fault or attempt.cause is Cause.STORAGE
            if not troubled or attempt.id in saved:
                break
            row += 1
        if not row:
            return 0.0
        recovery = self.settings.recovery
        wait = min(recovery.wait_first * 2.0 ** min(row - 1, 30), recovery.wait_most)
        return (attempts[-1].ended_at or 0.0) + wait - self.ledger.clock.now()

    def _close(self, pool: Pool, started: Started, outcome: Outcome) -> None:
        """Write down how an attempt ended, and where the run goes from here, in one transaction."""
        attempt = started.attempt
        words = started.last_words() if outcome.cause in _TELLING else ""
        detail = f"{outcome.detail}: {words}" if words else outcome.detail
        with self.ledger.writing():
            self.ledger.attempt_ended(attempt.id, outcome.cause, detail, outcome.exit_code)
            ended = replace(attempt, cause=outcome.cause)
            kind = "fault" if ended.is_fault or outcome.cause is Cause.STORAGE else "attempt ended"
            self.ledger.event(kind, f"{outcome.cause}: {detail}", pool=pool.name,
                              attempt=attempt.id, evidence={"log": started.log_tail()})  # fmt: skip
            self.exclude_slow(pool, attempt)
            self.note_checks_elsewhere(pool)
            self._go_on(pool, attempt, outcome)
        self.services.say(f"attempt {attempt.id} on {pool.name}: {outcome.cause}, {detail}")

    def _go_on(self, pool: Pool, attempt: Attempt, outcome: Outcome) -> None:
        if outcome.cause is Cause.DONE:
            self.ledger.set_state(State.AFTER, pool.name, "every token is trained")
            return
        if self.row().stop_requested:
            self._stop(pool.name)
            return
        if self.obey(pool.name):
            return
        fired = [f for f in self.ledger.fired() if f.attempt == attempt.id]
        if outcome.cause in (Cause.QUEUED, Cause.SITE):
            self.give_up(pool, outcome.detail)
            return
        if any(f.action == Action.STOP for f in fired):
            self.ledger.set_state(State.STOPPED, pool.name, _says_stop(fired))
        elif moving := [f for f in fired if f.action == Action.MOVE]:
            self._leave(pool, moving[-1].gate, moving[-1].message)

    def _stop(self, pool: str | None) -> None:
        with self.ledger.writing():
            self.judge_limits(done=False)
            self.ledger.set_state(State.STOPPED, pool, "stopped on request")
            self.ledger.request_stop(None)

    def _leave(self, pool: Pool, gate: str, message: str) -> None:
        """A gate says move: to the next pool, or, where there is none, what is best then."""
        if self.settings.after(pool.name) or gate not in SAVES_FIRST:
            self.give_up(pool, f"gate {gate}: {message}")
            return
        reason = f"gate {gate} says move, but no pool is left: the run goes on here"
        self.ledger.decide(f"pool {pool.name}", "stays", reason)
        self.services.say(reason)

    def _judge_faults(self, pool: Pool) -> bool:
        """Gates on the faults of a pool; whether one of them moved the run."""
        attempts = self._counting(pool)
        if attempts and self._disk_never_mends(attempts):
            return True
        if not attempts or not attempts[-1].is_fault:
            return False
        last = attempts[-1]
        if any(f.attempt == last.id and f.gate in _ON_FAULTS for f in self.ledger.fired()):
            return False
        finding = self._fault_finding(attempts)
        if finding is None:
            return False
        with self.ledger.writing():
            self.ledger.gate(last, finding.gate, finding.action, finding.message, finding.evidence)
            self.ledger.event(f"gate {finding.gate}", f"{finding.message} ({finding.action})",
                              pool=pool.name, attempt=last.id)  # fmt: skip
            if finding.action is Action.MOVE:
                self._leave(pool, finding.gate, finding.message)
            elif finding.action is Action.STOP:
                why = f"gate {finding.gate} says stop: {finding.message}"
                self.ledger.set_state(State.STOPPED, pool.name, why)
        return self.row().state is not State.TRAIN

    def _counting(self, pool: Pool) -> list[Attempt]:
        """The attempts of a pool that count: those since an operator had it tried anew."""
        since = [d.evidence["after"] for d in self.ledger.decisions()
                 if d.subject == f"retry {pool.name}" and d.evidence]  # fmt: skip
        return [a for a in self.ledger.attempts(pool.name) if a.id > (since or [0])[-1]]

    def _disk_never_mends(self, attempts: list[Attempt]) -> bool:
        """Whether the disk has taken no checkpoint for as long as the run file waits for it."""
        saved = {c.attempt for c in self.ledger.checkpoints()}
        row = list(itertools.takewhile(
            lambda a: a.cause is Cause.STORAGE and a.id not in saved, reversed(attempts)
        ))  # fmt: skip
        waited = self.ledger.clock.now() - row[-1].at if row else 0.0
        if waited <= self.settings.recovery.wait_limit:
            return False
        self.fail(f"{len(row)} attempts in a row could save nothing: {row[0].detail}", None)
        return True

    def _fault_finding(self, attempts: list[Attempt]) -> gates.Finding | None:
        declared, now = self.settings.gates, self.ledger.clock.now()
        found = None
        if declared.nonfinite:
            found = gates.nonfinite(declared.nonfinite, attempts, self._records(attempts[-1]))
        if found is None and declared.progress:
            saved = {c.attempt for c in self.ledger.checkpoints()}
            found = gates.progress(declared.progress, attempts, saved)
        if found is None and declared.restarts:
            found = gates.restarts(declared.restarts, attempts, now)
        return found

    def _records(self, attempt: Attempt) -> list[StepRecord]:
        return History.of(self.settings.folder).of_attempt(attempt.id)

    # Move and after -------------------------------------------------------------------------

    def _move(self, row: RunRow) -> None:
        """Choose the next pool; its qualification asks the witness."""
        self.leave_nothing_alive()
        here = self.settings.pool(row.pool) if row.pool else None
        if (asked := self.asked_for()) is not None:
            self._move_as_asked(asked, here)
            return
        pools = self.to_come(row.pool)
        if not pools:
            self.fail(f"no pool is left{self.given_up()}", None)
            return
        if here is not None:
            self.record_witness(here)
        self.take_next([self.plan(pool) for pool in pools], f"moving on from {row.pool}")

    def _move_as_asked(self, asked: Request, here: Pool | None) -> None:
        """To the pool that an operator named; where it is refused the run stays where it is."""
        plan = self.plan(self.settings.pool(asked.pool or ""))
        if plan.refused and here is not None:
            with self.ledger.writing():
                self.ledger.answer(asked.id, "refused", plan.refused)
                self.ledger.set_state(State.TRAIN, here.name, f"{asked.pool}: {plan.refused}")
            self.services.say(f"{asked.pool} is refused, the run stays: {plan.refused}")
            return
        if here is not None:
            self.record_witness(here)
        self.take_next([plan], f"request to {asked.kind}")
        self.ledger.answer(asked.id, "refused" if plan.refused else "done", f"to {asked.pool}")

    def _after(self, row: RunRow) -> None:
        """Write report and measurements; what cannot be written does not undo the run."""
        self.judge_limits(done=True)
        folder = self.settings.folder
        writes: tuple[Callable[[], object], ...] = (
            lambda: write_back(self.settings), lambda: self.services.report(folder),
        )  # fmt: skip
        for write in writes:
            try:
                write()
            except Exception as error:  # every token is trained: nothing here may undo that
                self.ledger.event("report failed", f"{type(error).__name__}: {error}")
                self.services.say(f"the report could not be written: {error}")
        self.ledger.set_state(State.DONE, row.pool, "done")


def run(settings: RunSettings, services: Services) -> State:
    """Run, or go on with, the run that ``settings`` describe; how it ended.

    Raises RunError where another controller is at work on it, or where the folder holds another
    run; SupersededError where another controller takes over.
    """
    with RunLock(settings.folder):
        ledger, damage = open_ledger(settings.folder)
        try:
            check_same_run(settings, ledger.run())
            row = ledger.begin(settings.name, identity(settings), settings.sha256)
            if reconcile(settings, ledger, damage):
                for event in ledger.events(UNKNOWN):
                    services.say(event.message)
                row = ledger.run() or row
            take_up(ledger, row)
            state = Controller(settings, services, ledger).run()
            ledger.end()
            return state
        finally:
            ledger.close()
