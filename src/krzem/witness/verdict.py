"""What a check found, and where it began."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from krzem.witness.quantity import BACKWARD, FORWARD, Kind, Quantity, place


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One signal of one quantity, judged."""

    quantity: Quantity
    signal: str
    error: float
    floor: float
    tolerance: float
    dtype: str = "float32"
    """Arithmetic that the step was computed in."""

    @property
    def departs(self) -> bool:
        """Whether it is outside its tolerance."""
        return not self.error <= self.tolerance

    @property
    def severity(self) -> float:
        """Error over tolerance; infinite where nothing is tolerated."""
        if self.tolerance:
            return self.error / self.tolerance
        return math.inf if self.error else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """The first place where the destination leaves the source."""

    direction: str
    """settings, parameter, forward, backward or update."""
    layer: str
    name: str
    """Module or tensor."""
    finding: Finding
    hint: str
    """What a fault of this kind usually is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether it is the same run."""

    model: str
    findings: tuple[Finding, ...]
    first: Departure | None
    """None where nothing departs."""
    notes: tuple[str, ...] = ()
    """Observations beside the numbers, such as a permutation of experts."""
    not_compared: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    destination: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("float32",)
    """Arithmetic that the step was computed in here, one after the other."""
    settings: tuple[str, ...] = ()
    """In which the source repeated the step for its floor."""
    unequal: tuple[str, ...] = ()
    """Settings of the run that have to be equal and are not, each as a sentence."""
    equal: tuple[str, ...] = ()
    """Settings of the run that were compared and are equal."""

    @property
    def passed(self) -> bool:
        """Whether every quantity is within its tolerance, and every setting the same."""
        return self.first is None and not self.unequal

    @property
    def dtype(self) -> str:
        """The arithmetic, in words."""
        return " and ".join(self.dtypes)

    @property
    def departures(self) -> tuple[Finding, ...]:
        """All findings outside their tolerance, in the order of the computation."""
        order = {"parameter": 0, "forward": 1, "backward": 2, "update": 3}
        found = [f for f in self.findings if f.departs]
        return tuple(sorted(found, key=lambda f: (order[direction(f)], *_along(f))))

    @property
    def departs(self) -> tuple[str, ...]:
        """Names of layers and tensors that disagree, the first one first."""
        names = [self.first.name] if self.first else []
        names += [f.quantity.name or str(f.quantity.kind) for f in self.departures]
        return tuple(dict.fromkeys(names))

    @property
    def message(self) -> str:
        """One sentence."""
        if self.unequal:
            more = f" (and {len(self.unequal) - 1} more settings)" if len(self.unequal) > 1 else ""
            return f"{self.model} is another run here: {self.unequal[0]}{more}"
        if self.first is None:
            return (
                f"{self.model} computes the same here in {self.dtype}: {len(self.findings):,} "
                "signals agree"
            )
        f = self.first.finding
        return (
            f"{self.model} departs {_WHERE[self.first.direction]} at {self.first.name}: "
            f"{f.quantity.kind} {f.signal} off by {f.error:.3g}, tolerance {f.tolerance:.3g}, "
            f"in {f.dtype}"
        )


_WHERE = {
    "parameter": "before anything is computed",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "update": "in the optimizer's update",
}
HINTS = {
    "parameter": "a tensor or moment that was not loaded, loaded from another step, converted or "
    "reordered",
    "forward": "an operator or constant of this module: epsilon, rotation, mask, scale, precision, "
    "place of a norm",
    "backward": "the backward of this module, or how its gradient is scaled and summed over ranks",
    "update": "the optimizer: learning rate, decay, betas, epsilon, clipping, a parameter that it "
    "was not given, or the balancing bias",
}


def direction(finding: Finding) -> str:
    """Which part of a training step a finding belongs to."""
    kind = finding.quantity.kind
    if kind in (Kind.PARAMETER, Kind.MOMENT, Kind.LOADED):
        return "parameter"
    if kind in FORWARD:
        return "forward"
    return "backward" if kind in BACKWARD else "update"


def _along(finding: Finding) -> tuple[float, ...]:
    """Sorts findings of one direction in the order in which they are computed."""
    q = finding.quantity
    here = place(q)
    if q.kind in (Kind.LOSS, Kind.GRADIENT_NORM):
        return (9, 0, 0, 0)  # after all layers
    if q.kind is Kind.RATE:
        return (-1, 0, 0, 0)  # before any parameter moves
    if q.kind in BACKWARD:
        # Backwards; in one module the gradient of its output comes before those of its tensors.
        later = {Kind.ACTIVATION_GRADIENT: 0, Kind.GRADIENT: 1, Kind.LAYER_GRADIENT: 2}[q.kind]
        return (-here[0], -here[1], later, -here[2])
    return (here[0], here[1], here[2], 0)


def first_departure(findings: tuple[Finding, ...]) -> Departure | None:
    """Where it begins: parameters, else forward, else backward, else the update.

    The first arithmetic in which the step departs names the place: it is the finest.
    """
    departing = [f for f in findings if f.departs]
    loaded = [f for f in departing if direction(f) == "parameter"]
    if loaded:
        return _departure("parameter", loaded)
    for dtype in dict.fromkeys(f.dtype for f in findings):
        for part in ("forward", "backward", "update"):
            own = [f for f in departing if f.dtype == dtype and direction(f) == part]
            if own:
                return _departure(part, own)
    return None


def _departure(part: str, own: list[Finding]) -> Departure:
    start = min(_along(f) for f in own)
    found = max((f for f in own if _along(f) == start), key=lambda f: f.severity)
    return Departure(
        direction=part,
        layer=found.quantity.layer,
        name=found.quantity.name or str(found.quantity.kind),
        finding=found,
        hint=HINTS[part],
    )
