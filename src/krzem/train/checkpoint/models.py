"""The correspondence of the trainer's models with Hugging Face folders, from the config alone.

Shapes come from the model built on the meta device, names from :mod:`krzem.train.checkpoint.names`;
so a conversion needs neither memory for the model nor a device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from krzem.train.checkpoint.correspondence import Copy, Correspondence
from krzem.train.checkpoint.manifest import Shape
from krzem.train.checkpoint.names import DiskTensor, constants, disk_tensors
from krzem.train.checkpoint.pieces import DTYPE_NAMES
from krzem.train.config import ModelSpec, model_spec
from krzem.train.model.transformer import Transformer


def correspondence(config: Mapping[str, Any], found: Collection[str] = ()) -> Correspondence:
    """Copies between the trainer's tensors and those of a Hugging Face folder.

    Some tensors are published under several names; those in ``found`` are preferred.  Router
    biases that a folder with other tensors lacks begin at zero, as they do in training.
    """
    return correspondence_of(model_spec(config), found)


def correspondence_of(spec: ModelSpec, found: Collection[str] = ()) -> Correspondence:
    """The same for a model whose config has been read."""
    with torch.device("meta"):
        model = Transformer(spec)
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    trained = frozenset(tensors)
    kept = model.state_dict().keys()
    tensors |= {n: b for n, b in model.named_buffers() if n in kept}
    pairs = [(_chosen(d, found), n, d) for n, t in tensors.items() for d in _on_disk(spec, n, t)]
    theirs = {disk: tuple(tensors[n].shape)[len(d.index) :] for disk, n, d in pairs}
    fixed = {disk: DTYPE_NAMES[tensors[n].dtype] for disk, n, _ in pairs if n not in trained}
    return Correspondence(
        ours={name: tuple(t.shape) for name, t in tensors.items()},
        theirs=theirs,
        copies=tuple(_copy(disk, n, d, tuple(tensors[n].shape)) for disk, n, d in pairs),
        ignored=("*.inv_freq",),
        groups=dict(_mtp_modules(spec, pairs)),
        twice=dict(_twice(spec, {n: disk for disk, n, _ in pairs})),
        theirs_dtype=fixed,
        ours_dtype={n: DTYPE_NAMES[t.dtype] for n, t in tensors.items() if n not in trained},
        constants=constants(spec),
        stateless=frozenset(tensors) - trained,
        zeros=frozenset(disk for disk in fixed if disk.endswith("bias")),
    )


def _on_disk(spec: ModelSpec, name: str, tensor: Tensor) -> Iterator[DiskTensor]:
    return disk_tensors(spec, name, tuple(tensor.shape))


def _chosen(tensor: DiskTensor, found: Collection[str]) -> str:
    names = (tensor.disk, *tensor.also)
    return next((n for n in names if n in found), tensor.disk)


def _copy(disk: str, name: str, tensor: DiskTensor, shape: Shape) -> Copy:
    depth = len(tensor.index)
    rest = shape[depth:]
    return Copy(
        theirs=disk,
        ours=name,
        shape=(*(1 for _ in tensor.index), *rest),
        theirs_at=(0,) * len(rest),
        ours_at=(*tensor.index, *(0 for _ in rest)),
    )


def _mtp_modules(
    spec: ModelSpec, pairs: Sequence[tuple[str, str, DiskTensor]]
) -> Iterator[tuple[str, frozenset[str]]]:
    """MTP modules, which many folders lack (``save_pretrained`` of ``transformers`` drops them)."""
    for module in range(spec.arch.mtp_layers):
        group = f"mtp.{module}"
        yield group, frozenset(disk for disk, n, _ in pairs if n.startswith(f"{group}."))


def _twice(spec: ModelSpec, disk: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names under which folders hold the embedding or the output matrix once more."""
    embedding = disk["embed_tokens.weight"]
    if spec.arch.tied_embeddings:
        yield from ((name, embedding) for name in ("lm_head.weight", "head.weight"))
    output = disk.get("lm_head.weight", embedding)
    for module in range(spec.arch.mtp_layers):
        layer = f"model.layers.{len(spec.layers) + module}"
        yield f"{layer}.embed_tokens.weight", embedding
        yield f"{layer}.shared_head.head.weight", output
        yield f"mtp.{module}.emb.tok_emb.weight", embedding
        yield f"mtp.{module}.head.weight", output
