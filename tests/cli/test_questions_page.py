"""docs/questions.md is executable: every command is run, every line shown is what it prints.

Numbers may move as a calibration is renewed, words may not: a line is found in the output with its
numbers open, and each number is then held against the one shown.
"""

from __future__ import annotations

import io
import math
import re
import shlex
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "questions.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S))
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")
MOVES = 0.5
"""By how much (logarithm) a number may differ from the one shown."""


def commands(section: str) -> list[tuple[str, list[str]]]:
    """The commands of a section with the pieces of output shown below each."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", section, flags=re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, shown = part.replace("\\\n", " ").partition("\n")
            pieces = [" ".join(piece.split()) for piece in re.split(r"^…$", shown, flags=re.M)]
            found.append((command, [piece for piece in pieces if piece]))
    return found


def differences(shown: str, printed: str) -> list[str]:
    """What of a piece is not in the output: its words, or numbers that moved too far."""
    words = [re.escape(word) for word in NUMBER.split(shown)]
    pattern = rf"({NUMBER.pattern})".join(words).replace(r"\ ", r"\s+")
    numbers = NUMBER.findall(shown)
    nearest = [f"not printed: {shown}"]
    for found in re.finditer(rf"(?=(?<![\w.,]){pattern})", printed):
        pairs = zip(numbers, found.groups(), strict=True)
        moved = [f"{one} is now {other} in: {shown}" for one, other in pairs if far(one, other)]
        if not moved:
            return []
        nearest = moved
    return nearest


def far(one: str, other: str) -> bool:
    a, b = (float(text.replace(",", "")) for text in (one, other))
    return bool(a != b and (a * b <= 0 or abs(math.log(a / b)) > MOVES) and abs(a - b) > 0.05)


def test_the_page_answers_every_question_in_two_commands_at_most() -> None:
    assert len(SECTIONS) >= 20
    for title, section in SECTIONS.items():
        if "```python" not in section:
            assert 1 <= len(commands(section)) <= 2, title


@pytest.mark.parametrize("title", [t for t in SECTIONS if "```console" in SECTIONS[t]])
def test_a_question_is_answered_as_the_page_shows(
    title: str, krzem: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command, pieces in commands(SECTIONS[title]):
        verb, *arguments = shlex.split(command)
        assert verb == "krzem"
        said = krzem(*arguments)
        assert said.code == 0, said.err
        assert pieces, command
        wrong = [d for piece in pieces for d in differences(piece, " ".join(said.out.split()))]
        assert not wrong, said.out


def test_the_comparison_of_lines_can_fail() -> None:
    assert differences("MFU 44 (35–54) %", "a MFU 41 (30–50) % b") == []
    assert differences("MFU 44 %", "MFU 4 %") == ["44 is now 4 in: MFU 44 %"]
    assert differences("days 2", "hours 2") == ["not printed: days 2"]


def test_the_python_of_the_page_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "docs/questions.md", "exec"), {})
    assert printed.getvalue().startswith("Plan(llama-3.1-8b, 1T tokens on 64 nvidia-h100-sxm: ")
    assert "is cheaper than" in printed.getvalue()
