"""A verdict, or a witness, as text for a terminal and as a JSON document, ``krzem.witness/1``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from krzem.witness.quantity import Kind, depth
from krzem.witness.verdict import Finding, Verdict
from krzem.witness.witness import Witness

SHOWN = 12


def format_verdict(verdict: Verdict) -> str:
    """The verdict with its evidence; ends with a line break."""
    lines = [f"{'PASS' if verdict.passed else 'FAIL'}  {verdict.message}", ""]
    lines += _machines(verdict)
    if verdict.first is not None:
        first = verdict.first
        lines += [
            "",
            f"first departure   {first.name} ({first.layer}, {first.direction})",
            f"usually           {first.hint}",
        ]
    lines += [f"note              {note}" for note in verdict.notes]
    lines += ["", *_headlines(verdict)]
    if verdict.departures:
        lines += ["", f"{len(verdict.departures):,} signals depart, in the order of the step:"]
        lines += _table(verdict.departures[:SHOWN])
        if len(verdict.departures) > SHOWN:
            lines.append(f"  and {len(verdict.departures) - SHOWN:,} more (see --json)")
    if verdict.not_compared:
        shown = ", ".join(verdict.not_compared[:4])
        more = len(verdict.not_compared) - 4
        lines += ["", f"not compared: {shown}{f' and {more:,} more' if more > 0 else ''}"]
    return "\n".join(lines) + "\n"


def format_witness(witness: Witness) -> str:
    """What a witness holds; ends with a line break."""
    tokens = sum(b.shape[0] * b.shape[1] for b in witness.batches)
    lines = [
        f"witness of {witness.name} ({witness.kind}), {witness.parameters:,} parameters",
        f"config      {witness.config_sha256[:16]}",
        f"recorded    {witness.created} in {witness.dtype} on {machine_words(witness.software)}",
        f"floor       {', '.join(witness.settings)}",
        f"for         {', '.join(witness.floors)}",
        f"rule        {_rule(witness.rule)}",
        f"batches     {len(witness.batches)} with {tokens:,} tokens",
    ]
    for number, batch in enumerate(witness.batches):
        n, length = batch.shape
        first = batch.first_sample
        where = "not of an order" if first is None else f"samples {first} to {first + n - 1}"
        loss = witness.reading.get(f"{Kind.LOSS}|loss|{number}")
        said = "" if loss is None else f", loss {loss.stats['value']:.6f}"
        lines.append(f"  {batch.sha256[:16]}  {n} x {length} tokens, {where}{said}")
    kinds = Counter(str(q.kind) for q in witness.reading.values())
    lines.append("quantities  " + ", ".join(f"{n:,} {kind}" for kind, n in kinds.items()))
    return "\n".join(lines) + "\n"


def machine_words(software: Mapping[str, Any]) -> str:
    """Device, library and layout in a few words."""
    device = software.get("device", "an unknown device")
    threads = f", {software['threads']} threads" if software.get("device_type") == "cpu" else ""
    layout = f", layout {software['layout']}" if software.get("layout") else ""
    return f"{device}, torch {software.get('torch', '?')}{threads}{layout}"


def layers_of(findings: Iterable[Finding]) -> list[tuple[str, float, float]]:
    """Per layer, the worst error over tolerance of the forward and of the backward pass."""
    worst: dict[str, list[float]] = {}
    for f in findings:
        if f.quantity.kind in (Kind.ACTIVATION, Kind.ACTIVATION_GRADIENT, Kind.GRADIENT):
            pair = worst.setdefault(f.quantity.layer, [0.0, 0.0])
            side = 0 if f.quantity.kind is Kind.ACTIVATION else 1
            pair[side] = max(pair[side], min(f.severity, 1e9))
    return [(layer, *worst[layer]) for layer in sorted(worst, key=depth)]  # type: ignore[misc]


def _rule(rule: Mapping[str, Any] | None) -> str:
    if rule is None:
        return "none: the optimizer's update is not covered"
    return ", ".join(f"{k} {v}" for k, v in rule.items())


def _machines(verdict: Verdict) -> list[str]:
    return [
        f"recorded on       {machine_words(verdict.source)}",
        f"checked on        {machine_words(verdict.destination)}, in {verdict.dtype}",
        f"floor from        {', '.join(verdict.settings)}",
    ]


def _headlines(verdict: Verdict) -> list[str]:
    """Loss and gradient norm, and the worst signal of every kind."""
    worst: dict[Kind, Finding] = {}
    for f in verdict.findings:
        kept = worst.get(f.quantity.kind)
        if kept is None or _weight(f) > _weight(kept):
            worst[f.quantity.kind] = f
    return ["worst signal of each kind:", *_table([worst[k] for k in Kind if k in worst])]


def _weight(f: Finding) -> tuple[float, bool]:
    return f.severity, f.signal != "nonfinite"


def _table(findings: Iterable[Finding]) -> list[str]:
    rows = [("", "what", "where", "signal", "error", "tolerance", "floor")]
    for f in findings:
        rows.append(
            (
                "!" if f.departs else "",
                str(f.quantity.kind),
                f.quantity.name or "whole model",
                f.signal,
                f"{f.error:.3g}",
                f"{f.tolerance:.3g}",
                f"{f.floor:.3g}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(7)]
    return [
        "  " + "  ".join(
            c.rjust(w) if i > 3 else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]  # fmt: skip


MOST = 200
"""Departures listed; their number is given besides."""


def document(verdict: Verdict) -> dict[str, Any]:
    """Plain JSON; numbers are finite or null."""
    first = verdict.first
    return {
        "schema": "krzem.witness/1",
        "passed": verdict.passed,
        "message": verdict.message,
        "model": verdict.model,
        "dtypes": list(verdict.dtypes),
        "first_departure": None
        if first is None
        else {
            "direction": first.direction,
            "layer": first.layer,
            "name": first.name,
            "hint": first.hint,
            **_finding(first.finding),
        },
        "departs": list(verdict.departs[:MOST]),
        "departures": [_finding(f) for f in verdict.departures[:MOST]],
        "departures_found": len(verdict.departures),
        "signals_judged": len(verdict.findings),
        "whole_model": [_finding(f) for f in verdict.findings if _is_whole(f)],
        "layers": [
            {"layer": layer, "forward": forward, "backward": backward}
            for layer, forward, backward in layers_of(verdict.findings)
        ],
        "settings_unequal": list(verdict.unequal),
        "settings_equal": list(verdict.equal),
        "notes": list(verdict.notes),
        "not_compared": list(verdict.not_compared),
        "floor_settings": list(verdict.settings),
        "source": dict(verdict.source),
        "destination": dict(verdict.destination),
    }


def witness_document(witness: Witness) -> dict[str, Any]:
    """What a witness holds, without its arrays."""
    return {
        "schema": "krzem.witness.summary/1",
        "kind": witness.kind,
        "model": witness.name,
        "parameters": witness.parameters,
        "config_sha256": witness.config_sha256,
        "dtype": witness.dtype,
        "floors_for": list(witness.floors),
        "floor_settings": list(witness.settings),
        "batches": [
            {
                "first_sample": b.first_sample,
                "sequences": b.shape[0],
                "tokens": b.shape[1],
                "sha256": b.sha256,
            }
            for b in witness.batches
        ],
        "quantities": len(witness.reading),
        "rule": None if witness.rule is None else dict(witness.rule),
        "run": dict(witness.run),
        "software": dict(witness.software),
        "created": witness.created,
    }


def _is_whole(finding: Finding) -> bool:
    return str(finding.quantity.kind) in ("loss", "gradient norm") and finding.signal == "value"


def _finding(f: Finding) -> dict[str, Any]:
    return {
        "kind": str(f.quantity.kind),
        "quantity": f.quantity.name,
        "batch": f.quantity.batch,
        "signal": f.signal,
        "error": _finite(f.error),
        "tolerance": _finite(f.tolerance),
        "dtype": f.dtype,
        "floor": _finite(f.floor),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
