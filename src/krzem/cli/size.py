"""``krzem size``: the largest model that a budget of compute trains."""

from __future__ import annotations

import json
from typing import Any

import click

from krzem.cli.options import ELECTRICITY, ENGINE, JSON, ON, QUIET, STEP, options
from krzem.cli.output import check_files, search_progress, show, write_script
from krzem.errors import GoalError


@click.command("size")
@ON
@click.option("--node-hours", metavar="N", help="The budget in node-hours: 500k is 500,000.")
@click.option("--device-hours", metavar="N", help="The budget in device-hours instead.")
@click.option(
    "--days", type=float, metavar="D", help="The budget as days of the whole cluster instead."
)
@click.option(
    "--tokens-per-parameter",
    type=float,
    metavar="R",
    help="How the compute is divided: 20 is Chinchilla's rule, 100 and more for models that are"
    " served much. Default: the optimum of --law.",
)
@click.option(
    "--law",
    default="besiroglu_2024",
    show_default=True,
    metavar="NAME",
    help="Loss law whose optimum is taken: besiroglu_2024, muennighoff_2023, hoffmann_2022 or"
    " krajewski_2024_moe (its dense fit).",
)
@click.option("--config-to", metavar="FILE", help="Write the model's config.json to FILE.")
@options(STEP, ENGINE, ELECTRICITY, (JSON, QUIET))
def size_command(
    on: str,
    node_hours: str | None,
    device_hours: str | None,
    days: float | None,
    tokens_per_parameter: float | None,
    law: str,
    config_to: str | None,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Find the largest dense model that a budget of compute trains, and the loss to expect.

    The devices in --on are those the run uses. The model has the proportions of published dense
    models; with --config-to it can be planned, changed and trained.

    \b
    krzem size --on leonardo:1024 --node-hours 500k
    krzem size --on h100:512 --days 30 --tokens-per-parameter 100 --config-to config.json
    krzem size --on mi300x:256@1.5 --device-hours 200k --law muennighoff_2023 --json
    """
    from krzem.hardware.cluster_reader import read_cluster
    from krzem.plan.question import Question
    from krzem.plan.size import size
    from krzem.report.questions import format_size, size_document

    check_files(config_to)
    cluster = read_cluster(on)
    hours = budget(node_hours, device_hours, days, cluster.devices_per_node, cluster.devices)
    with search_progress("searching", quiet or as_json) as progress:
        found = size(
            cluster,
            hours,
            tokens_per_parameter=tokens_per_parameter,
            law=law,
            question=Question(model="", on=cluster, **asked),
            progress=progress,
        )
    document = size_document(found)
    show(document, format_size(document, quiet), as_json)
    if config_to is not None:
        write_script(json.dumps(found.config, indent=2) + "\n", config_to)


def budget(
    node_hours: str | None,
    device_hours: str | None,
    days: float | None,
    per_node: int,
    devices: int,
) -> float:
    """Device-hours of the one budget that is given; raises GoalError, QuantityError."""
    from krzem.plan.question import read
    from krzem.quantity import parse_count

    given = [x is not None for x in (node_hours, device_hours, days)]
    if sum(given) != 1:
        raise GoalError(
            "the budget of compute: give one of --node-hours 500k, --device-hours 2M or --days 30"
        )
    if node_hours is not None:
        return float(read("--node-hours", parse_count, node_hours)) * per_node
    if device_hours is not None:
        return float(read("--device-hours", parse_count, device_hours))
    if days is None or not 0 < days < 36_500:
        raise GoalError(f"--days {days:g}: more than 0 and less than a century are needed")
    return days * 24.0 * devices
