"""``krzem explain``: one layout, term by term."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from krzem.cli.options import CALIBRATION, EMIT, ENGINE, GOAL, MODEL, ON, OUTPUT, options
from krzem.cli.output import check_engine, check_files, show, write_page, write_script

if TYPE_CHECKING:
    from krzem.layout.layout import Layout
    from krzem.plan.price import Task


@click.command("explain")
@MODEL
@ON
@click.option(
    "--layout",
    required=True,
    metavar="K=V,...",
    help="Degrees and memory policy: tp, cp, pp, vpp, ep, etp, dp (default: what the devices leave"
    " over), mbs (micro-batch in sequences), zero (0-3), shard (ranks; 0: all), sp (0, 1),"
    " schedule, first and last (layers of the end stages), recompute (none, attention, modules,"
    " full), rlayers (layers), cpkind (ring, a2a, allgather), offload (0, 1).",
)
@options(GOAL, ENGINE, CALIBRATION, EMIT, OUTPUT)
@click.option(
    "--trace",
    metavar="FILE",
    help="Also write the predicted step as a trace for ui.perfetto.dev or chrome://tracing: passes"
    " of each pipeline rank, communication, overlap, memory.",
)
def explain_command(
    model: str,
    on: str,
    layout: str,
    emit_engine: str | None,
    emit_to: str | None,
    scheduler: str,
    as_json: bool,
    html: str | None,
    quiet: bool,
    trace: str | None,
    **asked: Any,
) -> None:
    """Explain one layout: where its time and its memory go, and what would help.

    A layout that breaks a rule is refused with the arithmetic of every rule that it breaks.

    \b
    krzem explain deepseek-v3 --on h800:2048 --engine deepseek --date 2024-12
        --layout tp=1,pp=16,ep=64,mbs=1,schedule=dualpipe,recompute=modules
    krzem explain llama-3.1-8b --on h100:16 --batch 128 --layout tp=2,mbs=2,zero=1
    """
    from krzem.plan.answer import explanation_of, script_of
    from krzem.plan.question import Question
    from krzem.plan.request import settle
    from krzem.report.document import explain_document
    from krzem.report.text import format_explanation, format_sentence

    check_files(html, emit_to, trace)
    check_engine(emit_engine, emit_to, scheduler)
    settled = settle(
        Question(model=model, on=on, schedules="all", emits=emit_engine, step_alone=True, **asked)
    )
    found = explanation_of(settled, layout)
    document = explain_document(found, settled)
    script = None if emit_engine is None else script_of(settled, found, emit_engine, scheduler)
    if script is not None and emit_to is None:
        document["launch"] = {"engine": emit_engine, "script": script}
    sentence = f"{format_sentence(document, document['layout_plan'])}.\n"
    text = sentence if quiet else format_explanation(document)
    show(document, text + (f"\n{script}" if "launch" in document else ""), as_json)
    write_page(document, html)
    if trace is not None:
        _write_trace(found.task, found.plan.layout, trace)
    if script is not None and emit_to is not None:
        write_script(script, emit_to)


def _write_trace(task: Task, layout: Layout, path: str) -> None:
    """The predicted step over time; raises LayoutError where it is too long to be drawn."""
    import json

    from krzem.plan.price import Pricer
    from krzem.plan.timeline import timeline_of, trace_of

    write_script(json.dumps(trace_of(timeline_of(Pricer(task), layout))), path)
