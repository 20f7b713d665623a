"""Balancing without a loss: the bias of an overloaded expert sinks, of an idle one rises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from krzem.train.model.mixture import Router


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLoad:
    """How evenly one router spread its choices in one step."""

    layer: str
    peak: float
    """The fullest expert's share over the mean share; 1 is perfect."""
    idle: float
    """Share of experts that got nothing."""


@torch.no_grad()
def update_biases(
    routers: Mapping[str, Router], loads: Mapping[str, Tensor], rate: float
) -> list[ExpertLoad]:
    """Move each bias by ``rate`` against its expert's excess (DeepSeek-V3, section 2.1.2).

    ``loads`` are choices per expert over the global batch.  Hash-routed layers have no bias.
    """
    shares = []
    for name, router in routers.items():
        load = loads[name].float()
        mean = load.mean()
        if router.shape.router_bias and rate:
            router.e_score_correction_bias += rate * torch.sign(mean - load)
        shares += [load.max() / mean.clamp(min=1e-9), (load == 0).float().mean()]
    # The host waits once, for all routers together.
    read = torch.stack(shares).tolist() if shares else []
    return [
        ExpertLoad(layer=name, peak=peak, idle=idle)
        for name, peak, idle in zip(routers, read[::2], read[1::2], strict=True)
    ]
