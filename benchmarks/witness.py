"""What the witness finds and what it alarms about falsely: ``python benchmarks/witness.py [FILE]``.

Every planted fault and every honest change goes the way that ``krzem run`` takes: recorded in
float32 and in bfloat16, with documents, moments and the optimiser's next step, and checked in both.
Prints two tables in Markdown.  With a FILE, the part between its two marks is replaced and
``examples/witness-departs.html`` beside it written.  Takes a quarter of an hour on one core.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
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


Row = tuple[str, str, str, bool, bool, str]
"""Fault, model, where published, whether seen, whether named right, and where it was found."""


def faults_of(model: str) -> list[Row]:
    """Every fault planted in one model."""
    torch.set_num_threads(1)
    witness, there = made(model)
    return [
        (plant.name, model, plant.source, *found(plant, witness, there))
        for plant in FAULTS
        if model in plant.models
    ]


def alarms_of(job: tuple[str, int]) -> list[tuple[str, str, str]]:
    """Honest changes of one model and seed: change, model, and what was alarmed about, if so."""
    model, seed = job
    torch.set_num_threads(1)
    witness, there = made(model, seed)
    rows = []
    for name, change in HONEST.items():
        with change(there):
            verdict = check(witness, there)
        rows.append((name, model, "" if verdict.passed else f"seed {seed}: {verdict.message}"))
    return rows


def plants_table(rows: Sequence[Row]) -> list[str]:
    """One row per fault and model."""
    seen, right, tried = sum(r[3] for r in rows), sum(r[4] for r in rows), len(rows)
    return [
        f"{len(FAULTS)} faults, {tried} plantings: **{seen} seen ({seen / tried:.1%}), "
        f"{right} named where they are ({right / tried:.1%})**.",
        "",
        "| fault | model | published | found first at |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {model} | {source} | {cell} |" for name, model, source, _, _, cell in rows),
    ]


def repeats_table(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Honest repeats by change, with false alarms."""
    tried = Counter((name, model) for name, model, _ in rows)
    alarms = Counter((name, model) for name, model, said in rows if said)
    lines = [
        "| honest change | alarms, " + " | alarms, ".join(MODELS) + " |",
        "| --- |" + " --- |" * len(MODELS),
    ]
    for name in HONEST:
        cells = [f"{alarms[name, m]} of {tried[name, m]}" for m in MODELS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    total, false = len(rows), sum(alarms.values())
    said = f"**{false} of {total} honest changes raised an alarm ({false / total:.1%}).**"
    return [*lines, "", said, *(f"- {name}, {m}, {what}" for name, m, what in rows if what)]


def example(target: Path) -> None:
    """The page of a check that failed: the forward pass right, one layer's backward wrong."""
    witness, there = made("deepseek_v3")
    plant = next(p for p in FAULTS if "backward x1.2" in p.name)
    with plant.plant(there):
        write_text(target, verdict_page(check(witness, there)))


def main(target: Path | None) -> None:
    """Print both tables, or put them into ``target``."""
    begun = time.perf_counter()
    size = len(to_bytes(made("deepseek_v3")[0]))
    jobs = [(model, seed) for seed in range(SEEDS) for model in MODELS]
    with ProcessPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        faults = [row for rows in pool.map(faults_of, MODELS) for row in rows]
        honest = [row for rows in pool.map(alarms_of, jobs) for row in rows]
    text = "\n".join(["", *repeats_table(honest), "", *plants_table(faults), ""])
    seconds = time.perf_counter() - begun
    text += f"\nWitness of the small V3: {size / 1e3:.0f} kB. torch {torch.__version__}, "
    text += f"{seconds:.0f} s on {len(os.sched_getaffinity(0))} cores.\n"
    if target is None:
        print(text)
        return
    page = target.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    example(target.parent / "examples" / "witness-departs.html")
    target.write_text(head + BEGIN + "\n" + text + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
