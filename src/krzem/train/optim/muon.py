"""Muon: the momentum of a matrix, made nearly orthogonal, is its update.

Sources: Jordan et al. 2024 (coefficients, five Newton-Schulz steps); Moonlight, arXiv 2502.16982
(scale ``0.2 * sqrt(max(rows, columns))``, which gives an update the size of AdamW's).
"""

from __future__ import annotations

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315


def newton_schulz(x: Tensor, steps: int = 5) -> Tensor:
    """Singular values of ``x [..., R, C]`` pushed towards one, singular vectors kept."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x


def orthogonal_update(momentum: Tensor, groups: int) -> Tensor:
    """The update of whole matrices ``momentum [..., R, C]``, before the learning rate.

    ``groups`` stacks of rows are matrices of their own.
    """
    if groups > 1:
        momentum = momentum.unflatten(-2, (groups, -1))
    rows, columns = momentum.shape[-2:]
    update = newton_schulz(momentum) * (0.2 * max(rows, columns) ** 0.5)
    return update.flatten(-3, -2) if groups > 1 else update


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon updates it: matrices but embedding, output, biases and convolutions."""
    apart = ("embed_tokens.", "lm_head.")
    last = ("bias", "conv1d.weight")
    return parameter.dim() >= 2 and not name.startswith(apart) and not name.endswith(last)


def row_groups(name: str, groups: int) -> int:
    """Matrices stacked along the rows of a parameter: the groups of V4's output projection."""
    return groups if name.endswith("self_attn.o_a_proj.weight") else 1


def momentum_step(momentum: Tensor, grad: Tensor, beta: float) -> Tensor:
    """Update ``momentum`` in place; returns Nesterov's look-ahead."""
    momentum.lerp_(grad, 1 - beta)
    return torch.lerp(grad, momentum, beta)
