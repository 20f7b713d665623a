"""``krzem size`` and ``krzem design``: the model that suits a budget, or a cluster."""

from __future__ import annotations

import json
from typing import Any

import click

from krzem.cli.common import (
    ELECTRICITY,
    ENGINE,
    JSON,
    ON,
    QUIET,
    STEP,
    check_files,
    options,
    search_progress,
    show,
    write_script,
)
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


@click.command("design")
@ON
@click.option("--flops", required=True, metavar="N", help="Training compute: 1e24.")
@click.option(
    "--tokens-per-parameter", type=float, default=400.0, show_default=True, metavar="R",
    help="Tokens per parameter at work for a token; DeepSeek-V3 had 400.",
)  # fmt: skip
@click.option(
    "--beside", multiple=True, metavar="MODEL",
    help="Published models to set beside; once for each. Default: mixtures of like size.",
)  # fmt: skip
@click.option("--config-to", metavar="FILE", help="Write the best shape's config.json to FILE.")
@options(STEP, ENGINE, (JSON, QUIET))
def design_command(
    on: str,
    flops: str,
    tokens_per_parameter: float,
    beside: tuple[str, ...],
    config_to: str | None,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Find the shape of a mixture of experts that learns most per day on a cluster.

    Shapes of one active size are planned on the cluster and judged by dense-equivalent FLOPs per
    second: how fast the cluster computes them times what their compute is worth by a published
    law of mixtures. Published models stand beside, with what they lose on this silicon.

    \b
    krzem design --on h800:2048 --flops 3.3e24 --engine deepseek
    krzem design --on huawei-ascend-910b:6144 --flops 1e24 --beside pangu-ultra-moe-718b
    krzem design --on mi300x:1024 --flops 3e23 --config-to config.json
    """
    from krzem.cli.common import search_progress
    from krzem.plan.design import design
    from krzem.plan.question import Question, read
    from krzem.quantity import parse_count
    from krzem.report.html_compare import design_document, format_design

    check_files(config_to)
    with search_progress("shapes", quiet or as_json) as progress:
        found = design(
            on,
            float(read("--flops", parse_count, flops)),
            tokens_per_parameter=tokens_per_parameter,
            question=Question(model="", on=on, **asked),
            published=beside or None,
            progress=progress,
        )
    document = design_document(found)
    show(document, format_design(document, quiet), as_json)
    shape = found.found[0].shape
    if config_to is not None and shape is not None:
        write_script(json.dumps(shape.config(), indent=2) + "\n", config_to)
