"""What the numbers of a probe amount to: a verdict, a profile, and who is to be left out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krzem.run.probe.numerics import Grade

_PEAK_KEYS = {"bf16": "bf16_flops", "fp16": "fp16_flops", "tf32": "tf32_flops"}
"""Precision of a product: its name in ``Cluster.measured``."""
_SLOW_SOAK = 0.8
"""A last quarter of the soak below this share of the first has slowed down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """All ranks of a probe, judged."""

    ranks: tuple[Mapping[str, Any], ...]
    measured: Mapping[str, float]
    """Median of the devices, in base units, by their names in ``Cluster.measured``."""
    faults: tuple[str, ...]
    """Sentences about devices that compute wrongly or stand out."""
    warnings: tuple[str, ...]
    bad_ranks: tuple[int, ...] = field(default=())
    """Devices to be left out."""

    @property
    def passed(self) -> bool:
        """No device is at fault."""
        return not self.faults

    @property
    def verdict(self) -> str:
        """One line."""
        count = len(self.ranks)
        what = f"{count} device{'s' if count > 1 else ''}"
        return f"{what} passed" if self.passed else f"{what}: {'; '.join(self.faults)}"

    def bad_hosts(self) -> tuple[str, ...]:
        """Hosts of the devices to be left out."""
        hosts = [r["host"] for r in self.ranks if r["rank"] in self.bad_ranks]
        return tuple(dict.fromkeys(hosts))


def read_ranks(folder: Path) -> list[dict[str, Any]]:
    """What the ranks left, in order."""
    found = [json.loads(path.read_bytes()) for path in folder.glob("rank-*.json")]
    return sorted(found, key=lambda r: int(r["rank"]))


def judge(ranks: Sequence[Mapping[str, Any]], *, spread: float, numerics: bool = True) -> Probed:
    """Compare the devices with each other and with float64.

    ``spread`` is how far below the median device a device may be.
    """
    slow, wrong = _slow(ranks, spread), _wrong_bits(ranks)
    off = _numerics(ranks, Grade.ERROR) if numerics else {}
    warnings = [*_numerics(ranks, Grade.WARNING).values(), *_throttled(ranks)]
    if all(r["device"] == "cpu" for r in ranks):
        # Processes share processors: a slow one had a busy neighbour, not a bad device.
        warnings += slow.values()
        slow = {}
    return Probed(
        ranks=tuple(ranks),
        measured=measured(ranks),
        faults=(*slow.values(), *wrong.values(), *off.values()),
        warnings=tuple(warnings),
        bad_ranks=tuple(sorted({*slow, *wrong, *off})),
    )


def measured(ranks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians over the devices; what was not measured is absent."""
    found: dict[str, float] = {}
    fp32 = "fp32" if all(r["device"] == "cpu" for r in ranks) else "tf32"
    for precision, key in _PEAK_KEYS.items():
        # Processors have no tf32: what a plan calls so is their product of 32-bit numbers.
        wanted = fp32 if precision == "tf32" else precision
        rates = [best for r in ranks if (best := _best(r["matmul"], wanted)) is not None]
        if rates:
            found[key] = statistics.median(rates)
    found["memory_bytes_per_s"] = statistics.median(r["memory"]["value"] for r in ranks)
    found["launch_seconds"] = statistics.median(r["launch"]["value"] for r in ranks)
    memory = [r["memory_bytes"] for r in ranks if r["memory_bytes"]]
    if memory:
        share = len(ranks) if ranks[0]["device"] == "cpu" else 1
        found["memory_bytes"] = min(memory) / share
    links = [c for r in ranks for c in r["collectives"] if c["what"] == "all_reduce"]
    if links:
        tier = "scale_out" if len({r["host"] for r in ranks}) > 1 else "scale_up"
        found[f"{tier}_bytes_per_s"] = max(c["bus_bytes_per_s"] for c in links)
        found[f"{tier}_latency_seconds"] = min(c["seconds"] for c in links)
    return found


def _best(rates: Sequence[Mapping[str, Any]], precision: str) -> float | None:
    return max((r["value"] for r in rates if r["precision"] == precision), default=None)


def _name(rank: Mapping[str, Any]) -> str:
    return f"device {rank['rank']} ({rank['host']}, {rank['device']})"


def _slow(ranks: Sequence[Mapping[str, Any]], spread: float) -> dict[int, str]:
    """Devices whose best product is slow beside the others'."""
    precision = ranks[0]["matmul"][-1]["precision"]
    rates = {
        r["rank"]: max(m["best"] for m in r["matmul"] if m["precision"] == precision) for r in ranks
    }
    median = statistics.median(rates.values())
    return {
        r["rank"]: f"{_name(r)} is slow: {rates[r['rank']] / median:.0%} of the median device"
        for r in ranks
        if rates[r["rank"]] < (1 - spread) * median
    }


def _wrong_bits(ranks: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Devices that repeat themselves wrongly, or differ from most others in identical work."""
    found = {
        r["rank"]: f"{_name(r)} gave other bits in {r['soak']['different']} repeats of one product"
        for r in ranks
        if r["soak"]["different"]
    }
    by_work: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for r in ranks:
        by_work.setdefault((r["soak"]["side"], r["device"].partition(":")[0]), []).append(r)
    for group in by_work.values():
        digests = [r["soak"]["digest"] for r in group]
        usual = statistics.mode(digests)
        for r in group:
            if r["soak"]["digest"] != usual:
                found[r["rank"]] = f"{_name(r)} computes other bits than most devices"
    return found


def _numerics(ranks: Sequence[Mapping[str, Any]], grade: Grade) -> dict[int, str]:
    found = {}
    for r in ranks:
        bad = [n for n in r["numerics"] if n["grade"] == grade]
        if bad:
            texts = "; ".join(f"{n['operator']} in {n['precision']}: {n['reason']}" for n in bad)
            found[r["rank"]] = f"{_name(r)}: {texts}"
    return found


def _throttled(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{_name(r)} slowed to {r['soak']['last_rate'] / r['soak']['first_rate']:.0%} under load"
        for r in ranks
        if r["soak"]["last_rate"] < _SLOW_SOAK * r["soak"]["first_rate"]
    ]
