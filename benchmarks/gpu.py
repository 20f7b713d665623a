"""What krzem predicts for the GPUs at hand, written down first, and what they then do.

    python benchmarks/gpu.py FOLDER                    predict, then measure, on all GPUs here
    python benchmarks/gpu.py FOLDER --on h100:8        say what they are, where torch does not
    python benchmarks/gpu.py FOLDER --pretend h100:8   no GPU: predict, and rehearse every path

Each case is a run file of the trainer.  ``prediction.json`` (the planner's step time and memory,
the rehearsal's peak, FLOPs and host reads) is written before the first step is taken.
``measured.json`` (seconds a step, tokens/s, MFU, peak memory, steps taken again), a trace of
torch's profiler in each run's folder and ``probe.toml``, the probe of the machine, come beside it,
and ``report.md`` has both as a table.  Without a GPU, and without --pretend, it says so and ends
with 2.

Not run on a GPU yet: whoever has one runs this first and commits what it wrote.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from krzem.errors import KrzemError
from krzem.hardware import Cluster, read_cluster
from krzem.layout.layout import parse_layout
from krzem.model.catalogue import load_model_config
from krzem.train.command.planning import forecast, step_of
from krzem.train.config import ModelSpec, model_spec
from krzem.train.data import BuildRequest, build
from krzem.train.rehearsal.stages import summary_of
from krzem.train.settings import TrainSettings, read_settings

NO_GPU = (
    "no GPU is visible to torch here: run this where there is one, or with --pretend h100:8 to "
    "predict and to rehearse every path that it would run"
)
STEPS, SKIPPED = 16, 6
"""Of a case, and how many of them begin it and are not counted."""
DENSE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32768,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
EXPERTS: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 32768,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 32,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "max_position_embeddings": 4096,
    "num_nextn_predict_layers": 0,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
SMALL = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip
"""What --small changes: for tests of this benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run, measured and predicted."""

    name: str
    model: Mapping[str, Any]
    precision: str = "bf16"
    train: Mapping[str, Any] = field(default_factory=dict)
    """Keys of ``[train]``."""
    documents: bool = False
    recompute: str = "none"
    spread: bool = False
    """Whether experts lie on all ranks."""


CASES = (
    Case(name="dense", model=DENSE),
    Case(name="dense, recomputed", model=DENSE, recompute="full"),
    Case(name="dense, documents", model=DENSE, documents=True),
    Case(name="dense, compiled", model=DENSE, train={"compile": True}),
    Case(name="dense, fp8", model=DENSE, precision="fp8-block"),
    Case(name="experts, exact", model=EXPERTS, spread=True),
    Case(name="experts, capacity 2", model=EXPERTS, spread=True, train={"capacity": 2.0}),
    Case(name="experts, fp8 by blocks", model=EXPERTS, spread=True, precision="fp8-block"),
    Case(
        name="experts, fp8 by rows, capacity 2",
        model=EXPERTS,
        spread=True,
        precision="fp8-block",
        train={"capacity": 2.0, "expert_scales": "row"},
    ),
)


def main(arguments: list[str] | None = None) -> int:
    """Predict, then measure; 2 where there is nothing to measure on."""
    asked = _asked(arguments)
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not present and not asked.pretend:
        print(NO_GPU, file=sys.stderr)
        return 2
    try:
        cluster = read_cluster(asked.pretend or asked.on or guessed(present))
    except KrzemError as error:
        print(f"{error}; say what they are with --on", file=sys.stderr)
        return 2
    asked.folder.mkdir(parents=True, exist_ok=True)
    _tokens(asked.folder)
    cases = [c for c in CASES if asked.only in c.name]
    runs = {c.name: _written(asked, c, cluster) for c in cases}
    predicted = {name: prediction(run) for name, run in runs.items()}
    _keep(asked.folder / "prediction.json", predicted)
    measured: dict[str, Any] = {}
    if not asked.pretend:
        _probe(asked.folder)
        for name, run in runs.items():
            measured[name] = measurement(run, cluster.devices)
            _keep(asked.folder / "measured.json", measured)
    report = table(predicted, measured)
    (asked.folder / "report.md").write_text(report, encoding="utf-8")
    print(report)
    return 0


def _asked(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--on", help="what the GPUs here are, such as h100:8")
    parser.add_argument("--pretend", help="predict for these, and rehearse; nothing is measured")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--sequence", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--small", action="store_true", help="tiny models: a test of this program")
    return parser.parse_args(arguments)


def guessed(count: int) -> str:
    """The cluster that torch's name of the GPUs means, such as ``h100:8``."""
    words = torch.cuda.get_device_name(0).lower().replace("-", " ").split()
    known = ("gb200", "b200", "gh200", "h200", "h100", "h800", "h20", "a100", "l40s")
    chip = next((name for name in known if name in words), words[-1])
    return f"{chip}:{count}"


def _tokens(folder: Path) -> None:
    """Text that repeats itself, by bytes: speed does not depend on what it says."""
    if (folder / "tokens").exists():
        return
    text = folder / "text.jsonl"
    lines = (f"a line of words number {i} that says little. " * 40 for i in range(400))
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    build(BuildRequest(sources=(text,), out=folder / "tokens", tokenizer="bytes"))


