"""AdamW, and Muon for matrices, on the parts of parameters that a rank holds.

State is kept per parameter under its logical name, as parts of the same shape as the parameter's,
so that a checkpoint can treat both alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from krzem.errors import GoalError
from krzem.train.optim.muon import is_matrix, momentum_step, orthogonal_update, row_groups
from krzem.train.optim.sharing import Sharing
from krzem.train.parallel.axis import ALONE, Axis
from krzem.train.parallel.held import Held


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Constants of the update."""

    kind: str = "adamw"
    """adamw, or muon (matrices by Muon, the rest by AdamW)."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled; matrices only."""
    momentum: float = 0.95
    """Of Muon."""
    clip: float = 1.0
    """Largest global gradient norm; 0 leaves gradients as they are."""

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "muon"):
            raise GoalError(f"optimizer {self.kind!r} is not one of adamw, muon")


class Optimizer:
    """Updates ``held`` in place.

    ``state[key][name]`` are the parts of ``exp_avg`` and ``exp_avg_sq`` (AdamW) or ``momentum``
    (Muon); ``steps`` counts updates.  ``holders`` are the ranks that hold parts of the same
    parameters; each orthogonalises a share of the matrices.
    """

    def __init__(
        self,
        held: tuple[Held, ...],
        config: OptimizerConfig,
        *,
        groups: int = 1,
        holders: Axis = ALONE,
    ) -> None:
        self.held, self.config, self.groups = held, config, groups
        self.steps = 0
        self.state: dict[str, dict[str, Tensor]] = {}
        for key, item in self.items():
            names = ("momentum",) if self.uses_muon(item) else ("exp_avg", "exp_avg_sq")
            self.state[key] = {n: torch.zeros_like(item.part) for n in names}
        self._sharing = Sharing([h for h in held if self.uses_muon(h)], holders)

    def items(self) -> list[tuple[str, Held]]:
        """Every held parameter with the key of its state: its name, copies marked."""
        return [(h.name if h.primary else f"copy:{h.name}", h) for h in self.held]

    def uses_muon(self, held: Held) -> bool:
        """Whether Muon updates this parameter."""
        return self.config.kind == "muon" and is_matrix(held.name, held.parameter)

    @torch.no_grad()
    def step(self, rate: float, gradient_norm: float) -> None:
        """One update with learning rate ``rate``; gradients are clipped to the configured norm."""
        self.steps += 1
        reached = [(k, h) for k, h in self.items() if h.grad is not None]
        matrices = [(k, h) for k, h in reached if self.uses_muon(h)]
        rest = [(k, h) for k, h in reached if not self.uses_muon(h)]
        factor, on_cpu = self._clip_factor(gradient_norm), self._device.type == "cpu"
        # On processors AdamW scales gradients while it reads them: a pass less over all of them.
        clipped = matrices if on_cpu else reached
        if factor != 1.0 and clipped:
            torch._foreach_mul_([h.grad for _, h in clipped if h.grad is not None], factor)
        self._muon(matrices, rate)
        left = factor if on_cpu else 1.0
        for decayed in (True, False):
            self._adamw([(k, h) for k, h in rest if _decays(h) is decayed], rate, decayed, left)

    @property
    def _device(self) -> torch.device:
        return self.held[0].part.device if self.held else torch.device("cpu")

    def _clip_factor(self, norm: float) -> float:
        """What gradients of this global norm are multiplied by."""
        limit = self.config.clip
        return limit / (norm + 1e-6) if limit and norm > limit else 1.0

    def _muon(self, items: list[tuple[str, Held]], rate: float) -> None:
        directions = {}
        for key, item in items:
            assert item.grad is not None
            momentum = self.state[key]["momentum"]
            directions[item.name] = momentum_step(momentum, item.grad, self.config.momentum)
        updates = self._sharing.update(
            directions, lambda name, x: orthogonal_update(x, row_groups(name, self.groups))
        )
        for _, item in items:
            item.part.mul_(1 - rate * self.config.weight_decay)
            item.part.sub_(updates[item.name], alpha=rate)

    def _adamw(
        self, items: list[tuple[str, Held]], rate: float, decayed: bool, factor: float
    ) -> None:
        """Update ``items``, their gradients first multiplied by ``factor`` (on processors)."""
        if not items:
            return
        c, device = self.config, items[0][1].part.device
        steps = [torch.tensor(float(self.steps - 1), device=device) for _ in items]
        adamw(
            [h.part for _, h in items],
            [h.grad for _, h in items],  # type: ignore[misc]
            [self.state[k]["exp_avg"] for k, _ in items],
            [self.state[k]["exp_avg_sq"] for k, _ in items],
            [],
            steps,
            fused=device.type in ("cpu", "cuda"),
            foreach=device.type not in ("cpu", "cuda"),
            amsgrad=False,
            beta1=c.beta1,
            beta2=c.beta2,
            lr=rate,
            weight_decay=c.weight_decay if decayed else 0.0,
            eps=c.eps,
            maximize=False,
            grad_scale=None if factor == 1.0 else torch.tensor(1 / factor),
        )


def _decays(held: Held) -> bool:
    """Weight decay acts on matrices and the embedding, not on gains, biases and sinks."""
    return len(held.placement.shape) >= 2 and not held.name.endswith("bias")
