"""How right krzem is, on one page: ``python -m krzem.accuracy.scoreboard docs/scoreboard.md``.

Every figure is of rows that the calibration had not seen when it predicted them: the organisation
that ran them (all pages of a vendor are one), their accelerator, chip family or engine was left
out.  Read from ``facts/held_back.csv``, which ``python -m krzem.accuracy.calibrate`` writes.
"""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from krzem.accuracy.evaluate import evaluate
from krzem.cost.coefficients import Z80
from krzem.facts.table import read_table

Row = Mapping[str, str]

PEERS = (
    ("SIM-", "eight B200, models cut to 4 to 12 layers (MooreThreads/SimuMax)",
     "SimuMax 5.6 % mean, with every shape measured on that machine; rule of thumb below"),
    ("KOR-", "Megatron 22B to 1T (arXiv 2205.05198, table 5)",
     "Calculon 3.7 %, SimuMax 5.1 % mean"),
)  # fmt: skip
"""Rows on which other planners have published or measured figures."""

KIN = {
    "Ant Group": "inclusionAI",
    "ETH Zurich course": "ETH Zurich",
    "Hugging Face": "Hugging Face",
    "Stanford/Hazy Research": "Stanford",
    "Swiss AI": "ETH Zurich",
}
"""Organisations of the blind rows, with those of fitted rows that share their people or cluster."""


def page() -> str:
    """The scoreboard as Markdown."""
    rows = list(read_table("held_back.csv"))
    blind = blind_rows()
    return "\n".join(
        [*_head(rows), *_blind(blind), *_distance(rows), *_groups(rows), *_peers(rows), ""]
    )


def blind_rows() -> list[dict[str, str]]:
    """The rows of ``facts/runs_blind.csv`` as predicted by the shipped calibration."""
    table = list(read_table("runs_blind.csv"))
    houses = {row["id"]: row["organisation"] for row in table}
    found = [r for r in evaluate(table).outcomes if r.measured_s and not r.reason]
    return [
        {
            "organisation": houses[r.id],
            "blind_error": f"{np.log(r.mid_s / (r.measured_s or 1.0)):.4f}",
            "blind_sigma": f"{np.log(r.high_s / r.mid_s) / Z80:.4f}",
        }
        for r in found
    ]


def _blind(rows: Sequence[Row]) -> list[str]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["organisation"]].append(row)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    kin = [row for row in rows if row["organisation"] in KIN]
    strangers = [row for row in rows if row["organisation"] not in KIN]
    return [
        "## Rows that no calibration reads",
        "",
        "`src/krzem/facts/runs_blind.csv`: public runs of other sources than the tables'. They",
        "were predicted once before anybody looked at them ([accuracy](accuracy.md)); here they",
        "are as the calibration of today predicts them.",
        "",
        f"| organisation | {HEAD}",
        f"| all | {figures(rows, 'blind')} |",
        f"| … with no people or cluster in a fitted table | {figures(strangers, 'blind')} |",
        f"| … whose people or cluster have rows there | {figures(kin, 'blind')} |",
        *(f"| {name} | {figures(some, 'blind')} |" for name, some in ordered),
        "",
    ]


def covered(rows: Iterable[Row]) -> Callable[[Row], bool]:
    """Whether another organisation covers a row's chip family and its engine."""
    families, engines = defaultdict(set), defaultdict(set)
    for row in rows:
        families[row["chip_family"]].add(row["organisation"])
        engines[row["engine"]].add(row["organisation"])
    return lambda r: len(families[r["chip_family"]]) > 1 and len(engines[r["engine"]]) > 1


def figures(rows: Sequence[Row], trial: str) -> str:
    """Cells of a table: rows, median and mean error, mean logarithm, cover, width."""
    error = np.array([float(r[f"{trial}_error"]) for r in rows])
    sigma = np.array([float(r[f"{trial}_sigma"]) for r in rows])
    size = np.abs(np.expm1(error))
    inside = np.mean(np.abs(error) <= Z80 * sigma)
    width = np.exp(2.0 * Z80 * np.median(sigma))
    return (
        f"{len(rows):,} | {np.median(size):.1%} | {np.mean(size):.1%} | "
        f"{np.mean(np.abs(error)):.3f} | {np.median(error):+.3f} | {inside:.0%} | {width:.2f}"
    )


