"""Reading tables that others wrote."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krzem.accuracy import table
from krzem.accuracy.command import rows_csv
from krzem.accuracy.evaluate import evaluate
from krzem.accuracy.table import read_rows
from krzem.errors import DataError
from krzem.facts.table import read_table

HEADER = list(read_table("runs.csv")[0])
cells = st.one_of(
    st.sampled_from(["", "nan", "inf", "-1", "0", "1e308", "1e-300", "8", "4096", "=1+1", "fsdp"]),
    st.integers(-(10**12), 10**20).map(str),
    st.text(max_size=20),
)


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "runs.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_order_case_bom_and_manual_do_not_matter(tmp_path: Path) -> None:
    file = written(tmp_path, b"\xef\xbb\xbf# a manual\nDevices, HIDDEN ,id\n8,4096,a\n\n")
    assert list(read_rows(file)) == [{"devices": "8", "hidden": "4096", "id": "a"}]


def test_short_long_and_broken_rows(tmp_path: Path) -> None:
    file = written(tmp_path, b'id,devices\na\nb,8,9,10\n\0\xff"c,"\n"' + b"x" * 200_000 + b'"\n')
    found = list(read_rows(file))
    assert found[0] == {"id": "a"}
    assert found[1] == {"id": "b", "devices": "8"}
    assert any("unreadable" in row for row in found)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\n\n", "# only a manual\n"])
def test_not_a_table_of_runs(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="not a table of runs"):
        evaluate(written(tmp_path, text))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "none.csv")
    with pytest.raises(DataError, match="a folder"):
        read_rows(tmp_path)


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LIMIT_BYTES", 10)
    with pytest.raises(DataError, match="split the file"):
        read_rows(written(tmp_path, "id,devices\n" + "a,8\n" * 10))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.sampled_from(HEADER), cells, max_size=30), max_size=4))
def test_any_cells_give_an_answer(rows: list[dict[str, str]]) -> None:
    report = evaluate(rows)
    document = report.as_dict()
    assert document["rows"] == len(rows)
    assert document["used"] + sum(document["skipped"].values()) == len(rows)
    assert len(rows_csv(report).splitlines()) >= len(rows) + 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1195), st.lists(st.tuples(st.sampled_from(HEADER), cells), max_size=4))
def test_any_change_to_a_real_row_gives_an_answer(
    index: int, changes: list[tuple[str, str]]
) -> None:
    row = dict(read_table("runs.csv")[index]) | dict(changes)
    report = evaluate([row])
    (found,) = report.outcomes
    assert found.reason or found.mid_s > 0
    report.as_dict()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    file = written(tmp_path, b"id,devices,hidden\n" + data)
    assert evaluate(file).as_dict()["rows"] >= 0
    file = written(tmp_path, data)
    with contextlib.suppress(DataError):
        evaluate(file)
