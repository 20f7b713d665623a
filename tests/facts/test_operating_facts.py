"""Prices and operating ranges: rows are sound, the most specific and fitting one is found."""

from __future__ import annotations

import pytest

from krzem.facts.table import (
    ANY,
    PURCHASE,
    RENTAL,
    TERMS,
    Fact,
    manual,
    price,
    published,
    read_table,
)
from krzem.facts.table import PRICE_TABLE as PRICES
from krzem.facts.table import TABLE as OPERATIONS
from krzem.hardware.catalogue import device_ids, device_row, load_device, system_class

FAMILIES = {device_row(name)["family"] for name in device_ids()}
VENDORS = {device_row(name)["vendor"].lower() for name in device_ids()}
OPERATION_ROWS = read_table(OPERATIONS)
PRICE_ROWS = read_table(PRICES)


@pytest.mark.parametrize("row", OPERATION_ROWS, ids=lambda r: f"{r['what']}-{r['applies_to']}")
def test_operation_rows_are_sound(row: dict[str, str]) -> None:
    assert 0 < float(row["low"]) <= float(row["mid"]) <= float(row["high"])
    kinds = {f"class:{system_class(load_device(name))}" for name in device_ids()}
    assert row["applies_to"] in {ANY, *device_ids()} | FAMILIES | VENDORS | kinds
    assert (row["basis"] == "class") == row["applies_to"].startswith("class:")
    assert row["what"] in manual(OPERATIONS)
    assert row["basis"] in ("measured", "vendor", "derived", "assumed", "class")
    assert row["confidence"] in ("high", "medium", "low")
    assert row["source"]
    assert row["unit"]
    assert int(row["min_devices"]) >= 1


@pytest.mark.parametrize(
    "row",
    PRICE_ROWS,
    ids=lambda r: f"{r['id']}-{r['what']}-{r['market']}-{r['terms']}-{r['country']}",
)
def test_price_rows_are_sound(row: dict[str, str]) -> None:
    assert row["id"] in device_ids()
    assert row["what"] in (RENTAL, PURCHASE)
    assert row["market"] in ("world", "china")
    assert (row["country"] == "CN") == (row["market"] == "china")
    assert row["terms"] in (TERMS if row["what"] == RENTAL else ("",))
    assert row["includes"] in ("card", "module", "server", "rack")
    assert 0 < float(row["low"]) <= float(row["mid"]) <= float(row["high"])
    assert row["source"]
    assert row["confidence"] in ("high", "medium", "low")


def test_prices_are_near_those_of_the_catalogue() -> None:
    """Two compilations of one market: a slip of a factor of 8 (server for card) would show."""
    for row in PRICE_ROWS:
        device = load_device(row["id"], 1.0)
        listed = device.rental_usd_per_hour if row["what"] == RENTAL else device.price_usd
        if listed is not None:
            assert 1 / 3.2 < float(row["mid"]) / listed < 3.2, row["id"]


def test_rows_are_unique() -> None:
    keys = ("id", "what", "market", "terms", "country")
    prices = [tuple(row[key] for key in keys) for row in PRICE_ROWS]
    assert len(prices) == len(set(prices))
    operations = [(r["what"], r["applies_to"], r["min_devices"]) for r in OPERATION_ROWS]
    assert len(operations) == len(set(operations))


def test_the_most_specific_subject_wins() -> None:
    days = "device_days_per_interruption"
    rack = published(days, ("nvidia-gb200", "nvidia-blackwell", "nvidia"))
    board = published(days, ("nvidia-b200-sxm", "nvidia-blackwell", "nvidia"))
    assert rack is not None
    assert board is not None
    assert (rack.high, board.high) == (3000, 3679)
    assert published(days, ("amd-mi300x", "amd-cdna3", "amd")) is None


def test_the_largest_size_that_fits_wins() -> None:
    small = published("checkpoint_bytes_per_s", (), 255)
    large = published("checkpoint_bytes_per_s", (), 256)
    assert small is not None
    assert large is not None
    assert small.mid < large.mid


def test_a_market_can_be_chosen() -> None:
    world, china = (price("nvidia-h100-sxm", RENTAL, market) for market in ("world", "china"))
    assert world is not None
    assert china is not None
    assert china.mid < world.mid
    assert price("nvidia-h100-sxm", RENTAL) == world
    assert price("nvidia-b100", RENTAL) is None
    assert price("huawei-ascend-910c", RENTAL, "world") is None


def test_facts_scale_and_turn_over() -> None:
    days = Fact(what="days", low=2000, mid=2500, high=5000, unit="day", source="s")
    rate = days.inverse("rate", "1/day", 0.5)
    assert (rate.low, rate.mid, rate.high) == (0.5 / 5000, 0.5 / 2500, 0.5 / 2000)
    assert (rate.what, rate.unit, rate.source) == ("rate", "1/day", "s")
    assert days.scaled(0.5).mid == 1250
    with pytest.raises(ValueError, match="out of order"):
        Fact(what="x", low=2, mid=1, high=3, unit="", source="")


def test_rents_of_one_kind_are_ordered_as_markets_are() -> None:
    spot, reserved, on_demand = (
        price("nvidia-h100-sxm", RENTAL, terms=terms) for terms in ("spot", "reserved", "on_demand")
    )
    assert spot is not None
    assert reserved is not None
    assert on_demand is not None
    assert spot.mid < reserved.mid < on_demand.mid
    assert price("nvidia-h100-sxm", PURCHASE, terms="spot") is None
