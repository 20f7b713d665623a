"""A chip that a cluster file describes whole: it needs no row in the catalogue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from krzem.errors import ClusterError, UnknownNameError, nearest, shorten
from krzem.facts.table import read_table
from krzem.hardware.catalogue import TABLE
from krzem.hardware.cluster_keys import KEYS, PEAK
from krzem.hardware.device import Device
from krzem.hardware.machines import machines

FAMILY = "own"
"""Family of a chip of which nobody says whose silicon it is like: nothing is known of it."""
NEEDED = ("memory", "memory_bandwidth")
_SIGNS = (*NEEDED, "vendor", "software", "family")


def own_chip(given: Mapping[str, Any], where: str, error: UnknownNameError) -> Device:
    """The device that ``given`` describes; ``error`` says that no catalogue knows its name.

    Raises ``error`` where nothing says that a chip of one's own is meant, and ClusterError where
    what is said of it is not whole.
    """
    name: str = given["device"]
    rates = {**_rates(given.get("measured", {})), **given.get("peak", {})}
    if not rates and not any(key in given for key in _SIGNS):
        raise _with_machines(name, error)
    lacking = [f"{key} = {KEYS[key].example}" for key in NEEDED if key not in given]
    if not {"bf16", "fp16"} & set(rates):
        lacking.append(f"[peak] bf16 = {PEAK['bf16'].example} (dense)")
    if lacking:
        raise ClusterError(
            f"{where}: {error} As a chip of your own {shorten(name, 40)!r} lacks"
            f" {', '.join(lacking)}. Links and nodes are assumed where they are not given."
        )
    if given.get("device_fraction", 1.0) != 1.0:
        raise ClusterError(f"{where}: device_fraction has no meaning for a chip of your own.")
    return Device(
        id=re.sub(r"[^a-z0-9._+-]+", "-", name.lower())[:60],
        vendor=given.get("vendor", "own"),
        name=name,
        family=FAMILY,
        memory_bytes=given["memory"],
        memory_bytes_per_s=given["memory_bandwidth"],
        power_w=given.get("power"),
        sources=where,
        notes=f"described by {where}",
    )


def _with_machines(name: str, error: UnknownNameError) -> UnknownNameError:
    """The same error, or one that offers the public machines that are spelt like it."""
    near = nearest(name, machines())
    if not near:
        return error
    hint = "`krzem devices` lists the devices; docs/machines.md the public machines."
    return UnknownNameError("device or machine", name, machines(), hint)


def as_said(device: Device, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Vendor, software stack and family that the file states, by field of Device.

    Raises ClusterError with those that are known.
    """
    for key, known in (("software", stacks()), ("family", families())):
        value = given.get(key)
        if value is not None and value not in known:
            near = nearest(value, known)
            offer = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ClusterError(
                f"{where}: {key} = {shorten(value, 40)!r}: no calibrated"
                f" {'stack' if key == 'software' else key} is called so.{offer}"
                f" Known: {', '.join(sorted(known))}. Leave it out where the chip is like none."
            )
    return {key: given[key] for key in ("vendor", "software", "family") if key in given}


@cache
def stacks() -> frozenset[str]:
    """Software stacks that chips of the catalogue run."""
    return frozenset(row["framework_device"] for row in read_table(TABLE)) - {""}


@cache
def families() -> frozenset[str]:
    """Families of the catalogue."""
    return frozenset(row["family"] for row in read_table(TABLE))


def _rates(measured: Mapping[str, float]) -> dict[str, float]:
    return {k.removesuffix("_flops"): v for k, v in measured.items() if k.endswith("_flops")}
