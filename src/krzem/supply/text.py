"""Answers as text for a terminal and as Markdown tables; made from the documents alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from krzem.quantity import format_count

Document = Mapping[str, Any]
TITLES = {"cheapest": "Cheapest", "fastest": "Fastest", "most_certain": "Most certain", "sure": ""}
"""Named plans; the last is called by its chance."""
MOVES = {"begin": "start", "near": "same software", "far": "other software", "resize": "resize"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads in a terminal too."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = f"| {' | '.join('-' * width for width in widths)} |"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def percent(value: float | None) -> str:
    """``84 %``; certainty only where no draw fails, and none only where every draw does."""
    if value is None:
        return "–"
    if 0.995 <= value < 1:
        return "over 99 %"
    if 0 < value < 0.005:
        return "under 1 %"
    return f"{value:.0%}".replace("%", " %")


def share(value: float, digits: int = 0) -> str:
    """``57.3 %``: a computed part of something, to so many digits."""
    return f"{100 * value:.{digits}f} %"


def dollars(usd: float | None) -> str:
    """``$12.3M``, ``$850k``, ``$42.0``: three digits that count."""
    if usd is None:
        return "–"
    if abs(usd) < 0.005:
        return "$0"
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, "")):
        value = abs(usd) / unit
        if value >= 0.9995 or unit == 1.0:
            digits = max(2 - math.floor(math.log10(max(value * 1.0005, 1e-3))), 0)
            return f"{'-' * (usd < 0)}${value:,.{min(digits, 2)}f}{name}"
    raise AssertionError


def span(low: str, high: str) -> str:
    """An interval in brackets."""
    return f"({low} to {high})"


def money_span(planned_usd: float, cost: Mapping[str, float]) -> str:
    """``$12.3M ($10.1M to $15.0M)``: as planned, and the 80 % interval of the draws."""
    if cost["high"] == 0:
        return "for no money"
    return f"{dollars(planned_usd)} {span(dollars(cost['low']), dollars(cost['high']))}"


def fleet_text(document: Document) -> str:
    """The whole answer of ``krzem fleet``."""
    parts = [
        f"{document['name']}: {document['model']}, {document['start']} to {document['deadline']}\n",
        speeds_table(document),
    ]
    if not document["feasible"]:
        parts.append("\nNo plan keeps every limit. Relaxing one of them, the others held:")
        parts += [f"- {r['limit']}: {r['words']}" for r in document["relaxations"]]
    else:
        for key, title in TITLES.items():
            if document[key]:
                shown = title or document[key]["label"].capitalize()
                parts += ["", f"{shown}: {headline(document[key])}", stages_table(document[key])]
        parts += ["", "What an earlier date costs:", front_table(document)]
    if document["left_out"]:
        parts += ["", *left_out_lines(document["left_out"])]
    parts += ["", *(f"- {note}" for note in document["notes"])]
    return "\n".join(parts) + "\n"


_REASONS = (
    (re.compile(r"released (?P<detail>\S+), (?P<reason>after .*)"), "released {}"),
    (
        re.compile(r"(?P<reason>rare there and then): (?P<detail>\S+) of the commonest"),
        "{}, by their share of the commonest",
    ),
)


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """What is left out and why, a point of a list for each reason."""
    return [f"- left out, {words}" for words in left_out_words(left_out)]


def left_out_words(left_out: Mapping[str, str]) -> list[str]:
    """``reason: names`` of all that share a reason."""
    groups: dict[str, list[str]] = {}
    for name, why in left_out.items():
        reason, detail = why.partition("\n")[0].strip().rstrip("."), ""
        for pattern, words in _REASONS:
            if found := pattern.fullmatch(reason):
                reason, detail = words.format(found["reason"]), f" ({found['detail']})"
                break
        reason = re.sub(rf"\b{re.escape(name)}(:[\d,]+)?", "it", reason)
        groups.setdefault(reason, []).append(f"{name}{detail}")
    return [f"{reason}: {', '.join(names)}" for reason, names in groups.items()]


def headline(portfolio: Document) -> str:
    """Date, chance and cost in one line."""
    odds = portfolio["odds"]
    text = f"done {portfolio['finish']}"
    if odds["finish"]:
        text += f" {span(odds['finish']['low'], odds['finish']['high'])}"
    text += f", {percent(odds['meets_date'])} chance of meeting the deadline, "
    text += money_span(portfolio["cost_usd"], odds["cost_usd"])
    if odds["within_budget"] is not None:
        text += f", {percent(odds['within_budget'])} chance of staying within the budget"
    return text


def stages_table(portfolio: Document) -> str:
    """Which pool trains what, from when to when."""
    total = sum(stage["tokens"] for stage in portfolio["stages"])
    rows = [
        [
            stage["pool"],
            f"{stage['devices']:,}",
            stage["from"],
            stage["to"],
            f"{MOVES.get(stage['move'] or '', '')} {stage['move_days']:.1f} d".strip(),
            format_count(stage["tokens"], 3),
            percent(stage["tokens"] / total),
            f"{stage['node_hours']:,.0f}",
            dollars(stage["cost_usd"]),
        ]
        for stage in portfolio["stages"]
    ]
    head = ("pool", "devices", "from", "to", "move before", "tokens", "share", "node-hours", "cost")
    return "\n".join([table(head, rows), *_listed(extras(portfolio))])


def _listed(lines: Sequence[str]) -> list[str]:
    return ["", *(f"- {line}" for line in lines)] if lines else []


def extras(portfolio: Document) -> list[str]:
    """What is asked of grants, held ready and bought."""
    lines = [
        f"grant {grant['grant']} of {grant['pool']}: {grant['node_hours']:,.0f} node-hours,"
        f" {grant['from']} until {grant['until']}"
        + (f", {dollars(grant['cost_usd'])}" if grant["cost_usd"] else "")
        for grant in portfolio["grants"]
    ]
    if portfolio["reserve"]:
        held = ", ".join(f"{r['pool']} ({r['devices']:,})" for r in portfolio["reserve"])
        lines.append(f"held ready for what is left over: {held}")
    lines += [
        f"bought for {bought['pool']}: {bought['devices']:,.0f} devices,"
        f" {dollars(bought['cost_usd'])}"
        for bought in portfolio["purchases"]
    ]
    return lines


def speeds_table(document: Document) -> str:
    """Each pool and size: how long the whole run would take there alone."""
    rows = [
        [
            slot["pool"],
            f"{slot['devices']:,}",
            slot["precision"],
            f"{slot['days_for_all_tokens']['mid']:,.0f}",
            span(*(f"{slot['days_for_all_tokens'][k]:,.0f}" for k in ("low", "high"))),
            share(slot["mfu"]["mid"], 1),
            percent(slot["goodput"]["mid"] if slot["goodput"] else None),
        ]
        for slot in document["slots"]
    ]
    head = ("pool", "devices", "precision", "days alone", "80 % interval", "MFU", "goodput")
    return table(head, rows)


def front_table(document: Document) -> str:
    """The trade-off of date, cost and chance."""
    rows = [
        [
            point["finish"],
            dollars(point["cost_usd"]),
            f"{sum(stage['node_hours'] for stage in point['stages']):,.0f}",
            percent(point["odds"]["meets_date"]),
            " + ".join(f"{percent(share)} {name}" for name, share in point["shares"].items()),
            point["label"] or "",
        ]
        for point in document["front"]
    ]
    return table(("done", "cost", "node-hours", "in time", "tokens by pool", "plan"), rows)


def inverse_text(document: Document) -> str:
    """The largest model or the fewest devices."""
    parts = []
    largest = document["largest"]
    if largest is not None:
        parts.append(
            f"Largest model by {document['deadline']} with {percent(document['sure'])}:"
            f" {format_count(largest['parameters'], 3)} parameters"
            f" ({format_count(largest['active_parameters'], 3)} active),"
            f" {format_count(largest['tokens'], 3)} tokens, done {largest['finish']}.\n"
            f"{largest['how']}.\n"
        )
        parts.append(stages_table(largest | {"grants": [], "purchases": [], "reserve": []}))
    if document["fewest"]:
        rows = [
            [f["pool"], "–" if f["devices"] is None else f"{f['devices']:,}", f["words"]]
            for f in document["fewest"]
        ]
        parts.append(
            f"Fewest devices for {document['deadline']} with {percent(document['sure'])}:\n"
        )
        parts.append(table(("pool", "devices", ""), rows))
    return "\n".join(parts) + "\n"


LEAST_SHOWN, FEWEST_SHOWN = 0.01, 3
"""Odds of a kind from which it has a row of its own, and how many have one in any case."""


def likely(document: Document) -> list[Document]:
    """The kinds of an inference that count; ``document`` lists all, the likeliest first."""
    kinds = document["kinds"]
    return [k for i, k in enumerate(kinds) if i < FEWEST_SHOWN or k["probability"] >= LEAST_SHOWN]


def kinds_table(document: Document) -> str:
    """The candidates of an inference that count."""
    rows = [
        [
            kind["device"],
            percent(kind["probability"]),
            _whole(kind["cards"]),
            _whole(kind["card_hours"]),
            _whole(kind["days"]),
            share(kind["mfu"]["mid"]),
            kind["precision"],
        ]
        for kind in likely(document)
    ]
    head = (
        "device",
        "odds",
        "cards (80 %)",
        "card-hours (80 %)",
        "days (80 %)",
        "MFU",
        "precision",
    )
    return table(head, rows)


def infer_text(document: Document) -> str:
    """The whole answer of ``krzem infer``."""
    families = ", ".join(
        f"{name} {percent(p)}" for name, p in document["families"].items() if p >= LEAST_SHOWN
    )
    rest = [kind["device"] for kind in document["kinds"][len(likely(document)) :]]
    parts = [
        f"{document['model']}: which fleet is consistent with what is published?\n",
        kinds_table(document),
        f"\nBy family: {families}",
    ]
    parts += [f"\nUnder {percent(LEAST_SHOWN)} each: {', '.join(rest)}"] if rest else []
    parts += ["", *left_out_lines(document["left_out"])]
    parts += [f"- {note}" for note in document["notes"]]
    return "\n".join(parts) + "\n"


def judge_text(document: Document) -> str:
    """The table of ``krzem infer --judge``."""
    rows = [
        [
            run["id"],
            run["device"],
            percent(run["probability"]),
            percent(run["family_probability"]),
            "yes" if run["in_80"] else "no",
            "–" if run["cards"] is None else f"{run['cards']:,.0f}",
            span(f"{run['cards_low']:,.0f}", f"{run['cards_high']:,.0f}"),
            {True: "yes", False: "no", None: "–"}[run["cards_in_80"]],
        ]
        for run in document["runs"]
    ]
    head = ("run", "true device", "its odds", "odds of its family", "in the 80 % set", "cards",
            "80 % interval", "inside")  # fmt: skip
    s = document["shares"]
    trouble = [f"- {run['id']}: {run['trouble']}" for run in document["runs"] if run["trouble"]]
    return "\n".join(
        [
            table(head, rows),
            "",
            f"The true kind is in the 80 % set in {percent(s['kind_in_80'])} of {s['runs']} runs,"
            f" the number of cards within its 80 % interval in {percent(s['number_in_80'])} of"
            f" {s['numbers']} that are published; {s['below_5_percent']} true kinds get less than"
            " 5 %.",
            *trouble,
            "",
        ]
    )


def _whole(value: Mapping[str, float]) -> str:
    def short(number: float) -> str:
        return f"{number:,.0f}" if number < 1e4 else format_count(number, 3)

    return f"{short(value['mid'])} {span(short(value['low']), short(value['high']))}"
