"""Reads a cluster: ``nvidia-h800-sxm:2048`` or a TOML file.

The short form is ``DEVICE:COUNT``: a catalogue id or a short form of it, or a public machine
(``leonardo:64``), and a number of devices as software sees them (``h800:2k`` is 2,048; ``910c:8192
cards`` is 16,384 dies; ``leonardo:64 nodes`` is 256 devices), and after an ``@`` the price of a
device-hour in US dollars (``h100:512@2.1``).  Everything else is the catalogue's.
A file says more and overrules the catalogue::

    device = "h800"
    devices = 2048                  # or nodes = 256, or cards = 2048
    scale_up_bandwidth = "160 GB/s" # per device, one direction
    price = "$2/h"
    [peak]                          # where the catalogue does not know it
    fp8 = "1979 TFLOP/s"
    [measured]                      # takes the place of what the model assumes
    bf16 = "650 TFLOP/s"
    [launch]                        # for batch files (krzem plan --emit ... --scheduler slurm)
    partition = "gpu"

All keys, with examples: ``KEYS``, ``PEAK``, ``MEASURED`` and ``LAUNCH`` in cluster_keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from krzem.errors import ClusterError, QuantityError, shorten
from krzem.files import read_toml
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_builder import build_cluster
from krzem.hardware.cluster_keys import read_cluster_keys, read_devices
from krzem.quantity import parse_money

HINT = "give a TOML file, or write DEVICE:COUNT such as h800:2048"


def read_cluster(text_or_path: str | Path) -> Cluster:
    """The cluster that a short string or a TOML file describes.

    A Path, or text that ends in ``.toml``, is a file.

    Raises ClusterError, DataError (the file), QuantityError, UnknownNameError (the device), and
    UnknownFactError for a quantity that a plan cannot do without and that neither the catalogue
    nor the file knows.
    """
    text = str(text_or_path).strip()
    if isinstance(text_or_path, Path) or text.lower().endswith(".toml"):
        where = shorten(Path(text).name, 60)
        found = build_cluster(read_cluster_keys(read_toml(Path(text), hint=HINT), where), where)
        if not found.calibration:
            return found
        return replace(found, calibration=str(Path(text).parent / found.calibration))
    return build_cluster(short_form(text), shorten(text, 60))


def cluster_of(settings: Mapping[str, Any], where: str = "the cluster") -> Cluster:
    """The cluster of parsed TOML: a section of a larger file, or a dict with the same keys.

    ``where`` names the place in messages.  Raises what read_cluster raises.
    """
    return build_cluster(read_cluster_keys(settings, where), where)


def short_form(text: str) -> dict[str, Any]:
    """``DEVICE:COUNT [cards|nodes] [@PRICE]`` as keys of a cluster file.

    Raises ClusterError, and QuantityError for the price.
    """
    text, at, price = text.partition("@")
    device, _, count = (part.strip() for part in text.partition(":"))
    if not (device and count):
        raise ClusterError(
            f"{shorten(text, 60)!r} is not a cluster: write DEVICE:COUNT such as "
            f"nvidia-h800-sxm:2048, or the path of a .toml file."
        )
    number, _, unit = (part.strip() for part in count.partition(" "))
    key = _COUNTED.get(unit.lower())
    if key is None:
        raise ClusterError(
            f"{shorten(unit, 40)!r} after the count means nothing: write {device}:{number}, or "
            f"{device}:{number} nodes, or {device}:{number} cards where a card holds several"
            " devices."
        )
    found = {"device": device, key: read_devices(number)}
    return {**found, "price": _price(price, text)} if at else found


def _price(text: str, before: str) -> float:
    """US dollars of ``2.1`` or ``$2.1/h``; raises QuantityError."""
    amount = text.strip().removesuffix("/h").strip()
    try:
        return parse_money(amount)
    except QuantityError as error:
        raise QuantityError(
            f"the price after @ in {shorten(before, 40)!r}: {error} A device-hour at $2.1 is"
            f" {before.strip()}@2.1"
        ) from None


_COUNTED = {
    "": "devices", "device": "devices", "devices": "devices", "card": "cards", "cards": "cards",
    "node": "nodes", "nodes": "nodes",
}  # fmt: skip
