"""The verdict on one chip, one day, one buyer.

A figure that nobody has published is not guessed: every rule is evaluated over all cases the
figure could fall into (the points where some test turns, and the stretches between them).  Where
the outcome is the same in all cases it is given; where it moves, the verdict says on what it
depends and where it turns.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.rules.chip import Chip, Disagreement, disagreements
from krzem.rules.ruleset import Effect, Rule, RuleSet, Side, Status, Test, Truth, Values

Codes = NDArray[np.int64]

WORDS = {
    "tpp": "TPP",
    "performance_density": "performance density",
    "dram_gb_per_s": "DRAM bandwidth",
    "io_gb_per_s": "I/O bandwidth",
    "released": "day on sale",
}
FIGURES = tuple(name for name in WORDS if name != "released")


@dataclass(frozen=True, slots=True, kw_only=True)
class Buyer:
    """Who buys, and when."""

    on: dt.date
    to: str
    """Country of destination, ISO 3166 alpha-2."""
    parent: str
    """Country of the ultimate parent (``to`` where there is none)."""
    state_funded: bool = False
    rents: bool = False
    """Rents time on chips that others own, in place of buying them."""
    acquired: dt.date | None = None
    """When devices that are owned already were obtained: that day's rules on export and import
    hold; rules of use are those of ``on``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule says of a chip."""

    rule: Rule
    meets: bool | None
    """Whether the test holds for the chip's figures; None where that depends on an unknown one."""
    depends_on: tuple[str, ...]
    out_of_scope: str
    """Why the rule does not reach this chip or buyer; its test is then an as-if."""
    effect: Effect | None
    """For this destination and day; None where the rule has none."""
    counts: bool | None
    """Whether its effect enters the verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The outcome while an unknown quantity lies between two values (None: no bound)."""

    quantity: str
    low: float | None
    high: float | None
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The strictest effect of the rules of one side."""

    possible: tuple[Status, ...]
    """One status, or every one that the unknown figures leave open, the mildest first."""
    depends_on: tuple[str, ...]
    bands: tuple[Band, ...]
    """Where the outcome turns, if it depends on a single quantity."""

    @property
    def status(self) -> Status | None:
        """The status where it is certain."""
        return self.possible[0] if len(self.possible) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Everything the rules say of one chip for one buyer on one day."""

    chip: Chip
    buyer: Buyer
    findings: tuple[Finding, ...]
    outcomes: Mapping[Side, Outcome]

    ruleset: RuleSet

    @property
    def certain(self) -> bool:
        """False for a day after the last search for newer rules: they may have changed."""
        return self.buyer.on <= self.ruleset.searched

    @property
    def text_age_days(self) -> int:
        """Days from the newest text of a rule to the day asked for; at least zero."""
        return max(0, (self.buyer.on - self.ruleset.newest_text).days)

    @property
    def clear(self) -> bool | None:
        """Whether the rules listed leave the deal to buyer and seller.

        False where every case asks for an authority's decision or bars it; None where that
        depends on a figure nobody has published.
        """
        sides = [{s.clears for s in outcome.possible} for outcome in self.outcomes.values()]
        if any(side == {False} for side in sides):
            return False
        return True if all(side == {True} for side in sides) else None


def evaluate(chip: Chip, ruleset: RuleSet, buyer: Buyer) -> Verdict:
    """Apply the rules in force that day to what ``buyer`` does with ``chip``."""
    if buyer.acquired is None:
        return _on_one_day(chip, ruleset, buyer)
    now = _on_one_day(chip, ruleset, replace(buyer, acquired=None))
    then = _on_one_day(chip, ruleset, replace(buyer, on=buyer.acquired, acquired=None))
    past, present = (
        tuple(f for f in v.findings if (f.rule.side in (Side.EXPORT, Side.IMPORT)) is sale)
        for v, sale in ((then, True), (now, False))
    )
    outcomes = {**then.outcomes, Side.USE: now.outcomes[Side.USE]}
    return replace(now, buyer=buyer, findings=(*past, *present), outcomes=outcomes)


def _on_one_day(chip: Chip, ruleset: RuleSet, buyer: Buyer) -> Verdict:
    rules = ruleset.in_force(buyer.on)
    values, axes = _cases(chip, rules, tuple(ruleset.unknowns))
    truths = _truths(rules, values, chip)
    effects = {rule.id: _effect(ruleset, rule, buyer) for rule in rules}
    scopes = {rule.id: _out_of_scope(rule, chip, buyer, effects[rule.id]) for rule in rules}
    counts = _counting(rules, truths, scopes, effects, truths | dict(values))
    findings = tuple(
        Finding(
            rule=rule,
            meets=_certain(truths[rule.id]),
            depends_on=_moves_with(truths[rule.id], axes),
            out_of_scope=scopes[rule.id],
            effect=effects[rule.id],
            counts=_certain(counts[rule.id]),
        )
        for rule in rules
    )
    outcomes = {
        side: _outcome(side, rules, effects, counts, ruleset.statuses, values, axes)
        for side in (Side.EXPORT, Side.USE, Side.IMPORT)
    }
    return Verdict(chip=chip, buyer=buyer, findings=findings, outcomes=outcomes, ruleset=ruleset)


