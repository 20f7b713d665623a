"""Learning rates as functions of tokens seen, so that no change of batch or layout bends them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from krzem.errors import GoalError

KINDS = ("wsd", "cosine", "constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Warm-up, then ``kind``.

    ``wsd`` (warm-up, stable, decay) holds the peak and falls linearly over the last
    ``decay_share`` of the tokens; ``cosine`` falls along half a cosine; both end at
    ``final_share`` of the peak.
    """

    tokens: int
    """Tokens over which it goes: those of the whole run, or of a phase with its own."""
    peak: float
    kind: str = "wsd"
    warmup_tokens: int = 0
    decay_share: float = 0.2
    final_share: float = 0.1
    since: int = 0
    """Tokens of the run before it begins."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise GoalError(f"schedule {self.kind!r} is not one of {', '.join(KINDS)}")
        if not 0 <= self.warmup_tokens <= self.tokens:
            raise GoalError(
                f"the warm-up of {self.warmup_tokens:,} tokens is longer than the run of "
                f"{self.tokens:,}"
            )
        if not 0 <= self.decay_share <= 1 or not 0 <= self.final_share <= 1:
            raise GoalError("decay_share and final_share are shares: between 0 and 1")

    def at(self, tokens: int) -> float:
        """The learning rate of the step that ends with ``tokens`` seen."""
        tokens -= self.since
        if tokens < self.warmup_tokens:
            return self.peak * tokens / self.warmup_tokens
        return self.peak * (self.final_share + (1 - self.final_share) * self._height(tokens))

    def _height(self, tokens: int) -> float:
        """1 at the peak, 0 at the end."""
        if self.kind == "constant":
            return 1.0
        left = max(0, self.tokens - tokens)
        if self.kind == "wsd":
            decay = self.decay_share * self.tokens
            return 1.0 if left >= decay else left / decay
        span = max(1, self.tokens - self.warmup_tokens)
        return 0.5 * (1 + math.cos(math.pi * (1 - left / span)))
