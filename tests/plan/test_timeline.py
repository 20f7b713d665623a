"""The predicted step over time: a schedule that could run, as long as the price says."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from krzem.cli.plan import explain_command
from krzem.errors import LayoutError
from krzem.layout.layout import Schedule, pack, parse_layout
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.plan.timeline import Timeline, timeline_of, trace_of

APART = {"zb-h1", "zb-v", "dualpipe", "dualpipev"}
CASES = [
    ("1f1b", 1, 8, 64),
    ("interleaved", 2, 4, 64),
    ("interleaved", 4, 8, 128),
    ("zb-h1", 1, 8, 64),
    ("zb-v", 2, 8, 96),
    ("dualpipe", 2, 8, 160),
    ("dualpipev", 2, 4, 64),
    ("1f1b", 1, 1, 64),
]


def pricer(batch: int, schedule: str = "1f1b") -> Pricer:
    asked = settle(
        Question(
            model="llama-3.1-8b", on="h100:32", sequence=4096, global_batch=batch,
            engine="megatron-lm", schedules="all", step_alone=True,
        )
    )  # fmt: skip
    return Pricer(asked.task)


def found(schedule: str, chunks: int, ranks: int, batch: int) -> tuple[Timeline, Pricer]:
    text = f"pp={ranks},dp={32 // ranks},schedule={schedule},vpp={chunks}"
    priced = pricer(batch)
    return timeline_of(priced, parse_layout(text)), priced


@pytest.mark.parametrize(("schedule", "chunks", "ranks", "batch"), CASES)
def test_a_schedule_that_could_run(schedule: str, chunks: int, ranks: int, batch: int) -> None:
    timeline, priced = found(schedule, chunks, ranks, batch)
    count = batch // (32 // ranks)
    kinds = Counter(p.what for p in timeline.passes)
    each = count * ranks * timeline.stages
    assert kinds == Counter(
        dict.fromkeys(("forward", "backward", *(("weights",) if schedule in APART else ())), each)
    )
    ends = {(p.what, p.stage, p.micro_batch): p.start + p.seconds for p in timeline.passes}
    deep = ranks * timeline.stages
    for p in timeline.passes:
        needs = {
            "forward": ("forward", p.stage - 1),
            "backward": ("backward", p.stage + 1) if p.stage + 1 < deep else ("forward", p.stage),
            "weights": ("backward", p.stage),
        }[p.what]
        if needs[1] >= 0:
            assert p.start >= ends[(*needs, p.micro_batch)] - 1e-9
    by_rank = defaultdict(list)
    for p in timeline.passes:
        by_rank[p.rank].append(p)
    for passes in by_rank.values():
        passes.sort(key=lambda p: p.start)
        assert all(a.start + a.seconds <= b.start + 1e-9 for a, b in pairwise(passes))
    total = float(priced.step(pack([timeline.layout])).total[0])
    assert timeline.pipeline_seconds + sum(s for _, s in timeline.closing) == pytest.approx(total)
    assert max(ends.values()) == pytest.approx(timeline.pipeline_seconds)
    assert 0.95 < timeline.stretch < 1.15  # transfers, and what the closed form rounds off


@pytest.mark.parametrize(("schedule", "chunks", "ranks", "batch"), CASES)
def test_no_rank_holds_more_than_the_plan_counts(
    schedule: str, chunks: int, ranks: int, batch: int
) -> None:
    timeline, _ = found(schedule, chunks, ranks, batch)
    for number, cost in enumerate(timeline.ranks):
        flying = most = 0
        for p in sorted((p for p in timeline.passes if p.rank == number), key=lambda p: p.start):
            flying += {"forward": 1, "backward": -1, "weights": 0}[p.what]
            most = max(most, flying)
        assert flying == 0
        assert most <= cost.most * timeline.stages + 1e-9


def test_the_trace_says_memory_overlap_and_what_closes_the_step() -> None:
    asked = settle(
        Question(
            model="deepseek-v3", on="h800:2048", sequence=4096, global_batch=4096,
            engine="deepseek", schedules="all", step_alone=True,
        )
    )  # fmt: skip
    layout = parse_layout("pp=16,ep=64,dp=128,schedule=dualpipe,recompute=modules")
    timeline = timeline_of(Pricer(asked.task), layout)
    events = trace_of(timeline)["traceEvents"]
    assert {e.get("tid") for e in events} >= {"passes", "communication", "overlap"}
    memory = [e for e in events if e["ph"] == "C" and e["pid"] == 0]
    peak = max(sum(e["args"].values()) for e in memory)
    bytes_ = Pricer(asked.task).memory(pack([layout])).first.total
    assert peak <= float(bytes_[0]) / 2**30 * 1.001
    assert sum(memory[-1]["args"].values()) < peak
    named = {e["name"] for e in events if e["ph"] == "X"}
    assert {"data parallel", "optimizer", "overhead"} & named


def test_a_step_too_long_to_draw_is_said() -> None:
    with pytest.raises(LayoutError, match="smaller --batch"):
        timeline_of(pricer(2**16), parse_layout(f"pp=8,dp=4,schedule={Schedule.ZB_V},vpp=2"))


def test_the_command_writes_it(tmp_path: Path) -> None:
    target = tmp_path / "step.json"
    asked = ["llama-3.1-8b", "--on", "h100:16", "--batch", "128", "--seq", "4096"]
    more = ["--layout", "pp=2,zero=1", "--trace", str(target), "--quiet"]
    result = CliRunner().invoke(explain_command, [*asked, *more])
    assert result.exit_code == 0, result.output
    events = json.loads(target.read_text(encoding="utf-8"))["traceEvents"]
    assert {e["pid"] for e in events} == {0, 1}
    missing = ["--layout", "pp=2,zero=1", "--trace", str(tmp_path / "no" / "step.json")]
    assert CliRunner().invoke(explain_command, [*asked, *missing]).exit_code != 0