def _out_of_scope(rule: Rule, chip: Chip, buyer: Buyer, effect: Effect | None) -> str:
    if rule.state_funded and not buyer.state_funded:
        return "speaks of buyers with state funds"
    owners = _binds_owner(rule, buyer) and effect is not None
    missed = "" if owners else rule.misses(rents=buyer.rents)
    return missed or rule.out_of_scope(chip.id, chip.vendor, chip.country)


def _binds_owner(rule: Rule, buyer: Buyer) -> bool:
    """Whether the rule has to let the chips come to where a tenant uses them, whoever owns them."""
    return buyer.rents and rule.side is Side.EXPORT and not rule.rents


def _effect(ruleset: RuleSet, rule: Rule, buyer: Buyer) -> Effect | None:
    seat = buyer.to if _binds_owner(rule, buyer) else buyer.parent
    reached = (e for e in rule.effects if ruleset.reaches(e, buyer.to, seat, buyer.on))
    return next(reached, None)


def _cases(
    chip: Chip, rules: Iterable[Rule], unpublished: tuple[str, ...]
) -> tuple[Values, tuple[str, ...]]:
    """The chip's figures; an unknown one as the values of its own axis.  And the axes' names."""
    rules = tuple(rules)
    known: dict[str, NDArray[np.float64] | NDArray[np.bool_]] = {
        "data_centre": np.asarray(chip.data_centre)
    }
    for name in FIGURES:
        value = getattr(chip, name)
        if value is not None:
            known[name] = np.asarray(float(value))
    derived = chip.tpp is None and chip.die_area_mm2 is not None
    days = _sale_days(chip, rules)
    if len(days) == 1:
        known["released"] = np.asarray(days[0])
    asked = {name for rule in rules if rule.test for name in rule.test.names}
    unknown = tuple(
        n for n in WORDS if n not in known and not (derived and n.endswith("density"))
    ) + tuple(n for n in unpublished if n in asked)
    values = dict(known)
    for axis, name in enumerate(unknown):
        turns = turns_of(name, rules, known, chip.die_area_mm2 if derived else None)
        shape = [1] * len(unknown)
        shape[axis] = -1
        cases = {"released": days}.get(name) or _representatives(turns)
        line = np.asarray([False, True]) if name in unpublished else np.asarray(cases)
        values[name] = line.reshape(shape)
    if chip.tpp is None and chip.die_area_mm2 is not None:
        values["performance_density"] = _numbers(values["tpp"]) / chip.die_area_mm2
    return values, unknown


def _sale_days(chip: Chip, rules: Iterable[Rule]) -> list[float]:
    """One day where no test tells the possible ones apart, else days on either side and the turns.

    A test on this quantity says up to which day, that day included.
    """
    first, last = chip.first_sale
    turns = [t for t in turns_of("released", rules, {}, None) if first <= t < last]
    if not turns:
        return [first]
    after = [min(t + 0.5, last) for t in turns]
    return [first, *(x for pair in zip(turns, after, strict=True) for x in pair)]


