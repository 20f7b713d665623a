"""The controller: takes a run from its plan to its last token, over faults, gates and pools.

It is a loop over the state in the ledger.  Each state's handler may be cut off at any instant and
begun again by another controller: what it did is in the ledger or can be found, what it did not do
is done then.  Every change of state is one transaction with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from krzem.errors import LaunchError, RunError, StorageError, shorten
from krzem.run import gates
from krzem.run.answers import PoolPlan, Qualified
from krzem.run.attempts import Started, adopt, job_of, raise_fence, start
from krzem.run.clock import DAY
from krzem.run.contract import StepRecord
from krzem.run.gate_settings import Action, describe
from krzem.run.history import History
from krzem.run.ledger import Ledger
from krzem.run.lock import RunLock
from krzem.run.rows import Attempt, Cause, RunRow, State
from krzem.run.run_file import identity
from krzem.run.services import Services
from krzem.run.settings import Pool, RunSettings, Verify
from krzem.run.stored import Good, last_good, note_new
from krzem.run.verdict import Agreement, Verdict
from krzem.run.watch import SAVES_FIRST, Outcome, Watch
from krzem.run.written_back import write_back

_RETRY_SECONDS = (1.0, 60.0)
"""First and longest wait while the disk or a launcher does not do its part."""


class Controller:
    """Runs a run; use :func:`run`."""

    def __init__(self, settings: RunSettings, services: Services, ledger: Ledger) -> None:
        self.settings = settings
        self.services = services
        self.ledger = ledger
        self._troubles = 0
        self._said: set[str] = set()

    def run(self) -> State:
        """Until the run is done, stopped or out of pools."""
        handlers: Mapping[State, Callable[[RunRow], None]] = {
            State.BEFORE: self._before,
            State.QUALIFY: self._qualify,
            State.TRAIN: self._train,
            State.MOVE: self._move,
            State.AFTER: self._after,
        }
        while not (row := self._row()).state.final:
            try:
                if self._stopped_while_idle(row):
                    continue
                handlers[row.state](row)
                self._troubles = 0
            except (StorageError, LaunchError) as error:
                self._wait_out(error)
        return row.state

    def _row(self) -> RunRow:
        row = self.ledger.run()
        if row is None:
            raise AssertionError("a controller begins by making the run")
        return row

    def _wait_out(self, error: Exception) -> None:
        """A full disk or a silent scheduler: nothing is lost by waiting, so wait and try again."""
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
        plans = [self._plan(pool) for pool in self.settings.pools]
        self.ledger.decide("gates", "declared", "as the run file says",
                           describe(self.settings.gates))  # fmt: skip
        self._take_next(plans, "the run begins")

    def _plan(self, pool: Pool, measured: Mapping[str, float] | None = None) -> PoolPlan:
        plan = self.services.plan(
            self.settings,
            pool,
            tokens_left=self._tokens_left(),
            days_left=self._days_left(),
            measured=measured or self._measured(pool),
        )
        for warning in plan.warnings:
            self._say_once(f"pool {pool.name}: {warning}")
        choice = "refused" if plan.refused else "possible"
        reason = plan.refused or plan.sentence
        self.ledger.decide(f"plan of {pool.name}", choice, reason, plan.as_dict())
        return plan

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.services.say(text)

    def _take_next(self, plans: list[PoolPlan], why: str) -> None:
        """Go to the first of the planned pools that may take the run."""
        chosen = next((plan for plan in plans if plan.refused is None), None)
        evidence = [plan.as_dict() for plan in plans]
        if chosen is None:
            refusals = "; ".join(f"{p.pool}: {p.refused}" for p in plans) or "none is left"
            self._fail(f"no pool can take the run ({refusals})", evidence)
            return
        reason = f"{why}: first in order of preference that is not refused"
        with self.ledger.writing():
            self.ledger.decide("pool", chosen.pool, reason, evidence)
            self.ledger.set_state(State.QUALIFY, chosen.pool, f"{why}; next is {chosen.pool}")
        self.services.say(f"{why}; pool {chosen.pool}")

    def _tokens_left(self) -> float:
        good = last_good(self.ledger, deep=False)
        done = good.tokens if good and good.tokens else 0
        return max(float(self.settings.goal.tokens) - done, self.settings.goal.tokens_per_step)

    def _days_left(self) -> float | None:
        left = self.settings.seconds_left(self.ledger.clock.now())
        return None if left is None else left / DAY

    # Qualify --------------------------------------------------------------------------------

    def _qualify(self, row: RunRow) -> None:
        """Measure the pool, plan it anew, ask the witness where the run comes from elsewhere."""
        pool = self.settings.pool(row.pool or "")
        self._leave_nothing_alive()
        found = self._measure(pool)
        if not found.passed:
            self._give_up(pool, "qualification failed: " + "; ".join(found.faults))
            return
        plan = self._plan(pool, found.measured or None)
        if plan.refused:
            self._give_up(pool, plan.refused)
            return
        if not self._agrees(pool):
            return
        self.ledger.set_state(State.TRAIN, pool.name, f"{pool.name}: {found.message}")

    def _measure(self, pool: Pool) -> Qualified:
        if not self.settings.qualify.enabled:
            message = "trusted unmeasured, as the run file says"
            self.ledger.decide(f"qualify {pool.name}", "skipped", message)
            return Qualified(passed=True, message=message)
        self.services.say(f"measuring pool {pool.name}")
        launcher = self.services.launcher(pool.launcher)
        found = self.services.qualify(self.settings, pool, launcher, self._fenced())
        with self.ledger.writing():
            choice = "passed" if found.passed else "failed"
            reason = found.message if found.passed else "; ".join(found.faults)
            self.ledger.decide(f"qualify {pool.name}", choice, reason,
                               {"exclude": found.exclude, **found.evidence})  # fmt: skip
            for name, value in found.measured.items():
                self.ledger.measure(pool.name, name, value, "base unit")
        return found

    def _fenced(self) -> int:
        """A token for a job that is no attempt; nothing older may start or commit any more."""
        token = self.ledger.next_token()
        raise_fence(self.ledger, token)
        return token

    def _measured(self, pool: Pool) -> Mapping[str, float] | None:
        """What an earlier qualification of this pool measured, newest first."""
        found = {m.name: m.value for m in self.ledger.measurements(pool.name) if not m.attempt}
        return found or None

    def _agrees(self, pool: Pool) -> bool:
        """Whether the pool may go on with a checkpoint that another pool made."""
        good = last_good(self.ledger)
        made_by = self._maker(good)
        if good is None or made_by in (None, pool.name) or self.settings.gates.witness is None:
            return True
        self.services.say(f"asking the witness of {good.folder.name} on {pool.name}")
        begun = self.services.clock()
        verdict = self._asked(pool, good)
        message = f"{verdict.message}; this took {self.services.clock() - begun:,.0f} s"
        with self.ledger.writing():
            self.ledger.decide(
                f"witness of {good.folder.name} on {pool.name}", str(verdict.agreement),
                message, {"departs": verdict.departs, **verdict.evidence},
            )  # fmt: skip
            self.ledger.event(f"witness {verdict.agreement}", message, pool=pool.name)
        self.services.say(f"witness {verdict.agreement} on {pool.name}: {message}")
        gate = self.settings.gates.witness
        if verdict.agreement is not Agreement.FAILED or gate.action is Action.WARN:
            return True
        if gate.action is Action.STOP:
            self.ledger.set_state(State.STOPPED, pool.name, f"witness failed: {verdict.message}")
        else:
            self._give_up(pool, f"witness failed: {verdict.message}")
        return False

    def _asked(self, pool: Pool, good: Good) -> Verdict:
        if not self.settings.witness.enabled:
            message = f"{good.folder.name} is not compared, as the run file says"
            return Verdict(agreement=Agreement.NOT_CHECKED, message=message)
        return self.services.witness(
            self.settings, pool, self.services.launcher(pool.launcher), self._fenced(),
            checkpoint=good.folder, layout=self._layout(pool),
        )  # fmt: skip

    def _record_witness(self, pool: Pool) -> None:
        """Before the run leaves ``pool``: what its last checkpoint must reproduce elsewhere."""
        good = last_good(self.ledger)
        asked = self.settings.witness.enabled and self.settings.gates.witness is not None
        if good is None or not asked or self._maker(good) != pool.name:
            return
        self.services.say(f"recording the witness of {good.folder.name} on {pool.name}")
        pools, begun = (pool, *self.settings.after(pool.name)), self.services.clock()
        told = self.services.record_witness(
            self.settings, pool, self.services.launcher(pool.launcher), self._fenced(),
            checkpoint=good.folder, layouts=[self._layout(p) for p in pools],
        )  # fmt: skip
        if told is not None:
            choice = "recorded" if told.recorded else "not recorded"
            message = f"{told.message}; this took {self.services.clock() - begun:,.0f} s"
            self.ledger.decide(f"witness of {good.folder.name} on {pool.name}", choice, message)
            self.services.say(f"witness {choice} on {pool.name}: {message}")

    def _layout(self, pool: Pool) -> str | None:
        """As the run file states it, or as planned last; None: the trainer's own choice."""
        layout = self._newest_plan(pool.name).get("layout")
        stated = layout if pool.layout == "auto" else pool.layout
        return None if stated is None else str(stated)

    def _maker(self, good: Good | None) -> str | None:
        """The pool whose attempt committed a checkpoint."""
        rows = {c.folder: c.attempt for c in self.ledger.checkpoints()}
        attempt = rows.get(good.folder.name) if good else None
        pools = {a.id: a.pool for a in self.ledger.attempts()}
        return None if attempt is None else pools.get(attempt)

    def _give_up(self, pool: Pool, why: str) -> None:
        """Leave a pool; the next one is chosen in the state MOVE."""
        with self.ledger.writing():
            self.ledger.decide(f"pool {pool.name}", "given up", why)
            self.ledger.set_state(State.MOVE, pool.name, f"{pool.name} is given up: {why}")
        self.services.say(f"pool {pool.name} is given up: {why}")

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
        watch = Watch(self.settings, self.services, self.ledger, started, self._expected(pool))
        outcome = watch.until_end()
        self._close(pool, started, outcome, watch)

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
        self._leave_nothing_alive()
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
            layout=self._layout(pool),
            exclude=self._excluded(pool),
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

    def _leave_nothing_alive(self) -> None:
        """End whatever an earlier attempt may have left behind, before anything new is started."""
        attempts = self.ledger.attempts()
        if attempts:
            last = attempts[-1]
            pool = next((p for p in self.settings.pools if p.name == last.pool), None)
            if pool is not None:
                job = job_of(self.settings, pool, last)
                self.services.launcher(pool.launcher).kill(job, last.handle)

    def _newest_plan(self, pool: str) -> Mapping[str, object]:
        found = [d.evidence for d in self.ledger.decisions() if d.subject == f"plan of {pool}"]
        return found[-1] if found else {}

    def _expected(self, pool: Pool) -> float | None:
        """Tokens/s of the whole pool that the throughput gate compares with."""
        if pool.tokens_per_s is not None:
            return pool.tokens_per_s
        speed = self._newest_plan(pool.name).get("tokens_per_s")
        return float(speed["mid"]) if isinstance(speed, Mapping) else None

    def _excluded(self, pool: Pool) -> tuple[str, ...]:
        hosts: list[str] = []
        for decision in self.ledger.decisions():
            if decision.subject in (f"qualify {pool.name}", f"exclude on {pool.name}"):
                hosts += (decision.evidence or {}).get("exclude", [])
        return tuple(dict.fromkeys(hosts))

    def _close(self, pool: Pool, started: Started, outcome: Outcome, watch: Watch) -> None:
        """Write down how an attempt ended, and where the run goes from here, in one transaction."""
        attempt = started.attempt
        with self.ledger.writing():
            self.ledger.attempt_ended(attempt.id, outcome.cause, outcome.detail, outcome.exit_code)
            ended = replace(attempt, cause=outcome.cause)
            kind = "fault" if ended.is_fault or outcome.cause is Cause.STORAGE else "attempt ended"
            self.ledger.event(kind, f"{outcome.cause}: {outcome.detail}", pool=pool.name,
                              attempt=attempt.id, evidence={"log": watch.log_tail()})  # fmt: skip
            self._exclude_slow(pool, attempt)
            self._go_on(pool, attempt, outcome)
        self.services.say(f"attempt {attempt.id} on {pool.name}: {outcome.cause}, {outcome.detail}")

    def _go_on(self, pool: Pool, attempt: Attempt, outcome: Outcome) -> None:
        if outcome.cause is Cause.DONE:
            self.ledger.set_state(State.AFTER, pool.name, "every token is trained")
            return
        if self._row().stop_requested:
            self._stop(pool.name)
            return
        fired = [f for f in self.ledger.fired() if f.attempt == attempt.id]
        if any(f.action == Action.STOP for f in fired):
            self.ledger.set_state(State.STOPPED, pool.name, f"gate {fired[-1].gate} says stop")
        elif moving := [f for f in fired if f.action == Action.MOVE]:
            self._leave(pool, moving[-1].gate, moving[-1].message)

    def _stop(self, pool: str | None) -> None:
        with self.ledger.writing():
            self.ledger.set_state(State.STOPPED, pool, "stopped on request")
            self.ledger.request_stop(None)

    def _leave(self, pool: Pool, gate: str, message: str) -> None:
        """A gate says move: to the next pool, or, where there is none, what is best then."""
        if self.settings.after(pool.name) or gate not in SAVES_FIRST:
            self._give_up(pool, f"gate {gate}: {message}")
            return
        reason = f"gate {gate} says move, but no pool is left: the run goes on here"
        self.ledger.decide(f"pool {pool.name}", "stays", reason)
        self.services.say(reason)

    def _judge_faults(self, pool: Pool) -> bool:
        """Gates on the faults of a pool; whether one of them moved the run."""
        attempts = self.ledger.attempts(pool.name)
        if not attempts or not attempts[-1].is_fault:
            return False
        last = attempts[-1]
        if any(f.attempt == last.id and f.gate in ("restarts", "nonfinite")
               for f in self.ledger.fired()):  # fmt: skip
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
                self.ledger.set_state(State.STOPPED, pool.name, f"gate {finding.gate} says stop")
        return self._row().state is not State.TRAIN

    def _fault_finding(self, attempts: list[Attempt]) -> gates.Finding | None:
        declared, now = self.settings.gates, self.ledger.clock.now()
        found = None
        if declared.nonfinite:
            found = gates.nonfinite(declared.nonfinite, attempts, self._records(attempts[-1]))
        if found is None and declared.restarts:
            found = gates.restarts(declared.restarts, attempts, now)
        return found

    def _records(self, attempt: Attempt) -> list[StepRecord]:
        return History.of(self.settings.folder).of_attempt(attempt.id)

    def _exclude_slow(self, pool: Pool, attempt: Attempt) -> None:
        """Leave out the host of a straggler where the launcher can start without it."""
        slow = [f for f in self.ledger.fired() if f.attempt == attempt.id and f.gate == "straggler"]
        if not slow or slow[-1].action != Action.RESTART:
            return
        host = max(slow[-1].evidence, key=lambda row: row["own_seconds"])["host"]
        if host and self.services.launcher(pool.launcher).can_exclude:
            self.ledger.decide(f"exclude on {pool.name}", host, slow[-1].message,
                               {"exclude": [host]})  # fmt: skip

    # Move and after -------------------------------------------------------------------------

    def _move(self, row: RunRow) -> None:
        """Choose the next pool; its qualification asks the witness."""
        self._leave_nothing_alive()
        pools = self.settings.after(row.pool or "")
        if pools:
            self._record_witness(self.settings.pool(row.pool or ""))
        else:
            self._fail(f"{row.pool} was given up and no pool is left", None)
            return
        self._take_next([self._plan(pool) for pool in pools], f"moving on from {row.pool}")

    def _write_back(self) -> None:
        write_back(self.settings)

    def _report(self) -> None:
        self.services.report(self.settings.folder)

    def _fail(self, why: str, evidence: object) -> None:
        with self.ledger.writing():
            self.ledger.decide("pool", "none", why, evidence)
            self.ledger.set_state(State.FAILED, None, why)
        self.services.say(why)

    def _after(self, row: RunRow) -> None:
        """Write report and measurements; what cannot be written does not undo the run."""
        for write in (self._write_back, self._report):
            try:
                write()
            except Exception as error:  # every token is trained: nothing here may undo that
                self.ledger.event("report failed", f"{type(error).__name__}: {error}")
                self.services.say(f"the report could not be written: {error}")
        self.ledger.set_state(State.DONE, row.pool, "done")


def run(settings: RunSettings, services: Services | None = None) -> State:
    """Run, or go on with, the run that ``settings`` describe; how it ended.

    Raises RunError where another controller is at work on it, or where the folder holds another
    run; SupersededError where another controller takes over.
    """
    services = services or Services()
    with RunLock(settings.folder):
        ledger = Ledger(settings.folder)
        try:
            _check_same_run(settings, ledger.run())
            row = ledger.begin(settings.name, identity(settings), settings.sha256)
            _take_up(ledger, row)
            state = Controller(settings, services, ledger).run()
            ledger.end()
            return state
        finally:
            ledger.close()


def _check_same_run(settings: RunSettings, row: RunRow | None) -> None:
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


def _take_up(ledger: Ledger, row: RunRow) -> None:
    """Begin, or go on where an earlier controller left off."""
    raise_fence(ledger, row.token)
    if row.state is State.STOPPED:
        trained = row.pool is not None and bool(ledger.attempts(row.pool))
        begun = State.QUALIFY if row.pool else State.BEFORE
        ledger.set_state(State.TRAIN if trained else begun, row.pool, "going on after a stop")
    elif row.state is State.FAILED:
        ledger.set_state(State.BEFORE, None, "trying every pool again")
