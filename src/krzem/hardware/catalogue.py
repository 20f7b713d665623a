"""The catalogue of accelerators: ids and short names in, a Device with its facts out.

A name is an id (``nvidia-h800-sxm``) or a short form: its parts, separated by hyphens, must
appear in the id in that order (``h800``, ``910c``, ``ascend-910c``, ``a100-40``).  Where several
ids hold them, those win where they come first (``v100`` is NVIDIA's, not ``iluvatar-bi-v100``);
among these the first rule that leaves one id decides:

1. nothing is left over at the end of the id (``gaudi3`` is ``intel-gaudi3``, not
   ``intel-gaudi3-hl328``);
2. only the module form is left over: sxm or oam before pcie and nvl (``h100`` is
   ``nvidia-h100-sxm``);
3. only the module form and the memory are left over: the larger memory (``a100`` is
   ``nvidia-a100-sxm-80``).

Anything else is ambiguous and refused with the candidates.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from krzem.errors import InputError, UnknownNameError, nearest
from krzem.facts.table import read_table

# An accelerator as its data sheet and as a framework sees it
# -----------------------------------------------------------


class Confidence(enum.StrEnum):
    """How far a row of the catalogue can be trusted."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One *device*: what a training framework counts as one rank's accelerator.

    Where a card holds two dies that software sees apart (MI250X, Ascend 910C, Trainium), a
    ``Device`` is one die and ``dies_per_card`` is 2: rates, memory, links and power here are
    those of the die.  Quantities nobody published are None: a plan that needs one stops and says
    so.
    """

    id: str
    """Catalogue id (``nvidia-h800-sxm``)."""
    vendor: str
    name: str
    family: str
    """Calibration family: chips that share an architecture (``nvidia-hopper``)."""
    dies_per_card: int = 1
    """Devices that software sees on one card by default."""
    fraction: float = 1.0
    """The part of a card that this device is (1.0 where whole cards were asked for)."""
    device_is: str = "card"
    """What one device is, in words (``card``, ``half a card (one of two dies)``)."""
    peak_flops: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Dense peak, FLOP/s, by arithmetic type: fp64, tf32, fp16, bf16, fp8, fp4, int8."""
    memory_bytes: float | None = None
    memory_bytes_per_s: float | None = None
    scale_up_name: str = ""
    scale_up_bytes_per_s: float | None = None
    """Per device, one direction."""
    scale_up_domain: int | None = None
    """Devices reachable over the scale-up links."""
    die_link_bytes_per_s: float | None = None
    """Between the devices of one card, per device, one direction."""
    scale_out_bytes_per_s: float | None = None
    """Network interface per device, one direction (typical node)."""
    devices_per_node: int | None = None
    power_w: float | None = None
    price_usd: float | None = None
    rental_usd_per_hour: float | None = None
    software: str = ""
    """Framework device string: cuda, hip, npu, tpu, …"""
    released: str = ""
    sources: str = ""
    confidence: Confidence = Confidence.LOW
    notes: str = ""


def domain_in_node(device: Device, per_node: int) -> int | None:
    """Devices joined by scale-up links where nodes hold ``per_node`` of them.

    The node decides, not the card: cards joined by links of their own reach as far as their node
    where the catalogue's domain is its node (four GH200 of a node are joined pair by pair, one is
    alone).  A domain larger than a node stays as it is; cards on a bus have no links to be joined.
    """
    domain = device.scale_up_domain
    if domain is None or device.devices_per_node is None or domain > device.devices_per_node:
        return domain
    if on_a_bus(device):
        return domain
    return per_node if domain == device.devices_per_node else min(domain, per_node)


def on_a_bus(device: Device) -> bool:
    """Whether its cards have no links of their own, or none that anybody names."""
    return not device.scale_up_name or device.scale_up_name.lower().startswith("pcie")


# The catalogue of accelerators: ids and short names in, a Device with its facts out
# ----------------------------------------------------------------------------------

TABLE = "accelerators.csv"

_PEAKS = {
    "fp64": "fp64_tflops", "tf32": "tf32_tflops", "fp16": "fp16_tflops", "bf16": "bf16_tflops",
    "fp8": "fp8_tflops", "fp4": "fp4_tflops", "int8": "int8_tops",
}  # fmt: skip
_MODULE = re.compile(r"(sxm\d?|oam)")
_GIB = 2.0**30
_MOST_PARTS = 16


def device_ids() -> tuple[str, ...]:
    """Every id, in the order of the table."""
    return tuple(_rows())


