"""``krzem rules``: what may be sent where, on which day, with the arithmetic."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import click


@click.command("rules")
@click.option("--chip", metavar="ID", help="One chip in full; without it a table of all.")
@click.option("--on", "day", metavar="DATE", help="Year-month-day.  [default: today]")
@click.option(
    "--to", default="CN", show_default=True, metavar="COUNTRY", help="Where the buyer is."
)
@click.option(
    "--parent",
    metavar="COUNTRY",
    help="Seat of the buyer's ultimate parent, where it is another country.",
)
@click.option("--state-funded", is_flag=True, help="The buyer builds with state funds.")
@click.option("--rent", is_flag=True, help="The buyer rents time on chips that others own.")
@click.option(
    "--acquired",
    metavar="DATE",
    help="Owned since that day: its rules on export and import hold, those on use are of --on.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page to this file.")
def rules_command(
    chip: str | None,
    day: str | None,
    to: str,
    parent: str | None,
    state_funded: bool,
    rent: bool,
    acquired: str | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Export and import status of accelerators on a date, computed from their figures.

    \b
    krzem rules --chip h20                        one chip: arithmetic, rules, sources
    krzem rules --chip h20 --on 2024-06-01        the same on an earlier day
    krzem rules --chip b200-sxm --to SG --parent CN
    krzem rules --chip b200-sxm --to SG --parent CN --rent     time on chips of others
    krzem rules --chip 910b2 --to DE              use abroad of chips designed in China
    krzem rules --to AE                           all chips of the catalogue

    A figure that nobody has published is never guessed: the verdict then says on what it depends
    and where it turns. A verdict says how old the newest text is on its day; of a day after the
    last search for newer rules it says only how they stood. This is not legal advice.
    """
    from krzem.files import check_target
    from krzem.hardware.catalogue import device_ids
    from krzem.quantity import parse_date
    from krzem.rules import alternatives, load_rules, verdict
    from krzem.rules.document import document
    from krzem.rules.text import format_table, format_verdict

    if html is not None:
        check_target(html)
    ruleset = load_rules()
    on = parse_date(day) if day else dt.date.today()
    chips = [chip] if chip else device_ids()
    since = parse_date(acquired) if acquired else None
    _consistent(on, since, rent)
    verdicts = [
        verdict(
            c, on, to, parent, state_funded=state_funded, rents=rent, acquired=since, rules=ruleset
        )
        for c in chips
    ]
    full = [(v, alternatives(v, ruleset)) for v in verdicts]
    if html is not None:
        from krzem.report.selfcontained import write_text
        from krzem.rules.page import rules_page

        write_text(html, rules_page(full, ruleset))
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(json.dumps(document(full, ruleset), indent=2))
    elif chip:
        click.echo(format_verdict(verdicts[0], ruleset, full[0][1]))
    else:
        click.echo(format_table(verdicts, ruleset))


def _consistent(on: dt.date, since: dt.date | None, rent: bool) -> None:
    from krzem.errors import InputError

    if since is None:
        return
    if rent:
        raise InputError("--rent and --acquired exclude each other: rented chips are not owned.")
    if since > on:
        raise InputError(f"--acquired {since} is later than --on {on}, the day of use.")
