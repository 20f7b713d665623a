"""The noise floor: how far honest repeats of one step lie apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from krzem.witness.quantity import Kind, Reading, errors
from krzem.witness.witness import Floors

_FLOORLESS = frozenset({"nonfinite"})


def spread(base: Reading, repeats: Iterable[Reading], dtype: str) -> Floors:
    """The largest difference of any repeat from ``base``, by quantity and signal."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for reading in repeats:
        for key, quantity in base.items():
            if key not in reading or quantity.kind is Kind.PARAMETER:
                continue
            for signal, error in errors(quantity, reading[key], dtype).items():
                if signal not in _FLOORLESS:
                    found[key][signal] = max(found[key].get(signal, 0.0), error)
    return dict(found)


def pooled(reading: Reading, floors: Mapping[str, Mapping[str, float]]) -> Floors:
    """Floors that lean on each other: none below the median of its kind and signal in its layer.

    A few repeats can agree by chance where the next would not.
    """
    groups: dict[tuple[Kind, str, str], list[float]] = defaultdict(list)
    for key, spreads in floors.items():
        q = reading[key]
        for signal, value in spreads.items():
            groups[q.kind, q.layer, signal].append(value)
    middle = {group: float(np.median(values)) for group, values in groups.items()}
    return {
        key: {
            signal: max(value, middle[reading[key].kind, reading[key].layer, signal])
            for signal, value in spreads.items()
        }
        for key, spreads in floors.items()
    }
