"""Rules and space against what they mean, written again for one layout at a time."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from krzem.layout.layout import (
    ContextParallel,
    Layout,
    Recompute,
    Schedule,
    chunks_per_rank,
    join,
    pack,
    stage_ranks,
)
from krzem.layout.rules import RULES, Problem, legal
from krzem.layout.space import Space, layouts
from krzem.model import load_model

DENSE = Problem(architecture=load_model("llama-3.1-8b"), devices=16, sequence=8192, global_batch=96)
SPARSE = Problem(
    architecture=load_model("qwen3-30b-a3b"), devices=16, sequence=4096, global_batch=64
)
HYBRID = Problem(
    architecture=load_model("nemotron-h-8b"), devices=16, sequence=4096, global_batch=64
)
SMALL = replace(DENSE, architecture=load_model("qwen3-0.6b"), sequence=4096, global_batch=48)
ODD = replace(SPARSE, architecture=load_model("deepseek-v3"))
PROBLEMS = [DENSE, SPARSE, HYBRID, replace(SPARSE, empty_end_chunks=True)]
V = (Schedule.ZB_V, Schedule.DUALPIPE_V)


def divides(part: int, whole: int) -> bool:
    return whole % part == 0


def meaning(p: Problem, x: Layout) -> dict[str, bool]:
    """What each rule asks for, in plain numbers."""
    layers, experts = p.architecture.layers, p.experts
    per_step = p.global_batch // (x.dp * x.micro_batch)
    ranks = x.tp * x.cp
    halves = 2 if x.cp > 1 and x.context_parallel is ContextParallel.RING else 1
    cut = x.cp * halves * (x.tp if x.sequence_parallel else 1)
    least = x.vpp - (p.ends // 2 if x.vpp > 1 else 0)
    first = least if x.first_stage_layers is None else x.first_stage_layers
    last = least if x.last_stage_layers is None else x.last_stage_layers
    fewest_chunks = {Schedule.INTERLEAVED: x.vpp >= 2 and x.pp > 1}
    fewest_chunks |= dict.fromkeys(V, x.vpp == 2)
    enough = {
        Schedule.INTERLEAVED: divides(x.pp, per_step),
        Schedule.ZB_H1: x.pp > 1 and per_step >= x.pp,
        Schedule.ZB_V: x.pp > 1 and per_step >= x.pp,
        Schedule.DUALPIPE: x.pp > 1 and per_step >= 2 * x.pp,
        Schedule.DUALPIPE_V: x.pp > 1 and per_step >= 2 * x.pp,
    }
    return {
        "devices": x.tp * x.cp * x.pp * x.dp == p.devices,
        "batch": divides(x.dp * x.micro_batch, p.global_batch),
        "heads": all(divides(x.tp, h) for h in p.heads)
        and all(divides(x.tp, k) or divides(k, x.tp) for k in p.kv_heads),
        "states": all(
            divides(ranks, heads) and (divides(ranks, keys) or divides(keys, ranks))
            for heads, keys in p.states
        ),
        "widths": all(divides(x.tp, width) for width in p.dense_widths),
        "sequence": divides(cut, p.sequence),
        "context heads": x.cp == 1
        or x.context_parallel is not ContextParallel.ALL_TO_ALL
        or all(divides(ranks, heads) for heads in p.heads),
        "stages": layers + (p.ends if x.vpp > 1 else 0) >= x.pp * x.vpp
        and min(first, last) >= least
        and (x.pp <= 2 or layers - first - last >= (x.pp - 2) * x.vpp),
        "chunks": fewest_chunks.get(x.schedule, x.vpp == 1),
        "micro-batches": enough.get(x.schedule, True),
        "dualpipe": x.schedule is not Schedule.DUALPIPE
        or (divides(2, x.pp) and divides(2, per_step)),
        "experts": divides(x.ep, experts) if experts else x.ep == 1 == x.etp,
        "expert ranks": divides(x.ep * x.etp, x.tp * x.cp * x.dp),
        "expert width": x.etp == 1 or divides(x.etp, max(p.expert_width, 1)),
        "expert sequence": x.tp == 1 or x.sequence_parallel or not experts,
        "zero 2": x.zero != 2 or x.pp == 1,
        "shard": x.shard == 0 or (x.zero == 3 and divides(x.shard, x.dp * x.cp)),
        "recompute layers": x.recompute_layers is None
        or (x.recompute is Recompute.FULL and x.recompute_layers <= -(-layers // x.pp)),
    }


def drawn(draw: random.Random) -> Layout:
    """A layout of small degrees, some of them in odd company."""
    some = (1, 1, 2, 3, 4, 8)
    given = {name: draw.choice(some) for name in ("tp", "cp", "pp", "ep", "etp", "dp")}
    schedule = draw.choice(list(Schedule))
    return Layout(
        **given,
        vpp=draw.choice((1, 2, 2, 3, 9)),
        micro_batch=draw.choice((1, 2, 3, 4, 8)),
        zero=draw.choice((0, 1, 2, 3, 3)),
        shard=draw.choice([0, 0, *range(1, given["dp"] * given["cp"] + 1)]),
        sequence_parallel=draw.random() < 0.7,
        schedule=schedule,
        first_stage_layers=draw.choice((None, 1, 13, 15, 16, 20)),
        last_stage_layers=draw.choice((None, 1, 13, 15, 16, 20)),
        recompute=draw.choice(list(Recompute)),
        recompute_layers=draw.choice((None, None, 1, 8, 16, 17, 32, 33, 48)),
        context_parallel=draw.choice(list(ContextParallel)),
    )


@pytest.mark.parametrize("number", range(len(PROBLEMS)))
def test_every_rule_means_what_it_says(number: int) -> None:
    problem, draw = PROBLEMS[number], random.Random(number)
    some = [drawn(draw) for _ in range(3000)]
    packed = pack(some)
    wanted = [meaning(problem, layout) for layout in some]
    assert {rule.name for rule in RULES} == set(wanted[0])
    for rule in RULES:
        held = np.broadcast_to(rule.holds(problem, packed), (len(some),))
        asked = [each[rule.name] for each in wanted]
        wrong = [(str(x), h) for x, h, a in zip(some, held, asked, strict=True) if h != a]
        assert not wrong, (rule.name, wrong[:3])


@pytest.mark.parametrize("problem", PROBLEMS[:3])
def test_every_sentence_of_a_broken_rule_holds_its_numbers(problem: Problem) -> None:
    """The arithmetic is of this layout: degrees, products and what they are held against."""
    draw = random.Random(7)
    for layout in (drawn(draw) for _ in range(300)):
        judged = meaning(problem, layout)
        said = {rule.name: rule.explain(problem, layout) for rule in RULES}
        if not judged["devices"]:
            assert f"= {layout.devices}, but the cluster has {problem.devices} " in said["devices"]
        if not judged["batch"]:
            assert f"= {layout.dp * layout.micro_batch}" in said["batch"]
        if not judged["micro-batches"]:
            steps = problem.global_batch / (layout.dp * layout.micro_batch)
            assert said["micro-batches"].startswith(f"{steps:g} micro-batches")
        if not judged["stages"]:
            assert f"= {layout.pp * layout.vpp} chunks" in said["stages"]
        if not judged["context heads"]:
            assert f"tp*cp = {layout.tp * layout.cp}" in said["context heads"]
        if not judged["expert ranks"]:
            whole = layout.tp * layout.cp * layout.dp
            assert f"= {layout.ep * layout.etp} does not divide" in said["expert ranks"]
            assert said["expert ranks"].endswith(f"= {whole}")
        if not judged["shard"]:
            assert f"dp*cp = {layout.dp * layout.cp}" in said["shard"]
        if not judged["recompute layers"]:
            most = -(-problem.architecture.layers // layout.pp)
            assert f"at most {most} layers" in said["recompute layers"]


# The space, by every combination of small degrees
# ------------------------------------------------


def chunk_counts(p: Problem, pp: int, uneven: bool) -> list[int]:
    """Chunks of a rank: every even spread; else two to four, where uneven ones may be."""
    layers = p.architecture.layers
    even = [
        v for v in range(2, layers + p.ends + 1)
        if any((layers + extra) == pp * v * k for extra in range(p.ends + 1)
               for k in range(1, layers + 3))
    ]  # fmt: skip
    return even or [v for v in (2, 3, 4) if uneven and v * pp <= layers]


def everything(p: Problem, s: Space) -> set[Layout]:
    """What :func:`layouts` promises, by a loop over every field."""
    found = set()
    degrees = [d for d in range(1, p.devices + 1) if divides(d, p.devices)]
    layers = p.architecture.layers
    for tp, cp, pp in product(degrees, repeat=3):
        if not divides(tp * cp * pp, p.devices) or tp > s.max_tp or cp > s.max_cp or pp > s.max_pp:
            continue
        if cp > 1 and p.sequence // cp < (s.min_context_tokens or (2048 if p.experts else 1024)):
            continue
        dp = p.devices // (tp * cp * pp)
        if pp > layers or not divides(dp, p.global_batch):
            continue
        whole, per_rank = dp * cp, -(-layers // pp)
        counts = min(per_rank, 8 if p.experts else 96)
        full = {round(per_rank * (i + 1) / counts) for i in range(counts)}
        schedules = [(x, 1) for x in s.schedules if x not in (Schedule.INTERLEAVED, *V)]
        schedules += [(x, 2) for x in s.schedules if x in V]
        if Schedule.INTERLEAVED in s.schedules:
            schedules += [(Schedule.INTERLEAVED, v) for v in chunk_counts(p, pp, s.uneven)]
        if pp == 1:
            schedules = [(Schedule.ONE_F_ONE_B, 1)]
        shards = [(z, 0) for z in s.zero if z != 2 or pp == 1]
        local = s.domain // tp
        if 3 in s.zero and local > 1 and local < whole and divides(local, whole):
            shards.append((3, local))
        if whole == 1:
            shards = [(min(s.zero, key=lambda z: abs(z - 1)), 0)]
        again = [(kind, None) for kind in s.recompute if kind is not Recompute.FULL]
        if Recompute.FULL in s.recompute:
            again += [(Recompute.FULL, None if c == per_rank else c) for c in full]
        ends: list[tuple[int | None, int | None]] = [(None, None)]
        if s.uneven and pp >= 4 and per_rank >= 2 and divides(pp, layers):
            ends += [(None, per_rank - 1), (per_rank - 1, per_rank - 1)]
        experts = [
            (ep, etp) for ep in range(1, (p.experts or 1) + 1) for etp in {1, tp}
            if divides(ep, p.experts or 1) and ep <= s.max_ep and (p.experts or etp == 1)
        ]  # fmt: skip
        sizes = [m for m in (1, 2, 3, 4, 6, 8, 12, 16) if m <= s.max_micro_batch]
        for m, (schedule, vpp), (ep, etp), (zero, shard), (kind, n), (first, last), how in product(
            sizes, schedules, experts, shards, again, ends, s.contexts if cp > 1 else s.contexts[:1]
        ):
            layout = Layout(
                tp=tp, cp=cp, pp=pp, dp=dp, vpp=vpp, ep=ep, etp=etp, micro_batch=m, zero=zero,
                shard=shard, schedule=schedule, recompute=kind, recompute_layers=n,
                first_stage_layers=first, last_stage_layers=last, context_parallel=how,
            )  # fmt: skip
            if all(meaning(p, layout).values()):
                found.add(layout)
    return found


LIMITS = {
    "all of two contexts": Space(
        recompute=(Recompute.NONE,), zero=(1,), schedules=(Schedule.ONE_F_ONE_B,),
        contexts=(ContextParallel.RING, ContextParallel.ALL_TO_ALL), max_micro_batch=3,
        min_context_tokens=512,
    ),
    "edges": Space(
        max_tp=2, max_cp=2, max_pp=4, max_micro_batch=6, recompute=(Recompute.NONE,), zero=(1, 3),
        contexts=(ContextParallel.RING,), domain=4,
    ),
    "schedules": Space(
        max_tp=1, max_cp=1, recompute=(Recompute.NONE,), zero=(1,), uneven=False,
        contexts=(ContextParallel.RING,), max_micro_batch=2,
    ),
    "uneven chunks": Space(
        max_tp=1, max_cp=1, max_ep=1, recompute=(Recompute.NONE,), zero=(1,), max_micro_batch=1,
        schedules=(Schedule.INTERLEAVED,), contexts=(ContextParallel.RING,),
    ),
    "wide tensors": Space(
        max_tp=8, max_cp=1, max_pp=1, max_ep=1, recompute=(Recompute.NONE,), zero=(3,),
        contexts=(ContextParallel.RING,), max_micro_batch=1,
    ),
    "recomputation": Space(
        max_tp=1, max_cp=1, max_pp=4, zero=(2, 3), schedules=(Schedule.ONE_F_ONE_B,),
        contexts=(ContextParallel.RING,), max_micro_batch=1,
    ),
    "experts": Space(
        max_cp=1, max_pp=2, max_ep=8, zero=(1,), recompute=(Recompute.NONE,),
        schedules=(Schedule.ONE_F_ONE_B,), contexts=(ContextParallel.RING,), max_micro_batch=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("problem", [SMALL, SPARSE, replace(SPARSE, empty_end_chunks=True), ODD])
def test_the_space_is_all_that_it_promises(problem: Problem, name: str) -> None:
    space = LIMITS[name]
    blocks = list(layouts(problem, space))
    found = join(blocks)
    assert legal(problem, found).all()
    have = [found.at(i) for i in range(len(found))]
    assert len(set(have)) == len(have)
    assert set(have) == everything(problem, space)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"max_tp": 64, "max_pp": 4096, "max_ep": 4096, "max_cp": 1, "zero": (1,)}),
        ({"max_tp": 8, "max_pp": 16, "max_ep": 32}, {"max_tp": 8, "max_pp": 16, "max_ep": 32}),
        ({"max_tp": 128}, {"max_tp": 64}),
        ({"zero": (0,)}, {"zero": (0,)}),
        ({"zero": (0, 1, 3)}, {"zero": (1, 3)}),
        ({"contexts": ("ring",)}, {"max_cp": 64, "contexts": (ContextParallel.RING,)}),
        ({"uneven_stages": True}, {"uneven": True}),
    ],
)
def test_what_an_engine_runs_limits_the_space(
    given: dict[str, object], wanted: dict[str, object]
) -> None:
    plain = {"schedules": ("1f1b",), "zero": (0, 1), "contexts": (), "recompute": ("none",),
             "uneven_stages": False, "max_tp": None, "max_pp": None, "max_ep": None}  # fmt: skip
    space = Space.of_engine(SimpleNamespace(**{**plain, **given}), domain=4)
    assert space.domain == 4
    assert {f.name: getattr(space, f.name) for f in fields(space) if f.name in wanted} == wanted


def test_contexts_are_as_short_as_the_kind_of_model_allows() -> None:
    assert Space().shortest(moe=False) == 1024
    assert Space().shortest(moe=True) == 2048
    assert Space(min_context_tokens=300).shortest(moe=True) == 300


@pytest.mark.parametrize(
    ("schedule", "vpp", "chunks", "ranks"),
    [
        (Schedule.ONE_F_ONE_B, 1, 1, (0, 1, 2)),
        (Schedule.INTERLEAVED, 2, 2, (0, 1, 2, 0, 1, 2)),
        (Schedule.INTERLEAVED, 3, 3, (0, 1, 2) * 3),
        (Schedule.ZB_V, 2, 2, (0, 1, 2, 2, 1, 0)),
        (Schedule.DUALPIPE_V, 2, 2, (0, 1, 2, 2, 1, 0)),
        (Schedule.DUALPIPE, 1, 1, (0, 1, 2)),
    ],
)
def test_stages_lie_on_ranks_as_their_schedule_runs(
    schedule: Schedule, vpp: int, chunks: int, ranks: tuple[int, ...]
) -> None:
    layout = Layout(pp=3, vpp=vpp, schedule=schedule)
    assert chunks_per_rank(layout) == chunks
    assert stage_ranks(layout) == ranks
