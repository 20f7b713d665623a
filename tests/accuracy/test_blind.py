"""Rows kept for judging alone: no calibration reads them or their sources."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from krzem.accuracy import memory_fit
from krzem.accuracy.calibrate import TABLES
from krzem.accuracy.scoreboard import KIN, blind_rows
from krzem.facts.table import read_table

BLIND = "runs_blind.csv"


def page_of(row: Mapping[str, str]) -> str:
    """What tells one source from another: owner and repository with the page below it."""
    return row["url_or_repo"].split("/blob/")[0].rstrip("/").lower()


def test_no_calibration_reads_them() -> None:
    assert BLIND not in TABLES
    assert BLIND not in memory_fit.TABLES


@pytest.mark.parametrize("table", TABLES)
def test_their_pages_are_cited_by_no_table_that_is_fitted(table: str) -> None:
    blind = {page_of(row) for row in read_table(BLIND)}
    assert not blind & {page_of(row) for row in read_table(table)}


def test_every_one_quotes_its_source_and_is_predicted() -> None:
    rows = list(read_table(BLIND))
    assert all(row["organisation"] and row["url_or_repo"].startswith("https://") for row in rows)
    assert all(row["notes"].strip() for row in rows)
    assert len({row["id"] for row in rows}) == len(rows) == len(blind_rows())


def test_an_organisation_with_fitted_rows_is_told_from_the_strangers() -> None:
    fitted = {row["organisation"] for table in TABLES for row in read_table(table)}
    blind = {row["organisation"] for row in read_table(BLIND)}
    assert blind & fitted <= set(KIN) <= blind
    assert set(KIN.values()) <= fitted
