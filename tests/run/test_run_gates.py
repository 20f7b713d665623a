from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.run.contract import Heartbeat, StepRecord, TrainerContract, read_heartbeats
from krzem.run.gate_settings import (
    Deadline,
    Gates,
    Memory,
    Nonfinite,
    Progress,
    Restarts,
    Spike,
    Stall,
    Straggler,
    Throughput,
)
from krzem.run.gates import (
    deadline,
    idle_deadline,
    judge_steps,
    nonfinite,
    progress,
    restarts,
    spike,
    throughput,
)
from krzem.run.health import HeartbeatJudge
from krzem.run.history import History, prove_samples
from krzem.run.rows import Attempt, Cause

RECORD = StepRecord(
    step=1, tokens=128, loss=3.0, grad_norm=1.0, seconds=0.1, tokens_per_s=1280.0, first_sample=0,
    last_sample=7, attempt=1, time=0.0,
)  # fmt: skip
ATTEMPT = Attempt(
    id=1, pool="a", token=1, launcher="local", handle=None, state="ended", from_step=0, at=0.0,
    first_step_at=None, ended_at=10.0, exit_code=1, cause=Cause.CRASH, detail="", last_step=3,
)  # fmt: skip


def steps(losses: Sequence[float], **values: float) -> list[StepRecord]:
    return [
        replace(RECORD, step=n, tokens=128 * n, loss=loss, first_sample=8 * n - 8,
                last_sample=8 * n - 1, **values)  # type: ignore[arg-type]
        for n, loss in enumerate(losses, 1)
    ]  # fmt: skip


def falling(count: int, noise: float = 0.02, seed: int = 0) -> list[float]:
    random = np.random.default_rng(seed)
    return list(3 * np.arange(1, count + 1) ** -0.1 + noise * random.standard_normal(count))


def test_throughput_waits_for_its_window_and_compares_the_median() -> None:
    gate = Throughput(below=0.6, steps=10, skip=5)
    slow = steps([3.0] * 15, tokens_per_s=500.0)
    assert throughput(gate, slow[:14], 1000.0) is None
    found = throughput(gate, slow, 1000.0)
    assert found is not None
    assert "500 tokens/s over the last 10 steps, 50% of the expected 1,000" in found.message
    assert len(found.evidence) == 10
    assert throughput(gate, slow, 800.0) is None
    assert throughput(gate, slow, None) is None, "without a plan there is nothing to compare with"
    hiccups = [replace(r, tokens_per_s=1.0) if r.step % 3 == 0 else r for r in slow]
    assert throughput(gate, hiccups, 800.0) is None, "single slow steps are no slow pool"


def test_the_deadline_asks_for_a_speed_and_is_silent_without_one() -> None:
    gate = Deadline(late=0.1, steps=10, skip=5)
    records = steps([3.0] * 15, tokens_per_s=500.0)
    found = deadline(gate, records, 10_000, 18.0)
    assert found is not None
    assert "need 20 s for the 10,000 tokens left, 18 s before the deadline" in found.message
    assert "which asks for 556 tokens/s" in found.message
    assert deadline(gate, records, 10_000, 18.2) is None, "a tenth late is accepted"
    assert deadline(gate, records, 10_000, None) is None
    assert deadline(gate, records, 0, -1.0) is None, "every token is trained"
    late = deadline(gate, records[:1], 10_000, -1.0)
    assert late is not None
    assert "the deadline passed 1 s ago, and 10,000 tokens are left" in late.message


@pytest.mark.parametrize("steps_done", [3, 5, 14])
def test_a_forecast_begins_with_the_first_steps_and_takes_the_fastest(steps_done: int) -> None:
    gate = Deadline(steps=10, skip=5)
    records = steps([3.0] * steps_done, tokens_per_s=100.0)
    assert deadline(gate, records, 10_000, 99.0) is not None
    assert deadline(gate, records, 10_000, 101.0) is None
    warm = [replace(records[-1], tokens_per_s=200.0), *records[1:]]
    assert deadline(gate, warm, 10_000, 99.0) is None, "a slow warm-up is no late run"
    assert deadline(gate, records[:2], 10_000, 1.0) is None, "two steps tell nothing"


def test_a_run_that_waits_is_judged_at_the_expected_speed() -> None:
    gate = Deadline()
    assert idle_deadline(gate, None, 1e6, 10.0) is None, "nobody knows its speed"
    assert idle_deadline(gate, 1e5, 1e6, 11.0) is None
    late = idle_deadline(gate, 1e5, 1e6, 9.0)
    assert late is not None
    assert "no step is done yet" in late.message
    assert idle_deadline(gate, None, 1e6, -1.0) is not None


@given(st.lists(st.sampled_from([Cause.CRASH, Cause.LOST, Cause.PREEMPTED]), max_size=12),
       st.sets(st.integers(0, 11)))  # fmt: skip
