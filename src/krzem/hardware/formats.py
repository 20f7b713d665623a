"""Number formats that need matrix units made for them (``facts/formats.csv``)."""

from __future__ import annotations

from functools import cache

from krzem.facts.table import read_table
from krzem.hardware.catalogue import device_ids
from krzem.hardware.device import Device

TABLE = "formats.csv"


def lacks_format(device: Device, precision: str) -> bool:
    """Whether the chip's matrix units are known not to have ``precision``, a word of --precision.

    Formats without rows need nothing special; of a chip that a file describes nothing is known.
    """
    known = _having(precision)
    if not known or device.id not in device_ids():
        return False
    return not known & {device.id, device.family, device.vendor.lower()}


def having(precision: str) -> tuple[str, ...]:
    """Chips and families that have the format, in the order of the table."""
    return tuple(row["applies_to"] for row in read_table(TABLE) if row["format"] == precision)


@cache
def _having(precision: str) -> frozenset[str]:
    return frozenset(having(precision))
