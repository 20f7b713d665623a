"""What a run is to reach: tokens, batch, sequence, precision, optimizer, date and money."""

from __future__ import annotations

from dataclasses import dataclass, field

from krzem.errors import GoalError
from krzem.layout.precision import Optimizer, Precision, StateBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of a batch ramp: ``tokens`` trained with ``global_batch`` sequences a step."""

    tokens: float
    global_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Whether a run trains all weights from the start, or tunes those that there are, and how."""

    kind: str = "none"
    """``none`` (pre-training), ``full``, ``lora`` or ``qlora``."""
    rank: int = 0
    """Of adapters (lora, qlora); 0 without them."""
    targets: tuple[str, ...] = ()
    """Matrices that have adapters: ``attention``, ``mlp`` or names such as ``q_proj``."""

    @property
    def adapters(self) -> bool:
        """Whether adapters beside frozen weights are all that is trained."""
        return self.kind in ("lora", "qlora")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The run that is asked for."""

    tokens: float
    sequence: int
    global_batch: int
    """Sequences per optimizer step (the largest of a ramp)."""
    precision: Precision = Precision.BF16
    optimizer: Optimizer = Optimizer.ADAMW
    states: StateBytes = field(default_factory=StateBytes)
    ramp: tuple[Stage, ...] = ()
    """What is trained first, with smaller batches; its tokens count towards ``tokens``."""
    deadline_days: float | None = None
    budget_usd: float | None = None
    tuning: Tuning = Tuning()

    def __post_init__(self) -> None:
        for name in ("sequence", "global_batch"):
            value = getattr(self, name)
            if not 1 <= value <= 10**9:
                raise GoalError(f"{name}={value}: between 1 and 1,000,000,000 is needed")
        if not 0 < self.tokens <= 1e18:
            raise GoalError(f"tokens={self.tokens}: between 1 and 1e18 is needed")
        if self.tokens < self.tokens_per_step:
            raise GoalError(
                f"{self.tokens:,.0f} tokens are less than one batch: {self.global_batch:,}"
                f" sequences x {self.sequence:,} tokens = {self.tokens_per_step:,} tokens;"
                " lower --batch or raise --tokens"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer step."""
        return self.global_batch * self.sequence


__all__ = ["Goal", "Optimizer", "Precision", "Stage", "StateBytes", "Tuning"]
