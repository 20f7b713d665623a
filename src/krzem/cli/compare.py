"""``krzem compare``: the same run on several clusters."""

from __future__ import annotations

from typing import Any

import click

from krzem.cli.options import ENGINE, GOAL, MODEL, ON_SEVERAL, OUTPUT, SEARCH, options
from krzem.cli.output import check_files, search_progress, show, write_page
from krzem.errors import InputError


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
