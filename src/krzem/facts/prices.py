"""Published rents and prices of accelerators, per card."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from krzem.facts.fact import Fact
from krzem.facts.table import read_table

TABLE = "prices.csv"
RENTAL = "rental_usd_per_hour"
PURCHASE = "purchase_usd"
TERMS = ("on_demand", "reserved", "spot", "mixed")


@cache
def price(
    device_id: str, what: str, market: str | None = None, terms: str | None = None
) -> Fact | None:
    """The range of ``what`` (RENTAL or PURCHASE) for one card; None where nobody says.

    Without a ``market`` (world, china) it is the one where that card is mostly bought, which is
    the first row of the table; ``terms`` asks for rents of one kind (TERMS).
    """
    for row in read_table(TABLE):
        asked = market in (None, row["market"]) and terms in (None, row["terms"])
        if (row["id"], row["what"]) == (device_id, what) and asked:
            return Fact(
                what=what,
                low=float(row["low"]),
                mid=float(row["mid"]),
                high=float(row["high"]),
                unit="USD/h" if what == RENTAL else "USD",
                source=row["source"],
                date=row["date"],
                confidence=row["confidence"],
                notes=_notes(row),
            )
    return None


def _notes(row: Mapping[str, str]) -> str:
    where = row["country"] if row["country"] not in ("", "CN") else row["market"]
    kind = f", {row['terms'].replace('_', ' ')}" if row["terms"] not in ("", "mixed") else ""
    return f"{where}{kind}, as part of a {row['includes']}. {row['notes']}".strip()
