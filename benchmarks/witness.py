"""What the witness finds and what it alarms about falsely: ``python benchmarks/witness.py [FILE]``.

Every planted fault and every honest change goes the way that ``krzem run`` takes: recorded in
float32 and in bfloat16, with documents, moments and the optimiser's next step, and checked in both.
Prints two tables in Markdown.  With a FILE, the part between its two marks is replaced and
``examples/witness-departs.html`` beside it written.  Takes a quarter of an hour on one core.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from tests.witness.fault_list import FAULTS
from tests.witness.models import QUICK, batches, subject, with_documents
from tests.witness.plants import HONEST, Plant

from krzem.report.selfcontained import write_text
from krzem.witness.checking import check
from krzem.witness.page import verdict_page
from krzem.witness.recording import record
from krzem.witness.trainer import TrainerSubject
from krzem.witness.witness import Witness, to_bytes

MODELS, SEEDS = ("deepseek_v3", "llama"), 14
BEGIN, END = "<!-- benchmarks/witness.py -->", "<!-- end -->"


def made(model: str, seed: int = 0) -> tuple[Witness, TrainerSubject]:
    """A model and its witness in both arithmetics."""
    there = subject(model, seed=seed)
    given = with_documents(batches())
    return record(there, given, settings=QUICK, also=("bfloat16",)), there


def found(plant: Plant, witness: Witness, there: TrainerSubject) -> tuple[bool, bool, str]:
    """Whether a planted fault was seen, and named where it is; where and by which signal."""
    with plant.plant(there):
        verdict = check(witness, there)
    first = verdict.first
    if first is None:
        return False, False, "not seen"
    f, right = first.finding, plant.is_found_by(first)
    ratio = "any" if not f.tolerance else f"{f.severity:,.3g} x"
    where = f"`{first.name}`, {f.quantity.kind} {f.signal} {f.error:.2g} ({ratio})"
    if f.dtype != "float32":
        where += f", in {f.dtype}"
    return True, right, where if right else f"elsewhere: {where}"


def plants_table() -> list[str]:
    """One row per fault and model."""
    lines = ["| fault | model | published | found first at |", "| --- | --- | --- | --- |"]
    tried = seen = right = 0
    for model in MODELS:
        witness, there = made(model)
        for plant in FAULTS:
            if model in plant.models:
                a, b, cell = found(plant, witness, there)
                tried, seen, right = tried + 1, seen + a, right + b
                lines.append(f"| {plant.name} | {model} | {plant.source} | {cell} |")
        print(f"{model}: faults done", file=sys.stderr, flush=True)
    head = (
        f"{len(FAULTS)} faults, {tried} plantings: **{seen} seen ({seen / tried:.1%}), "
        f"{right} named where they are ({right / tried:.1%})**."
    )
    return [head, "", *lines]


def repeats_table() -> list[str]:
    """Honest repeats by change, with false alarms."""
    tried: Counter[tuple[str, str]] = Counter()
    alarms: Counter[tuple[str, str]] = Counter()
    for model in MODELS:
        for seed in range(SEEDS):
            witness, there = made(model, seed)
            for name, change in HONEST.items():
                with change(there):
                    verdict = check(witness, there)
                tried[name, model] += 1
                alarms[name, model] += not verdict.passed
                if not verdict.passed:
                    print(f"{model} {seed} {name}: {verdict.message}", file=sys.stderr, flush=True)
    lines = [
        "| honest change | alarms, " + " | alarms, ".join(MODELS) + " |",
        "| --- |" + " --- |" * len(MODELS),
    ]
    for name in HONEST:
        cells = [f"{alarms[name, m]} of {tried[name, m]}" for m in MODELS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    total, false = sum(tried.values()), sum(alarms.values())
    return [
        *lines,
        "",
        f"**{false} of {total} honest changes raised an alarm ({false / total:.1%}).**",
    ]


def example(target: Path) -> None:
    """The page of a check that failed: the forward pass right, one layer's backward wrong."""
    witness, there = made("deepseek_v3")
    plant = next(p for p in FAULTS if "backward x1.2" in p.name)
    with plant.plant(there):
        write_text(target, verdict_page(check(witness, there)))


def main(target: Path | None) -> None:
    """Print both tables, or put them into ``target``."""
    torch.set_num_threads(1)
    begun = time.process_time()
    size = len(to_bytes(made("deepseek_v3")[0]))
    text = "\n".join(["", *repeats_table(), "", *plants_table(), ""])
    seconds = time.process_time() - begun
    text += (
        f"\nWitness of the small V3: {size / 1e3:.0f} kB. torch {torch.__version__}, one thread "
    )
    text += f"of a processor, {seconds:.0f} s of it.\n"
    if target is None:
        print(text)
        return
    page = target.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    example(target.parent / "examples" / "witness-departs.html")
    target.write_text(head + BEGIN + "\n" + text + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
