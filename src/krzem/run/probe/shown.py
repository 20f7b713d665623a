"""What one device showed in a probe, in lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def lines(rank: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, values) of one device; collectives where there was somebody to talk to."""
    found = [
        ("products", _by_precision(rank["matmul"], "side")),
        ("attention", _by_precision(rank["attention"], "tokens")),
        ("memory", f"{rank['memory']['value'] / 1e9:,.3g} GB/s read and written"),
        ("launch", f"{rank['launch']['value'] * 1e6:,.3g} µs for a small operation"),
        ("soak", _soak(rank["soak"])),
        ("numerics", _numerics(rank["numerics"])),
    ]
    if (true := rank.get("true_float32")) is not None:
        kept = "keep float32" if true else "keep fewer bits (TF32 or the like)"
        found.append(("float32", f"its products {kept}"))
    if rank["collectives"]:
        found.append(("links", _links(rank["collectives"])))
    return found


def _by_precision(rates: Sequence[Mapping[str, Any]], size: str) -> str:
    """The best rate of each precision, and at which size it was reached."""
    best: dict[str, Mapping[str, Any]] = {}
    for rate in rates:
        if rate["value"] > best.get(rate["precision"], {"value": 0.0})["value"]:
            best[rate["precision"]] = rate
    return ", ".join(
        f"{name} {r['value'] / 1e12:,.3g} TFLOP/s ({size} {r['size']:,})"
        for name, r in best.items()
    )


def _soak(soak: Mapping[str, Any]) -> str:
    bits = f"{soak['different']} with other bits" if soak["different"] else "all with the same bits"
    kept = soak["last_rate"] / soak["first_rate"]
    return (
        f"{soak['products']:,} equal products in {soak['seconds']:.0f} s, {bits}; "
        f"{kept:.0%} of the first speed at the end"
    )


def _numerics(checked: Sequence[Mapping[str, Any]]) -> str:
    worse = [f"{n['operator']} in {n['precision']} ({n['grade']})"
             for n in checked if n["grade"] != "pass"]  # fmt: skip
    told = f"; {', '.join(worse)}" if worse else ""
    return f"{len(checked) - len(worse)} of {len(checked)} operators as float64 gives them{told}"


def _links(collectives: Sequence[Mapping[str, Any]]) -> str:
    """The largest size of each collective."""
    largest = {c["what"]: c for c in sorted(collectives, key=lambda c: int(c["bytes"]))}
    return ", ".join(
        f"{name.replace('_', '-')} {c['bus_bytes_per_s'] / 1e9:,.3g} GB/s"
        f" ({c['bytes'] / 2**20:,.3g} MiB)"
        for name, c in largest.items()
    )
