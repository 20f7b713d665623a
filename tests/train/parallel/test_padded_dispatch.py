"""Experts' dispatch with a capacity: nothing is read by the host, and the numbers are the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.train.configs import ALL
from tests.train.parallel.reads import HostReads

from krzem.layout.layout import Layout, parse_layout
from krzem.train.config import model_spec
from krzem.train.engine import Engine, StepResult
from krzem.train.model.experts import EXACT, Dispatch
from krzem.train.ops import place_unread, portable_only, slots
from krzem.train.parallel.collectives import Exchange
from krzem.train.rehearsal.rank import Step, rehearse_rank
from krzem.train.rehearsal.record import Recorder

pytestmark = pytest.mark.filterwarnings("ignore:.torch.distributed:FutureWarning")
PADDED = Dispatch(capacity=2.0)


def taken(
    model: str, dispatch: Dispatch, dtype: torch.dtype = torch.float32
) -> tuple[StepResult, list[torch.Tensor], list[str]]:
    """A step's outcome, all gradients, and what the host read in its passes."""
    reads = HostReads()
    engine = Engine(
        model_spec(ALL[model]),
        Layout(micro_batch=2),
        device=torch.device("cpu"),
        dtype=dtype,
        dispatch=dispatch,
    )
    passes = engine._micro_batches

    def watched(*args: Any) -> None:
        with reads.watching():
            passes(*args)

    engine._micro_batches = watched  # type: ignore[method-assign]
    tokens = torch.randint(0, 96, (4, 17), generator=torch.Generator().manual_seed(0))
    with portable_only():
        result = engine.step(tokens, sequences=4)
    return result, [h.grad.clone() for h in engine.held if h.grad is not None], reads.places


@pytest.fixture
def nothing_left_empty() -> Any:
    """Memory that nobody wrote holds no number: what reads it shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("model", ["deepseek_v3", "gpt_oss", "deepseek_v4"])
def test_one_rank_reads_nothing_and_computes_the_same(model: str, nothing_left_empty: None) -> None:
    exact, expected, read = taken(model, EXACT)
    padded, found, none = taken(model, PADDED)
    assert read
    assert not none
    assert padded == exact
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("read", ["item", "tolist", "nonzero", "cpu", "bool"])
def test_the_counter_sees_each_way_to_read(read: str) -> None:
    reads, x = HostReads(), torch.ones(1)
    with reads.watching():
        bool(x) if read == "bool" else getattr(x, read)()
    assert reads.places


@pytest.mark.parametrize(
    "layout",
    ["dp=4,ep=4,mbs=1", "dp=4,ep=2,etp=2,zero=3,mbs=1,recompute=full", "pp=2,dp=2,ep=2,mbs=1"],
)
def test_a_device_is_not_asked_in_the_passes_of_experts(layout: str) -> None:
    """On tensors of a device without values, where every read is seen: left are, once a step,
    losses, loads and what torch's pipeline asks."""
    reads = {}
    for dispatch in (EXACT, PADDED):
        step = Step(
            spec=model_spec({**ALL["deepseek_v3"], "num_hidden_layers": 2}, name="v3"),
            layout=parse_layout(layout),
            micro_batches=2,
            sequence=32,
            dispatch=dispatch,
        )
        record = rehearse_rank(step, step.layout.devices - 1).record
        reads[dispatch] = Counter(place.rpartition(":")[0] for _, _, place in record.reads)
    experts = reads[EXACT].pop("train/ops/routes.py")
    assert experts >= 3 * 2
    assert reads[PADDED] == reads[EXACT]
    assert set(reads[PADDED].values()) == {1}


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=200),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 250),
)
def test_slots_hold_every_choice_that_fits(experts: list[int], ranks: int, room: int) -> None:
    position, filled, most = slots(torch.tensor(experts), 8, ranks, room)
    sent = [sum(e // (8 // ranks) == r for e in experts) for r in range(ranks)]
    assert int(most) == max(sent)
    assert filled.sum(1).tolist() == [min(n, room) for n in sent]
    if max(sent) > room:
        return
    assert len(set(position.tolist())) == len(experts)
    for e in range(8):
        rows = [p for p, own in zip(position.tolist(), experts, strict=True) if own == e]
        rank, place = divmod(e, 8 // ranks)
        first = rank * room + int(filled[rank, :place].sum())
        assert rows == list(range(first, first + len(rows)))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=100), st.sampled_from([1, 8, 128]))
def test_places_have_room_for_every_outcome(experts: list[int], align: int) -> None:
    """Rows of nobody (here: 5) come behind all others."""
    position, groups = place_unread(torch.tensor(experts), 5, align)
    rows, stops = position.tolist(), groups.ends.tolist()
    assert len(set(rows)) == len(experts)
    assert max(rows) < groups.rows
    assert all(stop % align == 0 for stop in stops)
    for row, e in zip(rows, experts, strict=True):
        assert row >= (stops[e - 1] if e else 0)
        assert e == 5 or row < stops[e]


def test_a_device_computes_the_shared_expert_while_rows_travel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In both directions of both passes there is a product between setting out and waiting."""
    recorders: list[Recorder] = []
    between: list[float] = []
    begun: dict[int, float] = {}
    begin, wait = Exchange.begin, Exchange.wait

    def flops() -> float:
        return sum(recorders[0].record.flops)

    def begins(exchange: Exchange, x: torch.Tensor, *, back: bool = False) -> torch.Tensor:
        out = begin(exchange, x, back=back)
        begun[id(exchange)] = flops()
        return out

    def waits(exchange: Exchange) -> torch.Tensor:
        between.append(flops() - begun.pop(id(exchange)))
        return wait(exchange)

    monkeypatch.setattr(Exchange, "begin", begins)
    monkeypatch.setattr(Exchange, "wait", waits)
    config = {**ALL["deepseek_v3"], "num_hidden_layers": 2, "num_nextn_predict_layers": 0}
    step = Step(
        spec=model_spec(config, name="v3"),
        layout=parse_layout("dp=4,ep=4,mbs=1"),
        micro_batches=1,
        sequence=32,
        dispatch=Dispatch(capacity=2.0, beside=True),
    )
    rehearse_rank(step, 1, lambda _, recorder: recorders.append(recorder))
    there, back, back_again, there_again = between
    assert 0 < back < there
    assert back_again == 2 * back
    assert there_again == 2 * there
    assert not begun
