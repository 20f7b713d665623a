"""How probable a kind of accelerator is before anything is known of the run's length.

Three things count: how often the vendor's kind of chip trained large models at all, whether the
chip was on the market when the run started, and whether the country could buy it.

Counted from Epoch AI, notable models (2026-01, CC BY): of 164 models since 2020 with at least 1e21
FLOP and named hardware, 111 were trained on NVIDIA's data-centre chips, 45 on Google's (nearly all
by Google), 2 on Trainium, 2 on Ascend, 2 on workstation or consumer cards, 1 on Cerebras.  PCIe
variants were named in 2 cases.  What these counts are too few for is a judgement and says so.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from functools import cache

from krzem.errors import KrzemError
from krzem.hardware.catalogue import device_row
from krzem.rules import verdict
from krzem.supply.periods import MONTH_DAYS

RAMP_MONTHS = 8.0
"""From its release until a chip is to be had by everybody (a judgement)."""
YOUNG = 0.25
"""Of the full weight, in the month of its release."""
KEPT_YEARS, HALVING_YEARS = 3.0, 1.0
"""Years for which a chip is as common as ever; then its weight halves each year (a judgement)."""
STOCK = 0.4
"""Of the weight, where a country could buy a chip once and no longer can: stocks remain."""
GREY = 0.08
"""Where it never could: rented abroad or smuggled."""
ELSEWHERE = 0.01
"""A Chinese vendor's chip, or one made for China, outside China."""
UNPLACED = 0.2
"""The same, where it is not known where the machines stood."""
OWN = {"google": ("google", "deepmind"), "meta": ("meta",), "microsoft": ("microsoft",),
       "aws": ("amazon", "anthropic")}  # fmt: skip
"""Laboratories that have a vendor's own chips first."""
VENDORS = {
    "nvidia": 1.0, "google": 0.05, "amd": 0.05, "aws": 0.05, "intel": 0.03, "huawei": 0.3,
    "microsoft": 0.001, "meta": 0.001,
}  # fmt: skip
"""Relative to NVIDIA, for a laboratory that is not the vendor's own."""
AT_HOME = {"google": 2.0, "aws": 0.3, "microsoft": 0.05, "meta": 0.02}
OTHERS = 0.03
SLOT_CARDS, SUPERCHIPS, DESKTOP = 0.1, 0.1, 0.01
"""Variants for a PCIe slot; GH200, which stands in supercomputers; cards for inference, for
workstations and for games."""
_SLOT = frozenset({"pcie", "nvl", "500w"})
_DESKTOP = frozenset({"rtx", "l4", "l2", "l20", "t4", "a10", "a10g", "a30", "a40", "l40", "l40s",
                      "cpx", "350", "950pr", "8i", "b4", "b3", "910b4"})  # fmt: skip
MADE_FOR_CHINA = frozenset({"a800", "h800", "h20", "4090d", "5090d", "l20", "l2", "6000d",
                            "mi308x", "hl328", "b30a"})  # fmt: skip
"""Variants below the limits of their day, sold in China and hardly elsewhere."""


@cache
def common(device: str, lab: str) -> float:
    """How often a laboratory trains on such a chip, relative to NVIDIA's data-centre chips."""
    vendor = device.split("-")[0]
    own = any(name in lab.lower() for name in OWN.get(vendor, ()))
    weight = AT_HOME[vendor] if own and vendor in AT_HOME else VENDORS.get(vendor, OTHERS)
    if vendor == "huawei" and "huawei" in lab.lower():
        weight = 10.0
    words = set(device.split("-"))
    if words & _SLOT:
        weight *= SLOT_CARDS
    if "gh200" in words:
        weight *= SUPERCHIPS
    if words & _DESKTOP:
        weight *= DESKTOP
    return weight


def released(device: str) -> dt.date:
    """The month in which it came out; the year's first month where only that is known."""
    year, _, month = str(device_row(device)["released"]).partition("-")
    return dt.date(int(year), int(month[:2] or 1) if month else 1, 1)


def on_market(device: str, months_since_release: float) -> float:
    """0 before its release, then rising, and falling again as it grows old."""
    if months_since_release < 0:
        return 0.0
    young = min(YOUNG + (1 - YOUNG) * months_since_release / RAMP_MONTHS, 1.0)
    old = max(months_since_release / 12.0 - KEPT_YEARS, 0.0)
    return float(young * 0.5 ** (old / HALVING_YEARS))


@cache
def obtainable(device: str, country: str, on: dt.date) -> float:
    """Whether buyers in ``country`` could have the chip on that day, by ``krzem rules``."""
    home = str(device_row(device)["country"])
    chinese = home == "CN" or bool(MADE_FOR_CHINA & set(device.split("-")))
    if not country:
        return UNPLACED if chinese else 1.0
    if country != "CN" and chinese:
        return ELSEWHERE
    if home == "CN":
        return 1.0
    try:
        if verdict(device, on, country).clear:
            return 1.0
        first = released(device) + dt.timedelta(days=round(6 * MONTH_DAYS))
        return STOCK if verdict(device, min(first, on), country).clear else GREY
    except KrzemError:
        return 1.0


def prior(device: str, lab: str, country: str, start: dt.date | None) -> float:
    """The whole weight; ``start`` is the day on which the run began, where it is known."""
    weight = common(device, lab)
    if start is None:
        return weight
    months = (start - released(device)).days / MONTH_DAYS
    return weight * on_market(device, months) * obtainable(device, country, start)


def engine_for(lab: str, software: str, engines: Mapping[str, str]) -> str:
    """The engine that a laboratory trains with, as far as is known: its own, else the port of the
    chip's vendor, else one that refuses nothing."""
    for name, engine in engines.items():
        if name in lab.lower():
            return engine
    return {"npu": "mindspeed-llm", "tpu": "maxtext", "neuron": "neuron", "hpu": "gaudi"}.get(
        software, "other"
    )
