"""Tables and paragraphs never leave their columns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.report.text_table import WIDTH, bar, paragraph, printable, shortened, table

WORDS = st.text(max_size=120)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), max_size=4))
def test_tables_fit(rows: list[tuple[str, str, str]]) -> None:
    lines = table(("one", "two", "three"), [(a[:20], b[:20], c) for a, b, c in rows], "lrw")
    assert all(len(line) <= WIDTH for line in lines)
    assert all(printable(line) == line for line in lines)


def test_columns_line_up_and_long_cells_wrap_after_commas() -> None:
    layout = "tp=1,pp=16,ep=64,dp=128,mbs=1,zero=1,schedule=dualpipe,recompute=modules"
    lines = table(("", "s", "layout"), [("best", "9.5", layout), ("tie", "10", "tp=2")], "lrw", 50)
    assert lines[0] == "        s  layout"
    assert lines[1].startswith("best  9.5  tp=1,pp=16,")
    assert lines[2].startswith("           ")
    assert lines[-1] == "tie    10  tp=2"
    assert "".join(line[11:] for line in lines[1:-1]) == layout


@given(WORDS, st.sampled_from(["", "  - ", "Cluster  "]))
def test_paragraphs_fit(text: str, first: str) -> None:
    lines = paragraph(text, first)
    assert all(len(line) <= WIDTH for line in lines)
    assert lines[0].startswith(first.rstrip())


def test_paragraphs_keep_the_lines_of_a_message() -> None:
    assert paragraph("one\ntwo", "- ") == ["- one", "  two"]


@pytest.mark.parametrize(
    ("share", "drawn"), [(0, ""), (1, "████"), (0.5, "██"), (0.28, "█▏"), (7, "████"), (-1, "")]
)
def test_bars(share: float, drawn: str) -> None:
    assert bar(share, 4) == drawn


def test_control_characters_are_taken_out() -> None:
    assert printable("a\x1b[31m\nb") == "a [31m b"
    assert shortened("abcdef", 4) == "abc…"
    assert shortened("abcd", 4) == "abcd"
