"""krzem for programs: its questions as tools of the Model Context Protocol, over standard input.

Each tool takes what the verb of the same name takes and returns the document that its ``--json``
prints (``docs/json.md``), with the answer in one sentence first. Long parts (the front, sources of
facts) are left out unless ``full`` asks for them.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

from pydantic import Field

from krzem.errors import InputError, KrzemError

if TYPE_CHECKING:
    from mcp.server import MCPServer

P = ParamSpec("P")
Document = dict[str, Any]
INSTALL = "krzem mcp needs the official SDK: pip install 'krzem[mcp]'"
INSTRUCTIONS = """\
krzem plans the pre-training of large language models: time, memory, cost and the limiting resource
of a run on given accelerators, as 80 % intervals. Ask `models` and `devices` for names. Quantities
are written as in `2T` tokens, `8k` sequence (8,192), `h100:512` (512 devices), `leonardo:64 nodes`.
What is left out comes from the model's published recipe; the notes of an answer say what was taken.
"""
LONG = ("front", "facts", "parts")
"""Parts of a document that only ``full`` brings."""

Model = Annotated[str, Field(description="A name from `models`, a Hub id, or a config.json.")]
On = Annotated[str, Field(description="DEVICE:COUNT, MACHINE:COUNT, or a cluster file.")]
Tokens = Annotated[str | None, Field(description="Tokens of the run, such as 2T.")]
Seq = Annotated[str | None, Field(description="Tokens of a sequence; 8k is 8,192.")]
Batch = Annotated[str | None, Field(description="Sequences of an optimizer step.")]
Precision = Annotated[str | None, Field(description="bf16, fp8, fp8-block, mxfp8, nvfp4, fp32.")]
Engine = Annotated[str | None, Field(description="megatron-lm, torchtitan, fsdp, deepspeed, ...")]
On_ = Annotated[str | None, Field(description="Switches that are set: deepep,cuda-graphs=full.")]
Off = Annotated[str | None, Field(description="Switches that are off: overlap-tp.")]
Limits = Annotated[str | None, Field(description="Layouts to search: tp<=8,pp=4..16,zero=1.")]
Given = Annotated[list[str] | None, Field(description="FIELD=VALUE: devices=64, seq=4096.")]
Full = Annotated[bool, Field(description="Whether to return the long parts too.")]


def serve() -> None:
    """Answer requests on standard input until it closes; raises KrzemError without the SDK."""
    server().run(transport="stdio")


def server() -> MCPServer:
    """The server with its tools; raises KrzemError where the SDK is not installed."""
    try:
        from mcp.server import MCPServer
    except ImportError:
        raise KrzemError(INSTALL) from None
    made = MCPServer("krzem", instructions=INSTRUCTIONS)
    for tool in (plan, explain, compare, check, devices, models, rules, fleet):
        made.add_tool(_told(tool), name=tool.__name__)
    return made


def _told(tool: Callable[P, Document]) -> Callable[P, Document]:
    """The tool with its refusals as the protocol has them."""
    from mcp.server.mcpserver.exceptions import ToolError

    @wraps(tool)
    def told(*args: P.args, **kwargs: P.kwargs) -> Document:
        try:
            return tool(*args, **kwargs)
        except KrzemError as error:
            raise ToolError(str(error)) from None

    return told


def plan(
    model: Model, on: On, tokens: Tokens = None, seq: Seq = None, batch: Batch = None,
    precision: Precision = None, engine: Engine = None, switches_on: On_ = None,
    switches_off: Off = None, layout: Limits = None, deadline: str | None = None,
    budget: str | None = None, start: str | None = None, emit: str | None = None,
    full: Full = False,
) -> Document:  # fmt: skip
    """Best layouts of a run on one cluster: step time, memory, days, cost and the wall.

    ``emit`` (megatron-lm, torchtitan, primus, ...) adds the launch files of the best layout.
    """
    from krzem.plan.answer import check_emission, plan_of, script_of
    from krzem.plan.question import Question
    from krzem.plan.request import settle
    from krzem.report.document import plan_document
    from krzem.report.text import format_sentence

    asked = settle(
        Question(
            model=model, on=on, tokens=tokens, sequence=seq, global_batch=batch,
            precision=precision, engine=engine, switched=switches_on, switched_off=switches_off,
            limits=layout, deadline=deadline, budget=budget, start=start, emits=emit,
        )
    )  # fmt: skip
    if emit is not None:
        check_emission(asked, emit)
    found = plan_of(asked)
    document = plan_document(found, asked)
    if emit is not None:
        document["launch"] = {"engine": emit, "script": script_of(asked, found, emit)}
    return _short(format_sentence(document, document["best"]), document, full)


def explain(
    model: Model, on: On, layout: str, tokens: Tokens = None, seq: Seq = None,
    batch: Batch = None, precision: Precision = None, engine: Engine = None,
    switches_on: On_ = None, switches_off: Off = None, full: Full = False,
) -> Document:  # fmt: skip
    """One layout that you give, term by term: where its time and memory go, and what would help.

    ``layout`` is written as ``tp=1,pp=16,ep=64,mbs=1``; what is missing of ``dp`` is filled in.
    """
    from krzem.plan.answer import explanation_of
    from krzem.plan.question import Question
    from krzem.plan.request import settle
    from krzem.report.document import explain_document
    from krzem.report.text import format_sentence

    asked = settle(
        Question(
            model=model, on=on, tokens=tokens, sequence=seq, global_batch=batch,
            precision=precision, engine=engine, switched=switches_on, switched_off=switches_off,
            schedules="all", step_alone=True,
        )
    )  # fmt: skip
    document = explain_document(explanation_of(asked, layout), asked)
    return _short(format_sentence(document, document["layout_plan"]), document, full)


def compare(
    model: Model, on: Annotated[list[str], Field(description="Two clusters or more.")],
    tokens: Tokens = None, seq: Seq = None, batch: Batch = None, precision: Precision = None,
    deadline: str | None = None, budget: str | None = None, full: Full = False,
) -> Document:  # fmt: skip
    """The same run on several clusters, each with its own best layout."""
    from krzem.plan.answer import candidates_of
    from krzem.plan.question import Question
    from krzem.plan.request import settle
    from krzem.report.document_compare import compare_document
    from krzem.report.text_compare import format_comparison_table

    if len(on) < 2:
        raise InputError("compare needs two clusters at least: ['h800:2048', '910c:4096']")
    several = [
        settle(
            Question(model=model, on=each, tokens=tokens, sequence=seq, global_batch=batch,
                     precision=precision, deadline=deadline, budget=budget)
        )
        for each in on
    ]  # fmt: skip
    document = compare_document(candidates_of(several))
    return _short(format_comparison_table(document), document, full)


def check(
    files: Annotated[list[str], Field(description="Paths of launch script and configurations.")],
    logs: Annotated[list[str] | None, Field(description="Paths of what the run printed.")] = None,
    on: str | None = None, model: str | None = None, engine: str | None = None,
    given: Given = None, full: Full = False,
) -> Document:  # fmt: skip
    """A training job of any engine: as fast as its silicon allows, and what to change."""
    from krzem.jobs.answer import Asking, answer
    from krzem.report.document_check import check_document

    found = answer(
        Asking(
            files=tuple(map(Path, files)), logs=tuple(map(Path, logs or ())), on=on, model=model,
            engine=engine, given=tuple(given or ()),
        )
    )  # fmt: skip
    document = check_document(found)
    return _short(f"{document['sentence']}.", document, full)


def devices(
    name: Annotated[str, Field(description="An id or a part of one; empty: all.")] = "",
) -> Document:
    """Accelerators that are known, with memory, links, peaks and their sources."""
    from krzem.report.document_compare import devices_named

    found, _ = devices_named(name)
    return found if name else _names(found, "devices", ("id", "vendor", "name", "memory_gib"))


def models(
    name: Annotated[str, Field(description="A name or a part of one; empty: all.")] = "",
) -> Document:
    """Models that are built in, with parameters and published recipe."""
    from krzem.report.document_compare import models_named

    found, _ = models_named(name)
    return found if name else _names(found, "models", ("id", "parameters", "active_parameters"))


def rules(
    chip: Annotated[str, Field(description="A device id, such as h20.")],
    to: Annotated[str, Field(description="Country of the buyer, such as CN.")] = "CN",
    day: Annotated[str | None, Field(description="Year-month-day; today where left out.")] = None,
    parent: str | None = None,
) -> Document:
    """Trade rules on one accelerator for one buyer on one day, with the arithmetic."""
    from krzem.quantity import parse_date
    from krzem.rules import alternatives, load_rules, verdict
    from krzem.rules.document import document

    on = parse_date(day) if day else datetime.date.today()
    ruleset = load_rules()
    found = verdict(chip, on, to, parent, rules=ruleset)
    return document([(found, alternatives(found, ruleset))], ruleset)


def fleet(
    goal: Annotated[str, Field(description="Path of the goal's TOML file (docs/fleet.md).")],
) -> Document:
    """What to buy, rent or apply for, in which order, for one run and a date."""
    from krzem.supply.document import fleet_document
    from krzem.supply.fleet import fleet as solved
    from krzem.supply.goal_file import read_goal

    return fleet_document(solved(read_goal(Path(goal))))


def _short(sentence: str, document: Document, full: bool) -> Document:
    kept = document if full else {k: v for k, v in document.items() if k not in LONG}
    return {"answer": sentence} | kept


def _names(document: Document, key: str, columns: tuple[str, ...]) -> Document:
    rows = [{name: row.get(name) for name in columns} for row in document[key]]
    return {"schema": document["schema"], key: rows}
