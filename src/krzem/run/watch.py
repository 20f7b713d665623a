"""Watching one attempt until it ends: steps, heartbeats, gates, stop requests."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from krzem.run import gates, limits
from krzem.run.attempts import Started
from krzem.run.clock import duration
from krzem.run.contract import (
    EXIT_CHECKPOINT,
    EXIT_DONE,
    EXIT_FENCED,
    EXIT_NONFINITE,
    EXIT_SITE,
    EXIT_STOPPED,
    EXIT_STORAGE,
    METRICS,
    StepRecord,
    read_heartbeats,
)
from krzem.run.gate_settings import Action
from krzem.run.gates import Finding
from krzem.run.health import HeartbeatJudge
from krzem.run.history import History, Metrics
from krzem.run.launch.job import Look, Phase
from krzem.run.ledger import Ledger
from krzem.run.pool_settings import SITE, Pool
from krzem.run.rows import Cause
from krzem.run.services import Services, Snapshot
from krzem.run.settings import RunSettings
from krzem.run.stored import note_new, set_aside

_TELL_AGAIN = 60.0
"""Seconds until a wait is told of again; then after as long as it has lasted."""
_JUDGED_AT_ONCE = 200
"""An adopted attempt may have done many steps unseen; its newest tell what is to be known."""
SAVES_FIRST = frozenset({"throughput", "deadline", "budget", "straggler", "memory", "restarts"})
"""Gates that do not put the steps themselves in doubt: the trainer may save before it stops."""
_CODES = {
    EXIT_CHECKPOINT: Cause.CHECKPOINT,
    EXIT_STORAGE: Cause.STORAGE,
    EXIT_NONFINITE: Cause.NONFINITE,
    EXIT_FENCED: Cause.FENCED,
    EXIT_SITE: Cause.SITE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended."""

    cause: Cause
    detail: str
    exit_code: int | None = None


