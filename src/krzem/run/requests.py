"""What operators ask of a run while it goes on: move, retry, pause, reload.

A request is a row of the ledger, so that anybody who sees the folder can ask, and a controller that
died in between still obeys.  A running trainer saves and stops first; the state does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krzem.errors import KrzemError, RunError
from krzem.run.gate_settings import describe
from krzem.run.pools import Pools
from krzem.run.rows import Request, RequestKind, State
from krzem.run.run_file import identity, read_run
from krzem.run.settings import RunSettings
from krzem.run.watch import Watch

_ENDS_THE_TRAINER = (RequestKind.MOVE, RequestKind.RETRY, RequestKind.PAUSE)


def changed_identity(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys of the identity that a reload may not change: all but the number of tokens."""
    return [k for k in new if k != "tokens" and new[k] != old.get(k)]


class Operated(Pools):
    """The part of a controller that listens to operators."""

    def while_it_trains(self, watch: Watch) -> None:
        """At each look: reload at once; for all else the trainer saves and stops."""
        for request in self.ledger.open_requests():
            if request.kind is RequestKind.RELOAD:
                self._reload(request, watch)
            elif request.kind in _ENDS_THE_TRAINER and self._is_possible(request):
                watch.stop_for(f"request to {request.kind} {request.pool or ''}".strip())

    def obey(self, row_pool: str | None) -> bool:
        """Between two attempts: carry out what is asked; whether that changed the state."""
        for request in self.ledger.open_requests():
            if request.kind is RequestKind.RELOAD:
                self._reload(request, None)
            elif request.kind is RequestKind.RESUME:
                self.ledger.answer(request.id, "refused", "the run is not paused")
            elif request.kind is RequestKind.PAUSE:
                self.ledger.answer(request.id, "done", "paused")
                self.ledger.set_state(State.PAUSED, row_pool, "paused on request")
                self.services.say("paused: nothing runs until `krzem pause --resume`")
                return True
            elif self._is_possible(request):
                return self._go(request, row_pool)
        return False

    def _is_possible(self, request: Request) -> bool:
        names = [p.name for p in self.settings.pools]
        if request.kind is RequestKind.PAUSE or request.pool in names:
            return True
        why = f"no pool is called {request.pool!r}; there are {', '.join(names)}"
        self.ledger.answer(request.id, "refused", why)
        self.services.say(why)
        return False

    def _go(self, request: Request, here: str | None) -> bool:
        """Move to the pool, or try it anew: what it did before counts no more."""
        target = self.settings.pool(request.pool or "")
        with self.ledger.writing():
            attempts = self.ledger.attempts()
            last = attempts[-1].id if attempts else 0
            self.ledger.decide(f"retry {target.name}", "counts anew", f"request to {request.kind}",
                               {"after": last})  # fmt: skip
            if target.name == here:
                self.ledger.answer(request.id, "done", f"{target.name} is tried anew")
                return False
            self.ledger.set_state(State.MOVE, here, f"request to {request.kind} {target.name}")
        return True

    def asked_for(self) -> Request | None:
        """The pool that an operator wants the run on, while it moves."""
        kinds = (RequestKind.MOVE, RequestKind.RETRY)
        found = [r for r in self.ledger.open_requests() if r.kind in kinds and self._is_possible(r)]
        return found[0] if found else None

    def wait_for_resume(self, pool: str | None) -> None:
        """Paused: until somebody resumes, moves or stops the run."""
        for request in self.ledger.open_requests():
            if request.kind is RequestKind.RELOAD:
                self._reload(request, None)
                continue
            if request.kind is RequestKind.PAUSE:
                self.ledger.answer(request.id, "done", "it is paused")
                continue
            trained = pool is not None and bool(self.ledger.attempts(pool))
            begun = State.QUALIFY if pool else State.BEFORE
            with self.ledger.writing():
                if request.kind is RequestKind.RESUME:
                    self.ledger.answer(request.id, "done", "resumed")
                self.ledger.set_state(State.TRAIN if trained else begun, pool, "resumed")
            return
        self.services.sleep(self.settings.recovery.look_every)

    def _reload(self, request: Request, watch: Watch | None) -> None:
        """Take the run file as it is now; what cannot be taken is refused, and nothing changes."""
        try:
            new = self._readable(read_run(self.settings.path))
        except KrzemError as error:
            self.ledger.answer(request.id, "refused", str(error))
            self.services.say(f"reload refused: {error}")
            return
        old, self.settings = self.settings, new
        changes = _differences(old, new)
        with self.ledger.writing():
            self.ledger.resettle(identity(new), new.sha256)
            self.ledger.decide("gates", "declared", "reloaded", describe(new.gates))
            self.ledger.answer(request.id, "done", changes)
            self.ledger.event("reloaded", changes)
        self.services.say(f"reloaded: {changes}")
        if watch is not None:
            watch.settle(new)
            if _needs_restart(old, new, watch.pool_name):
                watch.stop_for("reload: the trainer starts anew with what it reads itself")

    def _readable(self, new: RunSettings) -> RunSettings:
        other = changed_identity(identity(self.settings), identity(new))
        if other or new.folder != self.settings.folder:
            raise RunError(
                f"{', '.join(other) or 'folder'} make another run: they stay as they are"
            )
        here = self.row().pool
        if here is not None and here not in [p.name for p in new.pools]:
            raise RunError(f"the run is on pool {here!r}, which the file no longer has")
        return new


def _differences(old: RunSettings, new: RunSettings) -> str:
    """What a reload changes, by table."""
    tables = sorted(set(old.raw) | set(new.raw))
    changed = [t for t in tables if old.raw.get(t) != new.raw.get(t)]
    return f"changed: {', '.join(changed)}" if changed else "nothing changed"


_READ_BY_TRAINER = ("phase", "data", "train", "layout", "optimizer", "schedule", "checkpoint",
                    "evaluation", "metrics", "trainer")  # fmt: skip


def _needs_restart(old: RunSettings, new: RunSettings, pool: str) -> bool:
    """Whether the running trainer must see the change: its own tables, tokens, its pool's start."""
    if old.goal.tokens != new.goal.tokens:
        return True
    if any(old.raw.get(t) != new.raw.get(t) for t in _READ_BY_TRAINER):
        return True
    a, b = old.pool(pool), new.pool(pool)
    return (a.command, a.layout, a.environment, a.count, a.precision) != (
        b.command, b.layout, b.environment, b.count, b.precision,
    )  # fmt: skip
