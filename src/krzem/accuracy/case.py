"""One published measurement, read as a case that the cost model can be asked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from krzem.errors import InputError, UnknownNameError
from krzem.hardware.catalogue import Device, device_ids, find_id, load_device
from krzem.layout.layout import Layout, Precision, StateBytes
from krzem.model.architecture import Architecture


class UnusableRowError(Exception):
    """A row that cannot be asked; the text is the reason, the same for rows alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row of a table of runs, as far as prediction needs it."""

    id: str
    source: str
    organisation: str = "?"
    """Who ran it, or whose code it was; sister repositories and their submitters are one."""
    by_maker: bool = False
    """Whether the chip's maker published it."""
    family: str
    date: float
    """Year with fraction."""
    architecture: Architecture
    sequence: int
    device: Device
    devices: int
    devices_per_node: int | None
    layout: Layout
    global_batch: float
    precision: Precision
    engine: str
    """The engine that ran, by its usual name; ``guesses`` say where the row does not name it."""
    named_engine: str = ""
    """The engine as the row names it; empty where it names none."""
    engine_version: str = ""
    switches: Mapping[str, str] = field(default_factory=dict)
    """What the row states, by switch: ``dispatcher``, ``cuda-graphs``, …"""
    finetune: str = ""
    """``none``, ``full``, ``lora``, ``qlora``; empty where the row does not say."""
    lora_rank: int | None = None
    trained_ends: bool = False
    """Whether embedding and output matrix are trained beside adapters."""
    optimizer: str = ""
    states: StateBytes | None = None
    """Bytes per parameter, as stated; None where the row does not say."""
    step_in_backward: bool = False
    """Whether the optimizer steps inside the backward pass."""
    offload: bool = False
    """Whether optimizer states wait in host memory."""
    ran: bool = True
    """False where the row says that it ran out of memory."""
    recompute_known: bool
    alternatives: tuple[tuple[Layout, float], ...] = ()
    """Other layouts in which it may have run, and how likely each of them is."""
    recompute_modules: tuple[str, ...] = ()
    """Modules that the row says are recomputed, by the engine's names."""
    seconds: float | None
    """Measured seconds per step (converted from whatever the row publishes)."""
    network_bytes_per_s: float | None = None
    """Network per device and direction, where the row says more than the catalogue."""
    measured_by: str
    """The column that ``seconds`` comes from."""
    peak_memory_bytes: float | None
    memory_kind: str
    """What the memory figure counts: ``allocated`` (tensors), ``reserved`` or ``shown``."""
    guesses: tuple[str, ...] = field(default=())
    """What the row does not say and was assumed."""
    unknown: tuple[str, ...] = field(default=())
    """What else it leaves open that its price depends on: switches by name, ``engine``, …"""


# Cells of a published table, as people write them
# ------------------------------------------------

Row = Mapping[str, str]

_NUMBER = re.compile(
    r"[~≈<>≥≤+$\s]*(\d{1,3}(?:[\s,'_]\d{3})+(?:\.\d+)?(?!\d)|\d+(?:[.,]\d+)?)(e[-+]?\d+)?\s*(.*)"
)
_RANGE = re.compile(r"\s*([\d.]+)\s*(?:-|–|—|to)\s*([\d.]+)\s*(\D*)")
_TIMES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_LARGEST = 1e18


def number(row: Row, name: str) -> float | None:
    """A positive finite number, or None where the cell is empty, zero or not a number.

    Thousands may be separated, a unit or remark may follow (``1,024 (8 nodes)``, ``41.2 %``), a
    range counts as its middle.  ``k``, ``M``, ``B`` and ``T`` multiply; sequence lengths are in
    units of 1,024, parameters in billions, steps in ``ms`` are read as such.
    """
    cell = (row.get(name) or "").strip()
    if not cell:
        return None
    value = _plain(cell)
    if value is None:
        value = _written(cell.lower(), name)
    if value is None or not math.isfinite(value):
        return None
    return value if 0 < value < _LARGEST else None


