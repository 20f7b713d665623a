"""Whether a figure is normal, as plain data and as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from krzem.accuracy.normal import Normal
from krzem.report.document import cleaned, plan_document
from krzem.report.text import Document, joined
from krzem.report.text_numbers import interval, percent
from krzem.report.text_table import paragraph

NORMAL = "krzem.normal/1"


def normal_document(found: Normal) -> Document:
    """The verdict as JSON-ready data, schema ``krzem.normal/1``."""
    return cleaned(
        {
            "schema": NORMAL,
            "verdict": found.verdict,
            "meaning": found.meaning,
            "mfu": found.mfu,
            "mfu_counted_full": found.counted_full,
            "tokens_per_s_per_device": found.tokens_per_s_per_device,
            "expected_mfu": found.expected,
            "peers": found.peers,
            "plan": plan_document(found.plan, found.asked),
        }
    )


def format_normal(document: Document, sentence_alone: bool = False) -> str:
    """The verdict in one sentence, then what it rests on."""
    if sentence_alone:
        return joined(_verdict(document))
    return joined(_verdict(document), _expected(document), _peers(document), _counting(document),
                  _notes(document))  # fmt: skip


def _verdict(document: Document) -> Iterator[str]:
    plan = document["plan"]
    yield from paragraph(
        f"An MFU of {percent(document['mfu'])} is {document['verdict']} for"
        f" {plan['model']['name']} on {plan['cluster']['devices']:,} {plan['cluster']['device']}:"
        f" {document['meaning']}."
    )


def _expected(document: Document) -> Iterator[str]:
    plan = document["plan"]
    goal, best = plan["goal"], plan["best"]
    yield from paragraph(
        f"Expected of the best layout {interval(document['expected_mfu'], percent)}"
        f" ({best['layout_text']}; {goal['global_batch']:,} sequences of {goal['sequence']:,},"
        f" {goal['precision']}, {plan['engine']['title']}); measured"
        f" {document['tokens_per_s_per_device']:,.0f} tokens/s per device, expected"
        f" {interval(best['tokens_per_s_per_device'])}."
    )


def _peers(document: Document) -> Iterator[str]:
    peers: dict[str, Any] | None = document["peers"]
    if peers is None:
        yield "Nothing is published of this chip family."
        return
    yield from paragraph(
        f"Published: {peers['runs']} best runs {peers['who']} ({peers['organisations']}"
        f" organisations) reach {percent(peers['low'])} to {percent(peers['high'])}, median"
        f" {percent(peers['median'])}; this figure is above {percent(peers['below'])} of them."
    )


def _counting(document: Document) -> Iterator[str]:
    yield from paragraph(
        "MFU here counts causal attention once, no recomputation, against the dense peak; with the"
        f" whole square of attention this run is called {percent(document['mfu_counted_full'])}."
    )


def _notes(document: Document) -> Iterator[str]:
    yield "Notes"
    for note in document["plan"]["notes"]:
        yield from paragraph(note, "  - ")
