"""A run goes on under other layouts, other numbers of ranks and on another device.

What a link of the chain loads is, bit by bit, what the one before left behind; the losses after it
are those of a run that was never interrupted, bit by bit where the arithmetic is the same, and else
within what the order of float32 sums changes.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.train.loop.folder import tokenised, write
from tests.train.parallel import resume_ranks

STEPS = 2
CHAINS = {
    "4-2-1-3 ranks": ["dp=4,ep=4,zero=3,mbs=3", "dp=2,ep=2,mbs=2", "mbs=4", "dp=3,zero=0,mbs=2"],
    "experts to tensors and back": ["dp=2,ep=2,mbs=3", "tp=2,mbs=6", "dp=2,ep=2,zero=3,mbs=2"],
    "pipeline to shards and back": ["pp=2,mbs=3", "dp=2,zero=3,mbs=3", "pp=2,schedule=zb-v,mbs=3"],
    "nothing changes": ["dp=2,ep=2,zero=3,mbs=3", "dp=2,ep=2,zero=3,mbs=3"],
}
WHOLE = {
    "one rank": ("mbs=4", 4 * STEPS),
    "never interrupted": ("dp=2,ep=2,zero=3,mbs=3", 2 * STEPS),
}
Told = list[dict[str, Any]]


def case(folder: Path, tokens: Path, chain: list[dict[str, Any]]) -> dict[str, Any]:
    """A run file in a folder of its own."""
    folder.mkdir()
    (folder / "tokens").symlink_to(tokens)
    file = write(folder, tokens=32 * 12 * 4 * STEPS, save=0)
    file.write_text(file.read_text().replace("global_batch = 8", "global_batch = 12"))
    return {"file": str(file), "chain": chain}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """All chains, in one set of four processes."""
    base = tmp_path_factory.mktemp("resume")
    tokenised(base)
    links = {n: [{"layout": x, "steps": STEPS} for x in chain] for n, chain in CHAINS.items()}
    links |= {n: [{"layout": layout, "steps": s}] for n, (layout, s) in WHOLE.items()}
    cases = [case(base / str(i), base / "tokens", x) for i, x in enumerate(links.values())]
    return dict(zip(links, resume_ranks.run(4, base, cases), strict=True))


def losses(chain: Told) -> list[float]:
    return [loss for link in chain for loss in link["losses"]]


@pytest.mark.parametrize("name", CHAINS)
def test_each_link_loads_what_the_one_before_left(told: dict[str, Told], name: str) -> None:
    chain = told[name]
    for number, (before, after) in enumerate(itertools.pairwise(chain), start=1):
        assert after["from"] == f"step-{number * STEPS:09d}"
        assert after["loaded"] == before["left"]
        assert after["left"] != after["loaded"]


@pytest.mark.parametrize("name", CHAINS)
def test_losses_are_those_of_one_rank(told: dict[str, Told], name: str) -> None:
    whole = losses(told["one rank"])
    assert whole[-1] < whole[0] - 0.1
    assert losses(told[name]) == pytest.approx(whole[: len(losses(told[name]))], abs=2e-5)


def test_the_same_arithmetic_gives_the_same_bits(told: dict[str, Told]) -> None:
    whole, parts = told["never interrupted"], told["nothing changes"]
    assert losses(parts) == losses(whole)
    assert parts[-1]["left"] == whole[-1]["left"]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="the pretend device is built with g++")
def test_to_a_pretend_device_and_back(tmp_path: Path) -> None:
    tokenised(tmp_path)
    there = [{"layout": "mbs=4", "steps": STEPS, "device": d} for d in ("cpu", "pretend", "cpu")]
    whole = [{"layout": "mbs=4", "steps": 3 * STEPS}]
    cases = [case(tmp_path / n, tmp_path / "tokens", x) for n, x in (("a", there), ("b", whole))]
    moved, stayed = resume_ranks.run(1, tmp_path, cases)
    assert [link["on"] for link in moved] == ["cpu", "pretend", "cpu"]
    for before, after in itertools.pairwise(moved):
        assert after["loaded"] == before["left"]
    assert losses(moved)[:STEPS] == losses(stayed)[:STEPS]
    assert losses(moved) == pytest.approx(losses(stayed), abs=2e-5)
