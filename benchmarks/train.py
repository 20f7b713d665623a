"""Speed of the trainer on this machine's processor, beside ``transformers``.

    OMP_NUM_THREADS=1 python benchmarks/train.py [--compile] [--ranks 2]

One model of 12.32 M parameters (DeepSeek-V3 class, 8 experts), batch 8 x 256, forward, backward and
fused AdamW; tokens per second of processor time, one thread, median of the steps after the first
two.  All candidates take their steps in turn, so that what else the machine does meets them alike.
Ours keeps float32 master weights; ``transformers`` in bfloat16 keeps none.  The last column is the
share of a step's time that its matrix products would need at the machine's best measured rate.
``--ranks`` measures several processes, one thread each, against one, by the clock (which needs an
idle machine) and by processor time (which leaves out waiting).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from krzem.layout.layout import Layout, parse_layout
from krzem.train.build import compile_layers
from krzem.train.config import model_spec
from krzem.train.device import find_device, start_ranks
from krzem.train.engine import Engine
from krzem.train.model import LossWeights
from krzem.train.model.transformer import Transformer
from krzem.train.ops.products import product
from krzem.train.optim import Optimizer, OptimizerConfig

MODEL: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "max_position_embeddings": 256,
    "num_nextn_predict_layers": 0,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
}
BATCH, LENGTH, STEPS = 8, 256, 9


def measured(
    steps: dict[str, Callable[[], object]], clock: Callable[[], float], tokens: int
) -> dict[str, float]:
    """Tokens per second of each candidate, the median of its steps after the first two."""
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(STEPS):
        for name, step in steps.items():
            begun = clock()
            step()
            rates[name].append(tokens / (clock() - begun))
    return {name: statistics.median(found[2:]) for name, found in rates.items()}


def best_rate(dtype: torch.dtype) -> float:
    """FLOP/s of the model's commonest product, by the library that the trainer gives it to."""
    a, b = torch.randn(2048, 256).to(dtype), torch.randn(256, 256).to(dtype)
    seconds = []
    for _ in range(200):
        begun = time.process_time()
        product(a, b)
        seconds.append(time.process_time() - begun)
    return 2 * a.numel() * len(b) / min(seconds)


def step_flops() -> float:
    """Of all matrix products of a step: six for each weight and token, attention half masked."""
    model = model_spec(MODEL)
    with torch.device("meta"):
        named = dict(Transformer(model).named_parameters())
    share = MODEL["num_experts_per_tok"] / MODEL["n_routed_experts"]
    used = sum(
        p.numel() * (share if ".experts." in name else 1)
        for name, p in named.items()
        if p.dim() > 1 and "embed_tokens" not in name
    )
    widths = MODEL["qk_nope_head_dim"] + MODEL["qk_rope_head_dim"] + MODEL["v_head_dim"]
    pairs = MODEL["num_hidden_layers"] * MODEL["num_attention_heads"] * LENGTH / 2
    return 6 * BATCH * LENGTH * (used + pairs * widths)


def ours(dtype: torch.dtype, layout: Layout, *, compiled: bool) -> Callable[[], object]:
    """One step of the trainer."""
    engine = Engine(
        model_spec(MODEL),
        layout,
        device=torch.device("cpu"),
        dtype=dtype,
        weights=LossWeights(mtp=0.0, balance=0.0),
    )
    if compiled:
        compile_layers(engine.stages)
    optimizer = Optimizer(engine.held, OptimizerConfig(), holders=engine.holders)
    sequences = BATCH * engine.data.size
    tokens = torch.randint(0, 2048, (BATCH, LENGTH + 1))

    def step() -> None:
        result = engine.step(tokens, sequences=sequences)
        optimizer.step(1e-3, result.gradient_norm)

    return step


def theirs(dtype: torch.dtype, experts: str, *, compiled: bool) -> Callable[[], object]:
    """One step of ``transformers``."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    fields = {k: v for k, v in MODEL.items() if k not in ("model_type", "num_nextn_predict_layers")}
    model = DeepseekV3ForCausalLM._from_config(
        DeepseekV3Config(**fields), attn_implementation="sdpa", experts_implementation=experts
    ).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(0, 2048, (BATCH, LENGTH))
    run = torch.compile(model) if compiled else model

    def step() -> None:
        run(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def one_process(compiled: bool) -> None:
    """The table against ``transformers``."""
    torch.set_num_threads(1)
    tokens, mode = BATCH * LENGTH, "compiled" if compiled else "eager"
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        steps = {
            f"transformers, {experts}": theirs(dtype, experts, compiled=compiled)
            for experts in ("eager", "grouped_mm")
        }
        layout = Layout(micro_batch=BATCH)
        if compiled:
            steps["krzem, as it is"] = ours(dtype, layout, compiled=False)
        steps["krzem"] = ours(dtype, layout, compiled=compiled)
        rates = measured(steps, time.process_time, tokens)
        bound = tokens * best_rate(dtype) / step_flops()
        for name, rate in rates.items():
            text = f"{name:<26}  {kind:<8}  {mode}  {rate:7.0f} tok/cpu-s  {rate / bound:4.0%}"
            print(f"{text} of {bound:.0f}", flush=True)


def as_rank() -> None:
    """One of several processes; the first prints wall tokens per second of all together."""
    torch.set_num_threads(1)
    start_ranks(find_device("cpu"))
    world = int(os.environ["WORLD_SIZE"])
    layout = parse_layout(f"dp={world},zero=0,mbs={BATCH}")
    step = ours(torch.bfloat16, layout, compiled=False)
    tokens = BATCH * LENGTH * world
    wall = measured({"": step}, time.perf_counter, tokens)[""]
    spent = measured({"": step}, time.process_time, tokens)[""]
    if int(os.environ["RANK"]) == 0:
        print(
            f"{world} processes, {layout}: {wall:.0f} tok/s by the clock, {spent:.0f} by the "
            "first process's time",
            flush=True,
        )
    if dist.is_initialized():
        dist.destroy_process_group()


def several(ranks: int) -> None:
    """Wall speed of one process, then of ``ranks`` under torchrun."""
    for world in (1, ranks):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}"]
        subprocess.run([*command, __file__, "--rank"], check=True)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        as_rank()
    elif options.ranks:
        several(options.ranks)
    else:
        one_process(options.compile)


if __name__ == "__main__":
    main()
