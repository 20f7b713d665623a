"""Portable checkpoints: logical tensors at full shape, independent of layout, ranks and device.

What only looks at checkpoints works without torch; saving and loading import it when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from krzem.train.checkpoint.manifest import (
    Chunk,
    Manifest,
    StoredFile,
    StoredTensor,
    config_hash,
    read_manifest,
)
from krzem.train.checkpoint.store import (
    Retention,
    attach,
    checkpoints,
    latest_good,
    prune,
    quick_check,
    read_attachment,
    step_folder,
    verify,
)

if TYPE_CHECKING:
    from krzem.train.checkpoint.loading import check_config, load, load_meta
    from krzem.train.checkpoint.pieces import Part, State
    from krzem.train.checkpoint.saving import AsyncSaver, Saved, save

_NEED_TORCH = {
    "AsyncSaver": "saving",
    "Part": "pieces",
    "Saved": "saving",
    "State": "pieces",
    "check_config": "loading",
    "load": "loading",
    "load_meta": "loading",
    "save": "saving",
}

__all__ = [
    "AsyncSaver",
    "Chunk",
    "Manifest",
    "Part",
    "Retention",
    "Saved",
    "State",
    "StoredFile",
    "StoredTensor",
    "attach",
    "check_config",
    "checkpoints",
    "config_hash",
    "latest_good",
    "load",
    "load_meta",
    "prune",
    "quick_check",
    "read_attachment",
    "read_manifest",
    "save",
    "step_folder",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_NEED_TORCH[name]}")
    return getattr(module, name)
