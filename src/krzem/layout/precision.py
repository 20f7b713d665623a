"""Arithmetic, optimizer and what is kept per parameter: the part of a layout that is bytes."""

from __future__ import annotations

import enum
from dataclasses import dataclass


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
    """Optimizers whose states and time are modelled."""

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
