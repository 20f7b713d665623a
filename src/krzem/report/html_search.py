"""What a page shows of a search: the front of time against memory, and the best layouts."""

from __future__ import annotations

from typing import Any

from krzem.report.html_charts import Point, scatter
from krzem.report.html_format import chance, share
from krzem.report.text import tied
from krzem.report.text_numbers import interval, percent, plain

Document = dict[str, Any]
SLOWEST_SHOWN = 3.0
"""Layouts slower than this many times the chosen one are counted, not drawn."""


def search_view(document: Document) -> dict[str, Any]:
    """Front and table of a plan document."""
    best = document["best"]
    sure = document["goal"]["sure"]
    slowest = SLOWEST_SHOWN * best["step_time_s"]["mid"]
    drawn = [point for point in document["front"] if point["step_time_s"] <= slowest]
    return {
        "front": _front(drawn, best, document["cluster"]["memory_gib"], sure),
        "front_text": _front_text(document, len(document["front"]) - len(drawn)),
        "front_legend": [
            ("less than 50 % chance of fitting", "fit1"),
            (f"50 % to {percent(sure)}", "fit2"),
            (f"{percent(sure)} to 99 %", "fit3"),
            ("99 % and more", "fit4"),
        ],
        "ties_text": _ties_text(document),
        "rows": [
            _row(best, "the best"),
            *(_row(other, _against(other, document)) for other in document["alternatives"]),
        ],
    }


def _front(drawn: list[Document], best: Document, limit: float, sure: float) -> Any:
    points = [
        Point(memory_gib=p["memory_gib"], seconds=p["step_time_s"],
              tone=_tone(p["fits_probability"], sure))
        for p in drawn
    ]  # fmt: skip
    chosen = Point(memory_gib=best["memory_gib"]["mid"], seconds=best["step_time_s"]["mid"],
                   tone="accent")  # fmt: skip
    return scatter("front", "Step time against memory", points, chosen, limit)


def _tone(chance: float, sure: float) -> str:
    if chance >= 0.99:
        return "fit4"
    return "fit3" if chance >= sure else "fit2" if chance >= 0.5 else "fit1"


def _front_text(document: Document, hidden: int) -> str:
    seconds = plain(document["search_seconds"])
    text = (
        f"{document['layouts_evaluated']:,} legal layouts were priced in {seconds} s. Each dot is"
        " one that no other beats in both time and memory; the ring is the layout that was chosen."
    )
    if hidden:
        text += f" {hidden} leaner ones, more than {SLOWEST_SHOWN:g} times slower, are not drawn."
    return text


def _ties_text(document: Document) -> str:
    ties = document["ties"]
    text = "Each row is the best of its parallel shape; intervals hold the middle 80 %. "
    if ties > 1:
        return text + (
            f"{ties:,} layouts lie within the error bar of the best one: the model cannot tell them"
            " apart, so measure two or three of them before a long run."
        )
    return text + "No other layout lies within the error bar of the best one."


def _against(other: Document, document: Document) -> str:
    slower = f"{share(other['relative_time'] - 1.0)} time"
    return f"tie, {slower}" if tied(other, document) else slower


def _row(plan: Document, against: str) -> dict[str, str]:
    return {
        "layout": plan["layout_text"],
        "step": interval(plan["step_time_s"]),
        "mfu": interval(plan["mfu"], percent),
        "memory": plain(plan["memory_gib"]["mid"]),
        "fits": chance(plan["fits_probability"]),
        "against": against,
    }
