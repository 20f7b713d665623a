"""Reads a cluster: ``nvidia-h800-sxm:2048`` or a TOML file.

The short form is ``DEVICE:COUNT``: a catalogue id or a short form of it, and a number of devices
as software sees them (``h800:2k`` is 2,048; ``910c:8192 cards`` is 16,384 dies).  Everything else
is the catalogue's.  A file says more and overrules the catalogue::

    device = "h800"
    devices = 2048                  # or nodes = 256, or cards = 2048
    scale_up_bandwidth = "160 GB/s" # per device, one direction
    price = "$2/h"
    [measured]
    bf16 = "650 TFLOP/s"

All keys, with examples: ``KEYS`` and ``MEASURED`` in cluster_keys.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krzem.errors import ClusterError, DataError, shorten
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_builder import build_cluster
from krzem.hardware.cluster_keys import read_devices, read_keys

LARGEST_FILE = 1_000_000
"""Bytes; a cluster file is a page of text."""


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
        return build_cluster(read_keys(_toml(Path(text)), where), where)
    return build_cluster(_short(text), shorten(text, 60))


def cluster_of(settings: Mapping[str, Any], where: str = "the cluster") -> Cluster:
    """The cluster of parsed TOML: a section of a larger file, or a dict with the same keys.

    ``where`` names the place in messages.  Raises what read_cluster raises.
    """
    return build_cluster(read_keys(settings, where), where)


def _short(text: str) -> dict[str, Any]:
    device, _, count = (part.strip() for part in text.partition(":"))
    if not (device and count):
        raise ClusterError(
            f"{shorten(text, 60)!r} is not a cluster: write DEVICE:COUNT such as "
            f"nvidia-h800-sxm:2048, or the path of a .toml file."
        )
    number, _, unit = (part.strip() for part in count.partition(" "))
    if unit not in ("", "cards", "devices"):
        raise ClusterError(
            f"{shorten(unit, 40)!r} after the count means nothing: write {device}:{number}, or "
            f"{device}:{number} cards where a card holds several devices."
        )
    return {"device": device, "cards" if unit == "cards" else "devices": read_devices(number)}


def _toml(path: Path) -> dict[str, Any]:
    name = shorten(str(path), 120)
    try:
        if not path.is_file():
            raise DataError(f"{name} is not a file: give a TOML file, or write DEVICE:COUNT.")
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise DataError(f"{name} has {size:,} bytes; at most {LARGEST_FILE:,} are read.")
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{name} is not UTF-8 text, so it is not TOML.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not valid TOML: {shorten(str(error), 120)}.") from None
