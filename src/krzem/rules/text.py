"""Verdicts as text for a terminal: pure functions."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from krzem.rules.chip import Chip, names
from krzem.rules.ruleset import Rule, RuleSet, Side, load_rules
from krzem.rules.verdicts import FIGURES, WORDS, Alternative, Band, Finding, Outcome, Verdict

WIDTH = 100

SIDES = {
    Side.EXPORT: "Export (US rules)",
    Side.USE: "Use (US rules)",
    Side.IMPORT: "Import (buyer's country)",
}
_SHORT = {
    "performance_density": "PD", "tpp": "TPP", "dram_gb_per_s": "DRAM", "io_gb_per_s": "I/O",
    "released": "date",
}  # fmt: skip
_UNITS = {
    "tpp": "", "performance_density": "", "dram_gb_per_s": " GB/s", "io_gb_per_s": " GB/s",
}  # fmt: skip


def format_verdict(verdict: Verdict, ruleset: RuleSet, others: Sequence[Alternative] = ()) -> str:
    """Everything about one chip: verdict, arithmetic, rules one by one, what is not known."""
    blocks = [
        _head(verdict, ruleset),
        "\n".join(
            [
                *(_entry(SIDES[s], outcome_words(o)) for s, o in verdict.outcomes.items()),
                _entry("In short", clear_words(verdict)),
            ]
        ),
        *filter(None, ("\n".join(_turning(o, verdict.chip)) for o in verdict.outcomes.values())),
        _section("Arithmetic", map(_bullet, verdict.chip.arithmetic)),
        _section("Rules in force that day", _findings(verdict)),
        _section("Where sources disagree", map(_other, others)),
        _section("Not covered", map(_bullet, ruleset.not_covered)),
    ]
    return "\n\n".join(block for block in blocks if block)


def format_table(verdicts: Sequence[Verdict], ruleset: RuleSet) -> str:
    """One line per chip, then the rules in force."""
    head = ("chip", "TPP", "PD", "export, or use where Chinese", "import")
    rows = _aligned([head, *map(_row, verdicts)])
    first = verdicts[0]
    title = _one_line(f"{to_whom(first)}. {age(first)} {ruleset.disclaimer}")
    rules = [rule_line(f.rule) for f in first.findings if f.effect or not f.rule.effects]
    blocks = [
        _wrap(title),
        "\n".join([rows[0], "-" * max(map(len, rows)), *rows[1:]]),
        "* not yet released that day" if any(map(_later, verdicts)) else "",
        _section("Rules in force that day", rules)
        or "No rule of this file spoke of that buyer that day.",
        _section("Not covered", map(_bullet, ruleset.not_covered)),
    ]
    return "\n\n".join(block for block in blocks if block)


def outcome_words(outcome: Outcome) -> str:
    """``licence, case by case``, or what it depends on and between which outcomes."""
    if outcome.status is not None:
        return outcome.status.words
    on = " and ".join(label(name) for name in outcome.depends_on)
    return f"depends on {on}: {' / '.join(s.words for s in outcome.possible)}"


def summary(verdict: Verdict) -> str:
    """The sides on which something is to be said, in one line: ``export: licence; ...``."""
    said = [
        f"{side.value}: {outcome_words(outcome)}"
        for side, outcome in verdict.outcomes.items()
        if any(status.rank for status in outcome.possible)
    ]
    words = "; ".join(said) or "no rule here is met"
    return words if verdict.certain else f"{words} (as the rules stood on {_searched(verdict)})"


def age(verdict: Verdict) -> str:
    """How old the newest text is on the day asked for, and whether that day can be spoken of."""
    rules, day = verdict.ruleset, verdict.buyer.on
    if day <= rules.newest_text:
        return ""
    known = (
        f"The newest text in this record is of {rules.newest_text}, {_days(verdict.text_age_days)} "
        f"before that day; something newer was last looked for on {rules.searched}."
    )
    if verdict.certain:
        return known
    late = (day - rules.searched).days
    return (
        f"{known} That is {_days(late)} before the day asked for: rules may change until then, and "
        "what follows is only how they stood."
    )


def _days(count: int) -> str:
    return f"{count:,} day{'s' if count != 1 else ''}"


def label(name: str) -> str:
    """The words for a quantity, or for what the rules file says is not published."""
    return WORDS.get(name) or load_rules().unknowns.get(name, name)


def to_whom(verdict: Verdict) -> str:
    """``To a buyer in China on 2026-11-30``, or what else the buyer does."""
    buyer = verdict.buyer
    if buyer.rents:
        return f"Time on chips of others in {place(verdict)}, rented on {buyer.on}"
    if buyer.acquired is not None:
        return f"In {place(verdict)}, owned since {buyer.acquired} and used on {buyer.on}"
    return f"To a buyer in {place(verdict)} on {buyer.on}"


def place(verdict: Verdict) -> str:
    """``China``, or ``Singapore, ultimate parent in China``."""
    buyer = verdict.buyer
    where = names()[buyer.to] + (", with state funds" if buyer.state_funded else "")
    if buyer.parent == buyer.to:
        return where
    return f"{where}, ultimate parent in {names()[buyer.parent]}"


def clear_words(verdict: Verdict) -> str:
    """What ``Verdict.clear`` means for a plan; nothing is certain of a day yet to be searched."""
    if verdict.clear is None:
        return "a plan may not count on it: open until the missing figure is known"
    if not verdict.clear:
        return "a plan may not count on it without an authority's decision"
    if verdict.certain:
        return "no rule listed asks for an authority's decision; mind what is not covered"
    return f"nothing stood in the way on {_searched(verdict)}; whether that holds then is not known"


def _searched(verdict: Verdict) -> str:
    return f"{verdict.ruleset.searched}"


def rule_line(rule: Rule) -> str:
    """Title, first day and sources on one line."""
    day = _day(rule) + (", no law yet" if rule.bill else "")
    return _bullet(f"{rule.title} ({day}). {'; '.join(rule.source)}")


def mark(finding: Finding) -> str:
    """``met``, ``not met``, ``depends`` or ``as if met`` (the rule does not reach this chip)."""
    if finding.rule.bill:
        return "no law yet"
    if finding.rule.side is Side.CONTEXT and finding.rule.test is None:
        return "note"
    word = {True: "met", False: "not met", None: "depends"}[finding.meets]
    return f"as if {word}" if finding.out_of_scope and finding.meets is not False else word


def with_figures(text: str, chip: Chip) -> str:
    """The text of a test with the chip's figures put after their names."""
    for name in FIGURES:
        value = getattr(chip, name)
        shown = "unknown" if value is None else f"{value:,.4g}" if value < 100 else f"{value:,.0f}"
        text = re.sub(rf"\b{name}\b", f"{WORDS[name]} [{shown}]", text)
    text = re.sub(r"\breleased\b", f"{WORDS['released']} [{chip.released or 'unknown'}]", text)
    text = re.sub(r"\b(20\d\d)([01]\d)([0-3]\d)\b", r"\1-\2-\3", text)
    for name, words in load_rules().unknowns.items():
        text = text.replace(name, f"{words} [not published]")
    centre = "data centre [yes]" if chip.data_centre else "data centre [no]"
    return text.replace("data_centre", centre)


