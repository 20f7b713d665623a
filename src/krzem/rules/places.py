"""Countries: a code or an English name in, a code out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from krzem.errors import UnknownNameError
from krzem.facts.table import read_table

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
