"""``krzem plan``: the best layouts of a run on one cluster."""

from __future__ import annotations

from typing import Any

import click

from krzem.cli.options import (
    CALIBRATION,
    EMIT,
    ENGINE,
    GOAL,
    MODEL,
    ON,
    OUTPUT,
    SEARCH,
    SEVERAL,
    SWEEP,
    options,
)
from krzem.cli.output import (
    check_engine,
    check_files,
    search_progress,
    show,
    write_page,
    write_script,
)
from krzem.errors import InputError


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
    if script is not None and emit_to is None:
        document["launch"] = {"engine": emit_engine, "script": script}
    sentence = f"{format_sentence(document, document['best'])}.\n"
    text = sentence if quiet else format_plan(document)
    show(document, text + (f"\n{script}" if "launch" in document else ""), as_json)
    write_page(document, html)
    if script is not None and emit_to is not None:
        write_script(script, emit_to)


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
