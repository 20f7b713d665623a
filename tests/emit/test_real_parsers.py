"""Emitted launch files before the engines' own parsers, checks and models.

Every built-in model on every engine, with layouts, precisions, switches and cards between which
each feature shows. The engines run in environments of their own: scripts/engine-env makes them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emit_matrix import own_code
from tests.emit.engine_cells import PER_MODEL, Cell, cells, job

from krzem.layout.layout import Layout, Optimizer, Precision, Recompute, Schedule
from krzem.model import load_model, model_ids
from krzem.model.parameters import count
from krzem.plan.emit.megatron_run import chunks, stage_layers, substituted

ROOT = Path(__file__).parent.parent.parent
HOMES = ROOT / ".venv-engines"
PROGRAMS = {"megatron-lm": "real_parser_megatron.py", "torchtitan": "real_parser_torchtitan.py"}
NO_WORDS = {
    "megatron-lm": {
        "deepseek-v4-flash": "hyper-connections and compressed keys",
        "deepseek-v4-pro": "hyper-connections and compressed keys",
        "pangu-ultra-135b": "sandwich norms",
        "pangu-ultra-moe-718b": "sandwich norms",
    },
    "torchtitan": {
        "gpt3-175b": "learned positions", "megatron-22b": "learned positions",
        "megatron-145b": "learned positions", "megatron-530b": "learned positions",
        "megatron-1t": "learned positions", "llama-2-7b": "Llama 3 and later",
        "llama-2-13b": "Llama 3 and later", "llama-2-70b": "Llama 3 and later",
        "mixtral-8x7b": "not built there", "mixtral-8x22b": "not built there",
        "deepseek-v2": "V3 alone", "deepseek-v3.2": "no sparse attention",
        "deepseek-v4-flash": "no compressed keys", "deepseek-v4-pro": "no compressed keys",
        "kimi-k2": "its shape is not built", "glm-4.5": "not built there",
        "glm-5": "not built there", "pangu-ultra-135b": "not built there",
        "pangu-ultra-moe-718b": "not built there",
    },
}  # fmt: skip
"""Models that an engine cannot be told, and why: its emitter says so."""
NO_WORDS["megatron-lm"] |= {
    name: "layers that no argument says" for name in model_ids() if own_code(name)
}
OTHERS = (
    "apertus", "ernie", "eurollm", "gemma", "glm-4", "hunyuan", "kimi-linear", "llama-4",
    "longcat", "mimo", "minimax", "nemotron", "olmo", "qwen3-coder", "qwen3-next", "qwen3.5",
    "smollm", "solar", "viking", "bielik", "pllum", "poro", "step-3",
)  # fmt: skip
NO_WORDS["torchtitan"] |= {
    name: "not built there, or not written by its emitter"
    for name in model_ids()
    if name.startswith(OTHERS)
}


def python_of(engine: str) -> Path:
    """The interpreter of the engine's environment; skips the test where it is not made."""
    home = HOMES / engine
    if not (home / "done").exists():
        pytest.skip(f"no parser of {engine} here: scripts/engine-env {engine} installs it")
    return home / "bin" / "python"


Running = dict[str, tuple[subprocess.Popen[bytes], Path]]


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A process for each engine whose environment there is, all at work at the same time."""
    running = {}
    for engine in sorted(PER_MODEL):
        if (HOMES / engine / "done").exists():
            folder = tmp_path_factory.mktemp(engine)
            running[engine] = (started(engine, folder), folder)
    yield running
    for process, _ in running.values():
        process.kill()
        process.wait()


def started(engine: str, folder: Path) -> subprocess.Popen[bytes]:
    """The engine's program, reading all its jobs and writing into ``folder``."""
    told = folder / "jobs.json"
    told.write_text(json.dumps([job(cell, cell.launch()) for cell in cells(engine)]))
    command = [python_of(engine), Path(__file__).parent / PROGRAMS[engine]]
    with (
        told.open("rb") as given,
        (folder / "answers").open("wb") as answers,
        (folder / "errors").open("wb") as errors,
    ):
        return subprocess.Popen(command, stdin=given, stdout=answers, stderr=errors, cwd=folder)


@pytest.fixture(scope="module", params=sorted(PER_MODEL))
def judged(request: pytest.FixtureRequest, judges: Running) -> list[tuple[Cell, dict[str, Any]]]:
    """Every cell of an engine with the engine's answer."""
    engine: str = request.param
    python_of(engine)
    process, folder = judges[engine]
    code = process.wait(timeout=1100)
    assert code == 0, (folder / "errors").read_text(encoding="utf-8")[-3000:]
    answers = [json.loads(line) for line in (folder / "answers").read_text().splitlines()]
    return list(zip(cells(engine), answers, strict=True))


@pytest.mark.parametrize("engine", sorted(PER_MODEL))
def test_only_listed_models_cannot_be_told(engine: str) -> None:
    found = {cell.model for cell in cells(engine)}
    assert set(model_ids()) - found == set(NO_WORDS[engine])


def test_the_engine_accepts_every_launch(judged: list[tuple[Cell, dict[str, Any]]]) -> None:
    refused = [f"{cell}\n  {answer['step']}: {answer['error']}"
               for cell, answer in judged if "error" in answer]  # fmt: skip
    assert not refused, "\n".join(refused)


