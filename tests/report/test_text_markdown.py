"""Markdown on a terminal: nothing is lost, and nothing is wider than 100 columns."""

from __future__ import annotations

import pytest

from krzem.report.text_table import fitted

NARROW = "| pool | days |\n| ---- | ---: |\n| a    |   12 |\n"


def markdown(*rows: list[str], numbers: int = 0) -> str:
    rule = ["---"] * (len(rows[0]) - numbers) + ["--:"] * numbers
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def words(text: str) -> list[str]:
    return sorted(text.replace("|", " ").replace("-", " ").replace(":", " ").split())


def test_a_narrow_table_keeps_its_lines() -> None:
    assert fitted(NARROW) == "pool  days\n----  ----\na       12\n"


@pytest.mark.parametrize("columns", [2, 5, 12])
def test_a_wide_table_fits_and_keeps_every_word(columns: int) -> None:
    rows = [[f"word{i} " * (3 + 9 * (i % 3)) for i in range(columns)] for _ in range(4)]
    text = fitted(markdown(*rows))
    assert max(map(len, text.splitlines())) <= 100
    assert words(text) == words(markdown(*rows))


def test_numbers_stay_whole_while_words_wrap() -> None:
    low = "1,234.5/2,345.6/3,456.7"
    text = fitted(markdown(["words", "low / mid / high"], ["a b c " * 40, low], numbers=1))
    assert low in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_word_without_room_is_broken_and_not_cut() -> None:
    text = fitted(markdown(["x", "y"], ["a" * 90, "b" * 90]))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("a") == text.count("b") == 90


def test_long_lines_are_filled_and_short_ones_left_alone() -> None:
    text = fitted("  kept   as it is\n- " + "word " * 40)
    first, *rest = text.splitlines()
    assert first == "  kept   as it is"
    assert len(rest) > 1
    assert all(line.startswith("  ") for line in rest[1:])
    assert max(map(len, rest)) <= 100