class Watch:
    """One attempt under the controller's eyes."""

    def __init__(
        self,
        settings: RunSettings,
        services: Services,
        ledger: Ledger,
        started: Started,
        expected: float | None,
    ) -> None:
        self._settings = settings
        self._services = services
        self._ledger = ledger
        self._started = started
        self._pool: Pool = settings.pool(started.attempt.pool)
        self._expected = expected
        self._metrics = Metrics(settings.folder)
        self._metrics.newest_attempt = started.attempt.id
        self._told_bad = 0
        self._heartbeats = HeartbeatJudge(settings.gates, services.clock)
        self._begun = services.clock()
        self._stopping: tuple[str, float] | None = None
        self._noted_step = -1
        self._memory: int | None = None
        self._phase = Phase.PENDING
        self._waits_since = services.clock()
        self._told_waiting = ("", 0.0)
        self._warned = {
            f.gate for f in ledger.fired() if f.attempt == started.attempt.id
        }  # fmt: skip

    @property
    def pool_name(self) -> str:
        """Where the attempt runs."""
        return self._pool.name

    def settle(self, settings: RunSettings) -> None:
        """Go on under other settings."""
        self._settings = settings
        self._pool = settings.pool(self._pool.name)
        self._heartbeats.settle(settings.gates)

    def stop_for(self, why: str) -> None:
        """Have the trainer save and stop, if nobody has asked yet."""
        if self._stopping is None:
            self._ask_to_stop(why)

    def until_end(self, each_look: Callable[[Watch], None]) -> Outcome:
        """Look again and again until nothing of the attempt runs any more."""
        self._go_on_stopping()
        while True:
            each_look(self)
            outcome = self._look()
            if outcome is not None:
                self._started.launcher.kill(self._started.job, self._started.handle)
                self._take_steps()
                note_new(self._ledger, self._started.attempt.id)
                self._last_heartbeats()
                return outcome
            self._services.sleep(self._settings.recovery.look_every)

    def _look(self) -> Outcome | None:
        """One look; the outcome if this was the last one."""
        look = self._started.launcher.look(self._started.job, self._started.handle)
        new = self._take_steps()
        note_new(self._ledger, self._started.attempt.id)
        self._note_phase(look)
        self._tell(look)
        if look.phase is Phase.ENDED:
            return self._ended(look)
        if look.phase is Phase.GONE:
            return Outcome(cause=Cause.LOST, detail=look.detail)
        if look.phase is Phase.PENDING:
            self._heartbeats.waiting()
            if (outcome := self._waiting(look)) is not None:
                return outcome
        return (
            self._nonfinite(new)
            or self._too_large(look)
            or self._stop_requests()
            or self._overdue()
            or self._act(self._findings(look, len(new)))
        )

    @property
    def _history(self) -> History:
        return self._metrics.history

    def _tell_bad_lines(self) -> None:
        """Of lines that are no steps the first is told, then each tenfold number of them."""
        bad = self._metrics.bad
        if bad < max(1, 10 * self._told_bad):
            return
        self._told_bad = bad
        text = f"{bad:,} lines of {METRICS} are no steps; {self._metrics.quotes[-1]}"
        self._ledger.event("bad lines", text, attempt=self._started.attempt.id)
        self._services.say(text)

    def _take_steps(self) -> list[StepRecord]:
        """New records of this attempt, noted in the ledger."""
        new = self._metrics.read()
        self._tell_bad_lines()
        mine = [r for r in new if r.attempt == self._started.attempt.id]
        step = self._history.step
        if mine and step != self._noted_step:
            first = self._started.attempt.first_step_at
            known = self._noted_step >= 0 or first is not None
            now = self._ledger.clock.now()
            self._ledger.attempt_steps(
                self._started.attempt.id, step, first if known else now - mine[-1].seconds
            )
            if not known:
                self._started = _with_first_step(self._started, now)
            self._noted_step = step
        return mine

    def _findings(self, look: Look, new: int) -> list[Finding]:
        attempt = self._started.attempt.id
        newest = self._history.of_attempt(attempt, gates.speed_steps(self._settings.gates))
        usual = statistics.median(r.seconds for r in newest[-50:]) if newest else None
        found: list[Finding] = self._late(newest)
        found += self._over_budget()
        if look.phase is not Phase.PENDING:
            limit = self._pool.limits.memory_bytes
            found += self._heartbeats.look(
                read_heartbeats(self._settings.folder, attempt),
                step_seconds=usual,
                memory=self._memory,
                memory_limit=limit,
            )
        if new:
            kept = self._history.kept
            asked = min(new, _JUDGED_AT_ONCE)
            found += gates.judge_steps(self._settings.gates, kept, newest, asked, self._expected)
        return found

    def _over_budget(self) -> list[Finding]:
        gate = self._settings.gates.budget
        now = self._ledger.clock.now()
        finding = gate and limits.over_budget(gate, self._settings, self._ledger, now)
        return [finding] if finding else []

    def _late(self, newest: Sequence[StepRecord]) -> list[Finding]:
        gate = self._settings.gates.deadline
        if gate is None:
            return []
        tokens = self._settings.goal.tokens - self._history.tokens
        seconds = self._settings.seconds_left(self._ledger.clock.now())
        finding = gates.deadline(gate, newest, tokens, seconds)
        if not newest:
            finding = gates.idle_deadline(gate, self._expected, tokens, seconds)
        return [finding] if finding else []

    def _waiting(self, look: Look) -> Outcome | None:
        """A job in a queue: its state and reason are told, and it does not wait for ever."""
        now, limit = self._services.clock(), self._pool.limits.queue_seconds
        waited = now - self._waits_since
        others = self._settings.after(self._pool.name)
        if limit is not None and waited > limit and others and self._stopping is None:
            detail = f"waited {duration(waited)} in the queue of {self._pool.name}: {look.detail}"
            return Outcome(cause=Cause.QUEUED, detail=detail)
        told, again = self._told_waiting
        if look.detail != told or now >= again:
            self._told_waiting = (look.detail, now + max(_TELL_AGAIN, waited))
            hint = "" if limit is not None or not others else (
                f"; limits.queue would move on to {others[0].name}"
            )  # fmt: skip
            text = f"{self._pool.name} waits in the queue: {look.detail or 'no reason is given'}"
            if look.detail != told:
                self._ledger.event("queue", text, pool=self._pool.name,
                                   attempt=self._started.attempt.id)  # fmt: skip
            self._services.say(f"{text} (for {duration(waited)}{hint})")
        return None

    def _last_heartbeats(self) -> None:
        """A slow rank is named also where no look fell between its slow steps and the end."""
        beats = read_heartbeats(self._settings.folder, self._started.attempt.id)
        finding = self._heartbeats.straggling(beats)
        if finding is not None and self._stopping is None and finding.gate not in self._warned:
            self._keep(finding)

    def _act(self, found: Sequence[Finding]) -> Outcome | None:
        """Keep what fired, and do what the gravest of them says."""
        for finding in found:
            if finding.gate in self._warned and finding.gate != "stall":
                continue
            self._warned.add(finding.gate)
            if self._stopping is None or finding.gate == "stall":
                self._keep(finding)
                outcome = self._obey(finding)
                if outcome is not None:
                    return outcome
        return None

    def _keep(self, finding: Finding) -> None:
        attempt = self._started.attempt
        with self._ledger.writing():
            self._ledger.gate(attempt, finding.gate, finding.action, finding.message,
                              finding.evidence)  # fmt: skip
            self._ledger.event(f"gate {finding.gate}", f"{finding.message} ({finding.action})",
                               pool=attempt.pool, attempt=attempt.id)  # fmt: skip
        self._services.say(f"gate {finding.gate}: {finding.message}; {finding.action}")

    def _obey(self, finding: Finding) -> Outcome | None:
        if finding.action is Action.WARN:
            return None
        if finding.gate == "stall":
            return Outcome(cause=Cause.STALL, detail=finding.message)
        if finding.gate in SAVES_FIRST:
            if finding.action is Action.MOVE and not self._settings.after(self._pool.name):
                reason = f"gate {finding.gate} says move, but no pool is left: it goes on here"
                self._ledger.decide(f"pool {self._pool.name}", "stays", reason)
                self._services.say(reason)
                return None
            self._ask_to_stop(f"gate {finding.gate}")
            return None
        if finding.since_step is not None:
            set_aside(self._ledger, finding.since_step, f"gate {finding.gate}: {finding.message}")
        return Outcome(cause=Cause.GATE, detail=f"{finding.gate}: {finding.message}")

    def _stop_requests(self) -> Outcome | None:
        run = self._ledger.run()
        asked = run and run.stop_requested
        if asked == "now":
            return Outcome(cause=Cause.ABORTED, detail="stopped on request, without saving")
        if asked and self._stopping is None:
            self._ask_to_stop("request")
        limit = self._pool.limits.time_seconds
        local = self._started.launcher.name == "local"
        old = limit is not None and self._services.clock() - self._begun > limit
        if local and old and self._stopping is None:
            self._ask_to_stop("time limit of the pool")
        return None

    def _ask_to_stop(self, why: str) -> None:
        self._ledger.event("stop asked", why, attempt=self._started.attempt.id)
        self._started.launcher.ask_to_stop(self._started.job, self._started.handle)
        away = self._pool.site.limit_seconds if self._pool.launcher == SITE else 0.0
        limit = self._services.clock() + self._settings.trainer.stop_seconds + away
        self._stopping = (why, limit)

    def _go_on_stopping(self) -> None:
        """A gate that fired under an earlier controller is still to be obeyed."""
        attempt = self._started.attempt.id
        last = not self._settings.after(self._pool.name)
        for fired in self._ledger.fired():
            stays = fired.action == Action.WARN or (fired.action == Action.MOVE and last)
            if fired.attempt == attempt and not stays:
                self._ask_to_stop(f"gate {fired.gate}")
                return

    def _overdue(self) -> Outcome | None:
        if self._stopping is None or self._services.clock() <= self._stopping[1]:
            return None
        seconds = self._settings.trainer.stop_seconds
        detail = f"did not save and stop within {seconds:,.0f} s ({self._stopping[0]}): ended"
        return Outcome(cause=Cause.ABORTED, detail=detail)

    def _nonfinite(self, new: Sequence[StepRecord]) -> Outcome | None:
        bad = next((r for r in new if not r.finite), None)
        if bad is None:
            return None
        set_aside(self._ledger, bad.step, f"step {bad.step} is not finite")
        detail = f"step {bad.step}: loss {bad.loss}, gradient norm {bad.grad_norm}"
        return Outcome(cause=Cause.NONFINITE, detail=detail)

    def _too_large(self, look: Look) -> Outcome | None:
        """The pool's memory limit is kept, as a device's memory would keep it."""
        limit = self._pool.limits.memory_bytes
        if limit is None or look.phase is Phase.PENDING:
            return None
        self._memory = self._started.launcher.memory_bytes(self._started.job)
        if self._memory is None or self._memory <= limit:
            return None
        used = f"{self._memory / 2**30:.2f} GiB in use"
        return Outcome(cause=Cause.MEMORY, detail=f"{used}, the limit is {limit / 2**30:.2f}")

    def _ended(self, look: Look) -> Outcome:
        code = look.exit_code or 0
        bad = self._nonfinite(self._history.of_attempt(self._started.attempt.id)[-1:])
        if bad is not None:
            return Outcome(cause=bad.cause, detail=bad.detail, exit_code=code)
        return Outcome(cause=self._cause(code, look), detail=self._detail(code, look),
                       exit_code=code)  # fmt: skip

    def _cause(self, code: int, look: Look) -> Cause:
        if code == EXIT_DONE:
            done = self._history.tokens >= self._settings.goal.tokens
            return Cause.DONE if done else Cause.CRASH
        if code == EXIT_STOPPED:
            preempted = look.detail == "preempted" or self._stopping is None
            return Cause.PREEMPTED if preempted else Cause.STOPPED
        killed = code < 0 or code > 128
        return _CODES.get(code, Cause.KILLED if killed else Cause.CRASH)

    def _detail(self, code: int, look: Look) -> str:
        if code == EXIT_DONE and self._history.tokens < self._settings.goal.tokens:
            return (
                f"the trainer ended without an error after {self._history.tokens:,} of "
                f"{self._settings.goal.tokens:,.0f} tokens"
            )
        if code == EXIT_STOPPED:
            why = look.detail or (self._stopping[0] if self._stopping else "asked from outside")
            return f"saved and stopped: {why}"
        return f"exit code {code}" + (f", {look.detail}" if look.detail else "")

    def _note_phase(self, look: Look) -> None:
        """A change that Slurm made: queued, running, queued again."""
        if look.phase is self._phase or look.phase in (Phase.ENDED, Phase.GONE):
            return
        kind = "requeued" if look.phase is Phase.PENDING else str(look.phase)
        self._phase, self._waits_since = look.phase, self._services.clock()
        attempt = self._started.attempt
        self._ledger.event(kind, look.detail or f"attempt {attempt.id} is {look.phase}",
                           pool=attempt.pool, attempt=attempt.id)  # fmt: skip

    def _tell(self, look: Look) -> None:
        detail = look.detail or (f"stopping: {self._stopping[0]}" if self._stopping else "")
        self._services.on_look(
            Snapshot(
                attempt=self._started.attempt,
                phase=str(look.phase),
                step=self._history.step,
                detail=detail,
            )
        )


def _with_first_step(started: Started, at: float) -> Started:
    return replace(started, attempt=replace(started.attempt, first_step_at=at))
