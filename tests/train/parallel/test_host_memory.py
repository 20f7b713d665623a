"""Gradients summed through the memory of one host."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.train.parallel.spawn import spawn

from krzem.train.parallel import host_memory


def test_ranks_sum_exactly_or_all_do_without() -> None:
    cases = [
        {"sizes": [4, 1, 7], "missing": None},
        {"sizes": [1], "missing": None},
        {"sizes": [4, 1, 7], "missing": 1},
    ]
    exact, small, without = spawn("host_ranks.py", 3, cases)
    assert exact == small == {"same": True, "memory": [True] * 3, "left": []}
    assert without["memory"] == [False] * 3


def test_memory_that_is_not_there_is_not_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert not host_memory._made(tmp_path / "part", 100)
    assert not any(tmp_path.iterdir())
