"""The optimizer's rule, tried on the samples that a witness holds.

Recorded parameters and gradients go through a few virtual steps of the destination's own
optimizer.  Both sides begin with the same numbers, so any difference is in the rule: decay where
there should be none, another epsilon, clipping, a balancing bias that does not move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from krzem.train.optim import Optimizer, OptimizerConfig, update_biases
from krzem.train.parallel.held import Held, Placement
from krzem.witness.quantity import Samples

STEPS = (1.0, -0.5, 2.0)
"""Virtual steps, and what the gradient is multiplied by in each: under a constant gradient Adam's
constants would cancel."""
RATE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """Sampled values of one parameter and of its gradient."""

    name: str
    axes: int
    """Of the parameter: rules treat matrices and vectors apart."""
    values: Samples
    gradient: Samples


class UpdateRule(Protocol):
    """A way to update parameters and balancing biases."""

    def updates(self, probes: Sequence[Probe], norm: float) -> dict[str, Samples]:
        """What the steps at ``RATE`` add to each probe's values."""

    def bias_updates(self, loads: Mapping[str, Samples]) -> dict[str, Samples]:
        """What one step adds to each router's balancing bias, from choices per expert."""

    def describe(self) -> dict[str, Any]:
        """Its constants."""


def shaped(probe: Probe) -> tuple[Tensor, Tensor]:
    """Values and gradient as a small tensor with as many axes as the parameter."""
    count = probe.values.size
    rows = math.isqrt(count)
    lead = (1,) * max(0, probe.axes - 2)
    shape: tuple[int, ...] = (count,) if probe.axes < 2 else (*lead, rows, -1)
    used = count if probe.axes < 2 else rows * (count // rows)
    values, gradient = (
        torch.from_numpy(np.nan_to_num(x[:used]).astype(np.float32)).reshape(shape).clone()
        for x in (probe.values, probe.gradient)
    )
    return values, gradient


class TrainerRule:
    """The trainer's optimizer and balancing update, as the run configures them."""

    def __init__(
        self,
        config: OptimizerConfig,
        *,
        bias_rate: float = 1e-3,
        groups: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.bias_rate, self.groups = config, bias_rate, groups
        self.device = torch.device(device)

    def updates(self, probes: Sequence[Probe], norm: float) -> dict[str, Samples]:
        """Through :class:`krzem.train.optim.Optimizer` itself."""
        held = tuple(self._held(probe) for probe in probes)
        before = {h.name: h.part.detach().clone() for h in held}
        gradients = {h.name: h.parameter.grad.clone() for h in held if h.parameter.grad is not None}
        optimizer = Optimizer(held, self.config, groups=1)
        for factor in STEPS:
            for h in held:
                assert h.parameter.grad is not None
                h.parameter.grad.copy_(gradients[h.name] * factor)
            optimizer.step(RATE, norm)
        return {h.name: (h.part.detach() - before[h.name]).reshape(-1).cpu().numpy() for h in held}

    def _held(self, probe: Probe) -> Held:
        values, gradient = (t.to(self.device) for t in shaped(probe))
        parameter = nn.Parameter(values)
        parameter.grad = gradient
        place = Placement(shape=values.shape, divisions=(), copies=1)
        return Held(name=probe.name, parameter=parameter, placement=place)

    def bias_updates(self, loads: Mapping[str, Samples]) -> dict[str, Samples]:
        """Through :func:`krzem.train.optim.update_biases` itself, from biases of zero."""
        routers = {
            name: SimpleNamespace(
                shape=SimpleNamespace(router_bias=True),
                e_score_correction_bias=torch.zeros(load.size, device=self.device),
            )
            for name, load in loads.items()
        }
        tensors = {n: torch.from_numpy(x.copy()).to(self.device) for n, x in loads.items()}
        update_biases(routers, tensors, self.bias_rate)  # type: ignore[arg-type]
        return {n: r.e_score_correction_bias.cpu().numpy() for n, r in routers.items()}

    def describe(self) -> dict[str, Any]:
        """Its constants."""
        return {"by": "krzem", **asdict(self.config), "bias_rate": self.bias_rate}


OptimizerFactory = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]


class TorchRule:
    """Any ``torch.optim.Optimizer``, for trainers other than krzem's.

    ``make`` gets named parameters with as many axes as the real ones and groups them as the trainer
    does (decay or not); learning rates are set to one value.
    """

    def __init__(self, make: OptimizerFactory, *, clip: float = 1.0) -> None:
        self.make, self.clip = make, clip

    def updates(self, probes: Sequence[Probe], norm: float) -> dict[str, Samples]:
        """Through the optimizer that ``make`` gives."""
        pairs = {probe.name: shaped(probe) for probe in probes}
        named = [(name, nn.Parameter(values.clone())) for name, (values, _) in pairs.items()]
        optimizer = self.make(named)
        for group in optimizer.param_groups:
            group["lr"] = RATE
        scale = self.clip / (norm + 1e-6) if self.clip and norm > self.clip else 1.0
        for factor in STEPS:
            for name, parameter in named:
                parameter.grad = pairs[name][1] * (scale * factor)
            optimizer.step()
        return {n: (p.detach() - pairs[n][0]).reshape(-1).numpy() for n, p in named}

    def bias_updates(self, loads: Mapping[str, Samples]) -> dict[str, Samples]:
        """None: torch's optimizers know no routers."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Its kind."""
        return {"by": "torch", "clip": self.clip}
