"""A model with values on one device; what its layers are told, compiled pieces included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from krzem.errors import ModelError, RunError
from krzem.layout.layout import Layout, Recompute
from krzem.model import count
from krzem.train.config import ModelSpec
from krzem.train.model.block import Block
from krzem.train.model.context import LossWeights
from krzem.train.model.experts import Experts
from krzem.train.model.mixture import Mixture, Router, hash_table
from krzem.train.model.transformer import Transformer
from krzem.train.model.weights import Linear, Region, initial_values


def build_model(
    spec: ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    weights: LossWeights | None = None,
) -> Transformer:
    """The whole model on ``device``: float32 parameters, computing in ``dtype``.

    Raises:
        ModelError: its parameters are not as many as the planner counts.
    """
    with torch.device("meta"):
        model = Transformer(spec, dtype=dtype, weights=weights)
    check_count(spec, sum(p.numel() for p in model.parameters()))
    model.to_empty(device=device)
    whole = {n: tuple(slice(0, s) for s in p.shape) for n, p in model.named_parameters()}
    fill(model, dict(model.named_parameters()), whole, seed)
    return model


def fill(
    model: Transformer, parts: dict[str, Tensor], regions: dict[str, Region], seed: int
) -> None:
    """Give ``parts`` (this rank's part of each parameter of ``model``) their initial values."""
    shapes = {n: p.shape for n, p in model.named_parameters()}
    with torch.no_grad():
        for name, part in parts.items():
            values = initial_values(
                name, shapes[name], regions[name], model.spec.init_std, seed,
                offset=model.spec.norm_offset,
            )  # fmt: skip
            part.copy_(values)
        for name, module in model.named_modules():
            if isinstance(module, Router):
                _fill_router(module, name, seed)


def check_count(spec: ModelSpec, parameters: int) -> None:
    """Refuse a model whose parameters are not as many as the planner counts for its config."""
    counted = count(spec.arch)
    expected = counted.total + counted.mtp
    if parameters != expected:
        raise ModelError(
            f"{spec.arch.name}: the trainer holds {parameters:,} parameters, the planner counts "
            f"{counted.total:,} + {counted.mtp:,} (MTP) = {expected:,}; they have to agree, "
            "so this is a fault in one of them: please report the config"
        )


def _fill_router(router: Router, name: str, seed: int) -> None:
    router.load.zero_()
    if router.shape.router_bias:
        router.e_score_correction_bias.zero_()
    if router.hashed:
        vocab, choices = router.tid2eid.shape
        layer = int("".join(c for c in name if c.isdigit()) or 0)
        table = hash_table(vocab, router.shape.experts, choices, seed + 7919 * (layer + 1))
        router.tid2eid.copy_(table)


def set_recompute(stages: list[Transformer], layout: Layout) -> None:
    """Tell the layers what to recompute; ``recompute_layers`` counts from each rank's first."""
    blocks: list[nn.Module] = [m for s in stages for m in s.modules() if isinstance(m, Block)]
    if layout.recompute is Recompute.FULL and layout.recompute_layers is not None:
        blocks = blocks[: layout.recompute_layers]
    for block in blocks:
        assert isinstance(block, Block)
        if layout.recompute is Recompute.ATTENTION:
            block.self_attn.recompute = layout.recompute
        else:
            block.recompute = layout.recompute


def set_float8(stages: list[Transformer], float8: bool, *, by_rows: bool = False) -> None:
    """Whether linear layers and experts compute in float8 with block scales (experts: of rows).

    Embeddings, the output matrix, routers, norms and attention stay as they are (DeepSeek-V3).
    """
    for module in (m for stage in stages for m in stage.modules()):
        if isinstance(module, Linear | Experts):
            module.float8 = float8
        if isinstance(module, Experts):
            module.by_rows = by_rows


_KINDS = 64
"""Forms of one piece that may exist: layers of different kinds, training and evaluation."""


def compile_layers(stages: Sequence[Transformer], backend: str = "inductor") -> None:
    """Compile the layers of ``stages``; each piece is compiled when it first runs."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _KINDS)
    for module in (m for stage in stages for m in stage.modules()):
        if isinstance(module, Block):
            _keep_by_piece(module)
            module.in_pieces = True
            mixed = isinstance(module.mlp, Mixture)
            for name in ("enter", "route", "join") if mixed else ("enter", "leave"):
                piece: Callable[..., Any] = getattr(module, name)
                setattr(module, name, torch.compile(piece, backend=backend, dynamic=False))


def _keep_by_piece(block: Block) -> None:
    """``modules`` piece by piece: within a compiled one torch keeps products and what costs more
    to compute again than to keep; the others are told to."""
    if block.recompute is not Recompute.MODULES:
        return
    block.recompute = Recompute.NONE
    block.self_attn.recompute = Recompute.MODULES
    if isinstance(block.mlp, Mixture):
        block.mlp.experts.recompute = Recompute.MODULES


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where it cannot work, which one small function shows.

    Raises:
        RunError: with what is missing.
    """
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:
        tool = "a C++ compiler (g++ or clang++, or one that CXX names)"
        needed = tool if device.type == "cpu" else f"{tool} and Triton"
        why = str(error).strip().splitlines()[0]
        raise RunError(
            f"train.compile = true needs {needed}, and Python's headers: a trial failed, saying "
            f"{why!r}; install what is missing, or set compile = false"
        ) from error
