"""How right the cost model is: the tables of the README.  ``python benchmarks/accuracy.py``.

Held-back errors of the packaged runs, and published layouts priced as anyone would with
``krzem explain``: Megatron's table 5, DeepSeek-V3 and Pangu Ultra MoE.  What the chip's maker ran
itself is taken at the makers' pace (coefficient ``maker``).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import krzem
from krzem.accuracy.evaluate import evaluate
from krzem.cost.coefficients import fitted
from krzem.facts.table import read_table
from krzem.report.text_table import table

MEGATRON = {
    "22B": ("megatron-22b", 1, 1, 4, 4, 1.42, 1.10),
    "175B": ("gpt3-175b", 8, 3, 64, 1, 18.13, 13.75),
    "530B": ("megatron-530b", 35, 3, 280, 1, 49.05, 37.83),
    "1T": ("megatron-1t", 64, 1, 512, 1, 94.42, 71.49),
}
"""Model, pipeline, chunks, batch, micro-batch, seconds full and selective (arXiv 2205.05198)."""
PACE = fitted().common("maker")
PANGU_TOKENS_PER_S = 1.46e6
"""On "6K" Ascend 910B (arXiv 2505.04519); sequence length and batch are not published."""


def megatron() -> Iterator[list[str]]:
    errors = []
    for name, (model, pp, vpp, batch, micro, full, selective) in MEGATRON.items():
        schedule = "interleaved" if vpp > 1 else "1f1b"
        for mode, measured in (("full", full), ("attention", selective)):
            found = krzem.explain(
                model, on=f"a100-sxm-80:{8 * pp}", engine="megatron-lm", date="2022-05",
                precision="fp16", batch=batch, seq=2048,
                layout=f"tp=8,pp={pp},vpp={vpp},mbs={micro},zero=0,schedule={schedule},"
                f"recompute={mode},sp={int(mode == 'attention')}",
            ).plan.step_seconds.mid * PACE  # fmt: skip
            errors.append(abs(found / measured - 1))
            yield [f"Megatron {name}, {mode}", *compared(found, measured)]
    yield ["Megatron table 5, mean", "", "", f"{100 * np.mean(errors):.1f} %"]


def deepseek() -> list[str]:
    found = krzem.explain(
        "deepseek-v3", on="h800:2048", engine="deepseek", date="2024-12",
        layout="tp=1,pp=16,ep=64,mbs=1,schedule=dualpipe,recompute=modules",
    ).plan  # fmt: skip
    fits = f"DeepSeek-V3, 2,048 H800; fits with {found.fits_probability:.2f}"
    return [fits, *compared(found.step_seconds.mid, 19.9)]


def pangu(sequence: int) -> list[str]:
    batch = 192 * 48 * 4096 // sequence
    found = krzem.explain(
        "pangu-ultra-moe-718b", on="ascend-910b:6144", engine="mindspeed-llm", date="2025-05",
        batch=batch, seq=sequence, with_=["overlap-a2a"],
        layout="tp=8,pp=16,vpp=2,ep=32,mbs=2,schedule=interleaved,recompute=modules",
    ).plan.step_seconds.mid * PACE  # fmt: skip
    measured = batch * sequence / (PANGU_TOKENS_PER_S / 6000 * 6144)
    return [f"Pangu Ultra MoE, 6,144 Ascend 910B, {sequence}", *compared(found, measured)]


def compared(found: float, measured: float) -> list[str]:
    return [f"{measured:.2f}", f"{found:.2f}", f"{100 * (found / measured - 1):+.1f} %"]


def main() -> None:
    document = evaluate(read_table("runs.csv")).as_dict()
    rows = [
        [name.replace("_", " "), f"{f['n']:,}"]
        + [f"{100 * f[k]:.1f} %" for k in ("median_ape", "mape", "p90_ape", "coverage80")]
        for name, f in document["held_back"].items()
    ]
    print("\n".join(table(("time", "rows", "median", "mean", "90th", "in 80 %"), rows, "lrrrrr")))
    held = [[k, str(f["memory"]["n"]), f"{100 * f['memory']['mape']:.1f} %",
             f"{100 * f['memory']['max_ape']:.1f} %"]
            for k, f in document["by_source"].items() if f["memory"]["n"]]  # fmt: skip
    print("\n" + "\n".join(table(("peak memory", "rows", "mean", "max"), held, "wrrr")))
    fixtures = [*megatron(), deepseek(), pangu(4096), pangu(8192)]
    head = ("published layout", "measured s", "predicted s", "error")
    print("\n" + "\n".join(table(head, fixtures, "lrrr")))


if __name__ == "__main__":
    main()