def device_row(name: str) -> Mapping[str, str]:
    """All cells of one card's row as text, sources and notes included.

    Raises UnknownNameError.
    """
    return _rows()[find_id(name)]


def load_device(name: str, fraction: float | None = None) -> Device:
    """The device that software sees on the card ``name`` (an id or a short form).

    ``fraction`` is the part of a card that one device is: by default one over ``dies_per_card``
    (half a card of Ascend 910C); 1.0 asks for whole cards, as some publications count them.
    Rates, memory, links, power and price are those of the part; a domain or node of n cards
    holds n / fraction devices.

    Raises UnknownNameError, and InputError where ``fraction`` is not one over a whole number.
    """
    return _device(find_id(name), fraction)


def find_id(name: str) -> str:
    """The id that ``name`` stands for, by the rules above; raises UnknownNameError."""
    return _found(name)[0]


def others_of(name: str) -> tuple[str, ...]:
    """Ids that ``name`` could have stood for beside the one taken; none where one alone fits.

    ``h20`` is the card of 141 GB, and could have been that of 96 GB.
    """
    return _found(name)[1]


@cache
def _found(name: str) -> tuple[str, tuple[str, ...]]:
    """The id taken, and the others of the same first word that the rules passed over."""
    asked = re.sub(r"[\s_/]+", "-", name.strip().lower())
    if asked in _rows():
        return asked, ()
    wanted = tuple(re.sub(r"^(\d+)gi?b$", r"\1", part) for part in asked.split("-") if part)
    ranks = {i: rank for i in _rows() if (rank := _rank(i, wanted)) is not None}
    if not ranks:
        alike = ", ".join(_alike(asked))
        offer = f"Did you mean {alike}? " if alike else ""
        raise UnknownNameError("device", name, (), f"{offer}`krzem devices` lists all of them.")
    best = min(ranks.values())
    first = [i for i, rank in ranks.items() if rank == best]
    if len(first) > 1:
        offer = ", ".join(first[:8])
        raise UnknownNameError("device", name, (), f"It may be any of {offer}: write the whole id.")
    passed = [i for i, rank in ranks.items() if i != first[0] and rank[0] == best[0]]
    return first[0], tuple(passed) if best[1] else ()


def _alike(asked: str) -> tuple[str, ...]:
    """Ids to offer for a name that none holds: compared whole and without vendor and module."""
    whole = nearest(asked, _rows())
    short = {re.sub(r"^[a-z]+-|-(sxm\d?|oam)\b.*$", "", i): i for i in reversed(device_ids())}
    parts = difflib.get_close_matches(asked[:80], short, n=4, cutoff=0.6)
    return tuple(dict.fromkeys([*(short[part] for part in parts), *whole]))[:4]


def _rank(device_id: str, wanted: tuple[str, ...]) -> tuple[int, int, float] | None:
    """How well an id fits, lower being better: where it starts, which rule, how much memory.

    None where it does not hold all parts in that order.
    """
    parts = device_id.split("-")
    if not wanted or wanted[0] not in parts:
        return None
    start = parts.index(wanted[0])
    rest = iter(parts[start:])
    left: list[str] = []
    for part in wanted:
        for have in rest:
            if have == part:
                break
            left.append(have)
        else:
            return None
    left += rest
    return start, *_rule(device_id, left)


def _rule(device_id: str, left: list[str]) -> tuple[int, float]:
    memory = _rows()[device_id]["mem_gib"]
    others = [part for part in left if not _MODULE.fullmatch(part)]
    if not left:
        return 0, 0.0
    if not others:
        return 1, 0.0
    return (2, -float(memory)) if others == [memory] else (3, 0.0)


@cache
def _rows() -> Mapping[str, Mapping[str, str]]:
    return MappingProxyType({row["id"]: row for row in read_table(TABLE)})


