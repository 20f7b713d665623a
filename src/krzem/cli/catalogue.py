"""``krzem devices`` and ``krzem models``: the facts, each with its source."""

from __future__ import annotations

from typing import Any

import click

from krzem.cli.output import show
from krzem.errors import UnknownNameError

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
    from krzem.hardware.catalogue import find_id
    from krzem.report.document_catalogue import devices_document
    from krzem.report.text_catalogue import format_device, format_devices

    document = devices_document(name)
    try:
        one = find_id(name) if name else None
    except UnknownNameError:
        if not document["devices"]:
            raise
        one = None
    if one is not None:
        document = devices_document(one)
        document["devices"] = [d for d in document["devices"] if d["id"] == one]
        show(document, format_device(document["devices"][0]), as_json)
        return
    show(document, format_devices(document), as_json)


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
    from krzem.model.catalogue import model_fact
    from krzem.report.document_catalogue import models_document
    from krzem.report.text_catalogue import format_model, format_models

    document: dict[str, Any] = models_document(name)
    try:
        one = model_fact(name).id if name else None
    except UnknownNameError:
        if not document["models"]:
            raise
        one = None
    if one is not None:
        document = models_document(one)
        document["models"] = [m for m in document["models"] if m["id"] == one]
        show(document, format_model(document["models"][0]), as_json)
        return
    show(document, format_models(document), as_json)