def _numbers(value: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(value, dtype=np.float64)


def turns_of(name: str, rules: Iterable[Rule], known: Values, area: float | None) -> list[float]:
    """Values of a figure at which tests of ``rules`` turn, ascending, the others as ``known``.

    With the ``area`` of a die, those of its density too.
    """
    turns: set[float] = set()
    for rule in rules:
        for test in (rule.test, rule.applies_if):
            if test is not None:
                turns.update(test.thresholds(name, known))
                if area is not None and name == "tpp":
                    turns.update(x * area for x in test.thresholds("performance_density", known))
    return sorted(turns)


def _representatives(turns: list[float]) -> list[float]:
    """One value inside every stretch between turning points, and the points themselves."""
    if not turns:
        return [1.0]
    between = [x for a, b in pairwise(turns) for x in (a, (a + b) / 2)]
    return [turns[0] / 2, *between, turns[-1], 2 * turns[-1]]


def _truths(rules: Iterable[Rule], values: Values, chip: Chip) -> dict[str, Truth]:
    truths: dict[str, Truth] = {}
    for rule in rules:
        named = {**values, **truths}
        missing = rule.test.names - set(named) if rule.test else ()
        named |= {name: np.asarray(False) for name in missing}  # a rule not in force is not met
        met = rule.test is None or rule.names(chip.id)
        truths[rule.id] = np.asarray(True) if met else _test(rule).evaluate(named)
    return truths


def _test(rule: Rule) -> Test:
    assert rule.test is not None, "asked for rules with a test only"
    return rule.test


def _counting(
    rules: tuple[Rule, ...],
    truths: Mapping[str, Truth],
    scopes: Mapping[str, str],
    effects: Mapping[str, Effect | None],
    named: Values,
) -> dict[str, Truth]:
    """Where each rule's effect enters the verdict: met, in scope, applicable and not replaced."""
    counts: dict[str, Truth] = {}
    for rule in rules:
        silent = bool(scopes[rule.id]) or effects[rule.id] is None
        truth = np.asarray(False) if silent else truths[rule.id]
        if rule.applies_if is not None:
            missing = rule.applies_if.names - set(named)
            truth = truth & rule.applies_if.evaluate({**named, **dict.fromkeys(missing, _FALSE)})
        counts[rule.id] = truth
        for other in rule.replaces:
            if other in counts:
                counts[other] = counts[other] & ~truth
    return counts


_FALSE = np.asarray(False)


def _outcome(
    side: Side,
    rules: Iterable[Rule],
    effects: Mapping[str, Effect | None],
    counts: Mapping[str, Truth],
    statuses: Mapping[str, Status],
    values: Values,
    axes: tuple[str, ...],
) -> Outcome:
    order = sorted(statuses.values(), key=lambda s: s.rank)
    place = {status.code: i for i, status in enumerate(order)}
    codes: Codes = np.zeros((1,) * len(axes), dtype=np.int64) + place["free"]
    for rule in rules:
        effect = effects[rule.id]
        if rule.side is side and effect is not None:
            codes = np.maximum(codes, np.where(counts[rule.id], place[effect.status.code], 0))
    depends = _moves_with(codes, axes)
    return Outcome(
        possible=tuple(order[code] for code in np.unique(codes)),
        depends_on=depends,
        bands=_bands(depends[0], values, codes, axes, order)
        if len(depends) == 1 and depends[0] in FIGURES
        else (),
    )


def _bands(
    name: str, values: Values, codes: Codes, axes: tuple[str, ...], order: list[Status]
) -> tuple[Band, ...]:
    """The stretches of one unknown quantity over which the outcome stays the same.

    Even places are stretches between turning points, odd places the points themselves.
    """
    axis = axes.index(name)
    first = tuple(slice(None) if i == axis else 0 for i in range(len(axes)))
    line = np.broadcast_to(codes, np.broadcast_shapes(codes.shape, np.shape(values[name])))[first]
    points = _numbers(values[name]).ravel()
    bands: list[Band] = []
    low: float | None = None
    for i in range(len(line)):
        last = i + 1 == len(line)
        if last or line[i + 1] != line[i]:
            turn = None if last else float(points[i if i % 2 else i + 1])
            bands.append(Band(quantity=name, low=low, high=turn, status=order[line[i]]))
            low = turn
    return tuple(bands)


def _certain(truth: Truth) -> bool | None:
    return bool(truth.flat[0]) if truth.min() == truth.max() else None


def _moves_with(codes: Truth | Codes, axes: tuple[str, ...]) -> tuple[str, ...]:
    """The unknown quantities along whose axis ``codes`` is not constant."""
    if codes.ndim < len(axes):
        return ()
    return tuple(
        name for axis, name in enumerate(axes) if (codes != np.take(codes, [0], axis=axis)).any()
    )


# Where sources disagree about a chip: does the verdict hang on whom one believes?
# --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One disagreement and what the verdict would be with the other figure."""

    disagreement: Disagreement
    outcomes: Mapping[Side, Outcome] | None
    """None where no other number is offered."""
    changes: tuple[Side, ...]
    """The sides on which the verdict would change."""


def alternatives(verdict: Verdict, ruleset: RuleSet) -> tuple[Alternative, ...]:
    """Every recorded disagreement about the chip of ``verdict``, evaluated."""
    return tuple(_alternative(d, verdict, ruleset) for d in disagreements(verdict.chip.id))


def _alternative(item: Disagreement, verdict: Verdict, ruleset: RuleSet) -> Alternative:
    if item.value is None:
        return Alternative(disagreement=item, outcomes=None, changes=())
    figure: dict[str, Any] = {item.quantity: item.value}
    chip = replace(verdict.chip, **figure)
    other = evaluate(chip, ruleset, verdict.buyer)
    changes = tuple(
        side
        for side, outcome in verdict.outcomes.items()
        if outcome.possible != other.outcomes[side].possible
    )
    return Alternative(disagreement=item, outcomes=other.outcomes, changes=changes)
