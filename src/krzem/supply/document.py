"""Answers as plain data for ``--json`` and pages: ``krzem.fleet/1``, ``krzem.inverse/1``,
``krzem.infer/1``; described in ``docs/fleet.md``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from krzem.estimate import Estimate
from krzem.supply.chance import Odds
from krzem.supply.fleet import Fleet, Portfolio
from krzem.supply.goal import FleetGoal
from krzem.supply.infer import Inference, Kind
from krzem.supply.inverse import Fewest, Largest
from krzem.supply.judge import Judged, shares
from krzem.supply.speed import Slot, Speed
from krzem.supply.stages import Schedule, Stage, day_of

FLEET = "krzem.fleet/1"
INVERSE = "krzem.inverse/1"
INFER = "krzem.infer/1"
JUDGE = "krzem.judge/1"
Document = dict[str, Any]


def interval(estimate: Estimate | None) -> dict[str, float] | None:
    """``{"low", "mid", "high"}`` or null."""
    return None if estimate is None else estimate.as_dict()


def fleet_document(fleet: Fleet) -> Document:
    """Schema ``krzem.fleet/1``."""
    goal = fleet.goal
    return {
        "schema": FLEET,
        "name": goal.name,
        "model": model_name(goal),
        "start": goal.start.isoformat(),
        "deadline": goal.deadline.isoformat(),
        "limits": _limits(goal),
        "feasible": fleet.feasible,
        "cheapest": _portfolio(goal, fleet.cheapest),
        "fastest": _portfolio(goal, fleet.fastest),
        "most_certain": _portfolio(goal, fleet.most_certain),
        "sure": _portfolio(goal, fleet.sure),
        "front": [_portfolio(goal, point) for point in fleet.front],
        "relaxations": [
            {"limit": r.limit, "by": r.by, "unit": r.unit, "words": r.words}
            for r in fleet.relaxations
        ],
        "slots": [_slot(goal, slot) for slot in fleet.slots],
        "left_out": dict(fleet.left_out),
        "rules": {
            name: {"lawful": s.lawful, "words": s.words} for name, s in fleet.standings.items()
        },
        "assumptions": _assumptions(goal),
        "plan_seconds": fleet.plan_seconds,
        "solve_seconds": fleet.solve_seconds,
        "notes": [*fleet.notes, *(f"{p.name}: {n}" for p in goal.pools for n in p.notes)],
    }


def inverse_document(
    goal: FleetGoal, largest: Largest | None = None, fewest: Sequence[Fewest] = ()
) -> Document:
    """Schema ``krzem.inverse/1``: the largest model, or the fewest devices of each pool."""
    return {
        "schema": INVERSE,
        "model": model_name(goal),
        "start": goal.start.isoformat(),
        "deadline": goal.deadline.isoformat(),
        "sure": goal.sure,
        "largest": None if largest is None else _largest(goal, largest),
        "fewest": [
            {
                "pool": f.pool,
                "devices": f.devices,
                "days": interval(f.speed.days) if f.speed else None,
                "chance": f.chance,
                "words": f.words,
            }
            for f in fewest
        ],
    }


def infer_document(inference: Inference) -> Document:
    """Schema ``krzem.infer/1``."""
    evidence = inference.evidence
    return {
        "schema": INFER,
        "model": getattr(evidence.model, "name", evidence.model),
        "evidence": {
            "run": {key: _plain(value) for key, value in evidence.run.items()},
            "card_hours": evidence.card_hours,
            "days": None if evidence.days is None else list(evidence.days),
            "cards": evidence.cards,
            "done": evidence.done or None,
            "lab": evidence.lab or None,
            "country": evidence.country or None,
            "stock": dict(evidence.stock),
            "assumed": dict(evidence.assumed),
        },
        "kinds": [_kind(kind) for kind in inference.kinds],
        "families": dict(inference.families),
        "cards": interval(inference.cards),
        "credible_80": list(inference.credible(0.8)),
        "left_out": dict(inference.left_out),
        "notes": list(inference.notes),
    }


def judge_document(found: Sequence[Judged]) -> Document:
    """Schema ``krzem.judge/1``: each known run asked about, and how often the answer is right."""
    return {
        "schema": JUDGE,
        "shares": shares(found),
        "runs": [
            {
                "id": j.id,
                "device": j.device,
                "probability": j.probability,
                "family_probability": j.family,
                "in_80": j.in_credible,
                "credible_80": list(j.credible),
                "cards": j.devices,
                "cards_low": j.cards[0],
                "cards_high": j.cards[1],
                "cards_in_80": j.cards_in_interval,
                "trouble": j.trouble or None,
            }
            for j in found
        ],
    }


def model_name(goal: FleetGoal) -> str:
    """How reports call the model."""
    return goal.model if isinstance(goal.model, str) else getattr(goal.model, "name", "model")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, dt.date) else value


def _limits(goal: FleetGoal) -> Document:
    return {
        "budget_usd": goal.budget_usd,
        "month_budgets_usd": dict(goal.month_budgets),
        "domestic_share": goal.domestic_share,
        "sure": goal.sure if goal.sure_asked else None,
        "lawful_only": goal.lawful_only,
    }


def _assumptions(goal: FleetGoal) -> Document:
    moves, c = goal.moves, goal.correlation
    return {
        "move_days": {
            "start": moves.start, "same_stack": moves.same_stack,
            "other_stack": moves.other_stack, "resize": moves.resize,
        },
        "checkpoint_bytes_per_s": moves.bytes_per_s,
        "move_log_spread": moves.spread,
        "error_shared": c.shared,
        "error_family": c.family,
        "pool_chance": {pool.name: pool.chance for pool in goal.pools},
        "grant_chance": {
            f"{pool.name}: {g.name}": g.chance for pool in goal.pools for g in pool.grants
        },
    }  # fmt: skip


def _portfolio(goal: FleetGoal, point: Portfolio | None) -> Document | None:
    if point is None:
        return None
    schedule = point.schedule
    shares = schedule.token_shares()
    return {
        "label": point.label or None,
        "finish": schedule.finish.isoformat(),
        "finish_day": schedule.finish_day,
        "cost_usd": schedule.usd,
        "gap": schedule.gap,
        "odds": _odds(goal, point.odds),
        "shares": {goal.pools[p].name: share for p, share in shares.items()},
        "stages": [_stage(goal, schedule, stage) for stage in schedule.stages],
        "reserve": [
            {"pool": goal.pools[slot.pool].name, "devices": slot.speed.devices}
            for slot in schedule.reserve
        ],
        "grants": [
            {"pool": goal.pools[g.pool].name, "grant": g.name, "node_hours": g.node_hours,
             "from": g.first.isoformat(), "until": g.last.isoformat(), "cost_usd": g.usd}
            for g in schedule.grants
        ],
        "purchases": [
            {"pool": goal.pools[b.pool].name, "devices": b.devices, "cost_usd": b.usd}
            for b in schedule.purchases
        ],
    }  # fmt: skip


def _odds(goal: FleetGoal, odds: Odds) -> Document:
    dates = None
    if odds.finish_days is not None:
        dates = {
            name: day_of(goal.start, value, ends=True).isoformat()
            for name, value in odds.finish_days.as_dict().items()
        }
    return {
        "meets_date": odds.meets_date,
        "within_budget": odds.within_budget,
        "meets_domestic_share": odds.meets_domestic,
        "finishes": odds.finishes,
        "finish": dates,
        "finish_days": interval(odds.finish_days),
        "cost_usd": interval(odds.usd),
        "mean_cost_usd": odds.mean_usd,
    }


def _stage(goal: FleetGoal, schedule: Schedule, stage: Stage) -> Document:
    return {
        "pool": goal.pools[stage.slot.pool].name,
        "devices": stage.slot.speed.devices,
        "from": day_of(schedule.start, stage.first_day).isoformat(),
        "to": day_of(schedule.start, stage.last_day, ends=True).isoformat(),
        "move": stage.move or None,
        "move_days": stage.move_days,
        "training_days": stage.days,
        "tokens": stage.tokens,
        "node_hours": stage.node_hours,
        "cost_usd": stage.usd,
    }


def _slot(goal: FleetGoal, slot: Slot) -> Document:
    return {"pool": goal.pools[slot.pool].name, **_speed(slot.speed)}


def _speed(speed: Speed) -> Document:
    return {
        "devices": speed.devices,
        "nodes": speed.nodes,
        "precision": speed.precision,
        "engine": speed.engine,
        "layout": speed.layout,
        "days_for_all_tokens": interval(speed.days),
        "step_time_s": interval(speed.step_seconds),
        "tokens_per_s": interval(speed.tokens_per_s),
        "mfu": interval(speed.mfu),
        "memory_gib": interval(speed.memory_bytes.scaled(2.0**-30)),
        "goodput": interval(speed.goodput),
        "checkpoint_gib": speed.checkpoint_bytes / 2.0**30,
        "notes": list(speed.notes),
    }


def _largest(goal: FleetGoal, largest: Largest) -> Document:
    return {
        "factor": largest.factor,
        "parameters": largest.parameters,
        "active_parameters": largest.active_parameters,
        "tokens": largest.tokens,
        "finish": largest.schedule.finish.isoformat(),
        "odds": _odds(goal, largest.odds),
        "stages": [_stage(goal, largest.schedule, s) for s in largest.schedule.stages],
        "tried": largest.tried,
        "how": largest.how,
    }


def _kind(kind: Kind) -> Document:
    return {
        "device": kind.device,
        "family": kind.speed.family,
        "probability": kind.probability,
        "cards": interval(kind.cards),
        "card_hours": interval(kind.card_hours),
        "days": interval(kind.days),
        "mfu": interval(kind.speed.mfu),
        "precision": kind.speed.precision,
        "layout": kind.speed.layout,
    }
