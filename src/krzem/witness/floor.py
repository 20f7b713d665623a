"""The noise floor: how far honest repeats of one step lie apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from krzem.witness import quantity as measured
from krzem.witness.quantity import STATE_KINDS, Kind, Quantity, Reading, errors
from krzem.witness.witness import Floors

SPREAD = "spread"
"""Of samples, as :func:`krzem.witness.quantity.spread` has it: it explains the noise of norms."""
_FLOORLESS = frozenset({"nonfinite", "checksum"})
Group = tuple[Kind, str]
"""Quantities of one kind in one layer: they lean on each other."""


def spread(base: Reading, repeats: Iterable[Reading], dtype: str) -> Floors:
    """The largest difference of any repeat from ``base``, by quantity and signal."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for reading in repeats:
        for key, quantity in base.items():
            if key not in reading or quantity.kind in STATE_KINDS:
                continue
            apart = errors(quantity, reading[key], dtype)
            apart[SPREAD] = measured.spread(quantity, reading[key])
            for signal, error in apart.items():
                if signal not in _FLOORLESS:
                    found[key][signal] = max(found[key].get(signal, 0.0), error)
    return dict(found)


def group_of(quantity: Quantity) -> Group:
    """The kind and layer of a quantity."""
    return quantity.kind, quantity.layer


def pooled(reading: Reading, floors: Mapping[str, Mapping[str, float]]) -> Floors:
    """Floors that lean on each other: none below the median of its kind and signal in its layer.

    A few repeats can agree by chance where the next would not.
    """
    groups: dict[tuple[Group, str], list[float]] = defaultdict(list)
    for key, spreads in floors.items():
        for signal, value in spreads.items():
            groups[group_of(reading[key]), signal].append(value)
    middle = {group: float(np.median(values)) for group, values in groups.items()}
    return {
        key: {
            signal: max(value, middle[group_of(reading[key]), signal])
            for signal, value in spreads.items()
        }
        for key, spreads in floors.items()
    }


def far_rates(reading: Reading, floors: Mapping[str, Mapping[str, float]]) -> dict[Group, float]:
    """How often a sample is far off in the worst repeat, by kind and layer.

    One more than was counted is taken: where none was met, the next may be (rule of succession).
    """
    counted: dict[Group, list[float]] = defaultdict(lambda: [1.0, 1.0])
    for key, quantity in reading.items():
        if quantity.samples.size and quantity.kind not in STATE_KINDS:
            pair = counted[group_of(quantity)]
            pair[0] += floors.get(key, {}).get("far", 0.0) * quantity.samples.size
            pair[1] += quantity.samples.size
    return {group: min(1.0, found / of) for group, (found, of) in counted.items()}
