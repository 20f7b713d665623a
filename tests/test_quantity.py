"""Quantities: what is accepted, what is refused and why, and that reading undoes writing."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import KrzemError, QuantityError
from krzem.quantity import (
    format_bytes,
    format_count,
    format_flops,
    format_length,
    format_money,
    format_power,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_count,
    parse_date,
    parse_devices,
    parse_duration,
    parse_flops,
    parse_length,
    parse_money,
    parse_power,
    parse_price,
    parse_rate,
    parse_ratio,
)

READERS: dict[str, Callable[[str], object]] = {
    "count": parse_count,
    "length": parse_length,
    "devices": parse_devices,
    "bytes": parse_bytes,
    "rate": parse_rate,
    "flops": parse_flops,
    "duration": parse_duration,
    "money": parse_money,
    "price": parse_price,
    "power": parse_power,
    "ratio": parse_ratio,
    "date": parse_date,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("14.8T", 14_800_000_000_000),
        ("14.8 t", 14_800_000_000_000),
        ("300B", 300_000_000_000),
        ("300G", 300_000_000_000),
        ("4k", 4000),
        ("1e12", 10**12),
        ("1E+3", 1000),
        ("131072", 131072),
        ("131,072", 131072),
        ("1_024", 1024),
        (".5k", 500),
        ("+3", 3),
        (1e12, 10**12),
        (7, 7),
    ],
)
def test_counts(text: str, value: int) -> None:
    assert parse_count(text) == value


def test_k_is_1000_for_tokens_and_1024_for_sequences_and_clusters() -> None:
    assert parse_count("4k") == 4000
    assert parse_length("4k") == parse_length("4K") == 4096
    assert parse_length("1M") == 1_048_576
    assert parse_devices("2k") == 2048


@pytest.mark.parametrize(
    ("reader", "text", "value"),
    [
        (parse_bytes, "80GB", 80e9),
        (parse_bytes, "141 GiB", 141 * 2**30),
        (parse_bytes, "80gB", 80e9),
        (parse_bytes, "1.5 TiB", 1.5 * 2**40),
        (parse_rate, "400 GB/s", 400e9),
        (parse_rate, "400 Gbit/s", 50e9),
        (parse_rate, "200Gbps", 25e9),
        (parse_rate, "200gbps", 25e9),
        (parse_rate, "400Gb/s", 50e9),
        (parse_rate, "400GBps", 400e9),
        (parse_rate, "3.35 TB/s", 3.35e12),
        (parse_flops, "989.4 TFLOP/s", 989.4e12),
        (parse_flops, "1.2PFLOPS", 1.2e15),
        (parse_duration, "30s", 30),
        (parse_duration, "90 min", 5400),
        (parse_duration, "3h", 10800),
        (parse_duration, "2d", 172800),
        (parse_duration, "1h30m", 5400),
        (parse_duration, "2d 3h", 183600),
        (parse_duration, "5us", 5e-6),
        (parse_duration, "0s", 0),
        (parse_money, "$2.50", 2.5),
        (parse_money, "2.5 USD", 2.5),
        (parse_money, "$4M", 4e6),
        (parse_money, "5.6M USD", 5.6e6),
        (parse_price, "$2/h", 2),
        (parse_price, "2.5 USD/h", 2.5),
        (parse_price, "$2/GPU-hour", 2),
        (parse_power, "700W", 700),
        (parse_power, "1.2 kW", 1200),
        (parse_power, "20MW", 20e6),
        (parse_ratio, "2:1", 2),
        (parse_ratio, "90%", 0.9),
        (parse_ratio, 1.25, 1.25),
    ],
)
def test_units(reader: Callable[[object], float], text: object, value: float) -> None:
    assert reader(text) == pytest.approx(value, rel=1e-15)


def test_dates() -> None:
    assert parse_date("2026-11-23") == dt.date(2026, 11, 23)
    assert parse_date("2026-11") == dt.date(2026, 11, 1)
    assert parse_date(dt.datetime(2026, 11, 23, 5)) == dt.date(2026, 11, 23)
    with pytest.raises(QuantityError, match="no such day"):
        parse_date("2026-02-30")
    with pytest.raises(QuantityError, match="year-month-day"):
        parse_date("23.11.2026")


@pytest.mark.parametrize(
    ("reader", "text", "fault"),
    [
        (parse_count, "", "empty"),
        (parse_count, "   ", "empty"),
        (parse_count, "nan", "finite"),
        (parse_count, "-inf", "finite"),
        (parse_count, float("nan"), "finite"),
        (parse_count, float("inf"), "finite"),
        (parse_count, "-3", "negative"),
        (parse_count, -3, "negative"),
        (parse_count, "0", "zero"),
        (parse_count, "2.5", "whole"),
        (parse_count, "1e31", "1e30"),
        (parse_count, "9e999", "1e30"),
        (parse_count, "1e9999999", "out of range"),
        (parse_count, "14,8T", "not a number"),
        (parse_count, "1 2", "more than one"),
        (parse_count, "3 GB", "not a unit"),
        (parse_count, "9" * 70, "longer"),
        (parse_count, True, "not a number"),
        (parse_count, None, "not a number"),
        (parse_count, [1], "not a number"),
        (parse_length, "4G", "not a unit"),
        (parse_bytes, "80", "unit is missing"),
        (parse_bytes, 80, "unit is missing"),
        (parse_bytes, "80 W", "not a unit"),
        (parse_bytes, "1GB 1MB", "more than one"),
        (parse_rate, "400", "unit is missing"),
        (parse_rate, "400 GB", "not a unit"),
        (parse_rate, "0 GB/s", "zero"),
        (parse_duration, "3 months", "not a unit"),
        (parse_duration, "-1h", "negative"),
        (parse_duration, "1h-30m", "not a unit"),
        (parse_money, "5€", "not a unit"),
        (parse_money, "$$5", "not a number"),
        (parse_price, "$2", "unit is missing"),
        (parse_power, "700", "unit is missing"),
        (parse_ratio, "1:0", "zero"),
        (parse_ratio, "1:2:3", "more than one"),
    ],
)
def test_refusals_say_what_is_wrong_and_show_how(
    reader: Callable[[object], float], text: object, fault: str
) -> None:
    with pytest.raises(QuantityError, match=fault) as caught:
        reader(text)
    assert "Write it like" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_number_too_long_to_print_is_refused_without_printing_it() -> None:
    with pytest.raises(QuantityError, match="1e30"):
        parse_count(10**5000)


@given(st.sampled_from(sorted(READERS)), st.text(max_size=80))
def test_any_text_is_a_quantity_or_a_clear_error(kind: str, text: str) -> None:
    try:
        value = READERS[kind](text)
    except KrzemError:
        return
    assert isinstance(value, dt.date) or 0 <= value <= 1e30  # type: ignore[operator]


NUMBERISH = st.text(alphabet="0123456789.,_eE+-kMGTPBbits/hdW$%: iUSD", max_size=20)


@given(st.sampled_from(sorted(READERS)), NUMBERISH)
def test_text_that_looks_like_a_quantity_is_one_or_a_clear_error(kind: str, text: str) -> None:
    try:
        value = READERS[kind](text)
    except KrzemError:
        return
    assert isinstance(value, dt.date) or math.isfinite(value)  # type: ignore[arg-type]


@given(st.integers(1, 10**30))
def test_whole_numbers_are_read_exactly(value: int) -> None:
    assert parse_count(str(value)) == value
    assert parse_count(f"{value:_}"[:64]) == value


@given(st.integers(1, 10**9), st.sampled_from([("k", 3), ("M", 6), ("B", 9), ("T", 12), ("P", 15)]))
def test_suffixes_scale_exactly(value: int, suffix: tuple[str, int]) -> None:
    name, power = suffix
    assert parse_count(f"{value}{name}") == value * 10**power


@given(st.integers(1, 2**40))
def test_lengths_survive_the_round_trip_exactly(value: int) -> None:
    assert parse_length(format_length(value)) == value


POSITIVE = st.floats(1e-3, 1e18)


@pytest.mark.parametrize(
    ("write", "read", "least"),
    [
        (format_bytes, parse_bytes, 1.0),
        (format_rate, parse_rate, 1.0),
        (format_flops, parse_flops, 1.0),
        (format_power, parse_power, 1e-3),
        (format_money, parse_money, 1e-3),
        (format_seconds, parse_duration, 1e-9),
    ],
)
@given(value=POSITIVE)
def test_written_quantities_read_back(
    write: Callable[[float], str], read: Callable[[str], float], least: float, value: float
) -> None:
    amount = max(value, least)
    assert read(write(amount)) == pytest.approx(amount, rel=5.1e-4)


@given(st.integers(1, 10**18))
def test_written_counts_read_back(value: int) -> None:
    text = format_count(value)
    assert parse_count(text) == pytest.approx(value, rel=5.1e-4)
    assert len(text) <= 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_count(14.8e12), "14.8T"),
        (format_count(999_999), "1M"),
        (format_count(2048), "2.048k"),
        (format_count(12), "12"),
        (format_length(4096), "4k"),
        (format_length(131072), "128k"),
        (format_length(5000), "5000"),
        (format_bytes(85899345920), "80 GiB"),
        (format_bytes(512), "512 B"),
        (format_bytes(2**30, 3), "1 GiB"),
        (format_rate(200e9), "200 GB/s"),
        (format_flops(989.4e12), "989.4 TFLOP/s"),
        (format_seconds(5400), "1.5 h"),
        (format_seconds(0.0123), "12.3 ms"),
        (format_seconds(0), "0 s"),
        (format_seconds(54.32 * 86400), "54.32 d"),
        (format_money(5_576_000), "$5.576M"),
        (format_power(1200), "1.2 kW"),
    ],
)
def test_tables_show(text: str, expected: str) -> None:
    assert text == expected
