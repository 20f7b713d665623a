"""A checkpoint of torchtitan as a Hugging Face folder: ``torchtitan_export.py FROM TO CONFIG``.

Runs in torchtitan's own environment, on one process, with torchtitan's own names for both sides;
``CONFIG`` is the ``config.json`` of the model.  ``krzem run`` calls it through ``witness.export``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torchtitan_cpu import device, missing


def main(source: Path, target: Path, config: Path) -> None:
    """Read the weights alone: moments and counters stay where they are."""
    device()
    missing()
    from torchtitan.models.llama3 import Llama3StateDictAdapter, llama3_configs

    stored = dcp.FileSystemReader(source).read_metadata().state_dict_metadata
    adapter = Llama3StateDictAdapter(llama3_configs["debugmodel"](attn_backend="flex"), None)
    kinds = {kind for kind in adapter.from_hf_map.values() if kind is not None}
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if _kind(name) in kinds
    }
    dcp.load(state, checkpoint_id=source, no_dist=True)
    target.mkdir(parents=True, exist_ok=True)
    weights = {name: x.contiguous() for name, x in adapter.to_hf(state).items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(config, target / "config.json")


def _kind(name: str) -> str:
    """``layers.3.attention.wo.weight`` -> ``layers.{}.attention.wo.weight``."""
    return ".".join("{}" if part.isdigit() else part for part in name.split("."))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
