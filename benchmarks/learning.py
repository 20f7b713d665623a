"""Does the trainer learn?  Held-out loss of small DeepSeek models beside counting, on equal tokens.

    OMP_NUM_THREADS=1 python -m benchmarks.learning --out out/learning [--only v3 --only v4]

A part of the demo corpus (``krzem data demo``), in 1,024 byte-pair tokens that were learned on
another part: a V3-class and a V4-class model of some 10 M parameters are trained by run files like
any other, then measured on every held-out target.  Interpolated modified Kneser-Ney models of
order 1 to 8 are counted on the same training tokens and measured on the same targets.  Two short
runs leave something out: the balancing bias, and multi-token prediction; they are compared with the
V3 run at the same step and rate.  A run that has its ``result.json`` is not repeated; one that was
cut off goes on from its checkpoint.  Writes ``learning.md``, ``learning.svg`` and
``learning.html``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.learning_models import V3, V4
from benchmarks.learning_report import write_report
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from krzem.model import count
from krzem.train.data import BuildRequest, NGram, Options, TokenDataset, build
from krzem.train.data.demo import prepare_demo
from krzem.train.data.tokenizer import load_tokenizer
from krzem.train.loop import Trainer
from krzem.train.start import prepare

SEQUENCE, BATCH, SEED = 256, 16, 0
RATE = 1.5e-2
STEP_TOKENS = SEQUENCE * BATCH
ORDERS = range(1, 9)
KEPT = 4
"""One document of this many is kept: a corpus that minutes on one core go through."""
HELD_OUT = 0.1
VOCABULARY, END = 1024, "<|endoftext|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One model and how it is trained."""

    config: dict[str, Any]
    steps: int
    rate: float
    decay: float = 0.3
    """Share of the steps over which the rate falls; 0 in runs that are compared midway."""
    mtp: float = 0.3
    bias_rate: float = 1e-2
    """Ten times the usual step, as there are only some hundred steps to act in."""


def runs(steps: int, short: int) -> dict[str, Run]:
    """Every run by name."""
    return {
        "v3": Run(config=V3, steps=steps, rate=RATE),
        "v4": Run(config=V4, steps=steps, rate=RATE),
        "v3-no-bias": Run(config=V3, steps=short, rate=RATE, decay=0.0, bias_rate=0.0),
        "v3-no-mtp": Run(config=V3 | {"num_nextn_predict_layers": 0}, steps=short, rate=RATE,
                         decay=0.0, mtp=0.0),
    }  # fmt: skip


def corpus(out: Path) -> Path:
    """The folder of tokens, made on first use from one document in :data:`KEPT`."""
    tokens = out / "tokens"
    if not (tokens / "manifest.json").exists():
        prepare_demo(out / "demo")
        lines = (out / "demo" / "corpus.jsonl").read_text(encoding="utf-8").splitlines(True)
        part = out / "part.jsonl"
        part.write_text("".join(lines[::KEPT]), encoding="utf-8")
        tokenizer = learn_tokenizer(lines[1::KEPT], out / "tokenizer.json")
        options = Options(held_out=HELD_OUT)
        request = BuildRequest(
            sources=(part,), out=tokens, tokenizer=tokenizer, end_of_document=END, options=options
        )
        build(request)
    return tokens


def learn_tokenizer(lines: list[str], file: Path) -> str:
    """Byte pairs from documents that are neither trained on nor held out; returns the path."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
    inner.save(str(file))
    return str(file)


RUN_FILE = """model = "config.json"
layout = "dp=1,mbs=8"
[run]
name = "{name}"
folder = "run"
[goal]
tokens = {tokens}
sequence = {sequence}
global_batch = {batch}
precision = "bf16"
optimizer = "muon"
[train]
seed = {seed}
mtp = {mtp}
bias_rate = {bias_rate}
[data]
path = "{data}"
[optimizer]
rate = {rate}
weight_decay = 0.1
[schedule]
warmup = {warmup}
decay_share = {decay}
final_share = 0.0
[checkpoint]
every = 0
keep_last = 1
[evaluation]
every = 25
sequences = 32
[metrics]
every = 25
"""


def write_run(name: str, run: Run, data: Path, folder: Path) -> Path:
    """``config.json`` and ``run.toml`` in ``folder``; returns the run file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(run.config, indent=1), encoding="utf-8")
    text = RUN_FILE.format(
        name=name, data=data.resolve(), tokens=run.steps * STEP_TOKENS, sequence=SEQUENCE,
        batch=BATCH, seed=SEED, mtp=run.mtp, bias_rate=run.bias_rate, rate=run.rate,
        warmup=20 * STEP_TOKENS, decay=run.decay,
    )  # fmt: skip
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return folder / "run.toml"


