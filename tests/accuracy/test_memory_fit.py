"""Memory of published runs: read, predicted in their own sense, and judged without their makers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from krzem.accuracy import memory_fit
from krzem.accuracy.case import Row
from krzem.accuracy.evaluate import Outcome, outcomes
from krzem.accuracy.reader import read_case
from krzem.cost.coefficients import fitted
from krzem.cost.memory_error import FEATURES, memory_spread
from krzem.facts.table import read_table

OUT = {"metric_step_time_s": "", "status": "oom"}


def outcome(row: Row) -> Outcome:
    return next(iter(outcomes([row], fitted())))


def test_a_run_out_of_memory_is_a_row(llama: dict[str, str]) -> None:
    case = read_case({**llama, **OUT})
    assert not case.ran
    assert case.seconds is None
    found = outcome({**llama, **OUT})
    assert not found.reason
    assert not found.ran
    assert found.memory_measured is None


LESS = (
    {"offload": "yes"}, {"offload": "paged"}, {"step_in_backward": "yes"}, {"compile": "on"},
    {"optimizer": "adam8bit"}, {"loss": "chunked"}, {"finetune": "lora"},
    {"state_bytes": "weight=2,gradient=2,master=0,moments=4"},
)  # fmt: skip
MORE = ({"micro_batch": "4", "global_batch": "256"}, {"recompute": "none"})


@pytest.mark.parametrize(
    ("cells", "less"), [*((c, True) for c in LESS), *((c, False) for c in MORE)]
)
def test_columns_move_memory_the_right_way(
    llama: dict[str, str], cells: dict[str, str], less: bool
) -> None:
    plain = {**llama, "recompute": "none"} if less else llama
    plain["metric_peak_mem_gb"] = "50"
    before, after = (outcome(r).memory_predicted for r in (plain, {**plain, **cells}))
    assert (after < before) if less else (after > before)


def test_a_base_in_four_bits_is_smaller(llama: dict[str, str]) -> None:
    rows = [{**llama, "finetune": f, "devices": "1", "global_batch": "2", "zero_or_fsdp_stage": "0"}
            for f in ("full", "lora", "qlora")]  # fmt: skip
    full, lora, qlora = (outcome(r).memory_predicted for r in rows)
    assert full > lora > qlora


def test_b200_rows_keep_their_error() -> None:
    """Rows that publish every detail are counted byte by byte."""
    rows = [r for r in read_table("runs.csv") if r["id"].startswith("SIM-")]
    found = [o for o in outcomes(rows, fitted()) if o.memory_measured]
    size = [abs(o.memory_predicted / (o.memory_measured or 1.0) - 1.0) for o in found]
    assert len(found) >= 40
    assert np.mean(size) < 0.015


@pytest.fixture(scope="module")
def judged() -> memory_fit.Judged:
    """Peaks and runs out of memory, each organisation left out."""
    return memory_fit.judge(memory_fit.telling(memory_fit.memory_cases(memory_fit.memory_rows())))


def test_organisations_left_out_are_predicted(judged: memory_fit.Judged) -> None:
    known = memory_fit.known(judged) & np.isfinite(judged.z)
    error = np.abs(np.expm1(judged.shift - judged.data.error))[known]
    assert known.sum() > 400
    assert np.median(error) <= 0.06
    assert np.mean(error) <= 0.10
    stated = np.array([c.states is not None and "loss" in c.switches for c in judged.data.cases])
    both = np.abs(np.expm1(judged.shift - judged.data.error))[known & stated]
    assert np.median(both) <= 0.06
    assert np.mean(both) <= 0.10


def test_certainty_is_earned(judged: memory_fit.Judged) -> None:
    chance, ran = judged.chance(), judged.data.ran
    known = np.array([c.recompute_known for c in judged.data.cases])
    sure, hopeless = known & (chance > 0.95), known & (chance < 0.05)
    assert sure.sum() > 200
    assert ran[sure].mean() >= 0.94
    assert hopeless.sum() > 40
    assert ran[hopeless].mean() <= 0.10
    assert np.mean((chance - ran)[known] ** 2) <= 0.095


def test_intervals_cover_what_they_say(judged: memory_fit.Judged) -> None:
    known = memory_fit.known(judged) & np.isfinite(judged.z)
    inside = np.abs(judged.z[known]) * math.exp(0.07) <= 1.533
    assert 0.74 <= inside.mean() <= 0.88


def test_what_is_shipped_is_whole() -> None:
    spread = memory_spread()
    assert set(spread.weights) == set(FEATURES)
    assert set(spread.shifts) == set(memory_fit.SHIFTS)
    assert {"megatron-lm", "fsdp", "torchtitan", "deepspeed"} <= spread.engines


def test_the_descent_finds_the_bottom_of_a_bowl() -> None:
    bottom = np.array([1.0, -2.0, 0.5])
    found = memory_fit.descend(
        lambda x: float(((x - bottom) ** 2 * [1.0, 10.0, 3.0]).sum()), bottom * 0
    )
    assert found == pytest.approx(bottom, abs=1e-3)
