"""Which fleets are consistent with a published run: device kinds and numbers, with odds.

The planner says how many card-hours a kind of device needs at each size, and how wrong it may be.
What was published (hours, dates, a count) is then more or less probable under each kind and count,
and Bayes' rule turns that into odds.  The prior is flat: every candidate kind, every order of
magnitude of the count; ``stock`` says how many of a kind its owner may have had.

Dates alone fix the count of each kind, not the kind.  The best layout is assumed for every kind, so
that hours are what a well-run job needs; ``published_spread`` covers what the published figure
counts beside (restarts, other phases).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.errors import ClusterError, GoalError, InputError, KrzemError, UnknownFactError
from krzem.estimate import Estimate
from krzem.facts.table import read_table
from krzem.hardware.catalogue import device_row, find_id, load_device
from krzem.hardware.cluster_reader import cluster_of
from krzem.plan.request import Question, settle
from krzem.supply.speed import Progress, Speed, speed_of

Z80 = 1.2815515655446004
ANCHORS = (1024, 4096, 16384)
"""Cards at which a kind is planned; hours in between are interpolated."""
COUNTS: NDArray[np.float64] = 2.0 ** np.arange(7, 17.01, 0.25)
"""Cards that are considered: 128 to 131,072."""
STOCK_SPREAD = 0.5
"""Log standard deviation of a stated stock."""
_ERRORS = np.linspace(-4.0, 4.0, 81)
_WEIGHTS = np.exp(-(_ERRORS**2) / 2) / np.exp(-(_ERRORS**2) / 2).sum()
CANDIDATES = (
    "nvidia-a100-sxm-80", "nvidia-a800-sxm-80", "nvidia-h100-sxm", "nvidia-h800-sxm",
    "nvidia-h20-sxm-96", "nvidia-h20-sxm-141", "nvidia-h200-sxm", "nvidia-b200-sxm",
    "nvidia-gb200", "amd-mi250x", "amd-mi300x", "huawei-ascend-910b", "huawei-ascend-910c",
)  # fmt: skip
"""Kinds with which large runs have been reported, newest last within a vendor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is published of a run."""

    model: str
    run: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """tokens, sequence, global_batch, precision, ... as a plan takes them."""
    card_hours: float | None = None
    days: tuple[float, float] | None = None
    """Least and most that the run may have lasted."""
    cards: float | None = None
    done: str = ""
    """Year-month in which it was over: later devices are left out."""
    candidates: tuple[str, ...] = CANDIDATES
    stock: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Cards of a kind that the owner may have had."""
    assumed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Cluster keys for devices of which they are not published (interruptions)."""
    published_spread: float = 0.1
    """Log standard deviation of published hours about those of pre-training alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One candidate with its odds."""

    device: str
    probability: float
    cards: Estimate
    """Given this kind."""
    card_hours: Estimate
    """That the planner predicts at that number, its 80 % interval."""
    days: Estimate
    speed: Speed
    """At the planned number nearest to the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """The posterior."""

    evidence: Evidence
    kinds: tuple[Kind, ...]
    """Most probable first."""
    left_out: Mapping[str, str]
    families: Mapping[str, float]
    """Probability by calibration family: variants of one chip are hard to tell apart."""
    notes: tuple[str, ...]

    def credible(self, share: float = 0.8) -> tuple[str, ...]:
        """The fewest kinds that together hold ``share``."""
        total, found = 0.0, []
        for kind in self.kinds:
            found.append(kind.device)
            total += kind.probability
            if total >= share:
                break
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """Card-hours of one kind by number of cards."""

    device: str
    speeds: tuple[Speed, ...]
    cards: NDArray[np.float64]

    def hours(self) -> NDArray[np.float64]:
        """Median card-hours at each of COUNTS; infinite below what fits the model."""
        known = np.log([s.days.mid * 24 * c for s, c in zip(self.speeds, self.cards, strict=True)])
        hours = np.exp(np.interp(np.log(COUNTS), np.log(self.cards), known))
        least = self.cards[0] if self.cards[0] > ANCHORS[0] else 0.0
        return np.where(least <= COUNTS, hours, np.inf)

    def sigma(self) -> float:
        """Log standard deviation of the planner's error."""
        days = self.speeds[len(self.speeds) // 2].days
        return float(np.log(days.high / days.low)) / (2 * Z80)


def infer(evidence: Evidence, progress: Progress | None = None) -> Inference:
    """The odds of each candidate kind and number.

    Raises:
        InputError: there is no evidence at all, or it contradicts every candidate.
        GoalError, UnknownNameError, ...: what the planner cannot use.
    """
    _check(evidence)
    curves, left_out = _curves(evidence, progress)
    if not curves:
        raise InputError(
            "no candidate can have trained this: "
            + "; ".join(f"{d}: {why}" for d, why in list(left_out.items())[:3])
        )
    weights = np.array([_likelihood(evidence, c) * _prior(evidence, c) for c in curves])
    total = float(weights.sum())
    if not total > 1e-300:
        raise InputError(
            "what is given contradicts every candidate: no kind and number of devices gives such"
            " hours and dates; check tokens, hours and days, or name other --devices"
        )
    kinds = [_kind(evidence, c, w, total) for c, w in zip(curves, weights, strict=True)]
    families: dict[str, float] = {}
    for kind in kinds:
        name = kind.speed.family
        families[name] = families.get(name, 0.0) + kind.probability
    return Inference(
        evidence=evidence,
        kinds=tuple(sorted(kinds, key=lambda k: -k.probability)),
        left_out=left_out,
        families=dict(sorted(families.items(), key=lambda item: -item[1])),
        notes=_notes(evidence),
    )


def _check(evidence: Evidence) -> None:
    if evidence.card_hours is None and evidence.days is None and evidence.cards is None:
        raise InputError(
            "nothing to infer from: give --hours (card-hours), --days LOW-HIGH, or --cards"
        )
    if evidence.days is not None and not 0 < evidence.days[0] < evidence.days[1]:
        low, high = evidence.days
        raise InputError(f"days {low:g} to {high:g}: the first must be above 0 and below the last")
    if not evidence.candidates:
        raise InputError("no candidate device is given: --devices h800,h20-141")


def _curves(evidence: Evidence, progress: Progress | None) -> tuple[list[_Curve], dict[str, str]]:
    curves, left_out = [], {}
    latest = _latest_start(evidence)
    for name in evidence.candidates:
        device = find_id(name)
        released = device_row(device)["released"]
        if latest and released[:7] > latest:
            left_out[device] = f"released {released}, after the run had to start ({latest})"
            continue
        if progress is not None:
            progress(device)
        try:
            curves.append(_curve(evidence, device))
        except (ClusterError, GoalError, UnknownFactError) as error:
            left_out[device] = str(error)
    return curves, left_out


def _latest_start(evidence: Evidence) -> str:
    """Year-month in which the run started at the latest: its end less the fewest days it took."""
    if not evidence.done or evidence.days is None:
        return evidence.done
    year, month = (int(part) for part in evidence.done.split("-")[:2])
    start = dt.date(year, month, 1) - dt.timedelta(days=min(evidence.days[0], 3650.0))
    return f"{start:%Y-%m}"


def _curve(evidence: Evidence, device: str) -> _Curve:
    speeds, cards = [], []
    trouble: KrzemError | None = None
    for count in ANCHORS:
        try:
            speeds.append(_speed(evidence, device, count))
            cards.append(float(count))
        except (ClusterError, GoalError) as error:
            trouble = error
    if not speeds:
        assert trouble is not None
        raise trouble
    return _Curve(device=device, speeds=tuple(speeds), cards=np.array(cards))


def _speed(evidence: Evidence, device: str, cards: int) -> Speed:
    parts = round(1 / load_device(device).fraction)
    given = {"device": device, "devices": cards * parts}
    cluster = cluster_of(given, device)
    if cluster.facts["failures_per_device_day"].basis == "class":
        cluster = cluster_of(given | dict(evidence.assumed), device)
    # What others train with is seldom known: an engine that refuses nothing, unless it is given.
    run = {"engine": "other"} | dict(evidence.run)
    if evidence.done:
        run.setdefault("date", f"{evidence.done}-01")
    asked = settle(Question(model=evidence.model, on=cluster, **run))
    return speed_of(asked)


def _likelihood(evidence: Evidence, curve: _Curve) -> NDArray[np.float64]:
    """Of what is published, for each of COUNTS, averaged over the planner's error."""
    hours = curve.hours()[:, None] * np.exp(curve.sigma() * _ERRORS)[None, :]
    days = hours / 24.0 / COUNTS[:, None]
    chance = np.isfinite(hours).astype(float)
    if evidence.card_hours is not None:
        off = np.log(evidence.card_hours / np.where(np.isfinite(hours), hours, 1.0))
        chance = chance * np.exp(-0.5 * (off / evidence.published_spread) ** 2)
    if evidence.days is not None:
        low, high = evidence.days
        chance = chance * ((days >= low) & (days <= high))
    if evidence.cards is not None:
        off = np.log(COUNTS / evidence.cards)[:, None]
        chance = chance * np.exp(-0.5 * (off / 0.1) ** 2)
    return np.asarray(chance @ _WEIGHTS)


def _prior(evidence: Evidence, curve: _Curve) -> NDArray[np.float64]:
    stock = {find_id(name): count for name, count in evidence.stock.items()}
    have = stock.get(curve.device)
    if have is None:
        return np.ones(len(COUNTS))
    return np.asarray(1.0 / (1.0 + (COUNTS / have) ** (1.7 / STOCK_SPREAD)))


def _kind(evidence: Evidence, curve: _Curve, weights: NDArray[np.float64], total: float) -> Kind:
    mass = float(weights.sum())
    cards = _quantiles(weights / mass if mass > 0 else np.ones(len(COUNTS)) / len(COUNTS))
    hours = float(np.exp(np.interp(np.log(cards.mid), np.log(COUNTS), np.log(curve.hours()))))
    near = int(np.argmin(np.abs(np.log(curve.cards / cards.mid))))
    predicted = Estimate.lognormal(hours, curve.sigma())
    return Kind(
        device=curve.device,
        probability=mass / total,
        cards=cards,
        card_hours=predicted,
        days=predicted.scaled(1 / 24.0 / cards.mid),
        speed=curve.speeds[near],
    )


def _quantiles(weights: NDArray[np.float64]) -> Estimate:
    """10, 50 and 90 % points of the number of cards, between the grid's points."""
    cumulative = np.concatenate([[0.0], np.cumsum(weights)])
    edges = np.concatenate([[COUNTS[0]], np.sqrt(COUNTS[1:] * COUNTS[:-1]), [COUNTS[-1]]])
    points = np.exp(np.interp([0.1, 0.5, 0.9], cumulative, np.log(edges)))
    low, mid, high = np.maximum.accumulate(points)
    return Estimate(float(low), float(mid), float(high))


def _notes(evidence: Evidence) -> tuple[str, ...]:
    notes = [
        f"every kind is given its best layout and the software of {evidence.done or 'today'}: a"
        " less careful run needs more hours",
        "one kind at a time; a run on several kinds is not covered",
    ]
    if evidence.card_hours is None:
        notes.append("without hours, dates fix the number of each kind and hardly the kind")
    return tuple(notes)


def known_runs() -> Sequence[Mapping[str, str]]:
    """The table of published runs whose hardware is known."""
    return read_table("known_runs.csv")


def evidence_of(row: Mapping[str, str]) -> Evidence:
    """A row of that table as evidence, its hardware left out."""
    run: dict[str, Any] = {"tokens": float(row["tokens"]), "precision": row["precision"]}
    if row["global_batch"]:
        run["global_batch"] = int(row["global_batch"])
    days = (float(row["days_low"]), float(row["days_high"])) if row["days_low"] else None
    hours = float(row["device_hours"]) if row["device_hours"] else None
    return Evidence(
        model=row["model"],
        run=run,
        card_hours=hours,
        days=days,
        cards=float(row["devices"]) if row["devices"] and not (hours or days) else None,
        done=row["done"],
    )
