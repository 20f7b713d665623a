"""Closed forms of pipeline schedules against event-by-event simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.cost.stages import fill_factor, in_flight, joined_ends, weight_copies
from krzem.layout.layout import SCHEDULES, Schedule

F, B = 1.0, 2.0


def orders(p: int, m: int, v: int) -> list[list[tuple[str, int, int]]]:
    """Each rank's work in Megatron's order: (kind, micro-batch, chunk)."""
    found = []
    for rank in range(p):
        total = m * v

        def chunked(i: int, forward: bool) -> tuple[int, int]:
            group, within = divmod(i, p * v)
            chunk = within // p
            return group * p + within % p, chunk if forward else v - 1 - chunk

        warm = (p - rank - 1) if v == 1 else 2 * (p - rank - 1) + (v - 1) * p
        warm = min(warm, total)
        work = [("F", *chunked(i, True)) for i in range(warm)]
        for i in range(total - warm):
            work += [("F", *chunked(warm + i, True)), ("B", *chunked(i, False))]
        work += [("B", *chunked(i, False)) for i in range(total - warm, total)]
        found.append(work)
    return found


def simulate(p: int, m: int, v: int) -> tuple[float, list[int]]:
    """(seconds, largest number of chunks in flight on each rank)."""
    done: dict[tuple[str, int, int], float] = {}
    queues = orders(p, m, v)
    clock, place = [0.0] * p, [0] * p
    flying, most = [0] * p, [0] * p
    while any(place[r] < len(queues[r]) for r in range(p)):
        moved = False
        for r in range(p):
            while place[r] < len(queues[r]):
                kind, micro, chunk = queues[r][place[r]]
                stage = chunk * p + r
                last = p * v - 1
                before = ("F", micro, stage - 1) if kind == "F" else ("B", micro, stage + 1)
                if kind == "B" and stage == last:
                    before = ("F", micro, last)
                if stage == 0 and kind == "F":
                    ready = 0.0
                elif before in done:
                    ready = done[before]
                else:
                    break
                clock[r] = max(clock[r], ready) + (F if kind == "F" else B) / v
                done[(kind, micro, stage)] = clock[r]
                flying[r] += 1 if kind == "F" else -1
                most[r] = max(most[r], flying[r])
                place[r] += 1
                moved = True
        assert moved, "deadlock"
    return max(clock), most


def code(schedule: Schedule) -> np.ndarray:
    return np.array([SCHEDULES.index(schedule)])


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 3))
def test_bubble_of_1f1b_and_interleaving(p: int, groups: int, v: int) -> None:
    m = p * groups
    schedule = Schedule.INTERLEAVED if v > 1 else Schedule.ONE_F_ONE_B
    factor = fill_factor(
        code(schedule), np.array([v]), np.array([F]), np.array([B]), np.array([0.5])
    )
    simulated, _ = simulate(p, m, v)
    assert simulated == pytest.approx(m * (F + B) + (p - 1) * (F + B) * float(factor[0]))


@given(st.integers(2, 6), st.integers(2, 4), st.integers(1, 3))
def test_micro_batches_in_flight(p: int, groups: int, v: int) -> None:
    m = p * groups
    schedule = Schedule.INTERLEAVED if v > 1 else Schedule.ONE_F_ONE_B
    _, most = simulate(p, m, v)
    for rank in range(p):
        held = in_flight(code(schedule), np.array([p]), np.array([v]), rank, np.array([m]))
        assert most[rank] == pytest.approx(float(held[0]) * v)


def test_zero_bubble_by_its_paper() -> None:
    """ZB-H1 leaves (p-1)(F + B_input - W), arXiv 2401.10241."""
    weight, by_input = 1.0, 1.0
    factor = fill_factor(
        code(Schedule.ZB_H1), np.array([1]), np.array([F]), np.array([by_input + weight]),
        np.array([weight]),
    )  # fmt: skip
    assert float(factor[0]) * (F + by_input + weight) == pytest.approx(F + by_input - weight)


@pytest.mark.parametrize("schedule", list(Schedule))
def test_no_schedule_idles_more_than_1f1b(schedule: Schedule) -> None:
    factor = fill_factor(
        code(schedule), np.array([2]), np.array([F]), np.array([B]), np.array([0.9])
    )
    assert 0.0 <= float(factor[0]) <= 1.0


def test_both_ends_are_carried_once() -> None:
    first, middle, last = np.array([3.0]), np.array([2.0]), np.array([7.0])
    for schedule in Schedule:
        front, back = joined_ends(code(schedule), first, middle, last)
        assert float((front + back)[0]) == pytest.approx(10.0)
    assert float(weight_copies(code(Schedule.DUALPIPE))[0]) == 2.0
