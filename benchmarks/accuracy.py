"""How right the cost model is: the tables of the README.  ``python benchmarks/accuracy.py``.

Held-back errors of the packaged runs, and fixtures with a published layout: Megatron's table 5,
DeepSeek-V3 and Pangu Ultra MoE.  ``--cross-validate`` refits instead of reading stored errors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from krzem.accuracy.evaluate import evaluate
from krzem.cost.assemble import Situation, machine
from krzem.cost.coefficients import fitted
from krzem.cost.layers import layer_seconds
from krzem.cost.memory import memory_bytes
from krzem.cost.memory_error import fits_probability
from krzem.cost.sizes import StateSizes
from krzem.cost.step import Optim, step_seconds
from krzem.engine.description import engine_named
from krzem.engine.setup import Choices, Setup
from krzem.facts.table import read_table
from krzem.hardware.catalogue import load_device
from krzem.layout.arrays import cells, pack
from krzem.layout.layout import Layout, Recompute, Schedule
from krzem.layout.precision import Precision
from krzem.model import Architecture, load_model
from krzem.model.table import tabulate
from krzem.report.text_table import table

KORTHIKANTI = {
    "22B": ("megatron-22b", 1, 1, 4, 4, 1.42, 1.10),
    "175B": ("gpt3-175b", 8, 3, 64, 1, 18.13, 13.75),
    "530B": ("megatron-530b", 35, 3, 280, 1, 49.05, 37.83),
    "1T": ("megatron-1t", 64, 1, 512, 1, 94.42, 71.49),
}
"""Model, pipeline, chunks, batch, micro-batch, seconds full and selective (arXiv 2205.05198)."""
PANGU_TOKENS_PER_S = 1.46e6
"""On "6K" Ascend 910B (arXiv 2505.04519); sequence length and batch are not published."""


def situation(device: str, engine: str, year: float, precision: Precision,
              switches: Choices = ()) -> Situation:  # fmt: skip
    d = load_device(device)
    assert d.memory_bytes is not None
    assert d.memory_bytes_per_s is not None
    assert d.devices_per_node is not None
    assert d.scale_up_domain is not None
    assert d.scale_up_bytes_per_s is not None
    assert d.scale_out_bytes_per_s is not None
    setup = Setup(
        engine=engine_named(engine).name, year=year, stack=d.software, precision=precision
    )
    return Situation(
        device=d, devices_per_node=d.devices_per_node, memory_bytes=d.memory_bytes,
        memory_bytes_per_s=d.memory_bytes_per_s, scale_up_domain=d.scale_up_domain,
        scale_up_bytes_per_s=d.scale_up_bytes_per_s,
        scale_out_bytes_per_s=d.scale_out_bytes_per_s, precision=precision,
        design=setup.design(switches), year=year,
    )  # fmt: skip


def seconds(s: Situation, model: Architecture, layout: Layout, batch: int, sequence: int) -> float:
    mc, t, x = machine(s, fitted()), tabulate(model, sequence), pack([layout])
    optim = Optim(weight_bytes=2.0, state_bytes=12.0, muon=0.0)
    parts = layer_seconds(t, cells(x), mc)
    return float(step_seconds(t, x, parts, mc, float(batch), optim).total[0])


def korthikanti() -> Iterator[list[str]]:
    s = situation("nvidia-a100-sxm-80", "megatron-lm", 2022.4, Precision.FP16)
    errors = []
    for name, (model, pp, vpp, batch, micro, full, selective) in KORTHIKANTI.items():
        schedule = Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
        for mode, measured in ((Recompute.FULL, full), (Recompute.ATTENTION, selective)):
            layout = Layout(
                tp=8, pp=pp, vpp=vpp, micro_batch=micro, zero=0, schedule=schedule,
                recompute=mode, sequence_parallel=mode is Recompute.ATTENTION,
            )  # fmt: skip
            found = seconds(s, load_model(model), layout, batch, 2048)
            errors.append(abs(found / measured - 1))
            yield [f"Megatron {name}, {mode.value}", *compared(found, measured)]
    yield ["Megatron table 5, mean", "", "", f"{100 * np.mean(errors):.1f} %"]


def deepseek() -> list[str]:
    s = situation("nvidia-h800-sxm", "deepseek", 2024.9, Precision.FP8_BLOCK)
    layout = Layout(
        pp=16, vpp=2, ep=64, dp=128, schedule=Schedule.DUALPIPE, recompute=Recompute.MODULES,
        sequence_parallel=False,
    )  # fmt: skip
    model = load_model("deepseek-v3")
    sizes = StateSizes(weight=2.0, gradient=4.0, optimizer=8.0, stored=1.25)
    held = memory_bytes(tabulate(model, 4096), pack([layout]), sizes, 1.0, 15360.0, 0.0)
    chance = float(fits_probability(held, s.memory_bytes)[0])
    found = seconds(s, model, layout, 15360, 4096)
    return [f"DeepSeek-V3, 2,048 H800; fits with {chance:.2f}", *compared(found, 19.9)]


def pangu(sequence: int) -> list[str]:
    s = situation("huawei-ascend-910b", "mindspeed", 2025.4, Precision.BF16,
                  frozenset({"ep-overlap"}))  # fmt: skip
    layout = Layout(
        tp=8, pp=16, vpp=2, ep=32, dp=48, micro_batch=2, schedule=Schedule.INTERLEAVED,
        recompute=Recompute.MODULES,
    )  # fmt: skip
    batch = 192 * 48 * 4096 // sequence
    found = seconds(s, load_model("pangu-ultra-moe-718b"), layout, batch, sequence)
    measured = batch * sequence / (PANGU_TOKENS_PER_S / 6000 * 6144)
    return [f"Pangu Ultra MoE, 6,144 Ascend 910B, {sequence}", *compared(found, measured)]


def compared(found: float, measured: float) -> list[str]:
    return [f"{measured:.2f}", f"{found:.2f}", f"{100 * (found / measured - 1):+.1f} %"]


def main() -> None:
    report = evaluate(read_table("runs.csv"), cross_validate="--cross-validate" in sys.argv)
    document = report.as_dict()
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
    fixtures = [*korthikanti(), deepseek(), pangu(4096), pangu(8192)]
    head = ("published layout", "measured s", "predicted s", "error")
    print("\n" + "\n".join(table(head, fixtures, "lrrr")))


if __name__ == "__main__":
    main()
