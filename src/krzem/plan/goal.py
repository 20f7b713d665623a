"""What a run is to reach: tokens, batch, sequence, precision, optimiser, date and money."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from krzem.errors import GoalError


class Precision(enum.StrEnum):
    """Arithmetic of the matrix products; master weights and reductions as :class:`StateBytes`."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    """Tensor-wise (current or delayed) scaling, as Transformer Engine and torchao do."""
    FP8_BLOCK = "fp8-block"
    """DeepSeek's 1x128 and 128x128 block scaling."""
    MXFP8 = "mxfp8"
    NVFP4 = "nvfp4"
    FP32 = "fp32"

    @property
    def arithmetic(self) -> str:
        """The key of :attr:`krzem.hardware.device.Device.peak_flops` that matrix products use."""
        return {"fp8-block": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"}.get(self.value, self.value)


class Optimizer(enum.StrEnum):
    """Optimisers whose states and time are modelled."""

    ADAMW = "adamw"
    MUON = "muon"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes per parameter of what training keeps."""

    weight: float = 2.0
    gradient: float = 4.0
    master: float = 4.0
    moments: float = 8.0
    """All optimiser moments together (AdamW: two, Muon: one on matrices)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The run that is asked for."""

    tokens: float
    sequence: int
    global_batch: int
    """Sequences per optimiser step (the largest of a ramp)."""
    precision: Precision = Precision.BF16
    optimizer: Optimizer = Optimizer.ADAMW
    states: StateBytes = StateBytes()
    deadline_days: float | None = None
    budget_usd: float | None = None

    def __post_init__(self) -> None:
        for name in ("sequence", "global_batch"):
            value = getattr(self, name)
            if not 1 <= value <= 10**9:
                raise GoalError(f"{name}={value}: between 1 and 1,000,000,000 is needed")
        if not 0 < self.tokens <= 1e18:
            raise GoalError(f"tokens={self.tokens}: between 1 and 1e18 is needed")
        if self.tokens < self.tokens_per_step:
            raise GoalError(
                f"{self.tokens:,.0f} tokens are less than one batch: {self.global_batch} sequences"
                f" x {self.sequence} tokens = {self.tokens_per_step:,} tokens;"
                " lower --global-batch or raise --tokens"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimiser step."""
        return self.global_batch * self.sequence
