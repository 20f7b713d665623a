"""Where the answer goes: closed, full and narrow outputs end in one sentence or in silence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = f"{sys.executable} -c 'from krzem.cli.main import main; main()'"
ASK = "devices h800"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", line], capture_output=True, encoding="utf-8", timeout=60,
                          env=os.environ | environment)  # fmt: skip


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_a_closed_stream_is_no_error(closed: str) -> None:
    said = shell(f"{PROGRAM} {ASK} {closed}")
    assert (said.returncode, said.stderr) == (0, "")


def test_a_closed_error_output_keeps_the_exit_code() -> None:
    assert shell(f"{PROGRAM} devices nobody 2>&-").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_a_full_disk_is_one_sentence() -> None:
    said = shell(f"{PROGRAM} {ASK} --json > /dev/full")
    assert said.returncode == 3
    assert said.stderr.startswith("krzem: error: standard output cannot be written")
    assert said.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    said = shell(f"{PROGRAM} devices --json | head -c 1")
    assert (said.stdout, said.stderr) == ("{", "")


@pytest.mark.parametrize("environment", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
                                         {"PYTHONIOENCODING": "ascii"}, {"COLUMNS": "40"},
                                         {"COLUMNS": "x"}, {"NO_COLOR": "1"}])  # fmt: skip
def test_plain_terminals_get_plain_text(environment: dict[str, str]) -> None:
    said = shell(f"{PROGRAM} {ASK}", **environment)
    assert (said.returncode, said.stderr) == (0, "")
    assert "\x1b" not in said.stdout
    assert all(len(line) <= 100 for line in said.stdout.splitlines())
