"""Real torchtitan 0.3.0 under ``krzem run``: killed, then moved to two tensor-parallel processes.

``python benchmarks/torchtitan_move.py PYTHON`` where PYTHON is of an environment of its own::

    python -m venv tt && tt/bin/pip install torch==2.13.0 torchtitan==0.3.0

Processors, Gloo, its own data loader, log and checkpoints (``benchmarks/torchtitan_cpu.py`` gives
it what it lacks there).  Losses are compared with those of a run that nobody disturbed; the move is
proved by a witness of the checkpoint's Hugging Face export (``benchmarks/torchtitan_export.py``).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from krzem.errors import KrzemError
from krzem.run.history import History
from krzem.run.ledger import Reader
from krzem.run.processes import of_run
from krzem.run.status import read_status

HERE = Path(__file__).resolve().parent
PLACE = HERE.parent / "out" / "torchtitan"
STEPS, EVERY, BATCH, SEQUENCE = 10, 2, 2, 64
KRZEM = [sys.executable, "-m", "krzem"]
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 16,
    "num_key_value_heads": 16, "vocab_size": 2048, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    "rope_theta": 500000.0,
}  # fmt: skip
RUN = """
model = "config.json"
[run]
folder = "run"
[goal]
tokens = {tokens}
sequence = {sequence}
global_batch = {batch}
precision = "fp32"
[trainer]
engine = "torchtitan"
checkpoints = "{{run_dir}}/trainer/checkpoint"
[[pool]]
name = "one-process"
accelerator = "cpu"
count = 1
layout = "tp=1"
tokens_per_s = 100
command = {one}
[pool.limits]
threads = 1
[[pool]]
name = "tensor-parallel"
accelerator = "cpu"
count = 2
layout = "tp=2,sp"
tokens_per_s = 100
command = {two}
[pool.limits]
threads = 1
[qualify]
enabled = false
[gates]
throughput = false
stall = {{ seconds = "10 min", load = "30 min" }}
[witness]
sequences = 2
batches = 1
export = {export}
[recovery]
wait_first = "1 s"
look_every = "500 ms"
"""
TOKENIZER = """
import json, sys
from pathlib import Path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
place = Path(sys.argv[1])
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
made = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(letters)}, merges=[]))
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.decoder = decoders.ByteLevel()
made.add_special_tokens(["<s>", "</s>"])
made.save(str(place / "tokenizer.json"))
told = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": False}
(place / "tokenizer_config.json").write_text(json.dumps(told))
"""


def main(python: str) -> int:
    """Undisturbed, then killed and moved; 0 if the losses agree and no step is missing."""
    shutil.rmtree(PLACE, ignore_errors=True)
    (PLACE / "tokenizer").mkdir(parents=True)
    subprocess.run([python, "-c", TOKENIZER, PLACE / "tokenizer"], check=True)
    (PLACE / "text").mkdir()
    text = (HERE.parent / "docs" / "run.md").read_text()
    lines = [json.dumps({"text": text[at : at + 400]}) for at in range(0, len(text), 400)]
    (PLACE / "text" / "text.jsonl").write_text("\n".join(lines))
    (PLACE / "config.json").write_text(json.dumps(MODEL))
    for name in ("undisturbed", "moved"):
        (PLACE / name).mkdir()
        shutil.copy(PLACE / "config.json", PLACE / name)
        (PLACE / name / "run.toml").write_text(run_file(python))
    subprocess.run([*KRZEM, "run", PLACE / "undisturbed" / "run.toml"], check=True)
    with subprocess.Popen([*KRZEM, "run", PLACE / "moved" / "run.toml"]) as run:
        folder = PLACE / "moved" / "run"
        wait(lambda: step_of(folder) >= EVERY + 1, run)
        for process in of_run(folder):
            os.kill(process, signal.SIGKILL)
        print("killed    all processes of the trainer", flush=True)
        wait(lambda: step_of(folder) >= 2 * EVERY + 1, run)
        subprocess.run([*KRZEM, "move", PLACE / "moved" / "run.toml", "tensor-parallel"],
                       check=False)  # fmt: skip
        run.wait()
    return compared()


def run_file(python: str) -> str:
    """The same run file for both, apart from what is done to them."""
    command = [
        python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node={ranks}",
        str(HERE / "torchtitan_cpu.py"), "--module", "llama3", "--config", "llama3_debugmodel",
        "--hf_assets_path", str(PLACE / "tokenizer"), "--dataloader.dataset_path",
        str(PLACE / "text"), "--training.seq_len", str(SEQUENCE), "--training.steps", str(STEPS),
        "--training.global_batch_size", str(BATCH), "--parallelism.spmd_backend",
        "partial_dtensor", "--training.disable_cuda_graphs", "--checkpoint.enable",
        "--checkpoint.interval", str(EVERY), "--dump_folder", "{run_dir}/trainer",
        "--debug.seed", "1", "--debug.deterministic", "--training.local_batch_size", str(BATCH),
        "--parallelism.tensor_parallel_degree",
    ]  # fmt: skip
    tokens = STEPS * BATCH * SEQUENCE
    one, two = (json.dumps([*command, degree]) for degree in ("1", "2"))
    export = json.dumps([python, str(HERE / "torchtitan_export.py"), "{checkpoint}", "{export}",
                         str(PLACE / "config.json")])  # fmt: skip
    return RUN.format(
        tokens=tokens, sequence=SEQUENCE, batch=BATCH, one=one, two=two, export=export
    )


def step_of(folder: Path) -> int:
    """The last step that is logged."""
    try:
        return History.of(folder).step
    except (KrzemError, OSError):
        return 0


def wait(done: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    """Until it is so, or the run has ended."""
    while not done() and run.poll() is None:
        time.sleep(0.5)


def compared() -> int:
    """Print what both runs did, step by step where they differ most."""
    one, two = (History.of(PLACE / name / "run").kept for name in ("undisturbed", "moved"))
    folder = PLACE / "moved" / "run"
    status = read_status(folder)
    with Reader(folder) as reader:
        proofs = [d for d in reader.decisions() if d.subject.startswith("witness of")]
    for proof in proofs:
        print(f"proof     {proof.subject}: {proof.choice}; {proof.reason}")
    steps = [r.step for r in two]
    worst = max((abs(b.loss - a.loss) / a.loss, a.step) for a, b in zip(one, two, strict=False))
    for pool in status.pools:
        print(f"pool      {pool.name}: {pool.steps} steps, {pool.lost_steps} done again")
    stops = ", ".join(f"{i.cause} on {i.pool}" for i in status.interruptions)
    print(f"run       {status.state}; stops: {stops}; samples {status.samples_exact}")
    print(f"losses    {one[0].loss:.4f} to {one[-1].loss:.4f}; undisturbed and moved are at most "
          f"{worst[0]:.2e} apart, at step {worst[1]}")  # fmt: skip
    proved = [p.choice for p in proofs] == ["recorded", "passed"]
    right = (
        proved and status.state == "done" and steps == list(range(1, STEPS + 1)) and worst[0] < 1e-2
    )
    return 0 if right and len([p for p in status.pools if p.steps]) == 2 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