def test_progress_counts_faults_in_a_row_without_a_checkpoint(
    causes: list[Cause], saved: set[int]
) -> None:
    attempts = [replace(ATTEMPT, id=n, cause=cause) for n, cause in enumerate(causes)]
    row = 0
    for attempt in attempts:
        row = row + 1 if attempt.is_fault and attempt.id not in saved else 0
    found = progress(Progress(times=3), attempts, saved)
    assert (found is not None) == (row >= 3)


@given(st.integers(0, 1000))
def test_an_honest_loss_curve_is_no_spike(seed: int) -> None:
    gates = Gates(spike=Spike(window=50, recover=20))
    kept = steps(falling(150, noise=0.05, seed=seed))
    assert judge_steps(gates, kept, kept, 80, None) == []


@pytest.mark.parametrize("jump", [0.5, 2.0])
def test_a_spike_fires_only_if_it_stays(jump: float) -> None:
    gate = Spike(window=50, recover=20)
    losses = falling(120)
    stays = steps([*losses[:100], *(loss + jump for loss in losses[100:])])
    found = spike(gate, stays)
    assert found is not None
    assert found.since_step == 101
    assert "at step 101" in found.message
    back = [*losses[:100], *(loss + jump for loss in losses[100:110]), *losses[110:]]
    assert spike(gate, steps(back)) is None
    assert spike(gate, stays[:-1]) is None


def test_a_spike_is_found_also_when_many_steps_come_at_once() -> None:
    gates = Gates(spike=Spike(window=50, recover=20))
    losses = falling(130)
    kept = steps([*losses[:100], *(loss + 1 for loss in losses[100:])])
    assert judge_steps(gates, kept[:119], kept[:119], 119, None) == []
    assert judge_steps(gates, kept, kept, 30, None)[0].since_step == 101


def test_restarts_count_faults_of_one_day_only() -> None:
    gate = Restarts(per_day=2)
    old = [replace(ATTEMPT, id=n, ended_at=float(n)) for n in range(5)]
    assert restarts(gate, old, 86_400.0 + 10) is None
    assert restarts(gate, old, 100.0) is not None
    saved = [replace(a, cause=Cause.PREEMPTED) for a in old]
    full = [replace(a, cause=Cause.STORAGE) for a in old]
    assert restarts(gate, saved + full, 100.0) is None, "neither is the pool's fault"


def test_nonfinite_counts_attempts() -> None:
    bad = [replace(ATTEMPT, id=n, cause=Cause.NONFINITE, last_step=7) for n in (1, 2)]
    assert nonfinite(Nonfinite(times=2), bad[:1], []) is None
    found = nonfinite(Nonfinite(times=2), bad, [])
    assert found is not None
    assert "steps 7, 7" in found.message


def beat(
    rank: int, step: int, phase: str = "compute", work: Sequence[tuple[int, float]] = ()
) -> Heartbeat:
    return Heartbeat(
        rank=rank, attempt=1, step=step, phase=phase, host=f"n{rank}", pid=1, work=tuple(work)
    )


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_stall_names_the_ranks_that_are_behind() -> None:
    clock = Clock()
    judge = HeartbeatJudge(Gates(stall=Stall(seconds=10, factor=10, load=100)), clock)
    beats = {0: beat(0, 7, "reduce"), 1: beat(1, 7, "compute"), 2: beat(2, 7, "reduce")}
    assert judge.look(beats, step_seconds=0.1) == []
    clock.now = 9.9
    assert judge.look(beats, step_seconds=0.1) == []
    clock.now = 10.1
    (found,) = judge.look(beats, step_seconds=0.1)
    assert "furthest behind: rank 1 on n1 in 'compute'" in found.message


def test_a_long_step_and_a_long_load_are_no_stall() -> None:
    clock = Clock()
    judge = HeartbeatJudge(Gates(stall=Stall(seconds=10, factor=10, load=100)), clock)
    judge.look({0: beat(0, 7)}, step_seconds=5.0)
    clock.now = 45.0
    assert judge.look({0: beat(0, 7)}, step_seconds=5.0) == [], "ten usual steps are allowed"
    judge.look({0: beat(0, 7, "save")}, step_seconds=0.1)
    clock.now = 140.0
    assert judge.look({0: beat(0, 7, "save")}, step_seconds=0.1) == []
    clock.now = 146.0
    assert len(judge.look({0: beat(0, 7, "save")}, step_seconds=0.1)) == 1


def test_silence_in_a_queue_means_nothing_and_before_the_first_beat_little() -> None:
    clock = Clock()
    judge = HeartbeatJudge(Gates(stall=Stall(load=100)), clock)
    clock.now = 1e6
    judge.waiting()
    assert judge.look({}, step_seconds=None) == []
    clock.now += 101
    assert len(judge.look({}, step_seconds=None)) == 1


def told(work: Mapping[int, Sequence[float]], until: int, kept: int = 8) -> dict[int, Heartbeat]:
    """What the ranks' heartbeats say after step ``until``."""
    return {
        rank: beat(rank, until, work=[*enumerate(seconds[:until], 1)][-kept:])
        for rank, seconds in work.items()
    }


