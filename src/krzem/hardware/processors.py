"""A machine without an accelerator, as a cluster: what was measured on it, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from krzem.errors import UnknownFactError
from krzem.hardware.catalogue import Device
from krzem.hardware.cluster import Cluster

CPU = "cpu"
"""The device of such a machine, in cluster files, profiles and pools."""


def processors(
    measured: Mapping[str, float], *, devices: int, memory_bytes: float | None, name: str
) -> Cluster:
    """``devices`` processes on the processors of one host.

    There is no data sheet: ``measured`` holds rates in base units by their names in
    ``Cluster.measured``; ``memory_bytes`` is of one process.

    Raises UnknownFactError with what was not measured.
    """
    kinds = ("bf16", "tf32", "fp16")
    peaks = {kind: measured[f"{kind}_flops"] for kind in kinds if f"{kind}_flops" in measured}
    bandwidth = measured.get("memory_bytes_per_s")
    if not peaks or bandwidth is None or memory_bytes is None:
        wanted = {
            "a bf16 matrix rate": peaks,
            "memory bandwidth": bandwidth,
            "memory": memory_bytes,
        }
        missing = [what for what, value in wanted.items() if not value]
        raise UnknownFactError(
            f"{name} has no accelerator and nothing was measured on it yet ({', '.join(missing)}):"
            " its speed is unknown. `krzem probe --out profile.toml` measures it"
        )
    # What cannot be measured in one precision is no faster than in the next wider one.
    peaks.setdefault("bf16", min(peaks.values()))
    link = measured.get("scale_up_bytes_per_s", bandwidth)
    return Cluster(
        device=Device(
            id=CPU,
            vendor="measured",
            name="processors",
            family="cpu",
            device_is="one process on CPUs",
            peak_flops=MappingProxyType(peaks),
            software="cpu",
        ),
        devices=devices,
        devices_per_node=devices,
        memory_bytes=memory_bytes,
        memory_bytes_per_s=bandwidth,
        scale_up_domain=devices,
        scale_up_bytes_per_s=link,
        scale_out_bytes_per_s=link,
        name=name,
        measured=MappingProxyType(dict(measured)),
    )
