"""Energy and money of a run, from its device-hours."""

from __future__ import annotations

import numpy as np

from krzem.hardware.cluster import Cluster
from krzem.plan.draws import Draws, draw
from krzem.plan.operation import quantity

ENERGY_FIELDS = ("power_w", "system_power_ratio", "pue")
PRICE_FIELDS = ("usd_per_device_hour",)


def energy_mwh(device_hours: Draws, cluster: Cluster) -> Draws | None:
    """Megawatt-hours at the facility's meter: hours x watts x system ratio x PUE.

    ``power_w`` is a device's power limit, and ``system_power_ratio`` what nodes and links draw
    while they train over the sum of those limits: so devices below their limit are in the ratio,
    and its range.  None where one of ``ENERGY_FIELDS`` is unknown.
    """
    watts = _product(cluster, ENERGY_FIELDS)
    return None if watts is None else np.asarray(device_hours * watts / 1e6)


def cost_usd(device_hours: Draws, cluster: Cluster) -> Draws | None:
    """Device-hours times their price; None where the price is unknown.

    Not covered: storage, egress and people, and hardware bought instead of rented.
    """
    price = _product(cluster, PRICE_FIELDS)
    return None if price is None else np.asarray(device_hours * price)


def _product(cluster: Cluster, names: tuple[str, ...]) -> Draws | None:
    result: Draws | None = None
    for name in names:
        estimate = quantity(cluster, name)
        if estimate is None:
            return None
        values = draw(estimate, name)
        result = values if result is None else np.asarray(result * values)
    return result
