"""Watching one attempt until it ends: steps, heartbeats, gates, stop requests."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from krzem.run import gates
from krzem.run.attempts import Started
from krzem.run.contract import (
    EXIT_CHECKPOINT,
    EXIT_DONE,
    EXIT_FENCED,
    EXIT_NONFINITE,
    EXIT_STOPPED,
    EXIT_STORAGE,
    StepRecord,
    read_heartbeats,
)
from krzem.run.gate_settings import Action
from krzem.run.gates import Finding
from krzem.run.history import History, MetricsTail
from krzem.run.launch.job import OUTPUT, Look, Phase
from krzem.run.ledger import Ledger
from krzem.run.pulse import Pulse
from krzem.run.rows import Cause
from krzem.run.services import Services, Snapshot
from krzem.run.settings import Pool, RunSettings
from krzem.run.stored import note_new, set_aside

_LOG_TAIL = 4000
_JUDGED_AT_ONCE = 200
"""An adopted attempt may have done many steps unseen; its newest tell what is to be known."""
SAVES_FIRST = frozenset({"throughput", "deadline", "straggler", "memory", "restarts"})
"""Gates that do not put the steps themselves in doubt: the trainer may save before it stops."""
_CODES = {
    EXIT_CHECKPOINT: Cause.CHECKPOINT,
    EXIT_STORAGE: Cause.STORAGE,
    EXIT_NONFINITE: Cause.NONFINITE,
    EXIT_FENCED: Cause.FENCED,
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
        self._tail = MetricsTail(settings.folder)
        self._history = History()
        self._pulse = Pulse(settings.gates, services.clock)
        self._begun = services.clock()
        self._stopping: tuple[str, float] | None = None
        self._noted_step = -1
        self._memory: int | None = None
        self._phase = Phase.PENDING
        self._warned = {
            f.gate for f in ledger.fired() if f.attempt == started.attempt.id
        }  # fmt: skip

    def until_end(self) -> Outcome:
        """Look again and again until nothing of the attempt runs any more."""
        self._go_on_stopping()
        while True:
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
            self._pulse.waiting()
        return (
            self._nonfinite(new)
            or self._too_large(look)
            or self._stop_requests()
            or self._overdue()
            or self._act(self._findings(look, len(new)))
        )

    def _take_steps(self) -> list[StepRecord]:
        """New records of this attempt, noted in the ledger."""
        new = self._tail.read()
        self._history.add(new)
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
        newest = self._history.of_attempt(attempt)
        usual = statistics.median(r.seconds for r in newest[-50:]) if newest else None
        found: list[Finding] = []
        if look.phase is not Phase.PENDING:
            limit = self._pool.limits.memory_bytes
            found += self._pulse.look(
                read_heartbeats(self._settings.folder, attempt),
                step_seconds=usual,
                memory=self._memory,
                memory_limit=limit,
            )
        if new:
            kept = self._history.kept
            asked = min(new, _JUDGED_AT_ONCE)
            found += gates.judge_steps(self._settings.gates, kept, newest, asked, self._expected)
            found += self._late(newest)
        return found

    def _late(self, newest: Sequence[StepRecord]) -> list[Finding]:
        gate = self._settings.gates.deadline
        if gate is None:
            return []
        tokens = self._settings.goal.tokens - self._history.tokens
        seconds = self._settings.seconds_left(self._ledger.clock.now())
        finding = gates.deadline(gate, newest, tokens, seconds)
        return [finding] if finding else []

    def _last_heartbeats(self) -> None:
        """A slow rank is named also where no look fell between its slow steps and the end."""
        beats = read_heartbeats(self._settings.folder, self._started.attempt.id)
        finding = self._pulse.straggling(beats)
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
        limit = self._services.clock() + self._settings.trainer.stop_seconds
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
        self._phase = look.phase
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

    def log_tail(self) -> str:
        """The end of what the attempt printed."""
        try:
            with (self._started.job.folder / OUTPUT).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _LOG_TAIL))
                return file.read().decode(errors="replace")
        except OSError:
            return ""


def _with_first_step(started: Started, at: float) -> Started:
    return replace(started, attempt=replace(started.attempt, first_step_at=at))
