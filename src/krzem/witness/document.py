"""A verdict as a JSON document, ``krzem.witness/1``."""

from __future__ import annotations

import math
from typing import Any

from krzem.witness.text import layers_of
from krzem.witness.verdict import Finding, Verdict
from krzem.witness.witness import Witness

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
