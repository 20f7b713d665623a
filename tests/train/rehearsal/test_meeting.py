"""Faults planted into the programs of ranks are found, and named with what each rank waits for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.train.rehearsal.match import Program, find_faults
from krzem.train.rehearsal.record import Communication, Wait


def collective(operation: str = "all-reduce", *ranks: int, size: int = 64) -> Communication:
    return Communication(operation, "shard", ranks or (0, 1), size, "float32", 0, 0)


def message(kind: str, peer: int, batch: int, size: int = 64) -> Communication:
    return Communication(kind, "pipeline", (0, 1, 2, 3), size, "bfloat16", 0, 0, peer, batch)


def kinds(*programs: Program) -> list[str]:
    return [fault.kind for fault in find_faults(dict(enumerate(programs)))]


@given(st.lists(st.sampled_from(["all-reduce", "all-gather", "reduce-scatter"]), max_size=9))
def test_ranks_that_do_the_same_meet(operations: list[str]) -> None:
    program = [collective(o) for o in operations]
    assert not kinds(program, program)


@given(
    st.lists(st.sampled_from(["all-reduce", "all-gather"]), min_size=2, max_size=8),
    st.integers(0, 6),
)
def test_swapped_collectives_are_found(operations: list[str], at: int) -> None:
    at %= len(operations) - 1
    swapped = list(operations)
    swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
    found = kinds([collective(o) for o in operations], [collective(o) for o in swapped])
    assert found == ([] if swapped == operations else ["order"])


def test_other_sizes_are_found_where_ranks_must_bring_the_same() -> None:
    assert kinds([collective(size=64)], [collective(size=128)]) == ["size"]
    uneven = [collective("all-to-all", size=n) for n in (64, 128)]
    assert not kinds([uneven[0]], [uneven[1]])


def test_a_collective_that_one_rank_leaves_out_hangs() -> None:
    found = find_faults({0: [collective(), collective("all-gather")], 1: [collective()]})
    assert [f.kind for f in found] == ["deadlock"]
    assert "rank 0 waits in all-gather" in found[0].said


def test_groups_entered_in_other_orders_hang() -> None:
    a, b = collective("all-reduce", 0, 1, 2), collective("all-reduce", 0, 1)
    third: Sequence[Communication] = [a]
    assert kinds([a, b], [b, a], third) == ["deadlock"]


def test_ranks_that_both_wait_before_they_send_hang() -> None:
    def program(peer: int) -> Program:
        return [message("receive", peer, 1), Wait(1, 0), message("send", peer, 2), Wait(2, 0)]

    found = find_faults({0: program(1), 1: program(0)})
    assert [f.kind for f in found] == ["deadlock"]
    assert "rank 0 waits for receive from rank 1" in found[0].said


def test_messages_given_together_do_not_wait_for_each_other() -> None:
    def program(peer: int) -> Program:
        return [message("send", peer, 1), message("receive", peer, 1), Wait(1, 0)]

    assert not kinds(program(1), program(0))


def test_a_message_without_another_end_is_found() -> None:
    assert kinds([message("send", 1, 1)], []) == ["message"]
    assert kinds([], [message("receive", 0, 1), Wait(1, 0)]) == ["deadlock"]


def test_a_message_of_another_size_is_found() -> None:
    found = find_faults({0: [message("send", 1, 1, 64)], 1: [message("receive", 0, 1, 32)]})
    assert [f.kind for f in found] == ["size"]
    assert "64 bytes" in found[0].said
    assert "32 bytes" in found[0].said


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_ranks_that_are_not_looked_at_do_as_their_group(ranks: int) -> None:
    program = [collective("all-reduce", *range(64)), message("send", 40, 1), Wait(1, 0)]
    assert not find_faults(dict.fromkeys(range(ranks), program))