def train(name: str, run: Run, data: Path, folder: Path) -> None:
    """Train as ``krzem train run.toml`` does, measure all of held-out, write ``result.json``."""
    trainer = prepare(write_run(name, run, data, folder))
    trainer.resume()
    file = folder / "spent.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else [0.0, 0.0]
    begun, cpu = time.monotonic(), time.process_time()
    stopped = trainer.run().stopped
    spent = [before[0] + time.monotonic() - begun, before[1] + time.process_time() - cpu]
    file.write_text(json.dumps(spent), encoding="utf-8")
    if stopped:
        raise SystemExit(f"{name} is stopped; the same command goes on")
    counted = count(trainer.spec.arch)
    result = {
        "parameters": counted.total,
        "mtp_parameters": counted.mtp,
        "active": counted.active,
        "steps": run.steps,
        "tokens": run.steps * STEP_TOKENS,
        "seconds": spent[0],
        "cpu_seconds": spent[1],
        "threads": torch.get_num_threads(),
        "held_out": everything(trainer, data),
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def everything(trainer: Trainer, data: Path) -> float:
    """Mean loss of every whole held-out sample, nats per token."""
    held_out = TokenDataset.open(data, "held_out")
    samples = np.arange(held_out.samples(SEQUENCE))
    return trainer.engine.evaluate(torch.from_numpy(held_out.take(samples, SEQUENCE)))


def baselines(data: Path, out: Path) -> dict[str, Any]:
    """Held-out losses of counting by order, on the targets of :func:`everything`."""
    file = out / "baselines.json"
    if not file.exists():
        train_set, held_out = TokenDataset.open(data), TokenDataset.open(data, "held_out")
        text = train_set.read(0, train_set.tokens)
        targets = held_out.read(0, held_out.samples(SEQUENCE) * SEQUENCE + 1)
        losses, begun = {}, time.monotonic()
        for order in ORDERS:
            losses[order] = NGram(text, order=order, vocabulary=VOCABULARY).loss(targets)
        found = {"train": len(text), "held_out": len(targets), "losses": losses,
                 "sequence": SEQUENCE, "seconds": time.monotonic() - begun}  # fmt: skip
        found["bytes"] = len(
            load_tokenizer(out / "tokenizer.json", END).decode(targets[1:]).encode()
        )
        origin = json.loads((out / "demo" / "origin.json").read_text(encoding="utf-8"))
        found["origin"] = origin["origin"]
        file.write_text(json.dumps(found), encoding="utf-8")
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


def text_bytes(ids: NDArray[Any], tokenizer: Path) -> int:
    """Bytes of the text of ``ids``; an end of document is none."""
    known = load_tokenizer(tokenizer, END)
    return len(known.decode(ids[ids != known.end_of_document].tolist()).encode())


def main() -> None:
    """Read the arguments, train what is missing, write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/learning"))
    parser.add_argument("--only", action="append", help="runs to train now, by name")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--short", type=int, default=75, help="steps of the runs without a part")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = corpus(options.out)
    counted = baselines(data, options.out)
    for name, run in runs(options.steps, options.short).items():
        folder = options.out / name
        if (options.only is None or name in options.only) and not (folder / "result.json").exists():
            train(name, run, data, folder)
    write_report(options.out, counted)


if __name__ == "__main__":
    main()
