"""An accelerator as its data sheet and as a framework sees it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


class Confidence(enum.StrEnum):
    """How far a row of the catalogue can be trusted."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One *device*: what a training framework counts as one rank's accelerator.

    Where a card holds two dies that software sees apart (MI250X, Ascend 910C, Trainium), a
    ``Device`` is one die and ``dies_per_card`` is 2: rates, memory, links and power here are
    those of the die.  Quantities nobody published are None: a plan that needs one stops and says
    so.
    """

    id: str
    """Catalogue id (``nvidia-h800-sxm``)."""
    vendor: str
    name: str
    family: str
    """Calibration family: chips that share an architecture (``nvidia-hopper``)."""
    dies_per_card: int = 1
    """Devices that software sees on one card by default."""
    fraction: float = 1.0
    """The part of a card that this device is (1.0 where whole cards were asked for)."""
    device_is: str = "card"
    """What one device is, in words (``card``, ``half a card (one of two dies)``)."""
    peak_flops: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Dense peak, FLOP/s, by arithmetic type: fp64, tf32, fp16, bf16, fp8, fp4, int8."""
    memory_bytes: float | None = None
    memory_bytes_per_s: float | None = None
    scale_up_name: str = ""
    scale_up_bytes_per_s: float | None = None
    """Per device, one direction."""
    scale_up_domain: int | None = None
    """Devices reachable over the scale-up links."""
    die_link_bytes_per_s: float | None = None
    """Between the devices of one card, per device, one direction."""
    scale_out_bytes_per_s: float | None = None
    """Network interface per device, one direction (typical node)."""
    devices_per_node: int | None = None
    power_w: float | None = None
    price_usd: float | None = None
    rental_usd_per_hour: float | None = None
    software: str = ""
    """Framework device string: cuda, hip, npu, tpu, …"""
    released: str = ""
    sources: str = ""
    confidence: Confidence = Confidence.LOW
    notes: str = ""


def domain_in_node(device: Device, per_node: int) -> int | None:
    """Devices joined by scale-up links where nodes hold ``per_node`` of them.

    The node decides, not the card: cards joined by links of their own reach as far as their node
    where the catalogue's domain is its node (four GH200 of a node are joined pair by pair, one is
    alone).  A domain larger than a node stays as it is; cards on a bus have no links to be joined.
    """
    domain = device.scale_up_domain
    if domain is None or device.devices_per_node is None or domain > device.devices_per_node:
        return domain
    if on_a_bus(device):
        return domain
    return per_node if domain == device.devices_per_node else min(domain, per_node)


def on_a_bus(device: Device) -> bool:
    """Whether its cards have no links of their own, or none that anybody names."""
    return not device.scale_up_name or device.scale_up_name.lower().startswith("pcie")
