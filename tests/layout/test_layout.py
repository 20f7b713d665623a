"""A layout as text and as a value."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import KrzemError, LayoutError
from krzem.layout.layout import (
    ContextParallel,
    Layout,
    Recompute,
    Schedule,
    join,
    pack,
    parse_layout,
    unique_cells,
)

SMALL = st.integers(1, 64)
LAYOUTS = st.builds(
    Layout,
    tp=SMALL, cp=SMALL, pp=SMALL, vpp=SMALL, ep=SMALL, etp=SMALL, dp=SMALL, micro_batch=SMALL,
    zero=st.integers(0, 3), sequence_parallel=st.booleans(), schedule=st.sampled_from(Schedule),
    first_stage_layers=st.none() | SMALL, last_stage_layers=st.none() | SMALL,
    recompute=st.sampled_from(Recompute), recompute_layers=st.none() | SMALL,
    context_parallel=st.sampled_from(ContextParallel), offload_optimizer=st.booleans(),
)  # fmt: skip


@given(LAYOUTS)
def test_text_round_trip(layout: Layout) -> None:
    assert parse_layout(str(layout)) == layout


@given(st.lists(LAYOUTS, min_size=1, max_size=5))
def test_arrays_round_trip(layouts: list[Layout]) -> None:
    packed = pack(layouts)
    assert [packed.at(i) for i in range(len(packed))] == layouts
    again = join([packed, packed])
    assert len(again) == 2 * len(layouts)
    assert again.at(len(layouts)) == layouts[0]


@given(st.lists(LAYOUTS, min_size=1, max_size=8))
def test_unique_cells_lose_nothing(layouts: list[Layout]) -> None:
    packed = pack(layouts)
    cells, index, _ = unique_cells(packed)
    assert (cells.tp[index] == packed.tp).all()
    assert (cells.micro_batch[index] == packed.micro_batch).all()
    assert (cells.etp[index] == packed.etp).all()


@given(st.text(max_size=60))
def test_any_text_is_a_layout_or_a_clear_refusal(text: str) -> None:
    with contextlib.suppress(KrzemError):
        parse_layout(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tpp=8", "nearest: tp"),
        ("tp", "name=value"),
        ("tp=8,tp=4", "twice"),
        ("tp=0", "1 to 10,000,000"),
        ("tp=-1", "a whole number up to"),
        ("tp=1e3", "a whole number up to"),
        ("tp=99999999999", "a whole number up to"),
        ("zero=7", "0, 1, 2 or 3"),
        ("schedule=gpipe", "1f1b"),
        ("sp=maybe", "0 or 1"),
        ("dp=4,shard=8", "at most dp*cp"),
    ],
)
def test_refusals_teach(text: str, says: str) -> None:
    with pytest.raises(LayoutError, match=says.replace("*", r"\*")):
        parse_layout(text)


def test_short_names() -> None:
    layout = parse_layout("tp=2, pp=4, mbs=3, first=5, rlayers=2, recompute=full, cpkind=a2a")
    assert (layout.micro_batch, layout.first_stage_layers, layout.recompute_layers) == (3, 5, 2)
    assert layout.context_parallel is ContextParallel.ALL_TO_ALL
    assert layout.devices == 8
