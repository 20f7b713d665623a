"""Energy and money of a run, from its device-hours."""

from __future__ import annotations

import numpy as np

from krzem.estimate import Basis, Estimate
from krzem.hardware.cluster import Cluster
from krzem.plan.draws import Draws, draw
from krzem.plan.operation import quantity

ENERGY_FIELDS = ("power_w", "system_power_ratio", "pue")
PRICE_FIELDS = ("usd_per_device_hour",)

RATED_SHARE = Estimate(0.65, 0.76, 0.84, Basis.ESTIMATED)
"""Power that a system draws while it trains over its rated power.

An 8-GPU H100 system rated 10.2 kW draws 76 % of it under heavy training loads (arXiv 2506.14551)
and at most 8.4 kW, 82 % (arXiv 2412.08602).  The low end stands for steps that wait for the
network: an estimate, not a measurement."""


def energy_mwh(device_hours: Draws, cluster: Cluster) -> Draws | None:
    """Megawatt-hours at the facility's meter: hours x rated watts x share drawn x PUE.

    Rated watts are the device's power limit times the whole system's ratio to it.  None where one
    of ``ENERGY_FIELDS`` is unknown.
    """
    watts = _product(cluster, ENERGY_FIELDS)
    if watts is None:
        return None
    return np.asarray(device_hours * watts * draw(RATED_SHARE, "rated_share") / 1e6)


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
