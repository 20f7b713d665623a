"""Shapes that suit a cluster, as plain data and as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from krzem.plan.design import FINALISTS, TRUSTED, Design, Judged
from krzem.report.document import cleaned, question
from krzem.report.text import joined
from krzem.report.text_numbers import count, percent, plain
from krzem.report.text_table import paragraph, table

Document = dict[str, Any]
DESIGN = "krzem.design/1"
SHOWN = 10
KEPT = 40
"""Shapes in the document."""


def design_document(found: Design) -> Document:
    """Shapes as JSON-ready data, schema ``krzem.design/1``."""
    best = found.found[0].worth
    return cleaned(
        {
            "schema": DESIGN,
            **{k: v for k, v in question(found.asked).items() if k != "model"},
            "flop": found.flop,
            "tokens": found.tokens,
            "active_parameters": found.active,
            "shapes_priced": len(found.found),
            "shapes": [_judged(j, best) for j in found.found[:KEPT]],
            "published": [_judged(j, best) for j in found.published],
            "left_out": list(found.left_out),
            "notes": _unknown(found),
        }
    )


def _judged(judged: Judged, best: float) -> Document:
    return {
        "name": judged.name,
        "shape": None if judged.shape is None else asdict(judged.shape),
        "parameters": judged.parameters,
        "active_parameters": judged.active,
        "leverage": judged.leverage,
        "extrapolated": judged.extrapolated,
        "step_time_s": judged.seconds,
        "mfu": judged.mfu,
        "dense_equivalent_flop_per_s": judged.worth,
        "against_best": judged.worth / best,
        "layout_text": judged.layout,
        "searched_whole": judged.whole,
    }


def _unknown(found: Design) -> list[str]:
    notes = [
        "leverage by arXiv 2507.17702: compute of a dense model with the same loss, over the"
        " mixture's",
        "not in the law, so not weighed: depth against width, number and width of heads, latent"
        " ranks, number of shared experts; they are kept within what has been published",
        "not weighed either: cost of serving, stability, quality of data",
        f"the first {FINALISTS} shapes and published models were searched whole; the others over"
        " layouts without context parallelism and with micro-batches of one or two",
    ]
    if found.found[0].extrapolated:
        notes.insert(
            1,
            f"the law was fitted on leverages below {TRUSTED:g}: larger ones are carried on from"
            " it, and rank sparse shapes higher than anybody has shown",
        )
    return notes


def format_design(document: Document, quiet: bool = False) -> str:
    """The best shape in a sentence; unless ``quiet``, the table, published models, limits."""
    sentence = joined(_sentence(document))
    if quiet:
        return sentence
    return joined(
        _sentence(document), _rows("Shapes", document["shapes"][:SHOWN]),
        _rows("Published", document["published"]), _notes(document),
    )  # fmt: skip


def _sentence(document: Document) -> Iterator[str]:
    best, cluster = document["shapes"][0], document["cluster"]
    shape = best["shape"]
    yield from paragraph(
        f"For {document['flop']:.3g} FLOPs on {cluster['devices']:,} {cluster['device']}:"
        f" {shape['hidden']:,} wide, {shape['layers']} layers, {shape['heads']} heads,"
        f" {shape['experts']} experts of {shape['width']:,}, {shape['active']} and a shared one at"
        f" work: {count(best['parameters'])} parameters, {count(best['active_parameters'])} active;"
        f" MFU {percent(best['mfu'])}, each FLOP worth {plain(best['leverage'])} of a dense model."
    )


def _rows(title: str, judged: list[Document]) -> Iterator[str]:
    if not judged:
        return
    yield title
    head = ("", "total", "active", "MFU", "leverage", "learns", "layout")
    rows = [
        (j["name"], count(j["parameters"]), count(j["active_parameters"]), percent(j["mfu"]),
         plain(j["leverage"]) + ("*" if j["extrapolated"] else ""), percent(j["against_best"]),
         j["layout_text"])
        for j in judged
    ]  # fmt: skip
    yield from table(head, rows, "lrrrrrw")


def _notes(document: Document) -> Iterator[str]:
    yield "learns: dense-equivalent FLOPs per second against the best; *: beyond the law's data"
    for note in document["notes"]:
        yield from paragraph(f"· {note}")
    left = document["left_out"]
    if left:
        yield from paragraph(f"· {len(left)} without a plan, such as {left[0]}")
