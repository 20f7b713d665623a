"""What the witness finds and what it alarms about falsely: ``python benchmarks/witness.py [FILE]``.

Prints two tables in Markdown: every planted fault with the place and the signal that found it, and
honest repeats with the alarms they raised.  With a FILE, the part between its two marks is
replaced and ``examples/witness-departs.html`` beside it written.  Takes some minutes on one core.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from tests.witness.models import QUICK, batches, build, subject
from tests.witness.plants import HONEST, PLANTS, Plant

from krzem.report.selfcontained import write_text
from krzem.witness.checking import check
from krzem.witness.page import verdict_page
from krzem.witness.recording import record
from krzem.witness.trainer import TrainerSubject
from krzem.witness.witness import Witness, to_bytes

MODELS, DTYPES, SEEDS = ("deepseek_v3", "llama"), ("float32", "bfloat16"), 5
BEGIN, END = "<!-- benchmarks/witness.py -->", "<!-- end -->"


def made(model: str, dtype: str, seed: int) -> tuple[Witness, TrainerSubject]:
    """A model and its witness."""
    there = subject(model, dtype, seed=seed)
    there.build = lambda layout, kind: build(model, layout, kind, seed)
    return record(there, batches(), settings=QUICK), there


def found(plant: Plant, witness: Witness, there: TrainerSubject) -> str:
    """Where and by which signal a planted fault was found."""
    with plant.plant(there):
        verdict = check(witness, there)
    first = verdict.first
    if first is None:
        return "not seen"
    f = first.finding
    right = first.direction == plant.direction and first.name.startswith(plant.at)
    ratio = "any" if not f.tolerance else f"{f.severity:,.3g} x"
    return (
        f"{'' if right else 'elsewhere: '}`{first.name}`, {f.quantity.kind} {f.signal} "
        f"{f.error:.2g} ({ratio})"
    )


def plants_table() -> list[str]:
    """One row per fault and model: what float32 and bfloat16 see."""
    lines = [
        "| fault | model | found in float32 | found in bfloat16 |",
        "| --- | --- | --- | --- |",
    ]
    for model in MODELS:
        pairs = {dtype: made(model, dtype, 0) for dtype in DTYPES}
        for plant in PLANTS:
            if model in plant.models:
                cells = [
                    found(plant, *pairs[d]) if d in plant.dtypes else "it is so by design"
                    for d in DTYPES
                ]
                lines.append(f"| {plant.name} | {model} | {' | '.join(cells)} |")
    return lines


def repeats_table() -> list[str]:
    """Honest repeats by change, with false alarms."""
    tried: Counter[tuple[str, str]] = Counter()
    alarms: Counter[tuple[str, str]] = Counter()
    details: list[str] = []
    for model in MODELS:
        for dtype in DTYPES:
            for seed in range(SEEDS):
                witness, there = made(model, dtype, seed)
                for name, change in HONEST.items():
                    with change(there):
                        verdict = check(witness, there)
                    tried[name, dtype] += 1
                    alarms[name, dtype] += not verdict.passed
                    if not verdict.passed:
                        details.append(f"{model} {dtype} {seed} {name}: {verdict.message}")
    print(*details, sep="\n", file=sys.stderr)
    lines = ["| honest change | float32: alarms of repeats | bfloat16 |", "| --- | --- | --- |"]
    for name in HONEST:
        cells = [f"{alarms[name, d]} of {tried[name, d]}" for d in DTYPES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sums = [(sum(alarms[n, d] for n in HONEST), sum(tried[n, d] for n in HONEST)) for d in DTYPES]
    lines.append(
        f"| **all** | **{sums[0][0]} of {sums[0][1]}** | **{sums[1][0]} of {sums[1][1]}** |"
    )
    return lines


def example(target: Path) -> None:
    """The page of a check that failed: the forward pass right, one layer's backward wrong."""
    witness, there = made("deepseek_v3", "float32", 0)
    plant = next(p for p in PLANTS if "backward x1.2" in p.name)
    with plant.plant(there):
        write_text(target, verdict_page(check(witness, there)))


def main(target: Path | None) -> None:
    """Print both tables, or put them into ``target``."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    size = len(to_bytes(made("deepseek_v3", "float32", 0)[0]))
    text = "\n".join(["", *plants_table(), "", *repeats_table(), ""])
    seconds = time.perf_counter() - begun
    text += (
        f"\nWitness of the small V3: {size / 1e3:.0f} kB. torch {torch.__version__}, one thread "
    )
    text += f"of a processor, {seconds:.0f} s.\n"
    if target is None:
        print(text)
        return
    page = target.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    example(target.parent / "examples" / "witness-departs.html")
    target.write_text(head + BEGIN + "\n" + text + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
