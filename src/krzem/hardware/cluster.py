"""A cluster: how many devices of one kind, in what nodes, joined by what links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from krzem.facts.fact import Fact
from krzem.hardware.assumed import Assumed
from krzem.hardware.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """How jobs are started on a cluster: what a batch file says beside nodes and devices."""

    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    container: str = ""
    """Image to run in: a .sif file, or what the scheduler's container plugin takes."""
    account: str = ""
    partition: str = ""
    """Partition (Slurm) or queue (PBS)."""
    time_seconds: float | None = None
    """Longest time of one job."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the job, as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """``devices`` equal devices; every quantity here is known, or assumed and in ``assumed``.

    Ranks fill a node, then a scale-up domain, then the network, as every framework maps them.
    """

    device: Device
    devices: int
    devices_per_node: int
    memory_bytes: float
    memory_bytes_per_s: float
    scale_up_domain: int
    """Devices joined by the scale-up links (at least 1)."""
    scale_up_bytes_per_s: float
    """Per device, one direction; the scale-out rate where a domain is a single device."""
    scale_out_bytes_per_s: float
    """Per device, one direction, through its share of the node's network interfaces.

    Nothing crosses the network where one domain holds the whole cluster: then, if unknown, this
    is the scale-up rate."""
    oversubscription: float = 1.0
    """How much narrower the spine is than the leaves (1: non-blocking)."""
    rails: int | None = None
    """Separate network planes: device i of every node shares plane i modulo ``rails``."""
    power_w: float | None = None
    """Per device: the accelerator's own limit."""
    system_power_ratio: float | None = None
    """IT power of hosts, links and devices over that of the devices alone."""
    pue: float | None = None
    usd_per_device_hour: float | None = None
    failures_per_device_day: float | None = None
    """Interruptions of the whole job, per device and day."""
    restart_seconds: float | None = None
    checkpoint_write_bytes_per_s: float | None = None
    """Aggregate rate into storage, whole job."""
    host_memory_bytes_per_device: float | None = None
    name: str = ""
    calibration: str = ""
    """File of local factors that belongs to this cluster; empty: the shipped ones alone."""
    measured: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """What probes measured on this cluster, in base units (``bf16_flops``, ``launch_seconds``)."""
    site: Site = field(default_factory=Site)
    """How jobs are started there, for batch files."""
    facts: Mapping[str, Fact] = field(default_factory=lambda: MappingProxyType({}))
    """Range and source behind an optional quantity, by the name of its field here."""
    assumed: Mapping[str, Assumed] = field(default_factory=lambda: MappingProxyType({}))
    """Bounds of a quantity that nobody published and that holds their middle, by its field here."""
    notes: tuple[str, ...] = ()
    """What was taken for what where the cluster was named: each choice in one sentence."""

    @property
    def nodes(self) -> int:
        """Nodes, the last one possibly not full."""
        return -(-self.devices // self.devices_per_node)