@cache
def _device(device_id: str, fraction: float | None) -> Device:
    row = _rows()[device_id]
    dies = int(row["dies_per_card"])
    parts = dies if fraction is None else _parts(device_id, fraction)
    part = 1.0 / parts
    return Device(
        id=device_id,
        vendor=row["vendor"],
        name=f"{row['name']} {row['variant']}".strip(),
        family=row["family"],
        dies_per_card=dies,
        fraction=part,
        device_is=_what_it_is(row, dies, parts),
        peak_flops=_peaks(row, part),
        memory_bytes=_number(row["mem_visible_gib"] or row["mem_gib"], _GIB * part),
        memory_bytes_per_s=_number(row["mem_gb_per_s"], 1e9 * part),
        scale_up_name=row["scaleup_name"],
        scale_up_bytes_per_s=_number(row["scaleup_gb_per_s"], 1e9 * part),
        scale_up_domain=_whole(row["scaleup_domain"], parts),
        die_link_bytes_per_s=_number(row["die_link_gb_per_s"], 1e9) if parts > 1 else None,
        scale_out_bytes_per_s=_number(row["scaleout_gbit_per_s"], 1e9 / 8 * part),
        devices_per_node=_whole(row["cards_per_node"], parts),
        power_w=_number(row["tdp_w"], part),
        price_usd=_number(row["price_usd"], part),
        rental_usd_per_hour=_number(row["rental_usd_per_hour"], part),
        software=row["framework_device"],
        released=row["released"],
        sources=row["sources"],
        confidence=Confidence(row["confidence"]),
        notes=row["notes"],
    )


def _parts(device_id: str, fraction: float) -> int:
    parts = round(1 / fraction) if 1 / _MOST_PARTS <= fraction <= 1 else 0
    if parts < 1 or abs(parts * fraction - 1) > 1e-6:
        raise InputError(
            f"a device of {device_id} cannot be {fraction:g} of a card: the part must be one over "
            f"a whole number up to {_MOST_PARTS} (1, 0.5, 0.25, ...)."
        )
    return parts


def _what_it_is(row: Mapping[str, str], dies: int, parts: int) -> str:
    die = row["die_is"] or "part"
    if parts == 1:
        return "card" if dies == 1 else f"whole card ({dies} x {die}, which software sees apart)"
    if parts == dies:
        return f"one {die} of {dies} on a card"
    return f"1/{parts} of a card"


def _peaks(row: Mapping[str, str], part: float) -> Mapping[str, float]:
    peaks = {kind: _number(row[column], 1e12 * part) for kind, column in _PEAKS.items()}
    return MappingProxyType({kind: peak for kind, peak in peaks.items() if peak is not None})


def _number(cell: str, factor: float) -> float | None:
    return float(cell) * factor if cell else None


def _whole(cell: str, factor: int) -> int | None:
    return int(cell) * factor if cell else None


# What kind of system a device belongs to: the classes of the tables that speak of kinds
# --------------------------------------------------------------------------------------

RACK = 16
"""Devices on scale-up links beyond which they are more than a server's."""
STACKED = 800e9
"""Bytes per second of one card from which memory of an unknown kind is taken to be stacked."""
_STACKED_KINDS = ("HBM", "HiBL", "HiZQ")


def classes_of(device: Device) -> tuple[str, ...]:
    """Classes from the most specific to ``*``: memory, country, system (pod, rack, ...)."""
    row = _row(device)
    kind, country = row.get("mem_type", ""), row.get("country", "")
    found = [f"memory:{kind}" if kind else "", f"country:{country}" if country else ""]
    return (*filter(None, found), system_class(device), "*")


def system_class(device: Device) -> str:
    """``pod``, ``rack``, ``server`` or ``card``."""
    if device.software == "tpu":
        return "pod"
    cards = (device.scale_up_domain or 0) * device.fraction
    if cards > RACK:
        return "rack"
    kind = _row(device).get("mem_type", "")
    if kind:
        return "server" if kind.startswith(_STACKED_KINDS) else "card"
    rate = device.memory_bytes_per_s or 0.0
    return "server" if rate >= STACKED * device.fraction or not rate else "card"


def _row(device: Device) -> Mapping[str, str]:
    """The catalogue's row; empty for a device that a file describes."""
    try:
        return device_row(device.id)
    except UnknownNameError:
        return {}


# Number formats that need matrix units made for them (``facts/formats.csv``)
# ---------------------------------------------------------------------------

FORMAT_TABLE = "formats.csv"


def lacks_format(device: Device, precision: str) -> bool:
    """Whether the chip's matrix units are known not to have ``precision``, a word of --precision.

    Formats without rows need nothing special; of a chip that a file describes nothing is known.
    """
    known = _having(precision)
    if not known or device.id not in device_ids():
        return False
    return not known & {device.id, device.family, device.vendor.lower()}


def having(precision: str) -> tuple[str, ...]:
    """Chips and families that have the format, in the order of the table."""
    return tuple(
        row["applies_to"] for row in read_table(FORMAT_TABLE) if row["format"] == precision
    )


@cache
def _having(precision: str) -> frozenset[str]:
    return frozenset(having(precision))