def _plain(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _written(cell: str, name: str) -> float | None:
    """A number with separators, unit, remark or as a range."""
    if between := _RANGE.fullmatch(cell):
        low, high = _plain(between.group(1)), _plain(between.group(2))
        if low is not None and high is not None and low <= high <= 2.0 * low:
            return 0.5 * (low + high) * _factor(between.group(3), name)
    found = _NUMBER.match(cell)
    if found is None:
        return None
    value = _plain(_separators(found.group(1)) + (found.group(2) or ""))
    return None if value is None else value * _factor(found.group(3), name)


def _separators(digits: str) -> str:
    """``1,024`` and ``1 024`` are thousands, ``12,5`` is a decimal comma."""
    thousands = re.fullmatch(r"\d{1,3}(?:[\s,'_]\d{3})+(?:\.\d+)?", digits)
    return re.sub(r"[\s,'_]", "", digits) if thousands else digits.replace(",", ".")


def _factor(rest: str, name: str) -> float:
    """What the unit after a number multiplies it by."""
    unit = re.match(r"[a-z]+(?![a-z0-9])", rest)
    word = unit.group() if unit else ""
    if name.startswith(("params", "active")):
        return {"m": 1e-3, "t": 1e3}.get(word, 1.0)
    if name == "seq_len":
        return {"k": 1024.0, "m": 1024.0**2}.get(word, 1.0)
    if name == "metric_step_time_s":
        return {"ms": 1e-3, "min": 60.0, "minutes": 60.0}.get(word, 1.0)
    if name == "metric_peak_mem_gb":
        return {"mib": 1 / 1024, "mb": 1 / 1024}.get(word, 1.0)
    if name == "metric_tflops_per_device":
        return {"pflops": 1e3, "pflop": 1e3, "gflops": 1e-3}.get(word, 1.0)
    return _TIMES.get(word, 1.0)


def whole(row: Row, name: str) -> int | None:
    """The same, rounded to a whole number."""
    value = number(row, name)
    return None if value is None or value < 0.5 else round(value)


def text(row: Row, name: str) -> str:
    """A cell in lower case without surrounding space; what stands for an empty one is empty."""
    found = (row.get(name) or "").strip().lower()
    return "" if found in _EMPTY else found


_EMPTY = frozenset({"-", "–", "—", "n/a", "na", "nan", "null", "?", "unknown", "not stated", "tbd"})

# The accelerator of a row, by its id or as a source words it
# -----------------------------------------------------------

_MEANT = {
    "trillium": "v6e", "ironwood": "v7", "v6": "v6e", "v5lite": "v5e",
    "v5litepod": "v5e", "trn1": "trainium1", "trn1n": "trainium1", "trn2": "trainium2",
    "trn3": "trainium3", "trainium": "trainium1", "hl225": "gaudi2", "hl225h": "gaudi2",
    "hl325": "gaudi3", "hls2": "gaudi2", "mi250": "mi250x", "mi300": "mi300x", "mi325": "mi325x",
    "mi350": "mi350x", "mi355": "mi355x", "800ta2": "910b", "900a2": "910b", "atlasa2": "910b",
    "900a3": "910c", "800ta3": "910c", "atlasa3": "910c", "7x": "v7", "v7x": "v7",
    "cloudmatrix384": "910c", "910": "910a",
    "dgxa100": "a100", "dgxh100": "h100", "hgxh100": "h100", "rtx4090": "4090", "max1550": "1550",
}  # fmt: skip
"""What vendors and clouds call chips beside the names in the catalogue."""
_VARIANTS = ("pcie", "nvl", "sxm")
_NO_CHIP = re.compile(r"(sxm|nvl?|hbm|rtx|pro)\d*|v2|\d+w|\d{1,3}")


def device_of(row: Row) -> Device:
    """The device that a row ran on; raises UnusableRowError where it cannot be told."""
    named = [text(row, name) for name in ("accelerator_id", "accelerator")]
    if not any(named):
        raise UnusableRowError("accelerator not named, or mixed")
    found = next((i for name in named if name and (i := card(name))), None)
    if found is None:
        mixed = not named[0]
        reason = "accelerator not named, or mixed" if mixed else "accelerator not in the catalogue"
        raise UnusableRowError(reason)
    try:
        return load_device(found, number(row, "device_fraction"))
    except InputError:
        return load_device(found)


@cache
def card(name: str) -> str | None:
    """The id that a wording stands for; None where it names no chip, or two.

    >>> card("NVIDIA H100 80GB HBM3"), card("8x A100-PCIE-40GB"), card("TPU v5p")
    ('nvidia-h100-sxm', 'nvidia-a100-pcie-40', 'google-tpu-v5p')
    """
    try:
        return find_id(name)
    except UnknownNameError:
        pass
    words = _words(name)
    chips = list(dict.fromkeys(chip for word in words if (chip := _chip(word))))
    # "Ascend 910" is what all of them are called, and a GB200 holds two B200.
    chips = [c for c in chips if not any(c != d and (c in d or c == "910a") for d in chips)]
    if len(chips) != 1:
        return None
    vendor = next((word for word in words if word in _vendors()), "")
    variant = next((v for v in _VARIANTS for word in words if word.startswith(v)), "")
    memory = next((m for word in words if (m := _gib(word))), "")
    for rest in ((variant, memory), (variant,), (memory,), ()):
        try:
            return find_id("-".join(part for part in (vendor, chips[0], *rest) if part))
        except UnknownNameError:
            continue
    return None


def _words(name: str) -> list[str]:
    """Words, and neighbours joined where only together they name a chip (``gaudi 3``)."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    words = [re.sub(r"^(\d+x|tpu|ascend|nvidia|amd)(?=\w*\d)", "", word) or word for word in words]
    joined = [a + b for a, b in pairwise(words)]
    joined += [a + b + c for a, b, c in zip(words, words[1:], words[2:], strict=False)]
    whole = [both for both in joined if _chip(both)]
    return [w for w in words if not any(w in both and w != both for both in whole)] + whole


def _chip(word: str) -> str | None:
    meant = _MEANT.get(word, word)
    return meant if meant in _chips() else None


@cache
def _vendors() -> frozenset[str]:
    return frozenset(name.split("-")[0] for name in device_ids())


@cache
def _chips() -> frozenset[str]:
    """Parts of ids that name a chip: those with a digit that are no module, memory or power."""
    parts = {part for name in device_ids() for part in name.split("-")[1:]}
    return frozenset(
        p for p in parts if re.search(r"\d", p) and not _NO_CHIP.fullmatch(p) and not _gib(p)
    )


def _gib(word: str) -> str:
    """Memory as ids write it: ``80gb``, ``80g`` and ``80`` are 80."""
    found = re.fullmatch(r"(16|32|40|64|80|94|96|141|144|192)(gi?b?)?", word)
    return found.group(1) if found else ""


# When a run was made: its date, or what the age of its card says of it
# ---------------------------------------------------------------------

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DATE = re.compile(r"(?<!\d)(20[12]\d)(?:[-/._ ](1[0-2](?!\d)|0?[1-9](?!\d)))?(?!\d)")
_COMPACT = re.compile(r"(?<!\d)(20[12]\d)(0[1-9]|1[0-2])([0-3]\d)(?!\d)")
_MONTH_FIRST = re.compile(r"(?<!\d)(?:\d{1,2}[/.])?(0?[1-9]|1[0-2])[/.](20[12]\d)(?!\d)")
_NAMED = re.compile(rf"\b({'|'.join(_MONTHS)})[a-z]*\.?,?\s*(?:\d{{1,2}},?\s+)?(20[12]\d)")
_NAMED_LAST = re.compile(rf"(20[12]\d)[- ]({'|'.join(_MONTHS)})")
_QUARTER = re.compile(r"q([1-4])[\s/-]*(20[12]\d)")
IN_USE = 1.5
"""Years from the release of a card to the middle of what is published about it."""


def date_of(row: Row, device: Device) -> tuple[float, tuple[str, ...]]:
    """(year with fraction, what was assumed): ``2025-10-03`` is 2025.79, a bare year its middle."""
    cell = (row.get("date") or "").strip().lower()
    if found := _DATE.match(cell):
        return _year(int(found.group(1)), int(found.group(2) or 6)), ()
    for said in _readings(cell):
        return said, ()
    released = list(_readings(device.released))
    return (released[0] + IN_USE if released else 2024.5), ("date",)


def _year(whole: int, month: int) -> float:
    return whole + (month - 0.5) / 12


def _readings(text: str) -> Iterator[float]:
    """Dates in ``text``, the surest reading first."""
    if found := _COMPACT.search(text):
        yield _year(int(found.group(1)), int(found.group(2)))
    if found := _NAMED.search(text):
        yield _year(int(found.group(2)), _MONTHS.index(found.group(1)) + 1)
    if found := _NAMED_LAST.search(text):
        yield _year(int(found.group(1)), _MONTHS.index(found.group(2)) + 1)
    if found := _QUARTER.search(text):
        yield int(found.group(2)) + (int(found.group(1)) - 0.5) / 4
    if found := _MONTH_FIRST.search(text):
        yield _year(int(found.group(2)), int(found.group(1)))
    if found := _DATE.search(text):
        yield _year(int(found.group(1)), int(found.group(2) or 6))
