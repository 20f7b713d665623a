"""The pools of a run: planned, measured, asked by the witness, given up; and what ends a run.

What is done here is asked for by the states of the controller (:mod:`krzem.run.controller`).
"""

from __future__ import annotations

from collections.abc import Mapping

from krzem.run import limits
from krzem.run.attempts import job_prefix, raise_fence
from krzem.run.clock import DAY
from krzem.run.courier import checks_told
from krzem.run.gate_settings import Action
from krzem.run.ledger import Ledger
from krzem.run.pool_settings import SITE, Pool
from krzem.run.processes import end_all
from krzem.run.rows import Attempt, RunRow, State
from krzem.run.services import PoolPlan, Qualified, Services
from krzem.run.settings import RunSettings
from krzem.run.stored import Good, arrived, last_good
from krzem.run.verdict import Agreement, Verdict


class Pools:
    """What a controller knows and asks of the pools of its run."""

    def __init__(self, settings: RunSettings, services: Services, ledger: Ledger) -> None:
        self.settings = settings
        self.services = services
        self.ledger = ledger
        self._said: set[str] = set()

    def row(self) -> RunRow:
        """Where the run is."""
        row = self.ledger.run()
        if row is None:
            raise AssertionError("a controller begins by making the run")
        return row

    def plan(self, pool: Pool, measured: Mapping[str, float] | None = None) -> PoolPlan:
        """What is expected of ``pool`` for the tokens that are left, kept in the ledger."""
        plan = self.services.plan(
            self.settings,
            pool,
            tokens_left=self.tokens_left(),
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

    def take_next(self, plans: list[PoolPlan], why: str) -> None:
        """Go to the first of the planned pools that may take the run."""
        chosen = next((plan for plan in plans if plan.refused is None), None)
        evidence = [plan.as_dict() for plan in plans]
        if chosen is None:
            refusals = "; ".join(f"{p.pool}: {p.refused}" for p in plans) or "none is left"
            self.fail(f"no pool can take the run ({refusals}){self.given_up()}", evidence)
            return
        reason = f"{why}: first in order of preference that is not refused"
        with self.ledger.writing():
            self.ledger.decide("pool", chosen.pool, reason, evidence)
            self.ledger.set_state(State.QUALIFY, chosen.pool, f"{why}; next is {chosen.pool}")
        self.services.say(f"{why}; pool {chosen.pool}")

    def tokens_left(self) -> float:
        """To be trained from the last good checkpoint on; at least those of one step."""
        good = last_good(self.ledger, deep=False)
        done = good.tokens if good and good.tokens else 0
        return max(float(self.settings.goal.tokens) - done, self.settings.goal.tokens_per_step)

    def _days_left(self) -> float | None:
        left = self.settings.seconds_left(self.ledger.clock.now())
        return None if left is None else left / DAY

    def measure(self, pool: Pool) -> Qualified:
        """What a probe of ``pool`` shows, kept in the ledger."""
        if pool.launcher == SITE:
            message = "it is measured at its own site, by the controller there"
            self.ledger.decide(f"qualify {pool.name}", "skipped", message)
            return Qualified(passed=True, message=message)
        if not self.settings.qualify.enabled:
            message = "trusted unmeasured, as the run file says"
            self.ledger.decide(f"qualify {pool.name}", "skipped", message)
            return Qualified(passed=True, message=message)
        self.services.say(f"measuring pool {pool.name}")
        launcher = self.services.launcher(pool)
        found = self.services.qualify(self.settings, pool, launcher, self.fenced())
        with self.ledger.writing():
            choice = "passed" if found.passed else "failed"
            reason = found.message if found.passed else "; ".join(found.faults)
            self.ledger.decide(f"qualify {pool.name}", choice, reason,
                               {"exclude": found.exclude, **found.evidence})  # fmt: skip
            for name, value in found.measured.items():
                self.ledger.measure(pool.name, name, value, "base unit")
        return found

    def fenced(self) -> int:
        """A token for a job that is no attempt; nothing older may start or commit any more."""
        token = self.ledger.next_token()
        raise_fence(self.ledger, token)
        return token

    def _measured(self, pool: Pool) -> Mapping[str, float] | None:
        """What an earlier qualification of this pool measured, newest first."""
        found = {m.name: m.value for m in self.ledger.measurements(pool.name) if not m.attempt}
        return found or None

    def agrees(self, pool: Pool) -> bool:
        """Whether the pool may go on with a checkpoint that another pool made."""
        if pool.launcher == SITE:
            return True  # the controller there asks, and tells
        good = last_good(self.ledger)
        made_by = self._maker(good)
        came = arrived(self.settings.folder)
        if good is not None and came is not None and came[0] == good.folder.name:
            made_by = f"{came[1]}, elsewhere"
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
        return verdict.agreement is Agreement.PASSED or self._let_through(pool, verdict)

    def note_checks_elsewhere(self, pool: Pool) -> None:
        """What the controller at a pool's site decided about the checkpoint that it was sent."""
        for subject, choice, reason in checks_told(self.settings.folder, pool.name):
            self.ledger.decide(subject, choice, f"at the site of {pool.name}: {reason}",
                               {"site": pool.name})  # fmt: skip

    def _let_through(self, pool: Pool, verdict: Verdict) -> bool:
        """What the gate says of a checkpoint that failed on ``pool``, or could not be compared."""
        gate = self.settings.gates.witness
        failed = verdict.agreement is Agreement.FAILED
        action = Action.WARN if gate is None else gate.action if failed else gate.not_checked
        if action is Action.WARN:
            return True
        why = f"witness {verdict.agreement}: {verdict.message}"
        if action is Action.STOP:
            way = "action" if failed else "not_checked"
            ask = f'to go on unproven set gates.witness.{way} = "warn" and start the run again'
            self.ledger.set_state(State.STOPPED, pool.name, f"{why}; {ask}")
            self.services.say(f"stopped: {ask}")
        else:
            self.give_up(pool, why)
        return False

    def _asked(self, pool: Pool, good: Good) -> Verdict:
        if not self.settings.witness.enabled:
            message = f"{good.folder.name} is not compared, as the run file says"
            return Verdict(agreement=Agreement.NOT_CHECKED, message=message)
        return self.services.witness(
            self.settings, pool, self.services.launcher(pool), self.fenced(),
            checkpoint=good.folder, layout=self.layout(pool),
        )  # fmt: skip

    def record_witness(self, pool: Pool) -> None:
        """Before the run leaves ``pool``: what its last checkpoint must reproduce elsewhere."""
        good = last_good(self.ledger)
        asked = self.settings.witness.enabled and self.settings.gates.witness is not None
        if good is None or not asked or self._maker(good) != pool.name:
            return
        self.services.say(f"recording the witness of {good.folder.name} on {pool.name}")
        pools, begun = (pool, *self.settings.after(pool.name)), self.services.clock()
        told = self.services.record_witness(
            self.settings, pool, self.services.launcher(pool), self.fenced(),
            checkpoint=good.folder, layouts=[self.layout(p) for p in pools],
        )  # fmt: skip
        if told is not None:
            choice = "recorded" if told.recorded else "not recorded"
            message = f"{told.message}; this took {self.services.clock() - begun:,.0f} s"
            self.ledger.decide(f"witness of {good.folder.name} on {pool.name}", choice, message)
            self.services.say(f"witness {choice} on {pool.name}: {message}")

    def layout(self, pool: Pool) -> str | None:
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

    def give_up(self, pool: Pool, why: str) -> None:
        """Leave a pool; the next one is chosen in the state MOVE."""
        with self.ledger.writing():
            self.ledger.decide(f"pool {pool.name}", "given up", why)
            self.ledger.set_state(State.MOVE, pool.name, f"{pool.name} is given up: {why}")
        self.services.say(f"pool {pool.name} is given up: {why}")

    def leave_nothing_alive(self) -> None:
        """End whatever earlier attempts may have left behind, before anything new is started.

        Every launcher that the run has used is asked for every job of the run, not for the last.
        """
        used = {a.launcher for a in self.ledger.attempts()}
        here = (self.row().pool,)
        pools = {
            (p.launcher, p.name if p.launcher == SITE else ""): p
            for p in self.settings.pools
            if p.launcher in used or p.name in here
        }
        prefix = job_prefix(self.settings.folder)
        end_all(self.settings.folder)
        for pool in pools.values():
            self.services.launcher(pool).end_run(self.settings.folder, prefix)

    def _newest_plan(self, pool: str) -> Mapping[str, object]:
        found = [d.evidence for d in self.ledger.decisions() if d.subject == f"plan of {pool}"]
        return found[-1] if found else {}

    def expected(self, pool: Pool) -> float | None:
        """Tokens/s of the whole pool that the throughput gate compares with."""
        if pool.tokens_per_s is not None:
            return pool.tokens_per_s
        speed = self._newest_plan(pool.name).get("tokens_per_s")
        return float(speed["mid"]) if isinstance(speed, Mapping) else None

    def to_come(self, pool: str | None) -> tuple[Pool, ...]:
        """The pools after one; behind the last, the one that an operator took the run from."""
        if pool is None:
            return self.settings.pools
        left = {d.subject for d in self.ledger.decisions() if d.choice == "given up"}
        before = [a.pool for a in self.ledger.attempts()][-1:]
        others = [p for p in self.settings.pools if p.name != pool and f"pool {p.name}" not in left]
        back = tuple(p for p in others if p.name in before)
        return self.settings.after(pool) or back

    def exclude_slow(self, pool: Pool, attempt: Attempt) -> None:
        """Leave out the host of a straggler where the launcher can start without it."""
        slow = [f for f in self.ledger.fired() if f.attempt == attempt.id and f.gate == "straggler"]
        if not slow or slow[-1].action != Action.RESTART:
            return
        host = max(slow[-1].evidence, key=lambda row: row["own_seconds"])["host"]
        if host and self.services.launcher(pool).can_exclude:
            self.ledger.decide(f"exclude on {pool.name}", host, slow[-1].message,
                               {"exclude": [host]})  # fmt: skip

    def excluded(self, pool: Pool) -> tuple[str, ...]:
        """Hosts that are left out."""
        hosts: list[str] = []
        for decision in self.ledger.decisions():
            if decision.subject in (f"qualify {pool.name}", f"exclude on {pool.name}"):
                hosts += (decision.evidence or {}).get("exclude", [])
        return tuple(dict.fromkeys(hosts))

    def given_up(self) -> str:
        """Why each pool was left, the last word on each."""
        why = {d.subject.removeprefix("pool "): d.reason for d in self.ledger.decisions()
               if d.choice == "given up"}  # fmt: skip
        return "".join(f"; {name} was given up: {reason}" for name, reason in why.items())

    def fail(self, why: str, evidence: object) -> None:
        """End the run without its last token; starting again tries every pool anew."""
        with self.ledger.writing():
            self.ledger.decide("pool", "none", why, evidence)
            self.judge_limits(done=False)
            self.ledger.set_state(State.FAILED, None, why)
        self.services.say(f"the run failed: {why}")

    def judge_limits(self, *, done: bool) -> None:
        """Write down whether deadline and budget were kept."""
        for found in limits.judge(self.settings, self.ledger, self.ledger.clock.now(), done=done):
            self.ledger.decide(found.what, found.choice, found.message)
            self.services.say(found.message)
