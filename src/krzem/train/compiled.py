"""Layers compiled by torch: norms, activations, casts and sums become few passes.

Compiled is what lies between the large operators, piece by piece: from the residual to what
attention reads, from there to what the experts read, or through the dense network, and from the
experts to the next residual.  Attention and the routed experts stay as they are: their versions of
our own are faster than what the compiler makes, and groups of a size that changes at every step
would be compiled at every step.  FSDP's hooks and the experts' exchange thus lie between pieces
too; collectives of tensor and context parallelism divide a piece where they are.

Not covered: embedding, output and loss, which compute as without ``compile``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from krzem.errors import RunError
from krzem.layout.layout import Recompute
from krzem.train.model.block import Block
from krzem.train.model.mixture import Mixture
from krzem.train.model.transformer import Transformer

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
