"""``krzem devices`` and ``krzem models``: the facts, each with its source."""

from __future__ import annotations

import click

from krzem.cli.common import show

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/json.md).")


@click.command("devices")
@click.argument("name", default="")
@AS_JSON
def devices_command(name: str, as_json: bool) -> None:
    """List the accelerators, or show one with its sources.

    NAME is an id, a short form of one, or a part that several ids share.

    \b
    krzem devices                 all of them
    krzem devices ascend          those whose id holds "ascend"
    krzem devices h800            everything known of one
    """
    from krzem.report.document_compare import devices_named
    from krzem.report.text_compare import format_device, format_devices

    document, alone = devices_named(name)
    text = format_device(document["devices"][0]) if alone else format_devices(document)
    show(document, text, as_json)


@click.command("models")
@click.argument("name", default="")
@AS_JSON
def models_command(name: str, as_json: bool) -> None:
    """List the built-in models, or show one with its sources and published recipe.

    NAME is an id, an alias, or a part that several ids share.

    \b
    krzem models                  all of them
    krzem models qwen3            those whose id holds "qwen3"
    krzem models deepseek-v3      everything known of one
    """
    from krzem.report.document_compare import models_named
    from krzem.report.text_compare import format_model, format_models

    document, alone = models_named(name)
    text = format_model(document["models"][0]) if alone else format_models(document)
    show(document, text, as_json)
