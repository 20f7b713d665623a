"""What a cluster says about its operation: optional quantities as estimates, or what is missing."""

from __future__ import annotations

from krzem.estimate import Basis, Estimate
from krzem.hardware.cluster import Cluster

WHAT = {
    "failures_per_device_day": "how often a job is interrupted, per device and day",
    "restart_seconds": "the time from an interruption to training again, in seconds",
    "checkpoint_write_bytes_per_s": "the rate at which the whole job writes to storage, in B/s",
    "power_w": "the power limit of a device, in W",
    "system_power_ratio": "the power of whole nodes and links over that of their devices",
    "pue": "the power of the facility over that of its computers",
    "usd_per_device_hour": "the price of a device-hour, in USD",
}
"""The optional fields of :class:`krzem.hardware.cluster.Cluster` that a forecast reads."""


def quantity(cluster: Cluster, name: str) -> Estimate | None:
    """``cluster.<name>`` with the range of the fact behind it; None where nobody published it."""
    mid: float | None = getattr(cluster, name)
    if mid is None:
        return None
    fact = cluster.facts.get(name)
    if fact is None or not 0 < fact.low <= mid <= fact.high:
        return Estimate(mid, mid, mid, Basis.MEASURED)
    return Estimate(fact.low, mid, fact.high, Basis.ESTIMATED)


def missing(cluster: Cluster, names: tuple[str, ...], answers: str) -> str | None:
    """One sentence: which of ``names`` are unknown, that ``answers`` wait for them, what to do."""
    gaps = [name for name in names if getattr(cluster, name) is None]
    if not gaps:
        return None
    wanted = " and ".join(WHAT[name] for name in gaps)
    lines = ", ".join(f"{name} = ..." for name in gaps)
    return (
        f"{answers} not known: nobody has published {wanted} for {cluster.device.id}."
        f" Give it in the cluster's TOML: {lines}"
    )
