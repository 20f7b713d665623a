"""Sources that may not enter the fit: they are kept for judging, or measure something else."""

import re

import pytest

from krzem.accuracy.calibrate import TABLES
from krzem.facts.table import read_table

CLOSED = (
    r"training[_ ]results[_ ]v(5\.[2-9]|[6-9])",
    r"mlperf training v(5\.[2-9]|[6-9])",
)
"""Later rounds of MLPerf Training than v5.1 judge predictions and never calibrate them."""


@pytest.mark.parametrize("table", TABLES)
def test_no_row_comes_from_a_source_that_is_kept_for_judging(table: str) -> None:
    for row in read_table(table):
        said = f"{row['source']} {row['url_or_repo']}".lower()
        assert not [pattern for pattern in CLOSED if re.search(pattern, said)], row["id"]


@pytest.mark.parametrize("table", TABLES)
def test_every_row_names_who_ran_it(table: str) -> None:
    assert all(row["organisation"].strip() for row in read_table(table))


def test_logs_never_calibrate() -> None:
    for table in TABLES:
        assert not [row["id"] for row in read_table(table) if row["source"].endswith(".log")]
