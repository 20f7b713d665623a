"""One rank's step on tensors without values: repeated micro-batches, faults, kinds of memory."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from click.testing import CliRunner
from tests.train.configs import ALL
from torch import Tensor

from krzem.layout.layout import parse_layout
from krzem.train.command import train_command
from krzem.train.config import model_spec
from krzem.train.engine import Engine
from krzem.train.model.experts import Dispatch
from krzem.train.optim import OptimizerConfig
from krzem.train.rehearsal.clock import Rates, schedule, trace
from krzem.train.rehearsal.match import find_faults
from krzem.train.rehearsal.rank import Step, rehearse_rank
from krzem.train.rehearsal.record import Communication, Recorder
from krzem.train.rehearsal.stages import Rehearsal, summarise


def step(layout: str, model: str = "deepseek_v3", micro_batches: int = 4, **more: Any) -> Step:
    whole = "layer_types" in ALL[model] or model == "deepseek_v4"
    short = {} if whole else {"num_hidden_layers": 2}
    return Step(
        spec=model_spec({**ALL[model], **short}, name=model),
        layout=parse_layout(layout),
        micro_batches=micro_batches,
        **{"sequence": 32, **more},
    )


@pytest.mark.parametrize(
    ("layout", "rank", "model"),
    [
        ("pp=2,dp=4,ep=4,zero=1,recompute=full,mbs=1", 4, "deepseek_v3"),
        ("dp=4,zero=3,mbs=1", 1, "llama"),
        ("pp=2,dp=2,zero=0,mbs=1", 0, "llama"),
    ],
)
def test_repeating_a_micro_batch_is_running_it(layout: str, rank: int, model: str) -> None:
    asked = step(layout, model)
    ran, repeated = (
        summarise(s, rehearse_rank(s, rank)) for s in (replace(asked, repeat=False), asked)
    )
    assert ran.traffic == repeated.traffic
    assert ran.flops == repeated.flops
    assert ran.reads == repeated.reads
    assert ran.peak.total == pytest.approx(repeated.peak.total, rel=0.01)


def test_kinds_of_memory_are_what_the_layout_holds() -> None:
    asked = step("dp=8,zero=0,mbs=1", "llama")
    found = summarise(asked, rehearse_rank(asked, 3))
    assert found.peak.bytes["states"] >= 2 * 4 * found.parameters
    assert found.peak.bytes["weights"] >= 4 * found.parameters
    assert found.peak.bytes["states"] <= 2 * 4 * found.parameters * 2  # allocations of 512 bytes
    shared = step("dp=8,zero=3,mbs=1", "llama")
    eighth = summarise(shared, rehearse_rank(shared, 3))
    assert eighth.parameters == pytest.approx(found.parameters / 8, rel=0.05)
    assert eighth.peak.bytes["states"] < found.peak.bytes["states"]


def planted(wrong: Any) -> list[str]:
    """Kinds of the faults where the last of two stages does what ``wrong`` makes of its engine."""
    asked = step("pp=2,dp=2,mbs=1", "llama", micro_batches=4)

    def prepared(engine: Engine, _: Recorder) -> None:
        wrong(engine)

    good = summarise(asked, rehearse_rank(asked, 0))
    bad = summarise(asked, rehearse_rank(asked, 2, prepared))
    return [f.kind for f in find_faults({0: good.program, 2: bad.program})]


def nothing(_: Engine) -> None:
    pass


def counts_twice(engine: Engine) -> None:
    """A collective of all ranks that one of them alone does."""
    given = engine._result

    def result() -> Any:
        given()
        return given()

    engine._result = result  # type: ignore[method-assign]


def sends_back_half(engine: Engine) -> None:
    """The last stage runs half of the micro-batches that the first one sends."""
    given = engine.step

    def step(tokens: Tensor, **more: Any) -> Any:
        return given(tokens[: len(tokens) // 2], **more)

    engine.step = step  # type: ignore[method-assign]


def sums_in_half(engine: Engine) -> None:
    """One rank brings another type."""

    def result() -> Any:
        dist.all_reduce(next(iter(engine.held)).part.new_zeros(3).half())
        return type("Result", (), {"gradient_norm": 1.0})()

    engine._result = result  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (nothing, []),
        (counts_twice, ["deadlock"]),
        (sends_back_half, ["size"]),
        (sums_in_half, ["size"]),
    ],
)
def test_planted_faults_are_found(wrong: Any, kind: list[str]) -> None:
    assert planted(wrong) == kind


@pytest.mark.parametrize(
    "more",
    [
        {"precision": "fp8-block"},
        {"precision": "fp8-block", "by_rows": True, "dispatch": Dispatch(capacity=2.0)},
        {"optimizer": OptimizerConfig(kind="muon")},
        {"documents": True},
        {"precision": "fp32"},
    ],
    ids=str,
)
def test_what_a_device_would_run_passes_its_checks(more: dict[str, Any]) -> None:
    """Kernels of NVIDIA devices check shapes, strides and types of tensors without values too."""
    found = rehearse_rank(step("dp=4,ep=2,mbs=1", micro_batches=1, **more), 0)
    assert found.record.operators > 100


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("deepseek_v3", "recompute=modules"),
        ("gemma3_text", "recompute=none"),
        ("llama", "cp=2,cpkind=a2a"),
    ],
)
def test_documents_and_windows_take_no_square_of_the_sequence(model: str, layout: str) -> None:
    asked = step(f"dp=2,mbs=1,{layout}", model, micro_batches=1, sequence=4096)
    ranks = [rehearse_rank(s, 0) for s in (asked, replace(asked, documents=True))]
    plain, cut = (summarise(asked, rank) for rank in ranks)
    assert cut.flops == plain.flops
    assert sum(cut.reads.values()) == sum(plain.reads.values()) + 1
    assert cut.reads_in_passes == plain.reads_in_passes
    for rank in ranks:
        assert all(s.size < 4096 * 4096 for s in rank.record.storages if s.origin != "parameters")


def test_v4_is_rehearsed() -> None:
    found = rehearse_rank(step("dp=4,ep=4,mbs=1", "deepseek_v4", micro_batches=1), 0)
    assert found.parameters > 0


def test_crowded_experts_compute_more() -> None:
    asked = step("dp=4,ep=4,mbs=1", "qwen3_moe", micro_batches=1, sequence=512)
    even, crowded = (
        summarise(s, rehearse_rank(s, 0)) for s in (asked, replace(asked, crowding=4.0))
    )
    assert crowded.peak.total >= even.peak.total
    assert crowded.flops > even.flops


def test_an_expert_layer_asks_the_host_three_times() -> None:
    asked = step("dp=4,ep=4,mbs=1", "qwen3_moe", micro_batches=1)
    found = rehearse_rank(asked, 0).record
    layers = sum(x.feed_forward.is_moe for x in asked.spec.layers)
    reads = Counter(where.partition(":")[0] for _, _, where in found.reads)
    assert reads["train/ops/routes.py"] == 3 * layers


def test_a_trace_waits_for_what_it_receives() -> None:
    asked = step("pp=2,dp=2,mbs=1", "llama", micro_batches=3)
    ranks = tuple(summarise(asked, rehearse_rank(asked, rank)) for rank in (0, 2))
    found = Rehearsal(step=asked, ranks=ranks, faults=())
    times = schedule(ranks, Rates(flops=1e12, bytes=1e11))
    first = next(t for t in times[0] if t.name == "forward 0")
    second = next(t for t in times[2] if t.name == "forward 0")
    assert second.start >= first.start + first.seconds > 0
    events = trace(found)["traceEvents"]
    assert {e["ph"] for e in events} == {"M", "X", "C"}
    sent = sum(isinstance(e, Communication) for r in ranks for e in r.program)
    assert sum(e.get("tid") == "collectives" for e in events) == sent
    json.dumps(events)


RUN = """
model = "config.json"
layout = "pp=2,dp=2,mbs=1"
[goal]
tokens = "1M"
sequence = 32
global_batch = 8
[data]
path = "nowhere"
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(ALL["llama"]), encoding="utf-8")
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    return tmp_path / "run.toml"


