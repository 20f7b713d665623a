"""Published pairs of shape and chip, seen from the grid of shapes: were they good choices?

python benchmarks/design.py [PAIR...]     a table as Markdown (minutes of processor time a pair)
"""

from __future__ import annotations

import sys
import time

from krzem.model.catalogue import load_model
from krzem.model.parameters import count
from krzem.plan.design import design
from krzem.plan.question import Question

PAIRS = {
    "deepseek-v3": ("h800:2048", "deepseek", "2024-12", 14.8e12),
    "pangu-ultra-moe-718b": ("huawei-ascend-910b:6144", "mindspeed-llm", "2025-05", 19e12),
    "kimi-k2": ("h800:2048", "megatron-lm", "2025-07", 15.5e12),
    "glm-4.5": ("h800:2048", "megatron-lm", "2025-07", 22e12),
    "qwen3-235b-a22b": ("h800:2048", "megatron-lm", "2025-04", 36e12),
}
"""Model, cluster (chip as published or the usual one of its country), engine, date, tokens."""


def main() -> None:
    """Print the table."""
    print("| model | cluster | shapes | published learns | better shapes | best shape | FLOPs/s |")
    print("| --- | --- | ---: | ---: | ---: | --- | ---: |")
    for name in sys.argv[1:] or PAIRS:
        on, engine, date, tokens = PAIRS[name]
        model = load_model(name)
        active = float(count(model).active)
        started = time.process_time()
        found = design(
            on,
            6.0 * active * tokens,
            tokens_per_parameter=tokens / active,
            question=Question(model="", on=on, engine=engine, date=date),
            published=[name],
        )
        if not found.published:
            print(f"| {name} | {on} | {len(found.found)} | no plan: {found.left_out[-1]} | | | |")
            continue
        known, best = found.published[0], found.found[0]
        better = sum(judged.worth > known.worth for judged in found.found)
        print(
            f"| {name} | {on} | {len(found.found)} | {known.worth / best.worth:.0%} |"
            f" {better} | {best.name} | {best.worth:.2e} |",
            flush=True,
        )
        print(f"{name}: {time.process_time() - started:.0f} s", file=sys.stderr)


main()