def first_alarm(
    judge: HeartbeatJudge, work: Mapping[int, Sequence[float]], looks: Sequence[int]
) -> str:
    found = [f for step in looks for f in judge.look(told(work, step), step_seconds=0.1)]
    return found[0].message if found else ""


@pytest.mark.parametrize("every", [1, 3, 8])
def test_a_slow_rank_is_named_however_often_the_controller_looks(every: int) -> None:
    work = {rank: [0.1] * 20 for rank in range(4)}
    work[2][7:] = [0.3] * 13
    judge = HeartbeatJudge(Gates(straggler=Straggler(ratio=2, steps=4)), Clock())
    message = first_alarm(judge, work, range(every, 21, every))
    assert "rank 2 on n2 takes 3.0 times as long as the others" in message


def test_the_evidence_is_every_ranks_median() -> None:
    work = {0: [0.1] * 8, 1: [0.5] * 8}
    judge = HeartbeatJudge(Gates(straggler=Straggler(ratio=2, steps=4)), Clock())
    (found,) = judge.look(told(work, 8), step_seconds=0.1)
    assert found.evidence == (
        {"rank": 0, "host": "n0", "own_seconds": 0.1},
        {"rank": 1, "host": "n1", "own_seconds": 0.5},
    )


@given(st.integers(0, 1000))
def test_hiccups_of_all_ranks_make_no_straggler(seed: int) -> None:
    random = np.random.default_rng(seed)
    work = {rank: list(random.uniform(0.09, 0.11, 60)) for rank in range(3)}
    for rank in work:
        for step in range(rank, 60, 3):
            work[rank][step] *= random.uniform(1, 50)
    judge = HeartbeatJudge(Gates(straggler=Straggler(ratio=1.5, steps=12)), Clock())
    assert first_alarm(judge, work, range(5, 61, 5)) == ""


def test_a_rank_that_tells_nothing_and_a_job_queued_again_are_no_straggler() -> None:
    judge = HeartbeatJudge(Gates(straggler=Straggler(ratio=2, steps=4)), Clock())
    assert first_alarm(judge, {0: [0.1] * 8, 1: []}, [4, 8]) == ""
    assert first_alarm(judge, {0: [0.1] * 8}, [4, 8]) == "", "there is nobody to compare with"
    slow = {0: [0.1] * 3, 1: [0.5] * 3}
    assert first_alarm(judge, slow, [3]) == ""
    judge.waiting()
    assert first_alarm(judge, slow, [3]) == "", "three steps twice are not four"
    assert first_alarm(judge, {r: s * 2 for r, s in slow.items()}, [6])


def test_heartbeats_carry_the_last_steps_of_own_work(tmp_path: Path) -> None:
    contract = TrainerContract(run_dir=tmp_path, attempt=3, token=1, rank=5)
    contract.beat(0, "load")
    for step in range(1, 101):
        contract.beat(step, "reduce", own_seconds=step / 1000)
    contract.beat(101, "data")
    (found,) = read_heartbeats(tmp_path, 3).values()
    assert (found.rank, found.step, found.phase) == (5, 101, "data")
    assert found.work == tuple((step, step / 1000) for step in range(37, 101))
    assert read_heartbeats(tmp_path, 4) == {}


def test_memory_fires_after_looks_in_a_row() -> None:
    judge = HeartbeatJudge(Gates(memory=Memory(above=0.9, steps=3)), Clock())
    found = [
        bool(judge.look({}, step_seconds=None, memory=m, memory_limit=100))
        for m in (95, 95, 80, 95, 95, 95, 95)
    ]
    assert found == [False, False, False, False, False, True, False]


def test_history_keeps_the_last_of_each_step() -> None:
    history = History()
    history.add(steps([3.0] * 10))
    again = [replace(r, attempt=2) for r in steps([3.0] * 12)[6:]]
    history.add(again)
    assert [r.step for r in history.kept] == list(range(1, 13))
    assert [r.step for r in history.lost] == [10, 9, 8, 7]
    assert len(history.of_attempt(2)) == 6
    assert history.of_attempt(1) == []
    assert prove_samples(history.kept).exact


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_any_order_of_restarts_leaves_one_exact_history(starts: list[int]) -> None:
    history, reached = History(), 0
    whole = steps([3.0] * 60)
    for attempt, start in enumerate(starts):
        begin = min(start, reached + 1)
        end = begin + 10
        history.add([replace(r, attempt=attempt) for r in whole[begin - 1 : end]])
        reached = end
    assert prove_samples(history.kept).exact
    assert history.kept[-1].step == reached


def test_gaps_in_the_samples_are_named() -> None:
    kept = steps([3.0] * 4)
    kept[2] = replace(kept[2], first_sample=kept[2].first_sample + 2)
    del kept[3]
    assert prove_samples(kept).gaps == ("step 3: 2 samples skipped",)
    assert "begins at step 2" in prove_samples(kept[1:]).gaps[0]
