"""Layers on stages: the whole adds up, wishes are kept, the text says the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import LayoutError
from krzem.layout.layout import Layout, Schedule
from krzem.plan.emit.megatron_run import check_filled, rank_layers, stage_layers, stage_text
from krzem.plan.emit.model_shape import pattern

depths = st.integers(1, 130)
degrees = st.integers(1, 32)


def expand(text: str) -> list[str]:
    """Megatron-LM's reading of a pipeline layout, written anew from its documentation."""
    text = text.replace(",", "")
    text = re.sub(r"\(([^)]+)\)\*(\d+)", lambda hit: hit[1] * int(hit[2]), text)
    text = re.sub(r"(.)\*(\d+)", lambda hit: hit[1] * int(hit[2]), text)
    return text.split("|")


@given(layers=depths, pp=degrees, vpp=st.integers(1, 4))
def test_stages_hold_every_layer_once(layers: int, pp: int, vpp: int) -> None:
    layout = Layout(pp=pp, vpp=vpp)
    ranks, stages = rank_layers(layers, layout), stage_layers(layers, layout)
    assert sum(ranks) == sum(stages) == layers
    assert len(ranks) == pp
    assert len(stages) == pp * vpp
    assert max(ranks) - min(ranks) <= 1
    by_rank = [sum(stages[rank::pp]) for rank in range(pp)]
    assert tuple(by_rank) == ranks


@pytest.mark.parametrize(
    ("layers", "pp", "vpp"), [(126, 16, 8), (94, 32, 3), (127, 16, 8), (63, 16, 4), (30, 16, 2)]
)
def test_embedding_and_loss_may_stand_alone(layers: int, pp: int, vpp: int) -> None:
    stages = stage_layers(layers, Layout(pp=pp, vpp=vpp))
    assert set(stages[1:-1]) == {1}
    check_filled(layers, stages, "any")
    text = expand(stage_text(stages, 0))
    assert text[0] == "E" + "t" * stages[0]
    assert text[-1] == "t" * stages[-1] + "L"


@given(layers=depths, pp=st.integers(2, 32), vpp=st.integers(1, 4))
def test_no_stage_between_is_empty_or_it_is_said(layers: int, pp: int, vpp: int) -> None:
    stages = stage_layers(layers, Layout(pp=pp, vpp=vpp))
    missing = sum(count < 1 for count in stages[1:-1])
    if missing:
        with pytest.raises(LayoutError, match=f"leave {missing} of"):
            check_filled(layers, stages, "any")
    else:
        check_filled(layers, stages, "any")
    if layers >= pp * vpp - 2:
        assert not missing


@given(layers=depths, pp=degrees)
def test_v_shape_folds_the_second_chunks_back(layers: int, pp: int) -> None:
    layout = Layout(pp=pp, schedule=Schedule.ZB_V)
    stages = stage_layers(layers, layout)
    folded = [stages[rank] + stages[2 * pp - 1 - rank] for rank in range(pp)]
    assert tuple(folded) == rank_layers(layers, layout)


@pytest.mark.parametrize(
    ("layers", "pp", "first", "last", "expected"),
    [
        (61, 16, None, None, (3, *(4,) * 13, 3, 3)),
        (62, 4, None, None, (15, 16, 16, 15)),
        (61, 4, None, None, (15, 16, 15, 15)),
        (61, 4, 12, None, (12, 17, 17, 15)),
        (61, 4, 12, 13, (12, 18, 18, 13)),
        (61, 2, 40, None, (40, 21)),
        (61, 2, None, 40, (21, 40)),
        (61, 1, 5, 5, (61,)),
    ],
)
def test_wishes_for_the_ends_are_kept(
    layers: int, pp: int, first: int | None, last: int | None, expected: tuple[int, ...]
) -> None:
    layout = Layout(pp=pp, first_stage_layers=first, last_stage_layers=last)
    got = rank_layers(layers, layout)
    assert sorted(got[1:-1]) == sorted(expected[1:-1])
    assert (got[0], got[-1]) == (expected[0], expected[-1])


@pytest.mark.parametrize(("first", "last", "pp"), [(40, 40, 4), (10, 10, 2), (30, 31, 3)])
def test_wishes_that_do_not_add_up_are_refused(first: int, last: int, pp: int) -> None:
    layout = Layout(pp=pp, first_stage_layers=first, last_stage_layers=last)
    with pytest.raises(LayoutError, match=f"61 - {first} - {last} = {61 - first - last}"):
        rank_layers(61, layout)


@given(layers=depths, pp=st.integers(2, 32), vpp=st.integers(1, 4), mtp=st.integers(0, 2))
def test_text_says_the_stages(layers: int, pp: int, vpp: int, mtp: int) -> None:
    stages = stage_layers(layers, Layout(pp=pp, vpp=vpp))
    parts = expand(stage_text(stages, mtp))
    assert tuple(part.count("t") for part in parts) == stages
    assert parts[0].startswith("E")
    assert parts[-1].endswith("m" * mtp + "L")
    assert sum(part.count("E") + part.count("L") for part in parts) == 2


@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_layer_pattern_evaluates_to_the_layers(flags: list[bool]) -> None:
    assert eval(pattern(tuple(flags))) == [int(flag) for flag in flags]
