"""The outlook as text for a terminal or a Markdown page: pure functions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

import numpy as np

from krzem.outlook.backtest import LEVELS, BackTest
from krzem.outlook.reproduce import ODDS, Comparison, Reproduced, not_comparable
from krzem.outlook.sensitivity import Belief, Beliefs, Levers
from krzem.outlook.simulate import QUANTILES, Forecast
from krzem.outlook.whole import Definition, Nats, Outlook

Cells = Sequence[str]

_SHOWN_YEARS = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)


def format_outlook(result: Outlook) -> str:
    """Everything, in sections."""
    return "\n\n".join(f"{title}\n{body}" for title, body in sections(result))


def sections(result: Outlook) -> Iterable[tuple[str, str]]:
    """Title and text of each part; the tables are Markdown and read well as they stand."""
    f = result.forecast
    a = f.assumptions
    yield a.title, _summary(result)
    yield 'Odds by what "ahead" means', _definitions(result.definitions)
    yield "Chance of having been ahead", odds_table(f)
    yield f"How far {a.follower} are behind (5, 50 and 95 % points)", fan_table(f)
    if result.levers is not None:
        yield (
            f"Levers of the odds within {result.levers.within_years:g} years",
            _levers(result.levers),
        )
        yield "If one scenario were certain", _options(result.levers)
    yield "What others said", _comparisons(result.comparisons)
    if result.beliefs:
        yield (
            "What one must believe",
            "\n\n".join(_belief_block(b, result.comparisons) for b in result.beliefs),
        )
    yield (
        "Back-test: the model and a naive trend at four days of the past",
        back_test_table(result.back_test),
    )
    yield "Published figures reproduced from the inputs", _reproduced(result.reproduced)
    yield "The median gap as a difference of loss", _nats(result.nats)


def table(head: Cells, rows: Iterable[Cells], numbers: int = 0) -> str:
    """A Markdown table with aligned columns; the last ``numbers`` columns are set to the right."""
    body = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *body]) for i in range(len(head))]
    right = [i >= len(head) - numbers for i in range(len(head))]

    def line(cells: Cells) -> str:
        fitted = (
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(fitted)} |"

    rule = (f"{'-' * (w - 1)}{':' if r else '-'}" for w, r in zip(widths, right, strict=True))
    return "\n".join([line(head), f"| {' | '.join(rule)} |", *map(line, body)])


def odds_table(f: Forecast) -> str:
    """Odds by year and by scenario."""
    years = _years(f)
    head = ["years", "until", "ever ahead", "ahead in trend then", "larger run then"]
    head += [f"ever, {name} {option}".replace("_", " ") for name, option in f.by_option]
    rows = []
    for n in years:
        cells = [f"{n:g}", _date(f, n), _percent(f.odds(n)), _percent(_at(f, f.ahead, n)),
                 _percent(_at(f, f.larger_run, n))]  # fmt: skip
        cells += [_percent(_at(f, curve, n)) for curve in f.by_option.values()]
        rows.append(cells)
    return table(head, rows, len(head) - 2)


def fan_table(f: Forecast) -> str:
    """Lag, gap, ratio of runs and chips by year."""
    head = ["years", "until", "months", "ECI points", "largest run, times",
            "leader M H100e", "leader GW", "follower M H100e", "leader's record"]  # fmt: skip
    names = (("lag_months", 1.0, "{:.1f}".format), ("gap_points", 1.0, "{:.1f}".format),
             ("run_ratio", 1.0, _three_digits), ("leader_stock", 1e-6, _three_digits),
             ("leader_gw", 1.0, _three_digits), ("follower_stock", 1e-6, _three_digits),
             ("leader_level", 1.0, "{:.0f}".format))  # fmt: skip
    rows = []
    for n in (0.0, *_years(f)):
        cells = [f"{n:g}", _date(f, n)]
        for name, factor, shown in names:
            three = (_at(f, f.fans[name][:, QUANTILES.index(q)], n) for q in (0.05, 0.5, 0.95))
            cells.append(" / ".join(shown(x * factor) for x in three))
        rows.append(cells)
    return table(head, rows, 7)


def back_test_table(test: BackTest) -> str:
    """Model against trend by family, coverage by cut-off, then every target."""
    families = [
        (v.family, f"{v.count}", *(f"{x:.3g}" for x in v.crps),
         *(f"{x:.2f}" for x in v.log_density), *(f"{n}" for n in v.inside_80), v.better)
        for v in test.verdicts
    ]  # fmt: skip
    head = ("family", "targets", "CRPS, model", "CRPS, trend", "log score, model",
            "log score, trend", "in the model's 80 %", "in the trend's 80 %", "better")  # fmt: skip
    coverage = [
        (f"{day}", *(f"{a} and {b} of {n}" for a, b, n in (test.covered(x, day) for x in LEVELS)))
        for day in test.cutoffs
    ]
    within = tuple(f"in the {100 * level:.0f} %, model and trend" for level in LEVELS)
    rows = [
        (f"{t.cutoff}", t.family, t.what, t.unit, f"{t.actual:,.4g}", f"{t.low:,.4g}",
         f"{t.mid:,.4g}", f"{t.high:,.4g}", f"{t.trend_mid:,.4g}", f"{100 * t.model.place:.0f} %")
        for t in test.targets
    ]  # fmt: skip
    columns = ("seen from", "family", "target", "unit", "actual", "5 %", "median", "95 %",
               "trend's median", "actual lies at")  # fmt: skip
    return "\n\n".join([
        table(head, families, 8),
        "CRPS: lower is better; log score: higher is better. Where the trend does better, it is "
        "used in place of the model. Targets of one cut-off hang together: there are about a dozen "
        "independent ones.",
        table(("seen from", *within), coverage, 3),
        table(columns, rows, 6),
    ])  # fmt: skip


def _definitions(rows: Sequence[Definition]) -> str:
    years = [y for y, _ in rows[0].odds]
    body = [(d.means, d.index, d.source, *(_percent(p) for _, p in d.odds)) for d in rows]
    head = ("ahead means", "by", "from", *("1 year" if y == 1 else f"{y:g} years" for y in years))
    return table(head, body, len(years))


def _summary(result: Outlook) -> str:
    f = result.forecast
    a = f.assumptions
    three, five = (min(n, float(f.years[-1])) for n in (3.0, 5.0))
    judged = sum(q.kind == "judgement" for q in a.quantities.values())
    lines = [
        f"Counted from {a.origin}; {f.paths:,} paths, seed {a.run.seed}; the evidence leaves "
        f"{f.effective:,.0f} independent draws of the assumptions.",
        f"Chance that {a.follower} have been ahead on the index: {_percent(f.odds(three))} within "
        f"{three:g} years, {_percent(f.odds(five))} within {five:g} (standard error "
        f"{100 * f.error(five):.1f} points; the assumptions matter far more).",
        f"Ahead in trend, without the luck of release dates: {_percent(_at(f, f.ahead, five))} "
        f"after {five:g} years. By other definitions the odds are others: see the next table.",
        "In the back-test the model beats a naive trend on "
        + ", ".join(v.family for v in result.back_test.verdicts if v.better == "model")
        + "; the trend is used for "
        + (
            ", ".join(v.family for v in result.back_test.verdicts if v.better == "trend")
            or "nothing"
        )
        + ".",
        f"{judged} of {len(a.quantities)} quantities are our judgement; all of them can be changed "
        "in a TOML file (`krzem outlook --assumptions` prints them).",
    ]
    if result.levers is not None:
        top = ", ".join(lever.name for lever in result.levers.levers[:3])
        lines.append(f"Strongest levers: {top}.")
    return "\n".join(lines)


def _levers(levers: Levers) -> str:
    rows = [
        (v.name, v.unit, f"{v.low:,.4g}", f"{v.high:,.4g}", _percent(v.at_low), _percent(v.at_high),
         f"{v.rank_correlation:+.2f}")
        for v in levers.levers
    ]  # fmt: skip
    head = ("assumption", "unit", "low", "high", "odds at low", "odds at high", "rank corr.")
    note = (
        f"All else uncertain: {_percent(levers.base)}. Rank correlation is Spearman's, of the "
        "drawn value with the least gap on its path: negative values bring the follower closer."
    )
    return table(head, rows, 5) + "\n\n" + note


def _options(levers: Levers) -> str:
    rows = [(o.scenario, o.option, _percent(o.chance), _percent(o.odds)) for o in levers.options]
    return table(("scenario", "option", "assumed chance", "odds if certain"), rows, 2)


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for c in comparisons:
        s = c.statement
        rows.append((
            s.who, s.said, s.words, _range(s.measure, s.low, s.high),
            f"{_percent(c.mid)} within {s.years:.2g} years" if s.measure in ODDS else
            " / ".join(_value(s.measure, x) for x in (c.low, c.mid, c.high)),
            "yes" if c.agrees else "in our 90 %" if c.overlaps else "no", s.fits,
        ))  # fmt: skip
    head = ("who", "said", "words", "stated", "ours", "agree", "how well it fits")
    others = "\n".join(
        f"- {n['who']}: {n['words']}. Not compared: {n['why']}." for n in not_comparable()
    )
    return table(head, rows) + "\n\n" + others


def _belief_block(b: Beliefs, comparisons: Sequence[Comparison]) -> str:
    title = (
        f"{_percent(b.target)} within {b.within_years:g} years (ours: {_percent(b.base)}). "
        f"{_whose(b, comparisons)} {_together(b)}"
    )
    rows = [(s.lever, *_belief_cells(s)) for s in b.single]
    head = ("one assumption alone", "has to be", "deviations from ours")
    return f"{title}\n\n{table(head, rows, 2)}"


def _whose(b: Beliefs, comparisons: Sequence[Comparison]) -> str:
    """Whose statement begins or ends at this target."""
    for c in comparisons:
        s = c.statement
        if s.measure in ODDS and s.years == b.within_years and b.target in (s.low, s.high):
            at_top = b.target == s.high
            return f"{s.who} is right {'up to' if at_top else 'from'} here."
    return "An even chance, for scale."


def _together(b: Beliefs) -> str:
    if b.together is None:
        return "Not reached by moving all of these by two standard deviations."
    way = "the follower's way" if b.together > 0 else "the leader's way"
    return f"All of these together: {abs(b.together):.2f} standard deviations {way}."


def _belief_cells(s: Belief) -> tuple[str, str]:
    if s.value is None or s.deviations is None:
        return f"cannot (reaches {_percent(s.reached)})", "-"
    return f"{s.value:,.4g}", f"{s.deviations:+.1f}"


def _reproduced(rows: Sequence[Reproduced]) -> str:
    def three(values: tuple[float, float, float]) -> str:
        low, mid, high = map(_three_digits, values)
        return mid if values[0] == values[2] else f"{low} / {mid} / {high}"

    body = [(r.what, r.unit, three(r.published), three(r.ours), r.source) for r in rows]
    return table(("figure", "unit", "published", "ours", "source"), body)


def _nats(rows: Sequence[Nats]) -> str:
    body = [
        (n.law, f"{n.years:g}", f"{n.leader_loss:.4f}", f"{n.follower_loss:.4f}",
         f"{n.follower_loss - n.leader_loss:.4f}")
        for n in rows
    ]  # fmt: skip
    head = ("law", "years", "leader", "follower", "gap, nats per token")
    return table(head, body, 4) + (
        "\n\nA law far outside the compute it was fitted on; it sizes the gap and does not change "
        "who is ahead. Losses of two laws are not comparable."
    )


def _years(f: Forecast) -> list[float]:
    last = float(f.years[-1])
    return [n for n in _SHOWN_YEARS if n <= last] or [last]


def _at(f: Forecast, curve: object, years: float) -> float:
    return float(np.interp(years, f.years, np.asarray(curve)))


def _date(f: Forecast, years: float) -> str:
    return f"{f.assumptions.origin + dt.timedelta(days=round(years * 365.25)):%Y-%m}"


def _three_digits(value: float) -> str:
    """``16.4``, ``1,030``, ``20,700``: no exponents, where they would fit."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if 100 <= abs(rounded) < 1e9 else f"{rounded:,.3g}"


def _percent(chance: float) -> str:
    if np.isnan(chance):
        return "-"
    if 0 < chance < 0.001:
        return "< 0.1 %"
    return f"{100 * chance:.2g} %" if chance < 0.1 else f"{100 * chance:.0f} %"


def _range(measure: str, low: float, high: float) -> str:
    if measure in ODDS:
        return f"{100 * low:.0f}-{100 * high:.0f} %"
    return f"{_value(measure, low)} to {_value(measure, high)}"


def _value(measure: str, value: float) -> str:
    if measure == "top_stock":
        return f"{value / 1e6:.1f} M"
    return f"{value:.1f}" if measure == "lag_months" else f"{value:.0f}"
