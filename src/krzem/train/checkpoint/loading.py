"""Loading into any layout, after checking that it is the right checkpoint and unharmed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed

from krzem.errors import CheckpointError, shorten
from krzem.train.checkpoint._group import any_rank, first_cause, rank_and_size, together
from krzem.train.checkpoint.manifest import Manifest, config_hash, read_manifest
from krzem.train.checkpoint.pieces import DTYPE_NAMES, Pieces, State, pieces_of
from krzem.train.checkpoint.storage import FolderReader, PiecesLoadPlanner
from krzem.train.checkpoint.store import fault_in, quick_check

Check = Literal["contents", "sizes"]

_SHOWN = 5


def load(
    folder: Path,
    into: State,
    *,
    config: Mapping[str, Any] | None = None,
    check: Check = "contents",
    strict: bool = True,
    cast: bool = False,
    group: ProcessGroup | None = None,
) -> Manifest:
    """Fill ``into``, in place, from the checkpoint in ``folder``; returns its manifest.

    Called by all ranks, each with the parts it wants; they need not be the parts that were saved.
    ``config`` is compared with the one saved.  ``check="contents"`` reads every file and compares
    its SHA-256, shared among the ranks; ``"sizes"`` only looks at the sizes.  ``strict`` demands
    that every tensor in the checkpoint is asked for by some rank.  ``cast`` allows another type.

    Raises CheckpointError, on every rank and before anything is changed, where the checkpoint is
    incomplete, altered, of another model, or does not fit ``into``.
    """
    pieces = together(group, lambda: pieces_of(into))
    manifest = together(group, lambda: _checked(folder, config, check, group))
    together(group, lambda: _fits(folder, manifest, pieces, cast=cast))
    if strict:
        _all_asked_for(folder, manifest, pieces, group)
    with first_cause():
        load_distributed(
            {},
            storage_reader=FolderReader(folder, manifest),
            planner=PiecesLoadPlanner(pieces),
            process_group=group,
        )
    return manifest


def _checked(
    folder: Path,
    config: Mapping[str, Any] | None,
    check: Check,
    group: ProcessGroup | None,
) -> Manifest:
    manifest = quick_check(folder)
    check_config(folder, manifest, config)
    if check == "contents":
        rank, ranks = rank_and_size(group)
        fault = fault_in(folder, manifest, iter(sorted(manifest.files)[rank::ranks]))
        if fault:
            raise CheckpointError(f"{fault}; nothing was loaded, take an earlier checkpoint")
    return manifest


_OF_FILES = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "expert_dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Keys of a config that tell how files were written or are served, not which model it is."""


def check_config(folder: Path, manifest: Manifest, config: Mapping[str, Any] | None) -> None:
    """Raise CheckpointError where the checkpoint was made with another configuration."""
    if config is None or manifest.config_sha256 == config_hash(config):
        return
    if manifest.config is None:
        raise CheckpointError(
            f"{folder} does not say which model it is of, so it cannot be checked against the "
            "configuration given"
        )
    saved = manifest.config
    keys = {*saved, *config} - _OF_FILES
    differing = sorted(k for k in keys if saved.get(k) != config.get(k))
    if not differing:
        return
    shown = "; ".join(
        f"{k}: {_brief(saved, k)} there, {_brief(config, k)} here" for k in differing[:_SHOWN]
    )
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    raise CheckpointError(f"{folder} is a checkpoint of another model. {shown}{more}")


def _brief(config: Mapping[str, Any], key: str) -> str:
    return shorten(repr(config[key]), 40) if key in config else "absent"


def _fits(folder: Path, manifest: Manifest, pieces: Mapping[str, Pieces], *, cast: bool) -> None:
    faults = []
    for name, wanted in pieces.items():
        stored = manifest.tensors.get(name)
        if stored is None:
            faults.append(f"{name} is not in it")
        elif stored.shape != wanted.shape:
            faults.append(f"{name} is {list(stored.shape)} there, {list(wanted.shape)} here")
        elif not cast and stored.dtype != DTYPE_NAMES[wanted.dtype]:
            faults.append(f"{name} is {stored.dtype} there, {DTYPE_NAMES[wanted.dtype]} here")
    if faults:
        shown = "; ".join(faults[:_SHOWN])
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CheckpointError(
            f"{folder} does not fit ({len(faults)} of {len(pieces)} tensors): {shown}{more}"
        )


def _all_asked_for(
    folder: Path,
    manifest: Manifest,
    pieces: Mapping[str, Pieces],
    group: ProcessGroup | None,
) -> None:
    names = sorted(manifest.tensors)
    asked = any_rank(group, [name in pieces for name in names])
    idle = [name for name, wanted in zip(names, asked, strict=True) if not wanted]
    if idle:
        shown = ", ".join(idle[:_SHOWN]) + (" …" if len(idle) > _SHOWN else "")
        raise CheckpointError(
            f"{folder} holds {len(idle)} tensors that no rank asked for: {shown}; load them too, "
            "or pass strict=False to leave them"
        )


def load_meta(folder: Path) -> Mapping[str, Any]:
    """The JSON that the trainer saved with a checkpoint."""
    return read_manifest(folder).meta
