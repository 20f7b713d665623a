"""Import: every rank reads the parts it holds, one tensor at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from krzem.errors import DataError
from krzem.train.checkpoint.models import correspondence_of
from krzem.train.checkpoint.published import SafetensorsFolder
from krzem.train.checkpoint.transfer import check_source
from krzem.train.engine import Engine
from krzem.train.hf.state import pieces


@torch.no_grad()
def import_model(engine: Engine, folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Fill the model with the weights in ``folder``; returns the MTP modules that it lacks.

    Low-precision weights are read with their scales, as ``config.json`` in ``folder`` states them.
    MTP modules and balancing biases that the folder lacks keep their values.

    Raises:
        CheckpointError: tensors are missing, of another shape, without their scale or not finite,
            or tensors that have to be equal differ.
    """
    path = Path(folder)
    source = SafetensorsFolder(path, _config(path))
    found = source.tensors()
    absent = check_source(str(path), source, correspondence_of(engine.spec, found))
    for piece in pieces(engine):
        name = next((n for n in (piece.tensor.disk, *piece.tensor.also) if n in found), None)
        if name is not None:
            at = tuple(cut.start for cut in piece.region)
            shape = tuple(cut.stop - cut.start for cut in piece.region)
            piece.values.copy_(source.read(name, at, shape))
    return absent


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
