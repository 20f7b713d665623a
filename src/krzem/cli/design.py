"""``krzem design``: the shape of a mixture of experts that suits a cluster."""

from __future__ import annotations

import json
from typing import Any

import click

from krzem.cli.options import ENGINE, JSON, ON, QUIET, STEP, options
from krzem.cli.output import check_files, show, write_script


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
    from krzem.cli.output import search_progress
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