def test_the_command_shows_every_stage(run_file: Path) -> None:
    target = run_file.with_name("trace.json")
    options = ["--rehearse", "--devices", "h100:4", "--json", "--trace", str(target)]
    found = CliRunner().invoke(train_command, [str(run_file), *options])
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert [r["stage"] for r in document["ranks"]] == [0, 1]
    assert document["faults"] == []
    assert document["peak_bytes"] == max(r["peak_bytes"] for r in document["ranks"])
    assert json.loads(target.read_text(encoding="utf-8"))["traceEvents"]
    assert all(r["planned_bytes"] > 0 for r in document["ranks"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rank", "2"], "--rehearse"),
        (["--rehearse", "--rank", "9"], "0 to 3"),
        (["--rehearse", "--devices", "h100:8"], "2*2 = 4 devices"),
        (["--rehearse", "--routing", "worst"], "'even'"),
        (["--rehearse", "--layout", "auto"], "--devices h800:2048"),
        (["--rehearse", "--rank", "0", "--stages"], "--stages"),
    ],
)
def test_wrong_wishes_are_taught(
    run_file: Path, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KRZEM_LAYOUT", "")  # The command sets it: put back afterwards.
    found = CliRunner().invoke(train_command, [str(run_file), *options])
    assert found.exit_code != 0
    assert said in found.output + found.stderr