def _head(verdict: Verdict, ruleset: RuleSet) -> str:
    chip = verdict.chip
    words = to_whom(verdict)
    title = f"{chip.name} ({chip.id}): {words[0].lower()}{words[1:]}"
    late = f"Released {chip.released}, after that day." if _later(verdict) else ""
    said = " ".join(filter(None, [age(verdict), _one_line(ruleset.disclaimer), late]))
    return f"{title}\n{_wrap(said)}"


def _later(verdict: Verdict) -> bool:
    """Whether the chip came out after the day asked for."""
    released = verdict.chip.released
    return released > f"{verdict.buyer.on:%Y-%m}"[: len(released)]


def _turning(outcome: Outcome, chip: Chip) -> list[str]:
    return [f"  {_band(band, chip)}" for band in outcome.bands]


def _band(band: Band, chip: Chip) -> str:
    """``performance density below 3.2 (die above 640 mm2): ...``."""
    unit = _UNITS[band.quantity]
    low = "" if band.low is None else f"from {band.low:,g}{unit}"
    high = "" if band.high is None else f"to {band.high:,g}{unit}"
    line = " ".join(filter(None, [WORDS[band.quantity], low, high]))
    if band.quantity == "performance_density" and chip.tpp is not None:
        line += f" ({_die(band, chip.tpp)})"
    return f"{line}: {band.status.words}"


def _die(band: Band, tpp: float) -> str:
    least = None if band.high is None else tpp / band.high
    most = None if band.low is None else tpp / band.low
    if least is None:
        return f"a die of at most {most:,.0f} mm2"
    if most is None:
        return f"a die of at least {least:,.0f} mm2"
    return f"a die of {least:,.0f} to {most:,.0f} mm2"


