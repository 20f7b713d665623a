"""The search: nothing better is left out, and the invariants of any sane planner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from krzem.cost.coefficients import between
from krzem.errors import ClusterError, GoalError, LayoutError
from krzem.hardware import read_cluster
from krzem.layout.layout import Layout, Precision, join, pack
from krzem.layout.space import Space, layouts
from krzem.model import load_model
from krzem.plan.goal import Goal
from krzem.plan.plan import explain, plan
from krzem.plan.price import Pricer, Task, engine_for
from krzem.plan.search import LOOKED_AT, RIVALS, SURE, front, picked, search


def task(model: str = "llama-3.1-8b", cluster: str = "h100:16", batch: int = 64) -> Task:
    built = read_cluster(cluster)
    return Task(
        architecture=load_model(model),
        cluster=built,
        goal=Goal(tokens=1e12, sequence=8192, global_batch=batch, precision=Precision.BF16),
        engine=engine_for(built).name,
        year=2026.0,
    )


@pytest.fixture(scope="module")
def small() -> Pricer:
    return Pricer(task())


def test_search_finds_the_minimum_of_brute_force(small: Pricer) -> None:
    everything = join(list(layouts(small.task.problem, small.task.space)))
    everything = everything.take(small.allowed(everything))
    fits = small.fits(small.memory(everything))
    seconds = np.where(fits >= SURE, small.step(everything).total, np.inf)
    found = search(small)
    assert found.evaluated == len(everything)
    assert found.seconds[found.best()[0]] == pytest.approx(seconds.min(), rel=1e-12)


def test_the_best_of_many_predictions_is_expected_slower_than_predicted(small: Pricer) -> None:
    """Nothing is picked among one; among equals it is the least of as many errors."""
    found = search(small)
    best = found.best()
    alone = picked(small.task, found, best[:1])
    among_all = picked(small.task, found, best)
    equal = picked(small.task, replace(found, seconds=np.ones_like(found.seconds)), best)
    assert alone == pytest.approx(1.0, abs=0.01)
    assert alone < among_all < equal
    rivals = len(found.distinct(best[:LOOKED_AT], RIVALS))
    noise = np.random.default_rng(1).normal(size=(4000, rivals)) * between(experts=False)
    assert equal == pytest.approx(np.exp(-np.mean(noise.min(axis=1))), rel=0.02)
    answer = plan(small.task, alternatives=0)
    assert answer.picked == pytest.approx(among_all)
    assert any("errs on the fast side" in note for note in answer.notes)


def test_front_is_not_dominated(small: Pricer) -> None:
    found = search(small)
    index = front(found.seconds, found.peak_bytes)
    for i in index:
        better = (found.seconds < found.seconds[i]) & (found.peak_bytes <= found.peak_bytes[i])
        assert not better.any()


def test_one_layout_is_priced_as_in_the_search(small: Pricer) -> None:
    found = search(small)
    layout = found.layouts.at(7)
    assert small.step(pack([layout])).total[0] == pytest.approx(found.seconds[7], rel=1e-12)


def test_more_memory_never_makes_a_layout_unfit(small: Pricer) -> None:
    found = search(small)
    memory = small.memory(found.layouts)
    assert (small.fits(memory, 2**37) >= small.fits(memory, 2**36) - 1e-12).all()


@pytest.mark.parametrize("rate", ["up_bytes_per_s", "out_bytes_per_s", "memory_bytes_per_s",
                                  "matmul_flops", "attention_flops"])  # fmt: skip
def test_faster_parts_never_slow_a_step(rate: str) -> None:
    pricer = Pricer(task("deepseek-v3", "h800:256", 256))
    x = join(list(layouts(pricer.task.problem, Space(max_micro_batch=1))))
    x = x.take(slice(None, None, 97))
    before = pricer.step(x).total
    after = pricer.scaled(**{rate: 1.5}).step(x).total
    assert (after <= before * (1 + 1e-9)).all()


def test_terms_add_up_to_the_step() -> None:
    explained = explain(task(), Layout(tp=2, dp=8))
    assert sum(explained.plan.terms.values()) == pytest.approx(explained.plan.step_seconds.mid)
    assert all(value >= 0 for value in explained.plan.terms.values())


def test_plan_answers() -> None:
    answer = plan(task())
    assert answer.best.fits_probability >= SURE
    assert answer.best.step_seconds.low < answer.best.step_seconds.mid
    assert answer.ties >= 1
    assert answer.gains[0].resource == answer.wall
    assert answer.whole_run.days is not None
    times = [p.step_seconds.mid for p in answer.alternatives]
    assert times == sorted(times)
    assert answer.best.step_seconds.mid <= times[0]


def test_a_plan_is_no_worse_than_a_given_layout() -> None:
    given = explain(task(), Layout(tp=2, dp=8, zero=1))
    answer = plan(task())
    if given.plan.fits_probability >= SURE:
        assert answer.best.step_seconds.mid <= given.plan.step_seconds.mid * (1 + 1e-9)


def test_too_small_a_cluster_says_by_how_much() -> None:
    with pytest.raises(ClusterError, match=r"needs [\d.]+ GiB per device and [\d.]+ GiB are there"):
        plan(task("deepseek-v3", "h100:8", 8))


def test_a_batch_no_layout_divides() -> None:
    with pytest.raises(GoalError, match="must divide"):
        plan(task("llama-3.1-8b", "h100:37", 7))


def test_an_illegal_layout_is_refused() -> None:
    with pytest.raises(LayoutError, match="is not legal"):
        explain(task(), Layout(tp=3, dp=5))


def test_offload_needs_less_memory(small: Pricer) -> None:
    x = pack([Layout(tp=2, dp=8), replace(Layout(tp=2, dp=8), offload_optimizer=True)])
    peak = small.memory(x).peak
    assert peak[1] < peak[0]
