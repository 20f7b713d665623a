"""Import: every rank reads the parts it holds, one tensor at a time."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from krzem.errors import DataError
from krzem.train.engine import Engine
from krzem.train.hf.format import TensorPlace
from krzem.train.hf.state import Piece, pieces
from krzem.train.hf.writing import read_places
from krzem.train.model.initial import Region

_SCALE_BLOCK = 128
"""Rows and columns that share a scale in DeepSeek's float8 files."""


@torch.no_grad()
def import_model(engine: Engine, folder: str | os.PathLike[str]) -> list[str]:
    """Fill the model with the weights in ``folder``; returns names in the files that nothing used.

    Float8 weights with block scales are read as DeepSeek-V3 publishes them.  MTP modules and
    balancing biases that the files lack keep their values.

    Raises:
        DataError: a tensor is missing or has another shape.
    """
    places = read_places(Path(folder))
    used: set[str] = set()
    missing: list[str] = []
    for piece in pieces(engine):
        names = [n for n in (piece.tensor.disk, *piece.tensor.also) if n in places]
        if not names:
            if not piece.optional:
                missing.append(piece.tensor.disk)
            continue
        used.add(names[0])
        piece.values.copy_(_values(places, names[0], piece))
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} tensors of {engine.spec.arch.name}, the first is "
            f"{missing[0]!r}; is it a checkpoint of this config?"
        )
    return sorted(n for n in places if n not in used and not n.endswith("_scale_inv"))


def _values(places: dict[str, TensorPlace], name: str, piece: Piece) -> Tensor:
    place = places[name]
    if place.shape != piece.shape:
        raise DataError(
            f"{place.file}: {name} has shape {place.shape}, the config needs {piece.shape}"
        )
    values = place.read(piece.region)
    scale = places.get(f"{name}_scale_inv")
    if scale is None:
        return values
    return values.float() * _scales(scale, piece.region)


def _scales(place: TensorPlace, region: Region) -> Tensor:
    """The block scale of each element of ``region`` of a matrix."""
    full = place.read(tuple(slice(0, n) for n in place.shape)).float()
    for dim, cut in enumerate(region):
        block = torch.arange(cut.start, cut.stop) // _SCALE_BLOCK
        full = full.index_select(dim, block)
    return full
