"""Which layers a pipeline stage holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import LayoutError
from krzem.layout.layout import Layout, Schedule, parse_layout, stage_ranks
from krzem.layout.stages import rank_layers
from krzem.plan.emit.megatron_run import rank_layers as planned
from krzem.train.parallel.stages import parts


@given(st.integers(1, 200), st.integers(1, 16), st.sampled_from(list(Schedule)))
def test_stages_hold_every_layer_once_and_in_order(
    layers: int, pp: int, schedule: Schedule
) -> None:
    vpp = 2 if schedule is Schedule.INTERLEAVED and pp > 1 else 1
    layout = Layout(pp=pp, vpp=vpp, schedule=schedule)
    chunks = len(stage_ranks(layout)) // pp
    if layers < 2 * pp * chunks:
        return
    found = parts(layers, layout)
    assert [i for part in found for i in part.layers] == list(range(layers))
    assert [part.first for part in found] == [i == 0 for i in range(len(found))]
    assert [part.last for part in found] == [i == len(found) - 1 for i in range(len(found))]
    assert rank_layers(layers, layout) == planned(layers, layout)


def test_v_shaped_schedules_turn_at_the_last_rank() -> None:
    layout = parse_layout("pp=3,schedule=zb-v")
    assert stage_ranks(layout) == (0, 1, 2, 2, 1, 0)
    # The last rank has one layer fewer (rank_layers), so one of its two chunks is shorter.
    assert [len(p.layers) for p in parts(11, layout)] == [2, 2, 2, 1, 2, 2]


def test_wishes_for_the_ends_are_kept() -> None:
    layout = parse_layout("pp=4,first=1,last=2")
    assert [len(p.layers) for p in parts(9, layout)] == [1, 3, 3, 2]


def test_wishes_that_do_not_add_up_say_so() -> None:
    with pytest.raises(LayoutError, match=r"5-4-4 = -3 layers"):
        parts(5, parse_layout("pp=4,first=4,last=4"))
    with pytest.raises(LayoutError, match="at least one layer"):
        parts(3, parse_layout("pp=2,vpp=2,schedule=interleaved"))


def test_prediction_modules_make_room_on_the_last_rank() -> None:
    layout = Layout(pp=16)
    assert rank_layers(61, layout, mtp=1) == (*[4] * 15, 1)
    assert rank_layers(64, layout, mtp=1) == (4,) * 16
    looped = Layout(pp=16, vpp=2, schedule=Schedule.INTERLEAVED)
    assert rank_layers(61, looped, mtp=1) == rank_layers(61, looped)
