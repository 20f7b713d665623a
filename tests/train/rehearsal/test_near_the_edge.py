"""Layouts near the device's memory are rehearsed before they are believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.train.loop.folder import tokenised, write

from krzem.errors import LayoutError
from krzem.hardware import read_cluster
from krzem.layout.layout import Layout
from krzem.train.command import planning, rehearsing, train_command
from krzem.train.command.planning import forecast
from krzem.train.config import model_spec
from krzem.train.describe import describe
from krzem.train.settings import read_settings

ROOM = read_cluster("h100:4").memory_bytes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where every layout counts as near."""
    tokenised(tmp_path)
    monkeypatch.setattr(planning, "_NEAR", (0.0, 1e9))
    return tmp_path


def rehearsed(monkeypatch: pytest.MonkeyPatch, *peaks: float) -> list[Layout]:
    """The layouts that are rehearsed; the answers are ``peaks`` in turn, then the last of them."""
    asked: list[Layout] = []

    def peak(_: Any, __: Any, layout: Layout) -> float:
        asked.append(layout)
        return peaks[min(len(asked), len(peaks)) - 1]

    for module in (planning, rehearsing):
        monkeypatch.setattr(module, "rehearsed_peak", peak)
    return asked


def test_the_planner_goes_on_to_a_layout_that_fits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = rehearsed(monkeypatch, 1.01 * ROOM, 0.5 * ROOM)
    told = describe(write(folder, layout="auto", top='cluster = "h100:4"'), forecast)
    assert len(asked) == 2
    assert told.forecast is not None
    assert told.forecast.layout == asked[1] != asked[0]


def test_tensors_alone_do_not_make_it_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver, buffers of collectives and fragmentation want their share."""
    asked = rehearsed(monkeypatch, 0.995 * ROOM, 0.5 * ROOM)
    describe(write(folder, layout="auto", top='cluster = "h100:4"'), forecast)
    assert len(asked) == 2
    assert planning.needed(0.995 * ROOM) > ROOM > 0.995 * ROOM


def test_where_none_fits_that_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = rehearsed(monkeypatch, 2.0 * ROOM)
    run = write(folder, layout="auto", top='cluster = "h100:4"')
    settings, config = read_settings(run), json.loads((folder / "config.json").read_text())
    spec = model_spec(config, name="llama")
    with pytest.raises(LayoutError, match=r"none of the \d+ best layouts on 4 x nvidia-h100"):
        forecast(settings, spec, None, 4)
    assert len(asked) > 1


@pytest.mark.parametrize(("peak", "said"), [(0.5, "it fits"), (1.1, "it does not fit")])
def test_a_dry_run_says_what_was_rehearsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, peak: float, said: str
) -> None:
    rehearsed(monkeypatch, peak * ROOM)
    run = write(folder, layout="mbs=1", top='cluster = "h100:1"')
    found = CliRunner().invoke(train_command, [str(run), "--dry-run"])
    assert found.exit_code == 0, found.output
    assert said in next(x for x in found.stdout.splitlines() if x.startswith("rehearsed"))
    document = json.loads(
        CliRunner().invoke(train_command, [str(run), "--dry-run", "--json"]).stdout
    )
    assert document["rehearsed_bytes"] == peak * ROOM
