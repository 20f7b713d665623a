"""What a cluster says about its operation: optional quantities as estimates, or what is missing."""

from __future__ import annotations

from krzem.estimate import Basis, Estimate
from krzem.facts.fact import Fact
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_keys import KEYS

KEY_OF = {
    "failures_per_device_day": "device_days_between_interruptions",
    "restart_seconds": "restart_time",
    "checkpoint_write_bytes_per_s": "storage_bandwidth",
    "power_w": "power",
    "system_power_ratio": "system_power_ratio",
    "pue": "pue",
    "usd_per_device_hour": "price",
}
"""Optional fields of :class:`krzem.hardware.cluster.Cluster`: the key of a cluster file."""


def quantity(cluster: Cluster, name: str) -> Estimate | None:
    """``cluster.<name>`` with the range of the fact behind it; None where nobody published it."""
    mid: float | None = getattr(cluster, name)
    if mid is None:
        return None
    fact = cluster.facts.get(name)
    if fact is None or not 0 < fact.low <= mid <= fact.high:
        return Estimate(mid, mid, mid, Basis.MEASURED)
    return Estimate(fact.low, mid, fact.high, Basis.ESTIMATED)


def by_class(cluster: Cluster, names: tuple[str, ...]) -> tuple[str, ...]:
    """One sentence for each of ``names`` that nobody published for such devices.

    The range that systems of the kind span stands in for it.
    """
    return tuple(
        _borrowed(cluster, name, cluster.facts[name])
        for name in names
        if name in cluster.facts and cluster.facts[name].basis == "class"
    )


def _borrowed(cluster: Cluster, name: str, fact: Fact) -> str:
    low, high = fact.low, fact.high
    if name == "failures_per_device_day":
        low, high = 1.0 / fact.high, 1.0 / fact.low
    key = KEYS[KEY_OF[name]]
    kind = fact.notes.removeprefix("class. ").partition(";")[0].rstrip(".").lower()
    return (
        f"nobody has published {key.means} for {cluster.device.id}: {low:,.0f} to {high:,.0f}, the"
        f" range of its kind ({kind}), is taken; {KEY_OF[name]} = {key.example} in a cluster file"
        " says otherwise"
    )


def missing(cluster: Cluster, names: tuple[str, ...], answers: str) -> str | None:
    """One sentence: which of ``names`` are unknown, that ``answers`` wait for them, what to do."""
    keys = [KEY_OF[name] for name in names if getattr(cluster, name) is None]
    if not keys:
        return None
    wanted = " and ".join(f"{key} ({KEYS[key].means})" for key in keys)
    lines = " ; ".join(f"{key} = {KEYS[key].example}" for key in keys)
    return (
        f"{answers} not known: nobody has published {wanted} for {cluster.device.id}."
        f" Give it in the cluster file, for example {lines}"
    )
