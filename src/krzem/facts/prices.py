"""Published rents and prices of accelerators, per card."""

from __future__ import annotations

from functools import cache

from krzem.facts.fact import Fact
from krzem.facts.table import read_table

TABLE = "prices.csv"
RENTAL = "rental_usd_per_hour"
PURCHASE = "purchase_usd"


@cache
def price(device_id: str, what: str, market: str | None = None) -> Fact | None:
    """The range of ``what`` (RENTAL or PURCHASE) for one card; None where nobody says.

    Without a ``market`` (world, china) it is the one where that card is mostly bought, which is
    the first row of the table.
    """
    for row in read_table(TABLE):
        if (row["id"], row["what"]) == (device_id, what) and market in (None, row["market"]):
            return Fact(
                what=what,
                low=float(row["low"]),
                mid=float(row["mid"]),
                high=float(row["high"]),
                unit="USD/h" if what == RENTAL else "USD",
                source=row["source"],
                date=row["date"],
                confidence=row["confidence"],
                notes=f"{row['market']}, as part of a {row['includes']}. {row['notes']}".strip(),
            )
    return None
