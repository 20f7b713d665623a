"""Text from a checkpoint: weights on one device, keys and values of earlier tokens kept.

Prompts of equal length go through the model together; nothing is padded, so that what a model
makes of positions is what it made of them in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from krzem.errors import CheckpointError, DataError
from krzem.layout.layout import Layout
from krzem.train.checkpoint import load, read_manifest
from krzem.train.config import model_spec
from krzem.train.data.tokenizer import Tokenizer
from krzem.train.device import find_device
from krzem.train.engine import Engine
from krzem.train.model.context import KeysValues
from krzem.train.model.transformer import Transformer
from krzem.train.resuming import run_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    tokens: int = 64
    """Most tokens after a prompt."""
    temperature: float = 1.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    """The likeliest tokens that together have this probability are drawn from."""
    seed: int = 0


def load_model(folder: Path, device: str = "auto", dtype: str = "float32") -> Transformer:
    """The model of the checkpoint in ``folder``, whole, on one device.

    Raises:
        CheckpointError: it holds no model's config, or is damaged.
    """
    manifest = read_manifest(folder)
    if manifest.config is None:
        raise CheckpointError(f"{folder} holds no model config, so its model is not known")
    found = find_device(device)
    engine = Engine(
        model_spec(manifest.config), Layout(), device=found.device, dtype=getattr(torch, dtype)
    )
    load(folder, run_state(engine, None), config=manifest.config, strict=False)
    (model,) = engine.stages
    return model.eval()


@torch.no_grad()
def continue_tokens(
    model: Transformer, prompts: Tensor, how: Sampling, *, end: int | None = None
) -> Tensor:
    """``prompts [B, S]`` and what follows, ``[B, S + n]``, ``n`` up to ``how.tokens``.

    It stops where every row has had the token ``end``; rows that had it go on with it.
    """
    generator = torch.Generator().manual_seed(how.seed)
    cache = KeysValues() if model.remembers else None
    out = unread = prompts
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
    for _ in range(how.tokens):
        logits = model.logits(out if cache is None else unread, cache=cache)[:, -1].float()
        unread = _chosen(logits, how, generator)
        if end is not None:
            unread = torch.where(ended[:, None], end, unread)
            ended |= unread[:, 0] == end
        out = torch.cat((out, unread), dim=1)
        if bool(ended.all()):
            break
    return out


def _chosen(logits: Tensor, how: Sampling, generator: torch.Generator) -> Tensor:
    """One token for each row of ``logits [B, V]``: ``[B, 1]``."""
    if not how.temperature:
        return logits.argmax(-1, keepdim=True)
    shares, index = (logits / how.temperature).softmax(-1).sort(-1, descending=True)
    before = shares.cumsum(-1) - shares
    shares = shares.masked_fill(before >= how.top_p, 0.0)
    drawn = torch.multinomial(shares.cpu(), 1, generator=generator).to(index.device)
    return index.gather(-1, drawn)


def continue_texts(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str], how: Sampling
) -> list[str]:
    """What follows each prompt, up to the end of a document.

    Raises:
        DataError: a prompt is empty, or gives ids that the model has no embedding for.
    """
    encoded = [ids.tolist() for ids in tokenizer.encode(prompts)]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            raise DataError("a prompt is empty; give text to begin with")
        if max(ids) >= model.spec.vocab:
            raise DataError(
                f"the tokenizer gives id {max(ids):,} for {prompt[:40]!r}, and the model has "
                f"{model.spec.vocab:,} embeddings: name the tokenizer that it was trained with"
            )
    device = next(model.parameters()).device
    texts = [""] * len(prompts)
    for length in sorted(set(map(len, encoded))):
        rows = [i for i, ids in enumerate(encoded) if len(ids) == length]
        batch = torch.tensor([encoded[i] for i in rows], device=device)
        out = continue_tokens(model, batch, how, end=tokenizer.end_of_document)
        for i, ids in zip(rows, out[:, length:].tolist(), strict=True):
            stop = (
                ids.index(tokenizer.end_of_document) if tokenizer.end_of_document in ids else None
            )
            texts[i] = tokenizer.decode(ids[:stop])
    return texts
