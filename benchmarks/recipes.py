"""Would krzem have found the recipe?  ``python benchmarks/recipes.py [--limit N]``

For the newest tuned run that NVIDIA publishes of each model, chip and precision: the best layout
that a search finds for the same batch on the same devices, with switches free, against the
measured step.  Times are at the maker's pace, since the maker ran them, and corrected for being
picked (``Plan.picked``).  ``rank`` says which share of the layouts that a plan would show is faster
than the published one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from krzem.accuracy.batch import prepare
from krzem.accuracy.calibrate import published, timed_cases
from krzem.accuracy.case import Case
from krzem.cost.coefficients import fitted
from krzem.errors import KrzemError
from krzem.hardware.cluster_reader import cluster_of
from krzem.plan.plan import plan
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.report.text_table import table


def newest() -> list[Case]:
    """The newest row of each model, chip and precision, on the most devices."""
    cases = [
        case for case in prepare(timed_cases(published())).cases
        if case.organisation == "NVIDIA" and case.by_maker and case.date >= 2025.0
        and case.finetune in ("", "none", "full")
    ]  # fmt: skip
    found: dict[tuple[str, ...], Case] = {}
    for case in sorted(cases, key=lambda c: (c.date, c.devices)):
        shape = f"{case.architecture.layers}x{case.architecture.hidden}"
        found[shape, case.device.id, str(case.precision)] = case
    return list(found.values())


def best_seconds(case: Case) -> tuple[float, float, str]:
    """Middle and upper end of the step of the best layout found, and the layout."""
    node = min(case.devices_per_node or case.device.devices_per_node or 8, case.devices)
    cluster = cluster_of(
        {"device": case.device.id, "devices": case.devices, "devices_per_node": node}, case.id
    )
    year = int(case.date)
    asked = settle(
        Question(
            model=case.architecture, on=cluster, sequence=case.sequence,
            global_batch=round(case.global_batch), precision=str(case.precision),
            engine=case.engine, date=f"{year}-{int((case.date - year) * 12) + 1:02d}",
            step_alone=True,
        )
    )  # fmt: skip
    routing = case.switches.get("routing")
    stated = (("routing", routing),) if routing else ()
    answer = plan(replace(asked.task, stated=stated), sure=asked.sure)
    found, pace = answer.best, fitted().common("maker") * answer.picked
    return found.step_seconds.mid * pace, found.step_seconds.high * pace, str(found.layout)


def rows(cases: list[Case]) -> Iterator[tuple[Case, float, float, str]]:
    for case in cases:
        try:
            yield case, *best_seconds(case)
        except KrzemError as error:
            print(f"{case.id}: {str(error)[:150]}", file=sys.stderr)


def main() -> None:
    limit = int(sys.argv[2]) if sys.argv[1:2] == ["--limit"] else None
    ratios: dict[str, list[float]] = {}
    slower = 0
    cells = []
    for case, best, high, layout in rows(newest()[:limit]):
        assert case.seconds is not None
        ratio = best / case.seconds
        ratios.setdefault(case.family, []).append(ratio)
        slower += case.seconds > high
        cells.append([case.id, case.device.id, str(case.precision), f"{case.seconds:.2f}",
                      f"{best:.2f}", f"{ratio:.2f}", layout])  # fmt: skip
    head = ("row", "chip", "precision", "measured", "best", "ratio", "best layout")
    print("\n".join(table(head, cells, "lllrrrw")))
    for family, found in ratios.items():
        print(
            f"{family}: best found over measured, median {np.median(found):.2f}, {len(found)} rows"
        )
    count = sum(len(found) for found in ratios.values())
    print(f"measured slower than the whole interval: {slower} of {count}")


if __name__ == "__main__":
    main()
