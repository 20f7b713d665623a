"""The network of a published run, where its notes say what it was."""

from __future__ import annotations

import re

_INFINIBAND = {"fdr": 56.0, "edr": 100.0, "hdr": 200.0, "ndr": 400.0, "xdr": 800.0}
"""Gbit/s of a four-lane port by generation."""
_PORTS = re.compile(r"(\d+)\s*[x×]\s*(fdr|edr|hdr|ndr|xdr)(\d+)?", re.IGNORECASE)
_ADAPTERS = re.compile(r"(\d+)\s*[x×]\s*(\d+)\s*g(?:b|bps|b/s|bit/s)\b", re.IGNORECASE)
_TOTAL = re.compile(
    r"(\d+)\s*g(?:bps|b/s|bit/s)\s*(?:/|per)\s*(node|server|gpu|device)", re.IGNORECASE
)


def network_bytes_per_s(notes: str, devices_per_node: int) -> float | None:
    """Bytes/s of network per device and direction, or None where the notes do not say.

    >>> network_bytes_per_s("DGX A100, 4xHDR200 per node", 8) / 1e9
    12.5
    """
    gigabits = _per_node(notes, devices_per_node)
    if gigabits is None or not 1.0 <= gigabits <= 1e5:
        return None
    return gigabits / 8.0 * 1e9 / devices_per_node


def _per_node(notes: str, devices_per_node: int) -> float | None:
    if found := _PORTS.search(notes):
        rate = float(found.group(3)) if found.group(3) else _INFINIBAND[found.group(2).lower()]
        return int(found.group(1)) * rate
    if found := _ADAPTERS.search(notes):
        return float(found.group(1)) * float(found.group(2))
    if found := _TOTAL.search(notes):
        share = devices_per_node if found.group(2).lower() in ("gpu", "device") else 1
        return float(found.group(1)) * share
    return None
