"""``krzem fleet``, ``krzem infer`` and ``krzem proposal``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from krzem.errors import InputError

PAGE = click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page to this file."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
CALLS = ["eurohpc", "eurohpc-ai", "incite", "alcc", "nairr", "gcs", "nhr", "cscs"]
"""Tables of facts/proposals.toml."""
PATIENCE = 2.0
"""Seconds without a word."""


@click.command("fleet")
@click.argument("goal", type=click.Path(path_type=Path))
@click.option(
    "--ask",
    type=click.Choice(["portfolio", "largest", "fewest"]),
    default="portfolio",
    show_default=True,
    help="The best portfolios, the largest model by the date, or the fewest devices per pool.",
)
@click.option(
    "--tokens-per-parameter",
    type=click.FloatRange(min=0, min_open=True),
    help="With --ask largest: tokens per active parameter instead of the goal's tokens.",
)
@click.option(
    "--sure",
    metavar="CHANCE",
    help="Also the cheapest plan that meets the date with this chance, such as 80%.",
)
@JSON
@PAGE
def fleet_command(
    goal: Path, ask: str, tokens_per_parameter: float | None, sure: str | None, as_json: bool,
    html: Path | None,
) -> None:  # fmt: skip
    """What to buy, rent or apply for, in which order, for one run and a date.

    \b
    GOAL is a TOML file:
      model = "deepseek-v3"
      start = 2027-01-01
      deadline = 2027-12-31          # or "300d"
      budget = "$20M"
      [[pool]]
      on = "h800:4096"               # rent as published, or rent = "$2/h"
      [[pool]]
      machine = "lumi-g"             # a public supercomputer
      nodes = 1024
      [[pool.grant]]
      call = "extreme"               # its least and most node-hours
    \b
    krzem fleet goal.toml
    krzem fleet goal.toml --sure 80%
    krzem fleet goal.toml --ask largest --tokens-per-parameter 400
    krzem fleet goal.toml --ask fewest

    Where no plan keeps every limit, it says which one to relax and by how much.
    """
    from krzem.supply import text
    from krzem.supply.document import fleet_document, inverse_document
    from krzem.supply.fleet import fleet
    from krzem.supply.goal_file import read_goal
    from krzem.supply.inverse import fewest, largest

    _writable(html)
    asked = read_goal(goal)
    if sure is not None:
        asked = replace(asked, sure=_chance(sure), sure_asked=True)
    say = _progress(as_json)
    if tokens_per_parameter is not None and ask != "largest":
        raise InputError("--tokens-per-parameter belongs to --ask largest")
    if ask == "portfolio":
        document = fleet_document(fleet(asked, say))
        _show(document, text.fleet_text, as_json)
        _page(html, lambda: _pages().fleet_page(document))
        return
    if ask == "largest":
        found = largest(asked, tokens_per_parameter=tokens_per_parameter, progress=say)
        document = inverse_document(asked, found)
    else:
        document = inverse_document(asked, fewest=fewest(asked, say))
    _show(document, text.inverse_text, as_json)
    title = f"krzem fleet: {ask}"
    _page(html, lambda: _pages().text_page(title, text.inverse_text(document)))


@click.command("infer")
@click.argument("model", required=False)
@click.option("--tokens", help="Tokens that were trained, such as 33T.  [default: as published]")
@click.option("--seq", "sequence", help="Tokens per sequence, such as 4k.")
@click.option("--batch", "global_batch", help="Sequences per step.")
@click.option("--batch-tokens", help="The same in tokens, such as 4M.")
@click.option("--precision", help="bf16, fp8-block, ...  [default: as published]")
@click.option("--hours", help="Published card-hours, such as 2.7M.")
@click.option(
    "--days", metavar="LOW-HIGH", help="How long the run may have lasted, such as 45-120."
)
@click.option("--cards", type=click.IntRange(min=1), help="Published number of cards.")
@click.option("--done", metavar="MONTH", help="Year-month of the end: says what was on the market.")
@click.option("--lab", help="Who trained it: says the engine, and whose chips are likely.")
@click.option("--country", help="Country of its machines: says what was available there.")
@click.option("--engine", help="Training engine.  [default: that of the laboratory and chip]")
@click.option("--devices", help="Candidate kinds, separated by commas.  [default: the catalogue]")
@click.option("--stock", help="Cards the owner may have held: h800=10000,h20-141=30000.")
@click.option(
    "--assume-interruptions",
    type=click.IntRange(min=1),
    metavar="DAYS",
    help="Device-days between interruptions, for kinds of which nobody has published them.",
)
@click.option(
    "--judge", is_flag=True, help="Ask about every known run instead, its hardware left out."
)
@JSON
@PAGE
def infer_command(judge: bool, as_json: bool, html: Path | None, **given: Any) -> None:
    """Which fleet must a published run have used?

    Odds of device kinds and numbers from what is published of a run, by the planner's own step
    times and their uncertainty.

    \b
    krzem infer deepseek-v3 --hours 2.664M --days 50-60 --done 2024-12 --lab deepseek --country CN
    krzem infer deepseek-v4-pro --days 60-150 --done 2026-04 --stock h800=10000,h20-141=30000
    krzem infer --judge                 # is it right?  47 runs whose hardware is known
    """
    from krzem.supply import text
    from krzem.supply.document import infer_document
    from krzem.supply.infer import infer

    _writable(html)
    if judge:
        from krzem.supply.document import judge_document
        from krzem.supply.judge import every

        found = judge_document(list(every(_progress(as_json))))
        _show(found, text.judge_text, as_json)
        _page(html, lambda: _pages().text_page("krzem infer --judge", text.judge_text(found)))
        return
    if given["model"] is None:
        raise InputError("which model?  krzem infer deepseek-v3 --hours 2.664M, or --judge")
    document = infer_document(infer(_evidence(given), _progress(as_json)))
    _show(document, text.infer_text, as_json)
    _page(html, lambda: _pages().infer_page(document))


@click.command("proposal")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "call",
    type=click.Choice(CALLS),
    required=True,
    help="The call whose questions are answered.",
)
@click.option("--model", help="The config.json of the plan's model, where it is not built in.")
@click.option(
    "--nodes", help="Numbers of nodes of the scaling table, such as 64,128,256.  [default: around]"
)
@click.option(
    "--measured", type=click.Path(path_type=Path), help="A CSV of own runs: nodes,step_time_s."
)
@click.option("--machine", help="The public machine that is applied to, such as lumi-g.")
@click.option(
    "--evaluation", default="5%", show_default=True, help="Node-hours for evaluation, on top."
)
@click.option(
    "--copies", default=3, show_default=True, type=click.IntRange(1, 1000),
    help="Checkpoints that are kept.",
)  # fmt: skip
@click.option(
    "--job-hours",
    type=click.FloatRange(min=0, min_open=True),
    help="The longest job of the queue.  [default: the machine's, where known]",
)
@click.option(
    "--country", help="Where the devices stand, for trade rules.  [default: the machine's]"
)
@click.option("--parent", help="Country of the applicants' ultimate parent, if another.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write here, as the suffix says: .md, .html; .docx, .odt, .tex, .pdf through pandoc.",
)
@JSON
@PAGE
def proposal_command(
    plan: Path, call: str, model: str | None, nodes: str | None, measured: Path | None,
    machine: str | None,
    evaluation: str, copies: int, job_hours: float | None, country: str | None,
    parent: str | None, out: Path | None, as_json: bool, html: Path | None,
) -> None:  # fmt: skip
    """The technical part of an application for computing time, from a plan.

    \b
    krzem plan llama-3.1-70b --on h100:512 --tokens 2T --batch 1024 --json > plan.json
    krzem proposal --for eurohpc plan.json --out proposal.md --html proposal.html
    krzem plan llama-3.1-70b --on "jupiter:256 nodes" --tokens 2T --json > plan.json
    krzem proposal --for eurohpc plan.json --machine jupiter-booster --out proposal.docx
    """
    from krzem.supply.judge import check_suffix, write
    from krzem.supply.proposal import proposal, read_plan
    from krzem.supply.proposal_text import proposal_markdown

    _writable(html)
    _writable(out)
    if out is not None:
        check_suffix(out)
    document = proposal(
        read_plan(plan), call, model=model, nodes=nodes, measured=measured, evaluation=evaluation,
        copies=copies, machine=machine, job_hours=job_hours, country=country, parent=parent,
        progress=_progress(as_json),
    )  # fmt: skip
    markdown = proposal_markdown(document)
    if out is not None:
        write(out, markdown, lambda: _pages().proposal_page(document))
        click.echo(f"wrote {out}", err=True)
    if as_json or out is None:
        _show(document, lambda _: markdown, as_json)
    _page(html, lambda: _pages().proposal_page(document))


def _chance(text: str) -> float:
    from krzem.supply.readers import share

    chance = share(text)
    if not 0 < chance < 1:
        raise InputError(f"--sure {text[:40]}: a chance above 0 and below 100 % is needed")
    return chance


def _evidence(given: Mapping[str, Any]) -> Any:
    from krzem.quantity import parse_count
    from krzem.rules import find_country
    from krzem.supply.infer import Evidence

    names = ("tokens", "sequence", "global_batch", "batch_tokens", "precision", "engine")
    candidates: tuple[str, ...] = ()
    if given["devices"]:
        candidates = tuple(part.strip() for part in given["devices"].split(",") if part.strip())
    assumed = {}
    if given["assume_interruptions"]:
        assumed["device_days_between_interruptions"] = given["assume_interruptions"]
    return Evidence(
        model=given["model"],
        run={name: given[name] for name in names if given[name] is not None},
        card_hours=float(parse_count(given["hours"])) if given["hours"] else None,
        days=_range(given["days"]) if given["days"] else None,
        cards=given["cards"],
        done=_month(given["done"]) if given["done"] else "",
        lab=given["lab"] or "",
        country=find_country(given["country"]) if given["country"] else "",
        candidates=candidates,
        stock=_stock(given["stock"] or ""),
        assumed=assumed,
    )


def _month(text: str) -> str:
    from krzem.quantity import parse_date

    return f"{parse_date(text):%Y-%m}"


def _range(text: str) -> tuple[float, float]:
    from krzem.quantity import parse_ratio

    low, dash, high = text.partition("-")
    if not dash:
        raise InputError(f"--days {text[:40]!r}: two numbers of days are needed, such as 45-120")
    return parse_ratio(low.strip()), parse_ratio(high.strip())


def _stock(text: str) -> dict[str, float]:
    from krzem.hardware.catalogue import find_id
    from krzem.quantity import parse_count

    found = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        device, equals, count = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(f"--stock {part[:40]!r}: write each as h800=10000")
        found[find_id(device)] = float(parse_count(count))
    return found


def _writable(path: Path | None) -> None:
    """Refuse, before anything is computed, a file that cannot be written where it is wanted."""
    if path is not None and not path.parent.is_dir():
        raise InputError(f"cannot write {str(path)[:80]!r}: its folder does not exist")


def _pages() -> Any:
    from krzem.supply import page

    return page


def _show(document: Mapping[str, Any], text: Callable[[Any], str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))
    else:
        from krzem.report.text_table import fitted

        click.echo(fitted(text(document)), nl=False)


def _page(path: Path | None, render: Callable[[], str]) -> None:
    if path is None:
        return
    from krzem.report.selfcontained import write_text

    write_text(path, render())
    click.echo(f"wrote {path}", err=True)


def _progress(quiet: bool) -> Callable[[str], None] | None:
    """Says on a terminal what is being planned, once it has taken a while."""
    if quiet or not sys.stderr.isatty():
        return None
    began = time.monotonic()

    def say(what: str) -> None:
        if time.monotonic() - began > PATIENCE:
            click.echo(f"\r\033[K{what}", err=True, nl=False)

    return say
