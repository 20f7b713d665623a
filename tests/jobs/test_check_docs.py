"""The page of ``krzem check``: its examples run, its list of fields is whole."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krzem.jobs.job import CHOICES, FIELDS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "check.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)


def test_examples_run_in_order(
    krzem: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "docs" / "examples" / "check"):
        shutil.copytree(DOCS / "examples" / "check", folder, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    commands = 0
    for block in BLOCKS:
        for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE):
            said = krzem(*shlex.split(command)[1:], "--quiet")
            assert said.code == (2 if shown else 0), said.err
            assert shown in said.err + said.out
            commands += 1
    assert commands >= 6


def test_every_field_is_listed_with_its_choices() -> None:
    rows = dict(re.findall(r"^\| `([\w.-]+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert set(FIELDS) <= set(rows)
    for name, choices in CHOICES.items():
        assert re.findall(r"`([^`]+)`", rows[name]) == list(choices)
