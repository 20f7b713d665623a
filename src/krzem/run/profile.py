"""What a pool's devices are: its cluster, and the profile that a probe of it measured.

A profile is TOML: ``device`` and ``[measured]`` as in any cluster file, and a comment that names
the verdict and the hash of the evidence.  ``memory`` stands outside ``[measured]``, where a
cluster file has it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krzem.errors import DataError
from krzem.files import read_toml
from krzem.hardware import CPU, Cluster, cluster_of, processors, read_cluster
from krzem.hardware.cluster_keys import MEASURED
from krzem.keys import text
from krzem.quantity import parse_bytes
from krzem.run.pool_settings import Pool

_UNITS = {"flops": "FLOP/s", "bytes_per_s": "B/s", "seconds": "s", "w": "W"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A device as it was measured."""

    device: str
    devices: int
    measured: Mapping[str, float]
    """Base units, by their names in ``Cluster.measured``; ``memory_bytes`` besides."""


def profile_text(profile: Profile, *, verdict: str, when: str, evidence: Mapping[str, Any]) -> str:
    """A profile as TOML."""
    digest = hashlib.sha256(json.dumps(evidence, sort_keys=True, default=str).encode()).hexdigest()
    lines = [
        f"# Measured by krzem probe on {when}.",
        f"# Verdict: {verdict}",
        f"# Evidence: sha256 {digest}",
        f"device = {json.dumps(profile.device)}",
        f"devices = {profile.devices}",
    ]
    memory = profile.measured.get("memory_bytes")
    if memory is not None:
        lines.append(f'memory = "{memory:.0f} B"')
    lines += ["", "[measured]"]
    names = {entry.name: key for key, entry in MEASURED.items()}
    for name, value in profile.measured.items():
        if name in names:
            unit = next(u for ending, u in _UNITS.items() if name.endswith(ending))
            lines.append(f'{names[name]} = "{_decimal(value)} {unit}"')
    return "\n".join([*lines, ""])


def _decimal(value: float) -> str:
    """Six digits without an exponent, as quantities are written."""
    digits = f"{value:.6g}"
    return f"{float(digits):.12f}".rstrip("0").rstrip(".") if "e" in digits else digits


def read_profile(path: Path) -> Profile:
    """The profile in ``path``; DataError where it is none."""
    try:
        raw = read_toml(path, hint="give a profile that krzem probe --out wrote")
        measured = {
            MEASURED[key].name: float(MEASURED[key].read(value))
            for key, value in raw.get("measured", {}).items()
        }
        if "memory" in raw:
            measured["memory_bytes"] = parse_bytes(raw["memory"])
        return Profile(
            device=text(raw.get("device")), devices=int(raw.get("devices", 1)), measured=measured
        )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except KeyError as error:
        known = ", ".join(MEASURED)
        raise DataError(f"{path}: measured.{error.args[0]} is unknown; known are {known}") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is not a device profile: {error}") from None


def cluster_for(pool: Pool, measured: Mapping[str, float]) -> Cluster:
    """The cluster that a pool is.

    Raises UnknownFactError for processors that nothing was measured on.
    """
    if pool.cluster is not None:
        return read_cluster(Path(pool.cluster))
    if pool.accelerator == CPU:
        return processors(
            measured,
            devices=pool.count or 1,
            memory_bytes=pool.limits.memory_bytes or measured.get("memory_bytes"),
            name=f"pool {pool.name}",
        )
    given = {"device": pool.accelerator, "devices": pool.count, "name": pool.name}
    return cluster_of(given, f"pool {pool.name}")