def test_the_model_has_the_parameters_of_the_plan(
    judged: list[tuple[Cell, dict[str, Any]]],
) -> None:
    wrong = {
        str(cell): (answer["parameters"], planned(cell, answer))
        for cell, answer in judged
        if answer.get("parameters") != planned(cell, answer)
    }
    assert not wrong


def planned(cell: Cell, answer: dict[str, Any]) -> int:
    """Parameters that krzem counts of what was emitted, with the padding of the vocabulary."""
    arch = load_model(cell.model)
    counted = count(arch)
    matrices = 1 if arch.tied_embeddings else 2
    padding = (answer.get("vocabulary", arch.vocab) - arch.vocab) * arch.hidden * matrices
    rows = max(0, cell.goal.sequence - arch.max_positions) if arch.learned_positions else 0
    left_out = any("multi-token prediction is left out" in note for note in cell.launch().notes)
    return counted.total + padding + rows * arch.hidden + (0 if left_out else counted.mtp)


def test_the_layout_comes_back(judged: list[tuple[Cell, dict[str, Any]]]) -> None:
    wrong = {}
    for cell, answer in judged:
        expected = (_titan if cell.engine == "torchtitan" else _megatron)(cell)
        got = {name: answer.get("values", {}).get(name) for name in expected}
        if got != expected:
            differ = {k: (got[k], v) for k, v in expected.items() if got[k] != v}
            wrong[str(cell)] = differ
    assert not wrong


def _megatron(cell: Cell) -> dict[str, Any]:
    x, goal = cell.layout, cell.goal
    several = x.pp > 1 and chunks(x) > 1
    adam = goal.optimizer is Optimizer.ADAMW
    expected = {
        "tensor_model_parallel_size": x.tp,
        "context_parallel_size": x.cp,
        "pipeline_model_parallel_size": x.pp,
        "virtual_pipeline_model_parallel_size": chunks(x) if several else None,
        "data_parallel_size": x.dp,
        "sequence_parallel": x.sequence_parallel and x.tp > 1,
        "use_megatron_fsdp": x.zero >= 2,
        "use_distributed_optimizer": x.zero >= 1 and adam,
        "use_layer_wise_distributed_optimizer": x.zero >= 1 and not adam,
        "optimizer_cpu_offload": x.offload_optimizer,
        "recompute_granularity": _granularity(x),
        "micro_batch_size": x.micro_batch,
        "global_batch_size": goal.global_batch,
        "seq_length": goal.sequence,
        "bf16": goal.precision not in (Precision.FP16, Precision.FP32),
        "fp16": goal.precision is Precision.FP16,
        "grad_reduce_in_bf16": goal.states.gradient <= 2,
    }
    if load_model(cell.model).is_moe:
        expected |= {"expert_model_parallel_size": x.ep, "expert_tensor_parallel_size": x.etp}
    return expected


def _granularity(x: Layout) -> str | None:
    if x.recompute is Recompute.NONE:
        return None
    return "full" if x.recompute is Recompute.FULL else "selective"


def _titan(cell: Cell) -> dict[str, Any]:
    x, goal = cell.layout, cell.goal
    shards = 1 if x.zero == 0 else max(1, (x.shard or x.dp * x.cp) // x.cp)
    expected = {
        "parallelism.tensor_parallel_degree": x.tp,
        "parallelism.context_parallel_degree": x.cp,
        "parallelism.pipeline_parallel_degree": x.pp,
        "parallelism.expert_parallel_degree": x.ep,
        "parallelism.data_parallel_shard_degree": shards,
        "parallelism.data_parallel_replicate_degree": x.dp // shards,
        "training.global_batch_size": goal.global_batch,
        "training.seq_len": goal.sequence,
        "training.enable_cpu_offload": x.offload_optimizer,
    }
    if x.pp > 1:
        expected["parallelism.pipeline_parallel_microbatch_size"] = x.micro_batch
    else:
        expected["training.local_batch_size"] = x.micro_batch
    return expected


def test_stages_hold_the_layers_of_the_plan(judged: list[tuple[Cell, dict[str, Any]]]) -> None:
    wrong = {
        str(cell): (answer.get("layers"), spread(cell))
        for cell, answer in judged
        if cell.layout.pp > 1 and answer.get("layers") != spread(cell)
    }
    assert not wrong


def spread(cell: Cell) -> list[Any]:
    """Layers as the engine is to spread them: by chunk and rank, or by stage."""
    x = cell.layout
    titan = cell.engine == "torchtitan"
    schedule = Schedule.DUALPIPE_V if x.schedule is Schedule.DUALPIPE else x.schedule
    run = Layout(
        pp=x.pp, vpp=x.vpp if titan else chunks(x), schedule=schedule if titan else substituted(x),
        first_stage_layers=x.first_stage_layers, last_stage_layers=x.last_stage_layers,
    )  # fmt: skip
    stages = list(stage_layers(load_model(cell.model).layers, run))
    if titan:
        return stages
    return [stages[start : start + x.pp] for start in range(0, len(stages), x.pp)]