def _written(asked: argparse.Namespace, case: Case, cluster: Cluster) -> Path:
    """The run file of a case, with its config beside it."""
    folder = asked.folder / case.name.replace(", ", "-").replace(" ", "-")
    folder.mkdir(exist_ok=True)
    model = {**case.model, **(SMALL if asked.small else {})}
    (folder / "config.json").write_text(json.dumps(model), encoding="utf-8")
    ranks = cluster.devices
    layout = f"dp={ranks},zero=1,mbs=1,recompute={case.recompute}"
    layout += f",ep={ranks}" if case.spread and ranks > 1 else ""
    batch = 4 * ranks
    keys = "".join(f"{k} = {json.dumps(v)}\n" for k, v in case.train.items())
    run = folder / "run.toml"
    run.write_text(
        f'model = "config.json"\nlayout = "{layout}"\n'
        f'cluster = "{asked.pretend or asked.on or guessed(ranks)}"\n[run]\nfolder = "out"\n'
        f"[goal]\ntokens = {STEPS * batch * asked.sequence}\nsequence = {asked.sequence}\n"
        f'global_batch = {batch}\nprecision = "{case.precision}"\n'
        f'[data]\npath = "../tokens"\ndocuments = {json.dumps(case.documents)}\n'
        f'[metrics]\nprofile = "{STEPS - 3}:{STEPS}"\n[checkpoint]\nevery = 0\n[train]\n{keys}',
        encoding="utf-8",
    )
    return run


def prediction(run: Path) -> dict[str, Any]:
    """What is expected of a run, before it: by the planner, and by its rehearsal."""
    settings = read_settings(run)
    config, name = load_model_config(settings.model)
    spec, layout = model_spec(config, name=name), parse_layout(settings.layout)
    found = summary_of(step_of(settings, spec, layout), 0)
    return {
        "layout": settings.layout,
        "precision": settings.goal.precision,
        **_planned(settings, spec),
        "rehearsed_bytes": found.peak.total,
        "rehearsed_flops": found.flops,
        "host_reads_for_experts": sum(n for at, n in found.reads.items() if "ops/routes" in at),
        "host_reads": dict(found.reads),
        "traffic": [[t.operation, t.group, t.count, t.bytes] for t in found.traffic],
    }


def _planned(settings: TrainSettings, spec: ModelSpec) -> dict[str, Any]:
    try:
        found = forecast(settings, spec, parse_layout(settings.layout), None)
    except KrzemError as error:
        return {"planned": str(error)}
    step, memory = found.step_seconds, found.memory_bytes
    return {
        "seconds": [step.low, step.mid, step.high],
        "tokens_per_s": found.tokens_per_step / step.mid,
        "bytes": [memory.low, memory.mid, memory.high],
        "peak_flops": found.peak_flops,
    }


def measurement(run: Path, ranks: int) -> dict[str, Any]:
    """What the run did; where it broke, the end of what it said."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*launch, "-m", "krzem.train", str(run)], capture_output=True, text=True, check=False
    )
    metrics = run.parent / "out" / "metrics.jsonl"
    if done.returncode or not metrics.exists():
        return {"failed": (done.stderr or done.stdout)[-2000:]}
    return of_metrics([json.loads(line) for line in metrics.read_text().splitlines()])


def of_metrics(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the steps that neither begin the run nor are recorded by the profiler."""
    counted = steps[SKIPPED : STEPS - 4]

    def middle(key: str) -> float | None:
        values = [s[key] for s in counted if s.get(key) is not None]
        return statistics.median(values) if values else None

    return {
        **{key: middle(key) for key in ("seconds", "tokens_per_s", "mfu")},
        "bytes": max((s.get("memory_bytes") or 0 for s in steps), default=0),
        "taken_again": sum(bool(s.get("beyond")) for s in counted),
        "losses": [s["loss"] for s in steps],
    }


def _probe(folder: Path) -> None:
    """Rates of this machine, as ``krzem probe`` measures them."""
    done = subprocess.run(
        [sys.executable, "-m", "krzem", "probe", "--out", str(folder / "probe.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"the probe ended with {done.returncode}: {done.stderr[-500:]}", file=sys.stderr)


def _keep(file: Path, found: dict[str, Any]) -> None:
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(predicted: dict[str, Any], measured: dict[str, Any]) -> str:
    """A row for each case: prediction and, where there is one, measurement."""
    lines = [
        "| case | s/step predicted | measured | tokens/s | MFU "
        "| GiB planned | rehearsed | measured | host reads for experts |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, told in predicted.items():
        did = measured.get(name, {})
        planned = told.get("bytes", [None] * 3)[1]
        cells = (
            name,
            _interval(told.get("seconds")),
            "failed" if "failed" in did else _number(did.get("seconds"), 3),
            _number(did.get("tokens_per_s"), 0),
            _number(did.get("mfu"), 3),
            _gib(planned),
            _gib(told["rehearsed_bytes"]),
            _gib(did.get("bytes")),
            str(told["host_reads_for_experts"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _interval(seconds: list[float] | None) -> str:
    return "–" if seconds is None else "{1:.3f} ({0:.3f} to {2:.3f})".format(*seconds)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _gib(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