def _findings(verdict: Verdict) -> Iterable[str]:
    for finding in verdict.findings:
        rule = finding.rule
        if rule.side is Side.CONTEXT and (rule.test is not None or finding.out_of_scope):
            continue
        untested = rule.test is None or rule.side is Side.IMPORT
        elsewhere = finding.effect is None and bool(rule.effects)
        if untested and (elsewhere or finding.out_of_scope):
            continue
        yield "\n".join(_finding(finding, verdict.chip))


def _finding(finding: Finding, chip: Chip) -> Iterable[str]:
    rule = finding.rule
    yield _bullet(f"[{mark(finding)}] {rule.title} ({_day(rule)})")
    if rule.test is not None:
        yield _wrap(with_figures(rule.test.text, chip), "    ")
    if finding.depends_on:
        yield f"    depends on {', '.join(label(n) for n in finding.depends_on)}"
    if finding.out_of_scope:
        yield f"    {finding.out_of_scope}"
    elif finding.effect is None and rule.effects:
        yield "    has no effect for this buyer"
    elif finding.meets is not False and finding.effect is not None:
        yield from _effect(finding)
    if rule.note and finding.meets is not False and not finding.out_of_scope:
        yield _wrap(f"note: {rule.note}", "    ")
    trust = f"confidence: {rule.confidence}; read {rule.read}"
    yield _wrap(f"source: {'; '.join(rule.source)} ({trust})", "    ")


def _effect(finding: Finding) -> Iterable[str]:
    assert finding.effect is not None
    if finding.counts is False:
        yield "    another rule takes its place here"
    yield _wrap(f"effect: {finding.effect.text}", "    ")
    for condition in finding.rule.conditions:
        yield _wrap(f"condition, for the parties to show: {condition}", "    ")


def _other(item: Alternative) -> str:
    what = item.disagreement
    number = "" if what.value is None else f" {label(what.quantity)} {what.value:,g}"
    if item.outcomes is None:
        after = ""
    elif item.changes:
        after = " With it: " + "; ".join(
            f"{SIDES[s]}: {outcome_words(item.outcomes[s])}" for s in item.changes
        )
    else:
        after = " The verdict is the same with it."
    return _bullet(f"{what.who}:{number} {what.explanation}{after}")


def _row(verdict: Verdict) -> tuple[str, ...]:
    chip = verdict.chip
    tpp = "?" if chip.tpp is None else f"{chip.tpp:,.0f}"
    density = chip.performance_density
    pd = "?" if density is None else f"{density:.2f}"
    sides = verdict.outcomes
    export = _short(sides[Side.USE if chip.country == "CN" else Side.EXPORT])
    name = f"{chip.id}*" if _later(verdict) else chip.id
    return name, tpp, pd, export, _short(sides[Side.IMPORT])


def _short(outcome: Outcome) -> str:
    """A few words for a cell: what its column says already is left out."""
    if outcome.status is None:
        return "depends on " + ", ".join(_SHORT.get(n, label(n)) for n in outcome.depends_on)
    if outcome.status.rank == 0:
        return "-"
    words = outcome.status.words
    return words.removeprefix("licence, ").removeprefix("import ")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of equal columns; the import side goes on below where a line would be too long."""
    chip, tpp, pd, export, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for a, b, c, d, last in rows:
        start = f"{a:<{chip}}  {b:>{tpp}}  {c:>{pd}}  {d:<{export}}  "
        lines += textwrap.wrap(
            last, WIDTH, initial_indent=start, subsequent_indent=" " * len(start)
        ) or [start.rstrip()]
    return lines


def _day(rule: Rule) -> str:
    first = rule.period.first
    assert first is not None, "every rule has a first day"
    shown = {"day": f"{first}", "month": f"{first:%Y-%m}", "year": f"{first:%Y}"}[rule.precision]
    last = "" if rule.period.last is None else f" to {rule.period.last}"
    return f"{shown}{last}"


def _section(title: str, lines: Iterable[str]) -> str:
    lines = list(lines)
    return "\n".join([title, *(textwrap.indent(line, "  ") for line in lines)]) if lines else ""


def _entry(name: str, words: str) -> str:
    return textwrap.fill(
        words, WIDTH, initial_indent=f"{name:<26}", subsequent_indent=" " * 26,
        break_on_hyphens=False,
    )  # fmt: skip


def _bullet(text: str) -> str:
    return textwrap.fill(
        text, WIDTH - 4, initial_indent="- ", subsequent_indent="  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH - len(indent) // 2, initial_indent=indent, subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _one_line(text: str) -> str:
    return " ".join(text.split())
