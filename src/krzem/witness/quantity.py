"""What a witness holds: quantities, and how far two values of one quantity are apart.

Errors are relative and free of units, so that floors and tolerances can be compared across layers:

* activations: ``mean``, ``rms`` and ``zero`` over the root mean square, ``absmax`` over itself;
* ``samples``: the median difference of sampled values over their root mean square.  A token that
  is routed otherwise changes few of them by much, a wrong operator changes most;
* ``far``: the share of samples that differ by more than a hundredth (fp32) of that;
* ``norm``: of a gradient or parameter; ``value``: of a loss or a setting;
* ``checksum``: 1 where a parameter or moment differs in any bit of any element;
* ``ranks``: how far data-parallel ranks that computed the same sequence are from each other, beyond
  what they were at the source;
* ``nonfinite``: elements that are Inf or NaN on one side only.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]


class Kind(enum.StrEnum):
    """What was measured."""

    LOSS = "loss"
    GRADIENT_NORM = "gradient norm"
    """Global, before clipping."""
    PARAMETER = "parameter"
    MOMENT = "optimiser moment"
    """As loaded: one kind of state of one parameter."""
    LOADED = "loaded state"
    """A number that a checkpoint brings: how many updates the optimizer has counted."""
    ACTIVATION = "activation"
    LOAD = "router load"
    """Choices per expert."""
    ACTIVATION_GRADIENT = "activation gradient"
    LAYER_GRADIENT = "layer gradient"
    """Norm over all parameters of a layer."""
    GRADIENT = "gradient"
    """Of one parameter tensor."""
    RATE = "learning rate"
    """Of the next step, by the schedule."""
    STEP = "step"
    """What the optimizer, with its moments, adds to a parameter in the next step."""
    UPDATE = "update"
    """What the optimizer's rule makes of recorded parameters and gradients."""
    BIAS_UPDATE = "router bias update"


FORWARD = frozenset({Kind.LOSS, Kind.ACTIVATION, Kind.LOAD})
BACKWARD = frozenset({Kind.GRADIENT_NORM, Kind.ACTIVATION_GRADIENT, Kind.LAYER_GRADIENT,
                      Kind.GRADIENT})  # fmt: skip
RULE = frozenset({Kind.UPDATE, Kind.BIAS_UPDATE})
EXACT = frozenset({Kind.PARAMETER, Kind.MOMENT, Kind.LOADED, Kind.RATE})
"""What is the same everywhere, whatever computes."""

FAR = {"float32": 0.01, "float64": 0.01, "tf32": 0.02, "float16": 0.02, "bfloat16": 0.1}
"""Difference, over the root mean square, from which a sample counts as far off."""


_NOISES = 10.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantity:
    """One measured thing."""

    kind: Kind
    name: str
    """Of a module, a parameter or a loss; empty for the whole model."""
    batch: int | None = None
    """Which of the batches; None for what depends on none."""
    order: int = 0
    """Within a layer, the place in the order in which modules finished."""
    stats: Mapping[str, float] = field(default_factory=dict)
    samples: Samples = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def key(self) -> str:
        """Unique among the quantities of a witness."""
        return f"{self.kind}|{self.name}|{'' if self.batch is None else self.batch}"

    @property
    def layer(self) -> str:
        """Label of the layer it belongs to."""
        return layer_of(self.name.partition(":")[0])


Reading = dict[str, Quantity]
"""Quantities by key."""

STATE_KINDS = EXACT | RULE
"""What depends on no arithmetic of the step: it is read once."""

_NUMBERED = re.compile(r"(?:.*\.)?(layers|h|blocks|mtp)\.(\d+)(?:\.|$)")


def layer_of(name: str) -> str:
    """``model.layers.3.self_attn.q_proj.weight`` -> ``layers.3``; else the first own name."""
    found = _NUMBERED.match(name)
    if found:
        return f"{found[1]}.{found[2]}"
    own = re.sub(r"^(model|transformer|gpt_neox)\.", "", name)
    return own.removesuffix(".weight").removesuffix(".bias") or "whole model"


def depth(layer: str) -> tuple[int, int]:
    """Sorts layers in the order of the forward pass."""
    stem, _, number = layer.partition(".")
    if stem in ("embed_tokens", "embed_in", "wte", "wpe"):
        return (0, 0)
    if stem in ("layers", "h", "blocks") and number.isdigit():
        return (1, int(number))
    if stem == "mtp":
        return (4, int(number or 0))
    return (3, 0) if stem in ("lm_head", "embed_out") else (2, 0)


