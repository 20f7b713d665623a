"""The rules file as values: what is tested, since when, for whom, with which effect."""

from __future__ import annotations

import ast
import datetime as dt
import enum
import fnmatch
import operator
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError

# The tests of the rules file: a small language of comparisons, evaluated over arrays
# -----------------------------------------------------------------------------------

Values = Mapping[str, NDArray[np.float64] | NDArray[np.bool_]]
Truth = NDArray[np.bool_]

_COMPARE: Mapping[type[ast.cmpop], Callable[..., Truth]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One parsed test; ``text`` is as written in the file."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    def evaluate(self, values: Values) -> Truth:
        """True where the test holds; broadcasts over the axes of the values it names."""
        return np.asarray(_evaluate(self.tree, values), dtype=np.bool_)

    def thresholds(self, name: str, values: Values) -> tuple[float, ...]:
        """The values of ``name`` at which a comparison of this test turns, the others as known."""
        if name not in self.names:
            return ()
        nodes = (node for node in ast.walk(self.tree) if isinstance(node, ast.Compare))
        found = (_turns_at(node, name, values) for node in nodes)
        return tuple(x for x in found if x is not None and x > 0)


def parse(text: str) -> Test:
    """Parse a test; raises DataError that names the part which is not allowed."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise DataError(f"the test {text!r} cannot be read: {error.msg}.") from None
    _check(tree, text)
    names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return Test(text=text, tree=tree, names=names)


def _check(node: ast.expr, text: str) -> None:
    match node:
        case ast.BoolOp(values=parts):
            pass
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            parts = [operand]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            parts = [left, right]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            parts = [left, right]
        case ast.Name() | ast.Constant(value=int() | float()):
            parts = []
        case _:
            raise DataError(
                f"the test {text!r} holds {ast.unparse(node)!r}; allowed are names, numbers, +, "
                "comparisons of two, and, or, not."
            )
    for part in parts:
        _check(part, text)


def _evaluate(node: ast.expr, values: Values) -> NDArray[np.generic]:
    match node:
        case ast.BoolOp(op=op, values=parts):
            join = operator.and_ if isinstance(op, ast.And) else operator.or_
            return np.asarray(reduce(join, (_evaluate(part, values) for part in parts)))
        case ast.UnaryOp(operand=operand):
            return np.asarray(np.logical_not(_evaluate(operand, values)))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            holds: Truth = _COMPARE[type(op)](_evaluate(left, values), _evaluate(right, values))
            return holds
        case ast.BinOp(left=left, right=right):
            return np.asarray(np.add(_evaluate(left, values), _evaluate(right, values)))
        case ast.Name(id=name):
            return np.asarray(values[name])
        case ast.Constant(value=value):
            return np.asarray(value)
        case _:
            raise AssertionError(f"unchecked node {node!r}")


def _turns_at(node: ast.Compare, name: str, values: Values) -> float | None:
    limit = node.comparators[0]
    terms = [part for part in ast.walk(node.left) if isinstance(part, ast.Name)]
    if not isinstance(limit, ast.Constant) or name not in {term.id for term in terms}:
        return None
    others = (values.get(term.id) for term in terms if term.id != name)
    known = sum(float(x) for x in others if x is not None and np.ndim(x) == 0)
    return float(limit.value) - known  # type: ignore[arg-type]


# The rules file as values: what is tested, since when, for whom, with which effect
# ---------------------------------------------------------------------------------

FILE = "rules.toml"

QUANTITIES = (
    "tpp", "performance_density", "dram_gb_per_s", "io_gb_per_s", "released", "data_centre",
)  # fmt: skip


class Side(enum.StrEnum):
    """Who a rule speaks to."""

    EXPORT = "export"
    USE = "use"
    IMPORT = "import"
    CONTEXT = "context"


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """Days from ``first`` to ``last``, both included; None is open."""

    first: dt.date | None = None
    last: dt.date | None = None

    def holds(self, day: dt.date) -> bool:
        """Whether ``day`` lies in the period."""
        return (self.first is None or self.first <= day) and (self.last is None or day <= self.last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An outcome; a larger rank is stricter."""

    code: str
    rank: int
    clears: bool
    """A deal may go ahead without an authority's decision on it."""
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A named set of countries, some of them for a time only."""

    id: str
    title: str
    members: tuple[tuple[str, Period], ...]
    source: str

    def holds(self, country: str, day: dt.date) -> bool:
        """Whether ``country`` belonged to the group on ``day``."""
        return any(code == country and period.holds(day) for code, period in self.members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What follows where a rule is met, for some destinations."""

    to: tuple[str, ...]
    period: Period
    status: Status
    text: str
    parent: bool
    """The seat of the ultimate parent counts like the destination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of the file."""

    id: str
    title: str
    side: Side
    period: Period
    precision: str
    """``day``, or ``month`` or ``year`` where the sources do not give the day."""
    test: Test | None
    applies_if: Test | None
    chips: tuple[str, ...]
    vendors: tuple[str, ...]
    vendor_countries: tuple[str, ...]
    not_vendor_countries: tuple[str, ...]
    always: tuple[str, ...]
    """Ids that the rule names: they meet its test whatever their figures."""
    state_funded: bool
    """Speaks of buyers with state funds only."""
    rents: str
    """``also`` or ``only``: reaches those who rent time too, or them alone; see ``misses``."""
    bill: bool
    """Before a parliament and not law."""
    replaces: tuple[str, ...]
    conditions: tuple[str, ...]
    effects: tuple[Effect, ...]
    source: tuple[str, ...]
    read: dt.date
    """When its source, or a report of it, was last read."""
    confidence: str
    note: str

    def names(self, chip_id: str) -> bool:
        """Whether the rule names this chip, so that its test is met whatever the figures."""
        return any(fnmatch.fnmatchcase(chip_id, pattern) for pattern in self.always)

    def misses(self, *, rents: bool) -> str:
        """Why this rule does not reach a buyer who rents (or owns); empty where it does."""
        if rents and not self.rents and self.side in (Side.EXPORT, Side.IMPORT):
            return "no chip changes hands where time on it is rented"
        if not rents and self.rents == "only":
            return "speaks of those who rent time on chips of others"
        return ""

    def out_of_scope(self, chip_id: str, vendor: str, country: str) -> str:
        """Why this rule does not speak of a chip; empty where it does."""
        if self.chips and not any(fnmatch.fnmatchcase(chip_id, p) for p in self.chips):
            return f"speaks of {', '.join(self.chips)}"
        if self.vendors and vendor not in self.vendors:
            return f"addressed to {', '.join(self.vendors)}"
        if self.vendor_countries and country not in self.vendor_countries:
            return f"speaks of chips designed in {', '.join(self.vendor_countries)}"
        if country in self.not_vendor_countries:
            return f"does not reach chips designed in {country}"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """Everything in the rules file."""

    rules: tuple[Rule, ...]
    groups: Mapping[str, Group]
    statuses: Mapping[str, Status]
    bit_length: Mapping[str, int]
    chip_facts: tuple[Mapping[str, Any], ...]
    unknowns: Mapping[str, str]
    """What is true or false and not published, by name, in words."""
    compiled: dt.date
    newest_text: dt.date
    """Day of the newest text of a rule."""
    newest_report: dt.date
    searched: dt.date
    """When something newer was last looked for."""
    disclaimer: str
    not_covered: tuple[str, ...]

    def in_force(self, day: dt.date) -> tuple[Rule, ...]:
        """The rules in force on ``day``, in the order of the file."""
        return tuple(rule for rule in self.rules if rule.period.holds(day))

    def reaches(self, effect: Effect, to: str, parent: str, day: dt.date) -> bool:
        """Whether an effect holds for a buyer in ``to`` with its ultimate parent in ``parent``."""
        places = {to, parent} if effect.parent else {to}
        return effect.period.holds(day) and any(
            self._matches(pattern, place, day) for pattern in effect.to for place in places
        )

    def _matches(self, pattern: str, place: str, day: dt.date) -> bool:
        group = self.groups.get(pattern)
        return pattern in ("*", place) or (group is not None and group.holds(place, day))


@cache
def load_rules() -> RuleSet:
    """The shipped rules; raises DataError where the file contradicts itself."""
    return read_rules(resources.files("krzem.facts").joinpath(FILE).read_text(encoding="utf-8"))


def read_rules(text: str) -> RuleSet:
    """Rules from TOML text; raises DataError."""
    try:
        data = tomllib.loads(text)
        statuses = {k: Status(code=k, **v) for k, v in data["status"].items()}
        groups = {g["id"]: _group(g) for g in data["group"]}
        rules = tuple(_rule(table, statuses) for table in data["rule"])
        ruleset = RuleSet(
            rules=rules,
            groups=MappingProxyType(groups),
            statuses=MappingProxyType(statuses),
            bit_length=MappingProxyType(data["bit_length"]),
            chip_facts=tuple(data.get("chip", ())),
            unknowns=MappingProxyType({u["id"]: u["words"] for u in data.get("unknown", ())}),
            compiled=data["compiled"],
            newest_text=data["newest_text"],
            newest_report=data["newest_report"],
            searched=data["searched"],
            disclaimer=data["disclaimer"],
            not_covered=tuple(data["not_covered"]),
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"the rules cannot be read: {error!r}.") from None
    _check_names(ruleset)
    return ruleset


def _group(table: Mapping[str, Any]) -> Group:
    always = [(code, Period()) for code in table["countries"]]
    dated = [(d["country"], _period(d)) for d in table.get("dated", ())]
    return Group(
        id=table["id"],
        title=table["title"],
        members=(*always, *dated),
        source=table["source"],
    )


def _rule(table: Mapping[str, Any], statuses: Mapping[str, Status]) -> Rule:
    def test(key: str) -> Test | None:
        return parse(table[key]) if key in table else None

    def words(key: str) -> tuple[str, ...]:
        return tuple(table.get(key, ()))

    return Rule(
        id=table["id"],
        title=table["title"],
        side=Side(table["side"]),
        period=_period(table),
        precision=table.get("precision", "day"),
        test=test("test"),
        applies_if=test("applies_if"),
        chips=words("chips"),
        vendors=words("vendors"),
        vendor_countries=words("vendor_countries"),
        not_vendor_countries=words("not_vendor_countries"),
        always=words("always"),
        state_funded=table.get("state_funded", False),
        rents=table.get("rents", ""),
        bill=table.get("bill", False),
        replaces=words("replaces"),
        conditions=words("conditions"),
        effects=tuple(_effect(e, statuses) for e in table.get("effect", ())),
        source=tuple(table["source"]),
        read=table["read"],
        confidence=table["confidence"],
        note=table.get("note", ""),
    )


def _effect(table: Mapping[str, Any], statuses: Mapping[str, Status]) -> Effect:
    return Effect(
        to=tuple(table["to"]),
        period=_period(table),
        status=statuses[table["status"]],
        text=table["text"],
        parent=table.get("parent", False),
    )


def _period(table: Mapping[str, Any]) -> Period:
    return Period(first=table.get("from"), last=table.get("until"))


def _check_names(ruleset: RuleSet) -> None:
    """Every name in a test is a quantity, an unknown or a rule above it: no test reads a ghost."""
    known = {*QUANTITIES, *ruleset.unknowns}
    for rule in ruleset.rules:
        for test in (rule.test, rule.applies_if):
            unknown = sorted(test.names - known) if test else []
            if unknown:
                raise DataError(
                    f"rule {rule.id} tests {', '.join(unknown)}; known there are "
                    f"{', '.join(sorted(known))}."
                )
        known.add(rule.id)
