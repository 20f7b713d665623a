"""A witness as a value, and as a file: JSON with base64 arrays, under a checksum."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from krzem.errors import CheckpointError, shorten
from krzem.train.checkpoint import attach, config_hash, read_attachment, read_manifest
from krzem.train.durable import canonical_json, write_atomic
from krzem.witness.batches import Positions, Recorded, WitnessBatch
from krzem.witness.quantity import Kind, Quantity, Reading

FORMAT = "krzem.witness.record/2"
ATTACHMENT = "witness.json"
"""Its name among a checkpoint's attachments."""
MOST_BYTES = 50_000_000

Floors = dict[str, dict[str, float]]
"""Spread by quantity and signal."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Witness:
    """What a run must reproduce elsewhere."""

    kind: str
    """krzem or transformers."""
    name: str
    config: Mapping[str, Any]
    parameters: int
    dtype: str
    """The first arithmetic that the source read the step in."""
    samples: int
    """Sampled values of a tensor."""
    batches: tuple[Recorded, ...]
    state: Reading
    """What was loaded, and what the optimizer's rule makes of it."""
    readings: Mapping[str, Reading]
    """The step by arithmetic."""
    floors: Mapping[str, Floors]
    """By arithmetic of the destination; ``tf32`` is judged against the reading in float32."""
    settings: tuple[str, ...]
    """In which the step was repeated for the floor."""
    rule: Mapping[str, Any] | None
    """Constants of the optimizer whose rule was tried; None: no rule."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """What else a destination needs: step, weights of losses."""
    software: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""

    @property
    def reading(self) -> Reading:
        """What was loaded, and the step in the first arithmetic."""
        return {**self.state, **self.readings[self.dtype]}

    def reading_for(self, dtype: str) -> Reading:
        """The step that a destination in ``dtype`` is compared with."""
        return self.readings.get(dtype, self.readings[self.dtype])

    @property
    def config_sha256(self) -> str:
        """Of the model's configuration."""
        return config_hash(self.config)


def to_bytes(witness: Witness) -> bytes:
    """The witness as a file's content.

    Raises:
        CheckpointError: it would be larger than ``MOST_BYTES``.
    """
    value = {
        "format": FORMAT,
        "kind": witness.kind,
        "name": witness.name,
        "config": dict(witness.config),
        "config_sha256": witness.config_sha256,
        "parameters": witness.parameters,
        "dtype": witness.dtype,
        "samples": witness.samples,
        "batches": [_batch_value(b) for b in witness.batches],
        "state": [_quantity_value(q) for q in witness.state.values()],
        "readings": {
            d: [_quantity_value(q) for q in reading.values()]
            for d, reading in witness.readings.items()
        },
        "floors": {d: {k: _compact(v) for k, v in f.items()} for d, f in witness.floors.items()},
        "settings": list(witness.settings),
        "rule": None if witness.rule is None else dict(witness.rule),
        "run": dict(witness.run),
        "software": dict(witness.software),
        "created": witness.created,
    }
    value["sha256"] = hashlib.sha256(canonical_json(value)).hexdigest()
    content = canonical_json(value)
    if len(content) > MOST_BYTES:
        raise CheckpointError(
            f"the witness would have {len(content):,} bytes, more than {MOST_BYTES:,}: use fewer "
            "batches or shorter sequences"
        )
    return content