def place(quantity: Quantity) -> tuple[int, int, int]:
    """Sorts quantities in the order of the forward pass."""
    return (*depth(quantity.layer), quantity.order)


def errors(base: Quantity, other: Quantity, dtype: str, noise: float = 0.0) -> dict[str, float]:
    """How far ``other`` is from ``base``, by signal.

    A sample counts as far off from a share of the root mean square on that its arithmetic does not
    explain, nor ten times the ``noise`` of the source's own samples (their median distance), nor
    the grain of the numbers that a change was stored in.
    """
    found = {"nonfinite": _nonfinite(base, other)}
    if base.kind in (Kind.LOSS, Kind.GRADIENT_NORM, Kind.LOADED, Kind.RATE):
        found["value"] = _relative(base.stats["value"], other.stats["value"])
        return found
    if base.kind in (Kind.ACTIVATION, Kind.ACTIVATION_GRADIENT):
        found |= _statistics(base.stats, other.stats)
    if "ranks" in other.stats:
        found["ranks"] = max(0.0, other.stats["ranks"] - base.stats.get("ranks", 0.0))
    if "checksum" in base.stats:
        found["checksum"] = float(base.stats["checksum"] != other.stats.get("checksum"))
    if "norm" in base.stats:
        found["norm"] = _relative(base.stats["norm"], other.stats["norm"])
    if base.kind is Kind.LOAD:
        found["moved"] = _moved(base.samples, other.samples)
    elif base.samples.size:
        far = max(FAR.get(dtype, 0.1), _NOISES * noise) + 2 * base.stats.get("grain", 0.0)
        found |= _sampled(base, other, far)
    return found


def spread(base: Quantity, other: Quantity) -> float:
    """Root mean square of the samples' differences, over that of the samples."""
    if base.samples.shape != other.samples.shape:
        return 0.0
    a, b = base.samples.astype(np.float64), other.samples.astype(np.float64)
    used = np.isfinite(a) & np.isfinite(b)
    scale = float(np.square(a[used]).sum())
    return math.sqrt(float(np.square(a[used] - b[used]).sum()) / scale) if scale else 0.0


def _relative(base: float, other: float) -> float:
    if not (math.isfinite(base) and math.isfinite(other)):
        return 0.0  # nonfinite speaks for it
    return abs(other - base) / max(abs(base), 1e-30) if base != other else 0.0


def _statistics(base: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    scale = max(base["rms"], 1e-30)
    return {
        "mean": abs(other["mean"] - base["mean"]) / scale,
        "rms": _relative(base["rms"], other["rms"]),
        "absmax": _relative(base["absmax"], other["absmax"]),
        "zero": abs(other["zero"] - base["zero"]),
    }


def _nonfinite(base: Quantity, other: Quantity) -> float:
    """Elements that are Inf or NaN on one side only, as far as counts and samples tell."""
    counted = sum(abs(base.stats.get(n, 0) - other.stats.get(n, 0)) for n in ("inf", "nan"))
    values = (base.stats.get("value", 0.0), other.stats.get("value", 0.0))
    return counted + float(math.isfinite(values[0]) != math.isfinite(values[1]))


def _moved(base: Samples, other: Samples) -> float:
    """Share of a router's choices that went elsewhere."""
    if base.shape != other.shape:
        return 1.0
    return float(np.abs(base - other).sum() / max(2 * base.sum(), 1.0))


def _sampled(base: Quantity, other: Quantity, far: float) -> dict[str, float]:
    if base.samples.shape != other.samples.shape:
        return {"samples": math.inf, "far": 1.0}
    a, b = base.samples.astype(np.float64), other.samples.astype(np.float64)
    used = np.isfinite(a) & np.isfinite(b) & ((a != 0) | (b != 0))
    if not used.any():
        return {"samples": 0.0, "far": 0.0}
    a, b = a[used], b[used]
    scale = float(np.sqrt(np.mean(a * a))) or float(np.sqrt(np.mean(b * b)))
    apart = np.abs(a - b) / scale
    if base.kind in RULE or base.kind in EXACT:
        return {"samples": float(apart.max())}
    return {"samples": float(np.median(apart)), "far": float(np.mean(apart > far))}
