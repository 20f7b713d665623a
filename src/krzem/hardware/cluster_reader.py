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

A quantity that a plan cannot do without and that neither the catalogue nor the file knows is an
UnknownFactError.  Optional ones (price, failures, ...) come from published ranges with their
source in ``Cluster.facts``, or stay None.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from krzem.errors import ClusterError, DataError, UnknownFactError, shorten
from krzem.facts.fact import Fact
from krzem.facts.operations import published
from krzem.hardware.catalogue import load_device
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_keys import KEYS, MOST_DEVICES, read_keys
from krzem.hardware.device import Device
from krzem.quantity import parse_devices

LARGEST_FILE = 1_000_000

_SECONDS_PER_DAY = 86400.0


def read_cluster(text_or_path: str | Path) -> Cluster:
    """The cluster that a short string or a TOML file describes.

    Raises ClusterError, DataError, UnknownNameError, QuantityError or UnknownFactError.
    """
    text = str(text_or_path).strip()
    if isinstance(text_or_path, Path) or text.lower().endswith(".toml"):
        return _build(read_keys(_toml(Path(text)), Path(text).name), Path(text).name)
    return _build(_short(text), text)


def cluster_of(settings: Mapping[str, Any], where: str = "cluster") -> Cluster:
    """The cluster of already parsed TOML (a section of a larger file, or a dict in Python)."""
    return _build(read_keys(settings, where), where)


def _short(text: str) -> dict[str, Any]:
    device, colon, count = text.partition(":")
    if not (colon and device.strip() and count.strip()):
        raise ClusterError(
            f"{shorten(text, 60)!r} is not a cluster: write DEVICE:COUNT such as "
            f"nvidia-h800-sxm:2048, or the path of a .toml file."
        )
    number, _, unit = count.strip().partition(" ")
    if unit.strip() not in ("", "cards", "devices"):
        raise ClusterError(
            f"{shorten(unit, 40)!r} after the count: it can be 'cards' or 'devices'."
        )
    amount = parse_devices(number)
    if amount > MOST_DEVICES:
        raise ClusterError(
            f"{amount:,} devices are more than the {MOST_DEVICES:,} that can be planned for."
        )
    return {"device": device.strip(), "cards" if unit.strip() == "cards" else "devices": amount}


