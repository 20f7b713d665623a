"""The accelerator of a row, by its id or as a source words it."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise

from krzem.accuracy.case import UnusableRowError
from krzem.accuracy.cells import Row, number, text
from krzem.errors import InputError, UnknownNameError
from krzem.hardware.catalogue import Device, device_ids, find_id, load_device

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