HEAD = (
    "rows | median error | mean error | mean ln | bias (ln) | inside 80 % | high / low |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def _head(rows: Sequence[Row]) -> list[str]:
    near = covered(rows)
    kinds = {
        "an organisation": ("organisation", rows),
        "… chip family and engine known from others": (
            "organisation", [r for r in rows if near(r)]
        ),
        "… of these, dense models": (
            "organisation", [r for r in rows if near(r) and r["model"] == "dense"]
        ),
        "… of these, mixtures of experts": (
            "organisation", [r for r in rows if near(r) and r["model"] == "moe"]
        ),
        "… chip family or engine nobody else measured": (
            "organisation", [r for r in rows if not near(r)]
        ),
        "an accelerator": ("accelerator", rows),
        "a chip family": ("family", rows),
        "an engine": ("engine", rows),
    }  # fmt: skip
    naive = np.abs(np.expm1([float(r["naive_error"]) for r in rows]))
    return [
        "# Scoreboard",
        "",
        "Predicted against measured seconds of a training step, each row predicted by a",
        "calibration that had not seen it. Written by `make scoreboard`; the rows are",
        "`src/krzem/facts/held_back.csv`. An error is predicted over measured, less one; `ln` is",
        "the logarithm of that ratio, which counts too slow and too fast alike. `high / low` is",
        "the median ratio of an interval's ends.",
        "",
        f"| left out | {HEAD}",
        *(f"| {name} | {figures(some, trial)} |" for name, (trial, some) in kinds.items() if some),
        "",
        f"A rule of thumb (the median MFU that other organisations reach on the chip family) is off"
        f" by {np.median(naive):.1%} in the median and {np.mean(naive):.1%} in the mean.",
        "",
    ]


def _distance(rows: Sequence[Row]) -> list[str]:
    """Cover by the width that was promised."""
    sigma = np.array([float(r["organisation_sigma"]) for r in rows])
    ends = np.quantile(sigma, [0.0, 0.25, 0.5, 0.75, 1.0])
    lines = ["## By the width that was promised", "", f"| interval, high / low | {HEAD}"]
    for low, high in itertools.pairwise(ends):
        some = [r for r, s in zip(rows, sigma, strict=True) if low <= s <= high]
        name = f"{np.exp(2 * Z80 * low):.2f} to {np.exp(2 * Z80 * high):.2f}"
        lines.append(f"| {name} | {figures(some, 'organisation')} |")
    return [*lines, ""]


def _groups(rows: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for title, key, trial in (
        ("By organisation, that organisation left out", "organisation", "organisation"),
        ("By accelerator, its organisation left out", "device", "organisation"),
        ("By engine, its organisation left out", "engine", "organisation"),
    ):
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            groups[row[key]].append(row)
        ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
        lines += [f"## {title}", "", f"| {key} | {HEAD}"]
        lines += [f"| {name or 'not named'} | {figures(some, trial)} |" for name, some in ordered]
        lines.append("")
    return lines


def _peers(rows: Sequence[Row]) -> list[str]:
    lines = ["## Beside other planners, on the same rows", "",
             "| rows | krzem, organisation left out | others |", "| --- | --- | --- |"]  # fmt: skip
    for prefix, what, others in PEERS:
        some = [r for r in rows if r["id"].startswith(prefix)]
        if some:
            size = np.abs(np.expm1([float(r["organisation_error"]) for r in some]))
            lines.append(f"| {what}, {len(some)} | {np.mean(size):.1%} mean | {others} |")
    return [*lines, ""]


def main() -> None:
    """Write the page to the file named on the command line, or to standard output."""
    text = page()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