def _toml(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise DataError(f"{path} is not a file; a cluster file is TOML, or write DEVICE:COUNT.")
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise DataError(
                f"{path} has {size:,} bytes; a cluster file has at most {LARGEST_FILE:,}."
            )
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; a cluster file is TOML.") from None
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid TOML: {shorten(str(error), 120)}.") from None


def _build(given: dict[str, Any], where: str) -> Cluster:
    if "device" not in given:
        raise ClusterError(f'{where}: device is missing: write device = "h800".')
    device = load_device(given["device"])
    per_node = given.get("devices_per_node", device.devices_per_node)
    devices = _count(given, device, per_node, where)
    needed = _needed(given, device, devices, where)
    facts = _facts(given, device, devices, where)
    middle: dict[str, Any] = {name: fact.mid for name, fact in facts.items()}
    return Cluster(
        device=device,
        devices=devices,
        oversubscription=given.get("oversubscription", 1.0),
        rails=given.get("rails"),
        host_memory_bytes_per_device=_share(given.get("host_memory"), needed["devices_per_node"]),
        name=given.get("name", f"{device.id}:{devices}"),
        measured=MappingProxyType(dict(given.get("measured", {}))),
        facts=MappingProxyType(facts),
        **needed,
        **middle,
    )


def _share(total: float | None, parts: int) -> float | None:
    return None if total is None else total / parts


def _count(given: Mapping[str, Any], device: Device, per_node: int | None, where: str) -> int:
    """The number of devices; every way of counting that is given must agree."""
    counts = {"devices": given.get("devices")}
    if "cards" in given:
        counts["cards"] = round(given["cards"] / device.fraction)
    if "nodes" in given:
        if per_node is None:
            raise _unknown(device, where, ["devices_per_node"])
        counts["nodes"] = given["nodes"] * per_node
    known = {key: count for key, count in counts.items() if count is not None}
    if not known:
        raise ClusterError(
            f"{where}: the size is missing: write devices = 2048 (or nodes, or cards)."
        )
    if len(set(known.values())) > 1:
        sums = ", ".join(f"{key} = {given[key]:,} gives {count:,}" for key, count in known.items())
        raise ClusterError(f"{where}: the sizes disagree ({sums} devices): keep one of them.")
    devices = int(next(iter(known.values())))
    if devices > MOST_DEVICES:
        raise ClusterError(
            f"{where}: {devices:,} devices; at most {MOST_DEVICES:,} can be planned."
        )
    return devices


def _needed(given: Mapping[str, Any], device: Device, devices: int, where: str) -> dict[str, Any]:
    """The quantities no plan can do without; links that nothing crosses may be unknown."""
    per_node = given.get("devices_per_node", device.devices_per_node)
    domain = given.get("scale_up_domain", device.scale_up_domain)
    up = given.get("scale_up_bandwidth", device.scale_up_bytes_per_s)
    out = _scale_out(given, device, per_node, where)
    if domain is not None and domain >= devices:
        out = out or up
    if domain == 1 or devices == 1:
        up = up or out
    bandwidth = given.get("memory_bandwidth", device.memory_bytes_per_s)
    if devices == 1:
        up, out = up or bandwidth, out or bandwidth
    values = {
        "devices_per_node": per_node,
        "scale_up_domain": domain,
        "memory": given.get("memory", device.memory_bytes),
        "memory_bandwidth": bandwidth,
        "scale_up_bandwidth": up,
        "scale_out_bandwidth": out,
    }
    missing = [key for key, value in values.items() if value is None]
    if missing:
        raise _unknown(device, where, missing)
    return {_FIELDS.get(key, key): value for key, value in values.items()}


_FIELDS = {
    "memory": "memory_bytes",
    "memory_bandwidth": "memory_bytes_per_s",
    "scale_up_bandwidth": "scale_up_bytes_per_s",
    "scale_out_bandwidth": "scale_out_bytes_per_s",
}


def _scale_out(
    given: Mapping[str, Any], device: Device, per_node: int | None, where: str
) -> float | None:
    """Per device: stated, or the node's interfaces shared out, or the catalogue's."""
    nics, each = given.get("nics_per_node"), given.get("nic_bandwidth")
    stated: float | None = given.get("scale_out_bandwidth")
    if (nics is None) != (each is None):
        raise ClusterError(f"{where}: nics_per_node and nic_bandwidth belong together: give both.")
    if nics is None or each is None:
        return device.scale_out_bytes_per_s if stated is None else stated
    if stated is not None:
        raise ClusterError(f"{where}: give scale_out_bandwidth, or the interfaces, not both.")
    if per_node is None:
        raise _unknown(device, where, ["devices_per_node"])
    return float(nics * each / per_node)


def _facts(given: Mapping[str, Any], device: Device, devices: int, where: str) -> dict[str, Fact]:
    """The optional quantities by their field of Cluster: as given, or as published, or absent."""
    cards = max(1, round(devices * device.fraction))
    subjects = (device.id, device.family, device.vendor.lower())

    def known(key: str, name: str, unit: str, what: str, scale: float = 1.0) -> Fact | None:
        if key in given:
            return Fact.given(name, given[key], unit, where)
        return published(what, subjects, cards)

    found = {
        "failures_per_device_day": _failures(given, device, cards, subjects, where),
        "restart_seconds": known("restart_time", "restart_seconds", "s", "restart_seconds"),
        "checkpoint_write_bytes_per_s": known(
            "storage_bandwidth", "checkpoint_write_bytes_per_s", "B/s", "checkpoint_bytes_per_s"
        ),
        "pue": known("pue", "pue", "1", "pue"),
        "system_power_ratio": known(
            "system_power_ratio", "system_power_ratio", "1", "system_power_ratio"
        ),
        "power_w": _catalogued(given, "power", "power_w", device.power_w, "W", device, where),
        "usd_per_device_hour": _catalogued(
            given,
            "price",
            "usd_per_device_hour",
            device.rental_usd_per_hour,
            "USD/h",
            device,
            where,
        ),
    }
    return {name: fact for name, fact in found.items() if fact is not None}


def _failures(
    given: Mapping[str, Any], device: Device, cards: int, subjects: tuple[str, ...], where: str
) -> Fact | None:
    """Interruptions per device and day, from device-days (of cards) per interruption."""
    name, unit = "failures_per_device_day", "1/(device day)"
    stated = given.get("device_days_between_interruptions")
    if stated is not None:
        return Fact.given(name, 1 / stated, unit, where)
    days = published("device_days_per_interruption", subjects, cards)
    if days is None:
        return None
    return Fact(
        what=name,
        low=device.fraction / days.high,
        mid=device.fraction / days.mid,
        high=device.fraction / days.low,
        unit=unit,
        source=days.source,
        date=days.date,
        confidence=days.confidence,
        notes=days.notes,
    )


def _catalogued(
    given: Mapping[str, Any],
    key: str,
    name: str,
    value: float | None,
    unit: str,
    device: Device,
    where: str,
) -> Fact | None:
    if key in given:
        return Fact.given(name, given[key], unit, where)
    if value is None:
        return None
    return Fact(
        what=name, low=value, mid=value, high=value, unit=unit, source=device.sources,
        confidence=device.confidence, notes=device.notes,
    )  # fmt: skip


def _unknown(device: Device, where: str, missing: list[str]) -> UnknownFactError:
    """Which quantities nobody published, what the row says, and the file that gives them."""
    what = " and ".join(key.replace("_", " ") for key in missing)
    lines = [
        f"{shorten(where, 60)} needs the {what} of {device.id}, and the catalogue does not know.",
        f"What it says: {shorten(device.notes, 400) or 'nothing'}",
        "If you know better, write a file cluster.toml and plan on that:",
        f'  device = "{device.id}"',
        "  devices = ...",
        *(f"  {key} = {KEYS[key].example}   # {KEYS[key].means}; an example" for key in missing),
    ]
    return UnknownFactError("\n".join(lines))
