"""Which fleets are consistent with a published run: device kinds and numbers, with odds.

The planner says how many card-hours a kind of device needs at each number of cards.  Real runs need
more or fewer: by how much is measured on runs whose hardware is known (``shortfall`` in
``facts/known_runs.csv``), so that a slow run may be a careless one and need not be an older chip.
What was published (hours, dates, a count) is then more or less probable under each kind and number,
and Bayes' rule turns that into odds.  A kind must have been on the market when the run started, and
where its owner could have it (:mod:`krzem.supply.kinds`); ``stock`` says how many of a kind its
owner may have had.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.errors import ClusterError, GoalError, InputError, KrzemError
from krzem.estimate import Estimate
from krzem.facts.table import read_table
from krzem.hardware.catalogue import find_id, load_device
from krzem.hardware.cluster_reader import cluster_of
from krzem.model.architecture import Architecture
from krzem.model.catalogue import load_model
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.supply.kinds import engine_for, obtainable, on_market, prior, released
from krzem.supply.known import LAB_ENGINES, durations, error_weights, shortfalls
from krzem.supply.periods import MONTH_DAYS
from krzem.supply.speed import Progress, Speed, speed_of

Z80 = 1.2815515655446004
ANCHORS = (16, 256, 4096, 16384)
"""Cards at which a kind is planned where neither hours nor cards say about how many there were."""
COUNTS: NDArray[np.float64] = 2.0 ** np.arange(0, 17.01, 0.25)
"""Cards that are considered: 1 to 131,072."""
STOCK_SPREAD = 0.5
"""Log standard deviation of a stated stock."""
LEAST_PRIOR = 0.02
"""Of the most probable kind: rarer ones are left out before they are planned."""
_ERRORS = np.linspace(-2.0, 2.5, 91)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is published of a run."""

    model: str | Architecture
    run: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """tokens, sequence, global_batch, precision, engine, ... as a plan takes them."""
    card_hours: float | None = None
    days: tuple[float, float] | None = None
    """Least and most that the run may have lasted."""
    cards: float | None = None
    done: str = ""
    """Year-month in which it was over."""
    lab: str = ""
    """Who trained it: says the engine, and whose chips are likely."""
    country: str = ""
    """Where its machines stood: says what could be had."""
    candidates: tuple[str, ...] = ()
    """Empty: all of the catalogue."""
    stock: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Cards of a kind that the owner may have had."""
    assumed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Cluster keys for devices of which they are not published (interruptions)."""
    published_spread: float = 0.1
    """Log standard deviation of published hours about those of pre-training."""
    leave_out: str = ""
    """A known run whose shortfall is not used: it is the one that is asked about."""

    @property
    def latest_start(self) -> dt.date | None:
        """The day on which the run began at the latest."""
        if not self.done:
            return None
        fewest = 1.0 if self.days is None else min(self.days[0], 3650.0)
        return self.end - dt.timedelta(days=round(fewest))

    @property
    def end(self) -> dt.date:
        """The last day of the month in which it was over."""
        year, month = (int(part) for part in self.done.split("-")[:2])
        return dt.date(year + month // 12, month % 12 + 1, 1) - dt.timedelta(days=1)

    @property
    def about_cards(self) -> float | None:
        """A first guess of the number of cards."""
        if self.cards is not None or self.card_hours is None:
            return self.cards
        days = float(durations(self.leave_out).usual(self.card_hours))
        if self.days is not None:
            days = (self.days[0] * self.days[1]) ** 0.5
        return self.card_hours / 24.0 / days


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One candidate with its odds."""

    device: str
    probability: float
    cards: Estimate
    """Given this kind."""
    card_hours: Estimate
    """That the planner expects at that number, with its 80 % interval for real runs."""
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
    cards: Estimate
    """Over all kinds."""

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
    least: float
    """Fewer cards do not hold the model."""

    def hours(self) -> NDArray[np.float64]:
        """Median card-hours at each of COUNTS; infinite below what fits the model."""
        known = np.log([s.days.mid * 24 * c for s, c in zip(self.speeds, self.cards, strict=True)])
        hours = np.exp(np.interp(np.log(COUNTS), np.log(self.cards), known))
        return np.where(self.least <= COUNTS * 1.001, hours, np.inf)

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
    if isinstance(evidence.model, str):
        load_model(evidence.model)  # a slip in its name is no candidate's fault
    names, left_out = _candidates(evidence)
    curves, troubles = _curves(evidence, names, progress)
    left_out |= {device: str(error) for device, error in troubles.items()}
    if not curves and len({str(error) for error in troubles.values()}) == 1:
        raise next(iter(troubles.values()))  # no kind's fault: the question's
    if not curves:
        raise InputError(
            "no candidate can have trained this: "
            + "; ".join(f"{d}: {why}" for d, why in list(left_out.items())[:3])
        )
    weights = np.array([_likelihood(evidence, c) * _stock(evidence, c.device) for c in curves])
    total = float(weights.sum())
    if not total > 1e-300:
        raise InputError(
            "what is given contradicts every candidate: no kind and number of devices gives such"
            " hours and dates; check tokens, hours, days and the month, or name other --devices"
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
        cards=_quantiles(weights.sum(axis=0) / total),
    )


def _check(evidence: Evidence) -> None:
    if evidence.card_hours is None and evidence.days is None and evidence.cards is None:
        raise InputError(
            "nothing to infer from: give --hours (card-hours), --days LOW-HIGH, or --cards"
        )
    low, high = evidence.days or (1.0, 2.0)
    if not 0 < low < high:
        raise InputError(f"days {low:g} to {high:g}: the first must be above 0 and below the last")


def _candidates(evidence: Evidence) -> tuple[list[str], dict[str, str]]:
    """Kinds to be planned, and why the others are not: not out yet, or too rare to matter."""
    latest = evidence.latest_start
    left_out: dict[str, str] = {}
    weights: dict[str, float] = {}
    given = [find_id(name) for name in evidence.candidates]
    for device in given or [row["id"] for row in read_table("accelerators.csv")]:
        out = released(device)
        if latest is not None and out > latest:
            left_out[device] = f"released {out:%Y-%m}, after the run had to start ({latest:%Y-%m})"
            continue
        weights[device] = prior(device, evidence.lab, evidence.country, latest)
    if given:
        return list(weights), left_out
    most = max(weights.values(), default=0.0)
    for device in [name for name, weight in weights.items() if weight < LEAST_PRIOR * most]:
        left_out[device] = f"rare there and then: {weights.pop(device) / most:.1g} of the commonest"
    return list(weights), left_out


def _curves(
    evidence: Evidence, names: Sequence[str], progress: Progress | None
) -> tuple[list[_Curve], dict[str, KrzemError]]:
    """The kinds that can train the model, and why the others cannot."""
    curves, troubles = [], {}
    for device in names:
        if progress is not None:
            progress(device)
        try:
            curves.append(_curve(evidence, device))
        except KrzemError as error:
            troubles[device] = error
    return curves, troubles


def _anchors(evidence: Evidence) -> tuple[int, ...]:
    about = evidence.about_cards
    if about is None:
        return ANCHORS
    return (min(2 ** max(round(np.log2(max(about, 1.0))), 0), 65536),)


def _curve(evidence: Evidence, device: str) -> _Curve:
    """Plans at a few numbers of cards; where none fits, at more."""
    found: dict[int, Speed] = {}
    least = 0.0
    trouble: KrzemError | None = None
    for count in (*_anchors(evidence), *ANCHORS):
        if found and count in ANCHORS and count not in _anchors(evidence):
            break
        try:
            found[count] = speed_on(evidence, device, count)
        except ClusterError as error:
            trouble, least = error, max(least, 2.0 * count)
        except GoalError as error:
            trouble = error
    if not found:
        assert trouble is not None
        raise trouble
    cards = sorted(found)
    return _Curve(device=device, speeds=tuple(found[c] for c in cards),
                  cards=np.array(cards, dtype=float), least=least)  # fmt: skip


def speed_on(evidence: Evidence, device: str, cards: int) -> Speed:
    """The run on so many cards of a kind, with the software that its laboratory had.

    Raises as :func:`krzem.supply.speed.speed_of`.
    """
    loaded = load_device(device)
    given = {"device": device, "devices": cards * round(1 / loaded.fraction)}
    cluster = cluster_of(given, device)
    if cluster.facts["failures_per_device_day"].basis == "class":
        cluster = cluster_of(given | dict(evidence.assumed), device)
    run: dict[str, Any] = {"engine": engine_for(evidence.lab, cluster.device.software, LAB_ENGINES)}
    run |= dict(evidence.run)
    if evidence.latest_start is not None:
        run.setdefault("date", f"{evidence.latest_start:%Y-%m-%d}")
    question = Question(model=evidence.model, on=cluster, **run)
    try:
        return speed_of(settle(question))
    except KrzemError:
        if "engine" in evidence.run or run["engine"] == "other":
            raise
    # The laboratory's own engine may not run on this chip.
    return speed_of(settle(Question(model=evidence.model, on=cluster, **run | {"engine": "other"})))


def _likelihood(evidence: Evidence, curve: _Curve) -> NDArray[np.float64]:
    """Of what is published and of the kind, for each of COUNTS, averaged over the errors."""
    with np.errstate(over="ignore", invalid="ignore"):
        hours = curve.hours()[:, None] * np.exp(_ERRORS)[None, :]
        days = hours / 24.0 / COUNTS[:, None]
        chance = np.isfinite(hours).astype(float)
        if evidence.card_hours is not None:
            off = np.log(evidence.card_hours / np.where(np.isfinite(hours), hours, 1.0))
            chance = chance * np.exp(-0.5 * (off / evidence.published_spread) ** 2)
        if evidence.days is not None:
            low, high = evidence.days
            chance = chance * ((days >= low) & (days <= high))
        else:
            usual = durations(evidence.leave_out)
            off = np.log(np.where(np.isfinite(days), days / usual.usual(hours), 1e9))
            chance = chance * usual.chance(off)
        if evidence.cards is not None:
            off = np.log(COUNTS / evidence.cards)[:, None]
            chance = chance * np.exp(-0.5 * (off / 0.1) ** 2)
    chance = chance * _market(evidence, curve.device, days)
    return np.asarray(chance @ error_weights(_ERRORS, curve.sigma(), evidence.leave_out))


def _market(
    evidence: Evidence, device: str, days: NDArray[np.float64]
) -> NDArray[np.float64] | float:
    """The prior of the kind for a run that started so many days before it was over."""
    if not evidence.done:
        return prior(device, evidence.lab, evidence.country, None)
    since = (evidence.end - released(device)).days
    table = np.array([on_market(device, m) for m in range(240)])
    months = np.where(np.isfinite(days), (since - days) / MONTH_DAYS, -1.0)
    weight = np.where(months >= 0, table[np.clip(months, 0, 239).astype(int)], 0.0)
    start = evidence.latest_start
    assert start is not None
    common = prior(device, evidence.lab, evidence.country, None)
    return np.asarray(weight * common * obtainable(device, evidence.country, start))


def _stock(evidence: Evidence, device: str) -> NDArray[np.float64] | float:
    have = {find_id(name): count for name, count in evidence.stock.items()}.get(device)
    return 1.0 if have is None else 1.0 / (1.0 + (COUNTS / have) ** (1.7 / STOCK_SPREAD))


def _kind(evidence: Evidence, curve: _Curve, weights: NDArray[np.float64], total: float) -> Kind:
    mass = float(weights.sum())
    cards = _quantiles(weights / mass if mass > 0 else np.ones(len(COUNTS)) / len(COUNTS))
    finite = np.isfinite(curve.hours())
    hours = float(np.exp(np.interp(np.log(cards.mid), np.log(COUNTS[finite]),
                                   np.log(curve.hours()[finite]))))  # fmt: skip
    near = int(np.argmin(np.abs(np.log(curve.cards / cards.mid))))
    cumulative = np.cumsum(error_weights(_ERRORS, curve.sigma(), evidence.leave_out))
    low, mid, high = (float(np.exp(np.interp(q, cumulative, _ERRORS))) for q in (0.1, 0.5, 0.9))
    predicted = Estimate(hours * low, hours * mid, hours * high)
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
    count = len(shortfalls(evidence.leave_out))
    notes = [
        "planned with the software of"
        f" {evidence.latest_start or 'today'}; real runs take more or less than that as"
        f" {count} runs on known hardware did, careless ones among them",
        "one kind at a time; a run on several kinds is not covered",
    ]
    if not evidence.done:
        notes.append("without --done, any chip may have been used")
    if not evidence.country:
        notes.append("without --country, what its owner could have had does not count")
    if evidence.card_hours is None:
        notes.append("without hours, dates fix the number of each kind and hardly the kind")
    return tuple(notes)