def from_bytes(content: bytes, where: str) -> Witness:
    """Read a witness back; CheckpointError where it is damaged or something else."""
    try:
        value = json.loads(content)
        form = value["format"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{where} is not a krzem witness") from None
    if form != FORMAT:
        raise CheckpointError(
            f"{where} has the format {shorten(str(form), 40)!r}; this krzem reads {FORMAT!r}: "
            "record it anew where the run is"
        )
    stated = value.pop("sha256", None)
    if stated != hashlib.sha256(canonical_json(value)).hexdigest():
        raise CheckpointError(f"{where} was altered: its content does not match its own checksum")
    try:
        return _witness(value)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise CheckpointError(f"{where} lacks what a witness holds: {error!r}") from None


def read_witness(path: Path) -> Witness:
    """The witness of a checkpoint's folder, or of a file.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if path.is_dir():
        if ATTACHMENT not in read_manifest(path).attachments:
            raise CheckpointError(
                f"{path} has no witness: record one with `krzem witness record {path}`"
            )
        return from_bytes(read_attachment(path, ATTACHMENT), f"the witness of {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the witness {path}: {error.strerror}") from None
    return from_bytes(content, str(path))


def write_witness(witness: Witness, path: Path) -> None:
    """Write a file, or attach to the checkpoint whose folder ``path`` is."""
    content = to_bytes(witness)
    if path.is_dir():
        attach(path, ATTACHMENT, content)
    else:
        write_atomic(path, content)


def _witness(value: dict[str, Any]) -> Witness:
    same = ("kind", "name", "config", "parameters", "dtype", "samples", "floors", "rule", "run",
            "software", "created")  # fmt: skip
    return Witness(
        **{name: value[name] for name in same},
        batches=tuple(_batch(b) for b in value["batches"]),
        state=_reading(value["state"]),
        readings={dtype: _reading(found) for dtype, found in value["readings"].items()},
        settings=tuple(value["settings"]),
    )


def _reading(values: list[dict[str, Any]]) -> Reading:
    found = [_quantity(q) for q in values]
    return {q.key: q for q in found}


def _quantity_value(q: Quantity) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": str(q.kind), "name": q.name}
    if q.batch is not None:
        found["batch"] = q.batch
    if q.order:
        found["order"] = q.order
    if q.stats:
        found["stats"] = {n: _number(v) for n, v in q.stats.items()}
    if q.samples.size:
        found["samples"] = _packed(q.samples, "<f4")
    return found


def _quantity(value: dict[str, Any]) -> Quantity:
    samples = value.get("samples")
    return Quantity(
        kind=Kind(value["kind"]),
        name=value["name"],
        batch=value.get("batch"),
        order=value.get("order", 0),
        stats={n: float(v) for n, v in value.get("stats", {}).items()},
        samples=np.empty(0, np.float32) if samples is None else _unpacked(samples, "<f4"),
    )


def _batch_value(b: Recorded) -> dict[str, Any]:
    found: dict[str, Any] = {
        "first_sample": b.first_sample,
        "sha256": b.sha256,
        "documents_sha256": b.documents_sha256,
        "shape": list(b.shape),
    }
    if isinstance(b, WitnessBatch):
        found["tokens"] = _packed(b.tokens, "<i4")
        found["documents"] = None if b.documents is None else _packed(b.documents, "<i4")
    return found


def _batch(value: dict[str, Any]) -> Recorded:
    n, length = value["shape"]
    if "tokens" not in value:
        return Positions(
            first_sample=int(value["first_sample"]),
            shape=(n, length),
            sha256=value["sha256"],
            documents_sha256=value["documents_sha256"],
        )
    documents = value["documents"]
    found = WitnessBatch(
        tokens=_unpacked(value["tokens"], "<i4").reshape(n, length + 1).astype(np.int64),
        first_sample=value["first_sample"],
        documents=None
        if documents is None
        else _unpacked(documents, "<i4").reshape(n, length).astype(np.int64),
    )
    if found.sha256 != value["sha256"]:
        raise ValueError("the tokens of a batch do not match their content hash")
    return found


def _compact(spread: Mapping[str, float]) -> dict[str, float]:
    return {n: float(f"{min(v, 1e30):.3g}") for n, v in spread.items() if v}


def _number(value: float) -> float | str:
    """JSON knows neither Inf nor NaN; ``float()`` reads their names."""
    return float(value) if math.isfinite(value) else str(value)


def _packed(values: np.ndarray, form: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=form).tobytes()).decode()


def _unpacked(text: str, form: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), form).copy()
