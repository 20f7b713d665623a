"""Every built-in model, emitter and usual chip at real cluster sizes: what ends in a script.

    .venv/bin/python benchmarks/plan_matrix.py [EMITTER ...] [--devices 2048]

Prints one line a cell that ends otherwise than in a script, and the counts of each emitter.  A cell
is *emitted*, *refused* before the search, has a model that *does not fit*, or is *late*: refused by
the emitter after the search, which none may be.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from krzem.errors import KrzemError
from krzem.model import load_model, model_ids
from krzem.plan.answer import check_emission, plan_of, script_of
from krzem.plan.question import Question
from krzem.plan.request import settle

CHIPS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "megatron-lm": ("h100", "b200"),
    "mindspeed-llm": ("910b", "910c"),
    "torchtitan": ("h100", "b200"),
    "primus": ("mi300x", "mi355x"),
    "megatron-bridge": ("h100", "gb200"),
    "maxtext": ("v5p", "h100"),
    "deepspeed": ("a100", "h100"),
    "fsdp": ("a100", "h100"),
    "mindformers": ("910b", "910c"),
    "krzem": ("h100",),
})  # fmt: skip
TOKENS_PER_STEP = 16 * 2**20


def outcome(emitter: str, model: str, chip: str, devices: int) -> tuple[str, str]:
    """How a cell ends, and why where it is not in a script."""
    longest = load_model(model).learned_positions or 4096
    sequence = min(4096, longest)
    question = Question(
        model=model, on=f"{chip}:{devices}", emits=emitter, tokens="1T", sequence=sequence,
        global_batch=TOKENS_PER_STEP // sequence, engine="krzem" if emitter == "krzem" else None,
    )  # fmt: skip
    try:
        asked = settle(question)
        check_emission(asked, emitter)
    except KrzemError as error:
        return "refused", str(error)
    try:
        plan = plan_of(asked, alternatives=0)
    except KrzemError as error:
        return "does not fit", str(error)
    try:
        script_of(asked, plan, emitter)
    except KrzemError as error:
        return "late", f"{plan.best.layout}: {error}"
    return "emitted", ""


def table(emitters: list[str], devices: int) -> Iterator[str]:
    """The lines that are printed."""
    for emitter in emitters:
        counts: Counter[str] = Counter()
        start = time.process_time()
        for chip in CHIPS[emitter]:
            for model in model_ids():
                how, why = outcome(emitter, model, chip, devices)
                counts[how] += 1
                if how != "emitted":
                    yield f"  {emitter} {chip} {model}: {how}: {why[:150]}"
        numbers = ", ".join(f"{how} {number}" for how, number in sorted(counts.items()))
        yield f"{emitter}: {numbers} ({time.process_time() - start:.0f} s)"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("emitters", nargs="*", metavar="EMITTER", help="default: all")
    parser.add_argument("--devices", type=int, default=2048)
    given = parser.parse_args()
    for line in table(given.emitters or list(CHIPS), given.devices):
        print(line, flush=True)


if __name__ == "__main__":
    main()
