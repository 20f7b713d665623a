"""``krzem outlook``: the compute gap, the odds, and the levers that move them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from krzem.outlook.whole import Advance


@click.command("outlook")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--paths", type=click.IntRange(min=100), help="Paths to simulate.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the random numbers.")
@click.option(
    "--years",
    type=float,
    default=5.0,
    show_default=True,
    help="Years ahead for the odds and what moves them.",
)
@click.option("--no-levers", is_flag=True, help="Only the forecast: a few seconds instead of tens.")
@click.option(
    "--back-test",
    "back_tested",
    is_flag=True,
    help="Only the back-test: four cut-offs, the model and a naive trend, both scored.",
)
@click.option("--assumptions", is_flag=True, help="Print the shipped assumptions as TOML and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page to this file.")
def outlook_command(
    file: Path | None,
    paths: int | None,
    seed: int | None,
    years: float,
    no_levers: bool,
    back_tested: bool,
    assumptions: bool,
    as_json: bool,
    html: Path | None,
) -> None:
    """How far one group of labs is behind another, and its chance to be ahead within N years.

    \b
    krzem outlook                             China against the US frontier
    krzem outlook --assumptions > mine.toml   every number it rests on, with its source
    krzem outlook mine.toml                   the same with your numbers
    krzem outlook --back-test                 what it would have said at the end of 2022 to mid 2025

    FILE holds the assumptions that differ; a quantity is a number (then it is certain) or a table
    with low, mid and high (5, 50 and 95 % points).
    """
    from krzem.files import check_target
    from krzem.outlook.assumptions import load, shipped, shipped_text

    if html is not None:
        check_target(html)
    if assumptions:
        click.echo(shipped_text(), nl=False)
        return
    if back_tested:
        _back_test(as_json)
        return
    chosen = load(file) if file is not None else shipped()
    given = {"paths": paths, "seed": seed}
    chosen = chosen.with_run(**{k: v for k, v in given.items() if v is not None})
    _run(chosen, years, not no_levers, as_json, html)


def _back_test(as_json: bool) -> None:
    from krzem.outlook.backtest import back_test
    from krzem.outlook.text import back_test_table
    from krzem.outlook.whole import back_test_document
    from krzem.report.text_table import fitted

    test = back_test()
    if as_json:
        click.echo(json.dumps(back_test_document(test), indent=2))
    else:
        click.echo(fitted(back_test_table(test)), nl=False)


def _run(chosen: object, years: float, with_levers: bool, as_json: bool, html: Path | None) -> None:
    from krzem.errors import InputError
    from krzem.outlook.assumptions import Assumptions
    from krzem.outlook.text import format_outlook
    from krzem.outlook.whole import document, outlook
    from krzem.report.text_table import fitted

    assert isinstance(chosen, Assumptions)
    if years < 0.25 or (with_levers and years > chosen.run.horizon_years):
        raise InputError(
            f"--years {years:g} lies outside 0.25 to the horizon of {chosen.run.horizon_years:g} "
            "(run.horizon_years)."
        )
    with _progress(with_levers) as advance:
        result = outlook(chosen, lever_years=years if with_levers else None, advance=advance)
    if html is not None:
        from krzem.outlook.page import outlook_page
        from krzem.report.selfcontained import write_text

        write_text(html, outlook_page(result))
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(json.dumps(document(result), indent=2))
    else:
        click.echo(fitted(format_outlook(result)), nl=False)


@contextmanager
def _progress(with_levers: bool) -> Iterator[Advance]:
    """A bar for each part, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    parts = ("paths", "levers", "beliefs") if with_levers else ("paths",)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {part: bars.add_task(part, total=1.0) for part in parts}
        yield lambda part, share: bars.advance(tasks[part], share)
