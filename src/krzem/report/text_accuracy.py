"""The report on a table of runs as text of at most 100 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krzem.report.text_table import paragraph, shortened, table

Document = Mapping[str, Any]

_HEAD = ("", "rows", "median", "mean", "90th pct", "bias", "in 80 %", "within 10 %", "rank corr.")
_KEYS = ("median_ape", "mape", "p90_ape", "bias", "coverage80", "within10", "spearman")
_ALIGN = "lrrrrrrrr"
LONGEST = 12
"""Accelerators, families or sources shown; all are in ``--json``."""


def format_report(document: Document) -> str:
    """The report for a terminal."""
    lines = [*_opening(document), "", *_time(document), "", *_memory(document["memory"])]
    for key, title in (
        ("by_accelerator", "accelerator"), ("by_family", "family"), ("by_source", "source"),
    ):  # fmt: skip
        if len(document[key]) > 1:
            lines += ["", *_groups(document[key], title)]
    if document["skipped"]:
        lines += ["", *_skipped(document["skipped"])]
    return "\n".join(lines) + "\n"


def _opening(document: Document) -> list[str]:
    text = (
        f"{document['used']:,} of {document['rows']:,} rows predicted from their own layout,"
        " batch, precision and date. Errors are of seconds per step, |predicted / measured - 1|;"
        " bias is the median of predicted / measured - 1."
    )
    found = paragraph(text)
    if document["held_back"]:
        found += paragraph(
            "Calibration has seen rows of this table. Judge it by the rows \"without ...\","
            " where each row is predicted by a calibration that had not seen its source, its"
            " accelerator or its family."
        )  # fmt: skip
    if document["duplicate_ids"]:
        found += paragraph(f"{document['duplicate_ids']:,} ids occur more than once; all are used.")
    return found


def _time(document: Document) -> list[str]:
    held = document["held_back"]
    first = "time, as calibrated" if held else "time"
    rows = [_row(first, document["time"])]
    rows += [_row(name.replace("_", " "), figures) for name, figures in held.items()]
    return table(_HEAD, rows, _ALIGN)


def _row(name: str, figures: Document) -> list[str]:
    return [shortened(name, 23), f"{figures['n']:,}", *(_cell(k, figures.get(k)) for k in _KEYS)]


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "spearman":
        return f"{value:.2f}"
    return f"{100 * value:+.1f} %" if key == "bias" else f"{100 * value:.1f} %"


def _memory(figures: Document) -> list[str]:
    if not figures["n"]:
        return ["No row says both peak memory and all that it depends on."]
    return paragraph(
        f"Peak memory, {figures['n']:,} rows: mean error {_cell('', figures['mape'])}, largest"
        f" {_cell('', figures['max_ape'])}; {_cell('', figures['fits_correct'])} of these layouts,"
        " which all ran, are held to be possible."
    )


def _groups(groups: Mapping[str, Document], title: str) -> list[str]:
    shown = [(n, g) for n, g in groups.items() if g["n"]][:LONGEST]
    lines = table((title, *_HEAD[1:]), [_row(n, g) for n, g in shown], _ALIGN)
    left = len(groups) - len(shown)
    return [*lines, f"... and {left} more (--json)"] if left > 0 else lines


def _skipped(reasons: Mapping[str, int]) -> list[str]:
    rows = [[f"{count:,}", reason] for reason, count in list(reasons.items())[:LONGEST]]
    return table(("skipped", "because"), rows, "rw")
