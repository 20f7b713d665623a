"""Deadline and budget: what was used of them so far, and whether they were kept in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from krzem.errors import KrzemError
from krzem.hardware import CPU, load_device
from krzem.run.clock import duration
from krzem.run.gate_settings import Budget
from krzem.run.gates import Finding
from krzem.run.ledger import Reader
from krzem.run.pool_settings import Pool
from krzem.run.rows import Attempt
from krzem.run.settings import RunSettings

HOUR = 3600.0
"""Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the trainer's attempts on one pool used; probes and checks are not counted."""

    pool: str
    device_hours: float
    usd: float | None
    """None where nobody says what a device-hour costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A limit and whether it was kept."""

    what: str
    """deadline or budget."""
    kept: bool | None
    """None where that cannot be said."""
    message: str

    @property
    def choice(self) -> str:
        """As the ledger keeps it."""
        return {True: "kept", False: "missed", None: "unknown"}[self.kept]


def price_of(pool: Pool) -> float | None:
    """US dollars for an hour of one device: the run file's, else the catalogue's rent."""
    if pool.price is not None or pool.accelerator in (None, CPU):
        return pool.price
    try:
        return load_device(pool.accelerator or "").rental_usd_per_hour
    except KrzemError:
        return None


def spent(settings: RunSettings, reader: Reader, now: float) -> list[Spent]:
    """Device-hours and money by pool, in the order of the run file; a queue costs nothing."""
    began = {e.attempt: e.at for e in reader.events("running") if e.attempt is not None}
    attempts = reader.attempts()
    return [_spent(p, [a for a in attempts if a.pool == p.name], began, now)
            for p in settings.pools]  # fmt: skip


def _spent(
    pool: Pool, attempts: Sequence[Attempt], began: Mapping[int, float], now: float
) -> Spent:
    seconds = 0.0
    for attempt in attempts:
        start = began.get(attempt.id)
        if start is not None:
            end = now if attempt.ended_at is None else attempt.ended_at
            seconds += max(0.0, end - start)
    hours = seconds / HOUR * (pool.count or pool.ranks)
    price = price_of(pool)
    return Spent(pool=pool.name, device_hours=hours, usd=None if price is None else hours * price)


def total(parts: Sequence[Spent]) -> float | None:
    """Money of all pools; None where a pool that was used has no price."""
    used = [p.usd for p in parts if p.device_hours > 0]
    return None if None in used else sum(u for u in used if u is not None)


def over_budget(gate: Budget, settings: RunSettings, reader: Reader, now: float) -> Finding | None:
    """Whether the money is spent."""
    budget = settings.goal.budget_usd
    if budget is None:
        return None
    parts = spent(settings, reader, now)
    usd = total(parts)
    if usd is None or usd <= budget:
        return None
    return Finding(
        gate="budget",
        action=gate.action,
        message=f"${usd:,.2f} are spent, the budget is ${budget:,.2f}",
        evidence=tuple({"pool": p.pool, "device_hours": p.device_hours, "usd": p.usd}
                       for p in parts),
    )  # fmt: skip


def judge(settings: RunSettings, reader: Reader, now: float, *, done: bool) -> list[Judged]:
    """Every limit that the run file states, at the end of the run or as it stops."""
    found = []
    left = settings.seconds_left(now)
    if left is not None:
        found.append(_deadline(left, done))
    if settings.goal.budget_usd is not None:
        parts = spent(settings, reader, now)
        found.append(_budget(settings.goal.budget_usd, total(parts), parts))
    return found


def _deadline(left: float, done: bool) -> Judged:
    if left < 0:
        what = "done" if done else "not done"
        return Judged(what="deadline", kept=False,
                      message=f"deadline missed: {what} {duration(-left)} after it")  # fmt: skip
    if done:
        return Judged(what="deadline", kept=True,
                      message=f"deadline kept, {duration(left)} before it")  # fmt: skip
    return Judged(what="deadline", kept=None,
                  message=f"not done; {duration(left)} are left to the deadline")  # fmt: skip


def _budget(budget: float, usd: float | None, parts: Sequence[Spent]) -> Judged:
    if usd is None:
        silent = ", ".join(p.pool for p in parts if p.usd is None and p.device_hours > 0)
        message = f"budget of ${budget:,.2f} not judged: no price of a device-hour of {silent}"
        return Judged(what="budget", kept=None, message=message)
    word = "kept" if usd <= budget else "exceeded"
    return Judged(what="budget", kept=usd <= budget,
                  message=f"budget {word}: ${usd:,.2f} of ${budget:,.2f}")  # fmt: skip
