"""What the rules test about a chip, with the arithmetic: TPP, density, memory and link bandwidth.

All figures are of the whole package as it is sold: both dies of an Ascend 910C count.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from krzem.errors import UnknownNameError
from krzem.facts.table import read_table
from krzem.hardware.catalogue import device_row
from krzem.rules.ruleset import RuleSet

DISAGREEMENTS = "rules_disagreements.csv"

_COLUMNS = {
    "fp64": "fp64_tflops", "tf32": "tf32_tflops", "fp16": "fp16_tflops", "bf16": "bf16_tflops",
    "fp8": "fp8_tflops", "int8": "int8_tops", "fp4": "fp4_tflops",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One package.  None is unknown."""

    id: str
    name: str
    vendor: str
    country: str
    """Where its designer sits."""
    released: str
    """Day on sale as far as it is known: ``2026``, ``2026-01`` or empty."""
    tpp: float | None
    die_area_mm2: float | None
    dram_gb_per_s: float | None
    io_gb_per_s: float | None
    """Chip-to-chip link, both directions added."""
    data_centre: bool
    arithmetic: tuple[str, ...]
    """One line for each quantity."""
    tpp_reported: float | None
    sources: str
    confidence: str

    @property
    def first_sale(self) -> tuple[float, float]:
        """The days between which it came on sale, as numbers such as 20260115."""
        digits = self.released.replace("-", "")
        if not digits:
            return 0.0, float("inf")
        known = len(digits) - len("2026")
        return float(digits + "0101"[known:]), float(digits + "1231"[known:])

    @property
    def performance_density(self) -> float | None:
        """TPP per mm2 of applicable die; None where either is unknown."""
        if self.tpp is None or self.die_area_mm2 is None:
            return None
        return self.tpp / self.die_area_mm2


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """Another figure somebody states for a chip; ``value`` is None where none is offered."""

    quantity: str
    value: float | None
    who: str
    explanation: str


def load_chip(name: str, ruleset: RuleSet) -> Chip:
    """The chip ``name`` (an id or a short form); raises UnknownNameError."""
    row = device_row(name)
    tpp, tpp_line = _tpp(row, ruleset.bit_length)
    link = _number(row["scaleup_gb_per_s"])
    area = _number(row["die_area_mm2"])
    dram = _number(row["mem_gb_per_s"])
    data_centre, why = _data_centre(row["id"], ruleset)
    return Chip(
        id=row["id"],
        name=f"{row['vendor']} {row['name']} {row['variant']}".strip(),
        vendor=row["vendor"],
        country=row["country"],
        released=row["released"],
        tpp=tpp,
        die_area_mm2=area,
        dram_gb_per_s=dram,
        io_gb_per_s=None if link is None else 2 * link,
        data_centre=data_centre,
        arithmetic=(
            tpp_line,
            _density_line(tpp, area),
            _plain("DRAM bandwidth", dram, "GB/s"),
            _link_line(link, row["scaleup_name"]),
            f"data centre: {why}",
        ),
        tpp_reported=_number(row["tpp_reported"]),
        sources=row["sources"],
        confidence=row["confidence"],
    )


def disagreements(chip_id: str) -> tuple[Disagreement, ...]:
    """Where sources disagree about this chip in a way that touches a rule."""
    return tuple(
        Disagreement(
            quantity=row["quantity"],
            value=_number(row["value"]),
            who=row["who"],
            explanation=row["explanation"],
        )
        for row in read_table(DISAGREEMENTS)
        if any(fnmatch.fnmatchcase(chip_id, pattern) for pattern in row["chips"].split())
    )


def _tpp(row: Mapping[str, str], bits: Mapping[str, int]) -> tuple[float | None, str]:
    rates = {fmt: float(row[column]) for fmt, column in _COLUMNS.items() if row[column]}
    if not rates:
        return None, "TPP: unknown, no dense peak is published"
    best = max(rates, key=lambda fmt: rates[fmt] * bits[fmt])
    tpp = rates[best] * bits[best]
    line = f"TPP = {rates[best]:,g} {_unit(best)} ({best.upper()}) x {bits[best]} bit = {tpp:,.0f}"
    others = sorted((fmt for fmt in rates if fmt != best), key=lambda fmt: -rates[fmt] * bits[fmt])
    if others:
        line += "; also " + ", ".join(f"{o.upper()} {rates[o] * bits[o]:,.0f}" for o in others)
    return tpp, line


def _unit(fmt: str) -> str:
    return "TOPS" if fmt == "int8" else "TFLOPS"


def _density_line(tpp: float | None, area: float | None) -> str:
    if area is None:
        return "performance density: unknown, no die area is published"
    if tpp is None:
        return f"performance density: unknown, TPP over a die of {area:,g} mm2"
    return f"performance density = {tpp:,.0f} / {area:,g} mm2 = {tpp / area:.2f}"


def _link_line(link: float | None, name: str) -> str:
    if link is None:
        return "I/O bandwidth: unknown, no link rate is published"
    return f"I/O bandwidth = 2 x {link:,g} GB/s ({name}) = {2 * link:,g} GB/s"


def _plain(what: str, value: float | None, unit: str) -> str:
    return f"{what}: unknown" if value is None else f"{what} = {value:,g} {unit}"


def _data_centre(chip_id: str, ruleset: RuleSet) -> tuple[bool, str]:
    for fact in ruleset.chip_facts:
        if fnmatch.fnmatchcase(chip_id, fact["id"]) and "data_centre" in fact:
            return fact[
                "data_centre"
            ], f"{'yes' if fact['data_centre'] else 'no'} ({fact['source']})"
    return True, "yes (designed or marketed for data centres, as everything else in the catalogue)"


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


# Countries: a code or an English name in, a code out
# ---------------------------------------------------

TABLE = "rules_countries.csv"

_OTHER_NAMES = {
    "uk": "GB", "united kingdom": "GB", "great britain": "GB", "usa": "US", "prc": "CN",
    "south korea": "KR", "north korea": "KP", "uae": "AE", "turkiye": "TR", "burma": "MM",
}  # fmt: skip


def find_country(text: str) -> str:
    """The ISO 3166 alpha-2 code of ``text``: ``cn``, ``CN``, ``China``.

    Raises UnknownNameError.
    """
    asked = " ".join(text.split())
    if asked.upper() in names():
        return asked.upper()
    low = asked.lower()
    if low in _OTHER_NAMES:
        return _OTHER_NAMES[low]
    by_name = {name.lower(): code for code, name in names().items()}
    if low in by_name:
        return by_name[low]
    known = [*names().values(), *names()]
    raise UnknownNameError("country", text, known, "Give an ISO code such as CN, DE or SA.")


@cache
def names() -> Mapping[str, str]:
    """Code to name, for every country and territory of the table."""
    return MappingProxyType({row["code"]: row["name"] for row in read_table(TABLE)})
