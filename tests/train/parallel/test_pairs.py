"""Pairs of features train as one process does: a part of the matrix; all of it is a benchmark.

``python benchmarks/pairs.py`` runs the whole covering array (about 40 layouts of four ranks).
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.train.parallel.pairs import (
    FAMILIES,
    cases,
    covering,
    drawn,
    faults,
    is_run,
    pairs_of,
)
from tests.train.parallel.spawn import spawn

FEW = 1
"""Layouts that are trained here: the first row, which holds most pairs; the benchmark has all."""
OWN = 2
"""Families with parts of their own that are cut over ranks here."""
MET = [
    # Expert ranks without FSDP inside a layer that is computed again by modules.
    {
        "layout": "dp=4,ep=4,zero=1,mbs=1,recompute=modules",
        "mtp": 1,
        "dispatch": {"capacity": 16.0, "beside": True},
    },
    # Paths of several weights that meet behind each other where the backward pass is split.
    # Weights that are shards again between the two halves of a backward pass.
    {"layout": "dp=2,pp=2,zero=3,mbs=1,schedule=zb-v", "mtp": 2},
    {
        "layout": "dp=2,pp=2,ep=2,zero=1,mbs=1,schedule=dualpipev",
        "mtp": 2,
        "dispatch": {"capacity": 1.0, "beside": True},
    },
]
"""Pairs that crashed, or trained wrongly, once."""


def chosen() -> list[dict[str, Any]]:
    """What is trained: faults that were met, and the richest rows of a drawn part."""
    base = {"model": "deepseek_v3", "documents": True, "precision": "fp32"}
    stated = ({**base, **case} for case in (*MET, *FAMILIES[:OWN]))
    return [*stated, *cases(covering(drawn(24, seed=2))[:FEW])]


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Any]]:
    """All cases, run in one set of four processes."""
    return spawn("worker.py", 4, chosen())


@pytest.mark.parametrize("index", range(FEW + len(MET) + OWN))
def test_pairs_train_as_one_process(outcomes: list[dict[str, Any]], index: int) -> None:
    assert not faults(chosen()[index], outcomes[index])


def test_steps_beyond_a_capacity_are_taken_again(outcomes: list[dict[str, Any]]) -> None:
    met = zip(MET, outcomes, strict=False)
    assert [found["again"] for case, found in met if "dispatch" in case] == [0, 2]


def test_the_array_covers_every_pair_of_its_rows() -> None:
    rows = drawn(24, seed=2)
    array = covering(rows)
    everything = set().union(*(pairs_of(row) for row in rows))
    assert set().union(*(pairs_of(row) for row in array)) == everything
    assert len(array) < len(rows) / 3
    assert all(is_run(row) for row in array)
