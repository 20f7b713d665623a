"""``krzem plan``, ``explain`` and ``compare``: the best layouts, one layout, several clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from krzem.cli.common import (
    CALIBRATION,
    EMIT,
    ENGINE,
    GOAL,
    MODEL,
    ON,
    ON_SEVERAL,
    OUTPUT,
    SEARCH,
    SEVERAL,
    SWEEP,
    check_engine,
    check_files,
    options,
    search_progress,
    show,
    write_page,
    write_script,
)
from krzem.errors import InputError

if TYPE_CHECKING:
    from krzem.layout.layout import Layout
    from krzem.plan.price import Task


@click.command("plan")
@MODEL
@ON
@options(GOAL, ENGINE, CALIBRATION, SEARCH, SWEEP, SEVERAL, EMIT, OUTPUT)
def plan_command(
    model: str,
    on: str,
    top: int,
    sweep: str | None,
    phases: tuple[str, ...],
    fewest: bool,
    chance: float,
    emit_engine: str | None,
    emit_to: str | None,
    scheduler: str,
    as_json: bool,
    html: str | None,
    quiet: bool,
    **asked: Any,
) -> None:
    """Plan a run: best layouts, memory, days, cost and the wall.

    MODEL is a built-in name (krzem models) or the path of a Hugging Face config.json, or of the
    folder that holds it. Whatever no option says comes from the model's published recipe, and the
    report says so; what is not published must be given.

    \b
    krzem plan deepseek-v3 --on nvidia-h800-sxm:2048 --tokens 14.8T
    krzem plan llama-3.1-8b --on h100:64 --tokens 1T --batch 1024 --deadline 30d --budget '$200k'
    krzem plan ./my-model --on cluster.toml --tokens 2T --seq 8k --batch 512 --precision bf16
    krzem plan kimi-k2 --on 910c:4096 --json > plan.json
    krzem plan llama-3.1-405b --on h100:16k --emit megatron-lm --emit-to run.sh --html plan.html
    krzem plan qwen3-30b-a3b --on h100:64 --batch 2048 --with deepep --layout 'tp=1,pp<=4'
    krzem plan llama-3.1-70b --on h100:512 --batch 2048 --tokens 2T --sweep devices=64..4096
    krzem plan llama-3.1-8b --on rtx-4090:1 --finetune qlora --tokens 50M --seq 2k --batch 16
    krzem plan llama-3.1-8b --on h100:2k --tokens 1T --batch 1024 --deadline 14d --fewest
    krzem plan llama-3.1-8b --on h100:256 --phase tokens=1T,seq=4k,batch=512..2048
        --phase tokens=50B,seq=32k,batch=128

    More questions, each with its command and answer: docs/questions.md.
    """
    from krzem.plan.answer import check_emission, plan_of, script_of
    from krzem.plan.question import Question
    from krzem.plan.request import settle
    from krzem.report.document import plan_document
    from krzem.report.text import format_plan, format_sentence

    check_files(html, emit_to)
    check_engine(emit_engine, emit_to, scheduler)
    _check_one(sweep, phases, fewest, emit_engine)
    if sweep is not None:
        _sweep(Question(model=model, on=on, **asked), sweep, as_json, html, quiet)
        return
    if phases or fewest:
        _refuse_page(html)
        question = Question(model=model, on=on, **asked)
        with search_progress("searching", quiet or as_json) as progress:
            document, text = (
                _phases(question, phases, top, progress)
                if phases
                else _fewest(question, chance, quiet, progress)
            )
        show(document, text, as_json)
        return
    settled = settle(Question(model=model, on=on, emits=emit_engine, **asked))
    if emit_engine is not None:
        check_emission(settled, emit_engine)
    with search_progress("searching", quiet or as_json) as progress:
        found = plan_of(settled, alternatives=top, progress=progress)
    document = plan_document(found, settled)
    script = None if emit_engine is None else script_of(settled, found, emit_engine, scheduler)
    sentence = f"{format_sentence(document, document['best'])}.\n"
    text = sentence if quiet else format_plan(document)
    _tell(document, text, as_json, html, (emit_engine, script, emit_to))


def _tell(
    document: dict[str, Any],
    text: str,
    as_json: bool,
    html: str | None,
    launch: tuple[str | None, str | None, str | None],
) -> None:
    """Show an answer and write its page; the script of ``launch`` (engine, script, target) goes to
    the target, or stands below and in the document."""
    engine, script, target = launch
    below = script is not None and target is None
    if below:
        document["launch"] = {"engine": engine, "script": script}
    show(document, f"{text}\n{script}" if below else text, as_json)
    write_page(document, html)
    if script is not None and target is not None:
        write_script(script, target)


def _check_one(
    sweep: str | None, phases: tuple[str, ...], fewest: bool, emit_engine: str | None
) -> None:
    """Refuse two options that each ask for several plans, or files of several plans."""
    asked = {"--sweep": sweep is not None, "--phase": bool(phases), "--fewest": fewest}
    named = [name for name, given in asked.items() if given]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} are questions of their own: ask one at a time")
    if named and emit_engine is not None:
        raise InputError(f"{named[0]} answers for many points and --emit writes one: leave one out")


def _refuse_page(html: str | None) -> None:
    if html is not None:
        raise InputError("--html shows one plan or a --sweep: plan the phase or number of devices"
                         " alone for its page, or take --json")  # fmt: skip


def _phases(question: Any, phases: tuple[str, ...], top: int, progress: Any) -> tuple[Any, str]:
    from krzem.plan.phases import phases_of
    from krzem.report.questions import format_phases, phases_document

    document = phases_document(phases_of(question, phases, alternatives=top, progress=progress))
    return document, format_phases(document)


def _fewest(question: Any, chance: float, quiet: bool, progress: Any) -> tuple[Any, str]:
    from krzem.plan.size import fewest
    from krzem.report.questions import fewest_document, format_fewest

    document = fewest_document(fewest(question, chance=chance, progress=progress))
    return document, format_fewest(document, quiet)


def _sweep(question: Any, sweep: str, as_json: bool, html: str | None, quiet: bool) -> None:
    from krzem.plan.sweep import sweep as swept
    from krzem.report.questions import format_sweep, sweep_document

    with search_progress("searching", quiet or as_json) as progress:
        found = swept(question, sweep, progress)
    document = sweep_document(found)
    show(document, format_sweep(document), as_json)
    write_page(document, html)


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
    sentence = f"{format_sentence(document, document['layout_plan'])}.\n"
    text = sentence if quiet else format_explanation(document)
    _tell(document, text, as_json, html, (emit_engine, script, emit_to))
    if trace is not None:
        _write_trace(found.task, found.plan.layout, trace)


def _write_trace(task: Task, layout: Layout, path: str) -> None:
    """The predicted step over time; raises LayoutError where it is too long to be drawn."""
    import json

    from krzem.plan.price import Pricer
    from krzem.plan.timeline import timeline_of, trace_of

    write_script(json.dumps(trace_of(timeline_of(Pricer(task), layout))), path)


@click.command("compare")
@MODEL
@ON_SEVERAL
@options(GOAL, ENGINE, SEARCH, OUTPUT)
def compare_command(
    model: str,
    on: tuple[str, ...],
    top: int,
    as_json: bool,
    html: str | None,
    quiet: bool,
    **asked: Any,
) -> None:
    """Compare the same run on several clusters, each with its own best layout.

    A precision that a device lacks is an error where --precision asks for it; where the recipe
    asks for it, that device is planned with 16 bits and the report says so.

    \b
    krzem compare deepseek-v3 --on h800:2048 --on ascend-910c:4096
    krzem compare deepseek-v4-pro --tokens 33T --deadline 90d --on 910c:16384 --on h800:8192
    """
    from krzem.plan.answer import candidates_of
    from krzem.plan.question import Question
    from krzem.plan.request import settle
    from krzem.report.document_compare import compare_document
    from krzem.report.text_compare import format_comparison, format_comparison_table

    check_files(html)
    if len(on) < 2:
        raise InputError("compare needs --on at least twice: --on h800:2048 --on 910c:4096")
    several = [settle(Question(model=model, on=each, **asked)) for each in on]
    with search_progress("searching", quiet or as_json) as progress:
        found = candidates_of(several, alternatives=top, progress=progress)
    document = compare_document(found)
    text = format_comparison_table(document) if quiet else format_comparison(document)
    show(document, text, as_json)
    write_page(document, html)
