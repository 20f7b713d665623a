"""Legality: the rules, and that the space holds legal layouts only and all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from krzem.errors import LayoutError
from krzem.layout.layout import Layout, Recompute, Schedule, join, pack
from krzem.layout.rules import RULES, Problem, check, legal
from krzem.layout.space import Space, divisors, layouts
from krzem.model import load_model

DENSE = Problem(
    architecture=load_model("llama-3.1-8b"), devices=64, sequence=8192, global_batch=128
)
SPARSE = Problem(
    architecture=load_model("deepseek-v3"), devices=256, sequence=4096, global_batch=1024
)
GOOD = Layout(tp=4, pp=2, dp=8, micro_batch=1, schedule=Schedule.ONE_F_ONE_B)
MOE = Layout(tp=1, pp=16, dp=16, ep=16, schedule=Schedule.DUALPIPE)


@pytest.mark.parametrize(
    ("problem", "layout", "rule", "says"),
    [
        (DENSE, replace(GOOD, dp=4), "devices", "4*1*2*4 = 32, but the cluster has 64"),
        (DENSE, replace(GOOD, micro_batch=3), "batch", "dp*micro_batch = 8*3 = 24"),
        (DENSE, Layout(tp=64, dp=1), "heads", "tp=64 does not divide the attention heads 32"),
        (DENSE, Layout(tp=1, pp=64, dp=1), "stages", "32 layers cannot fill"),
        (DENSE, replace(GOOD, vpp=2), "chunks", "interleaved needs vpp >= 2"),
        (
            DENSE,
            replace(GOOD, pp=4, dp=4, micro_batch=16, schedule=Schedule.DUALPIPE),
            "micro-batches",
            "2 micro-batches per step",
        ),
        (DENSE, replace(GOOD, ep=2), "experts", "the model is dense"),
        (DENSE, replace(GOOD, zero=2), "zero 2", "zero=1 or zero=3"),
        (DENSE, replace(GOOD, shard=4), "shard", "needs zero=3"),
        (DENSE, replace(GOOD, recompute_layers=4), "recompute layers", "needs recompute=full"),
        (SPARSE, replace(MOE, ep=7), "experts", "does not divide the 256 experts"),
        (SPARSE, replace(MOE, ep=32), "expert ranks", "ep*etp = 32*1 = 32 does not divide"),
        (
            SPARSE,
            Layout(tp=2, pp=16, dp=8, sequence_parallel=False),
            "expert sequence",
            "need sequence parallelism",
        ),
    ],
)
def test_a_broken_rule_shows_its_arithmetic(
    problem: Problem, layout: Layout, rule: str, says: str
) -> None:
    named = next(r for r in RULES if r.name == rule)
    assert not named.holds(problem, pack([layout])).all()
    with pytest.raises(LayoutError) as caught:
        check(problem, layout)
    assert says in str(caught.value)


def test_good_layouts_pass() -> None:
    check(DENSE, GOOD)
    check(SPARSE, MOE)
    check(DENSE, replace(GOOD, recompute=Recompute.FULL, recompute_layers=16))


@pytest.mark.parametrize("problem", [DENSE, SPARSE])
def test_the_space_is_legal_and_without_repeats(problem: Problem) -> None:
    everything = join(list(layouts(problem, Space())))
    assert legal(problem, everything).all()
    key = np.zeros(len(everything), dtype=np.int64)
    for name in everything.__slots__:
        values, codes = np.unique(getattr(everything, name), return_inverse=True)
        key = key * len(values) + codes
    assert len(np.unique(key)) == len(everything)


def test_the_space_holds_the_layouts_people_use() -> None:
    everything = join(list(layouts(SPARSE, Space())))
    names = ("tp", "pp", "dp", "ep", "schedule")
    have = set(zip(*(getattr(everything, n).tolist() for n in names), strict=True))
    wanted = pack([MOE])
    assert tuple(int(getattr(wanted, n)[0]) for n in names) in have


def test_no_batch_no_layout() -> None:
    problem = replace(DENSE, global_batch=7)
    found = list(layouts(problem, Space()))
    assert all(7 % int(b.dp[0]) == 0 for b in found)


@pytest.mark.parametrize("number", [1, 2, 12, 97, 1024, 6000])
def test_divisors(number: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]
