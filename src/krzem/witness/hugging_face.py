"""A Hugging Face causal language model under witness, through ``transformers``."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.errors import InputError, ModelError
from krzem.witness.batches import WitnessBatch
from krzem.witness.quantity import Kind
from krzem.witness.rule import UpdateRule
from krzem.witness.subject import HeldTensor, Identity, Rows, Setting, Share, Site, Stepped
from krzem.witness.trainer import dtype_name, dtype_of, machine


def load_folder(
    folder: Path, *, dtype: str = "float32", device: str = "cpu", rule: UpdateRule | None = None
) -> HfSubject:
    """The model in a folder with ``config.json`` and safetensors, on one device.

    No code from the folder is run.

    Raises:
        InputError: ``transformers`` is missing.
        ModelError: the folder is no causal language model that it can load.
    """
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise InputError(
            "--hf needs transformers, which is not installed: pip install 'krzem[parity]'"
        ) from None
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json: name a Hugging Face model folder")
    try:
        logging.disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype_of(dtype), trust_remote_code=False, use_safetensors=True,
            local_files_only=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{folder} cannot be loaded as a causal language model: {first}") from None

    def load(dtype: str) -> nn.Module:
        return load_folder(folder, dtype=dtype, device=device).model

    return HfSubject(model.to(device), name=folder.name, rule=rule, load=load)


class HfSubject:
    """Any module that gives ``.logits [B, S, V]`` for token ids, with a ``.config``."""

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str = "",
        rule: UpdateRule | None = None,
        micro_batch: int = 0,
        load: Callable[[str], nn.Module] | None = None,
    ) -> None:
        self.model, self.rule, self.micro_batch, self.load = model, rule, micro_batch, load
        # As a file would hold it: keys are text there.
        config = json.loads(json.dumps(model.config.to_dict(), default=str))  # type: ignore[operator, union-attr]
        for own in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            config.pop(own, None)
        self.identity = Identity(
            kind="transformers",
            name=name or str(config.get("model_type")),
            config=config,
            parameters=sum(p.numel() for p in model.parameters()),
        )

    @property
    def _first(self) -> Tensor:
        return next(self.model.parameters())

    @property
    def device_type(self) -> str:
        """As torch calls it."""
        return self._first.device.type

    @property
    def dtype(self) -> str:
        """Arithmetic of activations."""
        return dtype_name(self._first.dtype)

    @contextlib.contextmanager
    def under(self, setting: Setting) -> Iterator[None]:
        """Set up for ``setting`` within, and as before afterwards."""
        if setting.layout is not None:
            raise InputError("a Hugging Face model runs on one device here: it has no layouts")
        size = self.micro_batch
        self.micro_batch = size if setting.micro_batch is None else setting.micro_batch
        try:
            with self._in(setting.dtype or self.dtype):
                yield
        finally:
            self.micro_batch = size

    @contextlib.contextmanager
    def _in(self, dtype: str) -> Iterator[None]:
        """The model in another type, as a destination would load it."""
        kept = self.model
        if dtype == self.dtype:
            yield
            return
        self.model = _converted(kept, dtype_of(dtype)) if self.load is None else self.load(dtype)
        try:
            yield
        finally:
            self.model = kept

    def share(self, batch: WitnessBatch) -> Share:
        """All of it: there is one rank."""
        n, length = batch.shape
        return Share(rows=np.arange(n), copies=1, tokens=(0, length))

    def step(self, batch: WitnessBatch, rows: Rows) -> Stepped:
        """Forward and backward of the mean next-token loss, computed here in float32."""
        if batch.documents is not None:
            raise InputError("document masks are krzem's own: record without documents")
        self.model.eval()  # dropout would be noise
        self.model.zero_grad()
        tokens = torch.from_numpy(batch.tokens[rows].copy()).to(self._first.device)
        size, targets, total = self.micro_batch or len(tokens), tokens[:, 1:].numel(), 0.0
        for piece in tokens.split(size):
            logits = self.model(input_ids=piece[:, :-1], use_cache=False).logits.float()
            own = F.cross_entropy(logits.flatten(0, 1), piece[:, 1:].flatten(), reduction="sum")
            (own / targets).backward()
            total += float(own.detach())
        grads = [p.grad.float() for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(grads)).square().sum().sqrt()
        return Stepped(losses={"loss": total / targets}, gradient_norm=float(norm))

    @contextlib.contextmanager
    def updated(self, norm: float) -> Iterator[Iterable[HeldTensor]]:
        """Nothing: the optimizer of another trainer is known by its rule alone."""
        yield ()

    def moments(self) -> Iterator[HeldTensor]:
        """None: a folder holds weights."""
        yield from ()

    def numbers(self) -> Iterator[tuple[Kind, str, float]]:
        """None."""
        yield from ()

    def sites(self) -> Iterator[Site]:
        """The embedding, each decoder layer with its parts, and what follows the layers."""
        names = {id(m): n for n, m in self.model.named_modules()}
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        yield Site(name=names[id(embedding)], module=embedding, root=self.model)
        layers = self._layers()
        for layer in layers:
            for child, part in layer.named_children():
                yield Site(name=f"{names[id(layer)]}.{child}", module=part, root=self.model)
            yield Site(name=names[id(layer)], module=layer, root=self.model)
        around = names[id(layers)].rpartition(".")[0]
        for child, part in self.model.get_submodule(around).named_children():
            if "norm" in child or child == "ln_f":
                yield Site(name=f"{around}.{child}", module=part, root=self.model)

    def _layers(self) -> nn.ModuleList:
        """The list of decoder layers.

        Raises:
            ModelError: there is none.
        """
        wanted = self.identity.config.get("num_hidden_layers", self.identity.config.get("n_layer"))
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == wanted:
                return module
        raise ModelError(
            f"{self.identity.name} has no list of {wanted} decoder layers: krzem witness cannot "
            "tell its layers apart"
        )

    def tensors(self) -> Iterator[HeldTensor]:
        """Every parameter."""
        for name, p in self.model.named_parameters():
            whole = tuple(slice(0, n) for n in p.shape)
            yield HeldTensor(name=name, shape=tuple(p.shape), region=whole, part=p, grad=p.grad)

    def biases(self) -> dict[str, Tensor]:
        """None: how other trainers move them is not known here."""
        return {}

    def tensor_count(self) -> int:
        """Parameter tensors of the whole model."""
        return sum(1 for _ in self.model.parameters())

    def software(self) -> dict[str, Any]:
        """Versions and device."""
        return {
            **machine(self._first.device), "transformers": version("transformers"), "ranks": 1
        }  # fmt: skip


def _converted(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with what a file holds in ``dtype``; tables made at the start stay as they are."""
    found = copy.deepcopy(model)
    stored = set(found.state_dict())
    for name, tensor in (*found.named_parameters(), *found.named_buffers()):
        if name in stored and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return found
