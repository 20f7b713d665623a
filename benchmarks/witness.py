"""What the witness finds and what it alarms about falsely: ``python benchmarks/witness.py [FILE]``.

Every planted fault and every honest change goes the way that ``krzem run`` takes: recorded in
float32 and in bfloat16, with documents, moments and the optimiser's next step, and checked in both.
Prints two tables in Markdown.  With a FILE, the part between its two marks is replaced and
``examples/witness-departs.html`` beside it written.  Takes a quarter of an hour on one core; what
is done is kept in ``out/witness``, so that a run that was cut off goes on; remove it to begin anew.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

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

MODELS, PARTS = ("deepseek_v3", "llama"), 10
SEEDS = range(20, 34)
"""Of honest changes: none that a tolerance was chosen on."""
KEPT = Path(__file__).parent.parent / "out" / "witness"
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


Alarm = tuple[str, str, str]
"""Honest change, model, and what was alarmed about, if so."""


def faults_of(model: str, part: int) -> list[Row]:
    """Every tenth or so of the faults, planted in one model."""
    torch.set_num_threads(1)
    witness, there = made(model)
    mine = [plant for plant in FAULTS if model in plant.models][part::PARTS]
    return [(plant.name, model, plant.source, *found(plant, witness, there)) for plant in mine]


def alarms_of(model: str, seed: int) -> list[Alarm]:
    """Honest changes of one model and seed."""
    torch.set_num_threads(1)
    witness, there = made(model, seed)
    rows = []
    for name, change in HONEST.items():
        with change(there):
            verdict = check(witness, there)
        rows.append((name, model, "" if verdict.passed else f"seed {seed}: {verdict.message}"))
    return rows


def kept(job: tuple[str, str, int]) -> list[list[Any]]:
    """The rows of a job: from the file that an earlier, interrupted run left, else made now."""
    kind, model, number = job
    file = KEPT / f"{kind}-{model}-{number}.json"
    if not file.exists():
        rows = (faults_of if kind == "faults" else alarms_of)(model, number)
        write_text(file, json.dumps(rows))
    found: list[list[Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def plants_table(rows: Sequence[Sequence[Any]]) -> list[str]:
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


def repeats_table(rows: Sequence[Sequence[str]]) -> list[str]:
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
    KEPT.mkdir(parents=True, exist_ok=True)
    size = len(to_bytes(made("deepseek_v3")[0]))
    jobs = [("faults", model, part) for model in MODELS for part in range(PARTS)]
    jobs += [("honest", model, seed) for seed in SEEDS for model in MODELS]
    cores = len(os.sched_getaffinity(0))
    # A process that was forked from one with threads of its own hangs in the first that it starts.
    with ProcessPoolExecutor(max_workers=cores, mp_context=get_context("spawn")) as pool:
        rows = dict(zip(jobs, pool.map(kept, jobs), strict=True))
    faults = [row for job in jobs if job[0] == "faults" for row in rows[job]]
    honest = [row for job in jobs if job[0] == "honest" for row in rows[job]]
    order = {(p.name, m): (MODELS.index(m), n) for n, p in enumerate(FAULTS) for m in p.models}
    faults.sort(key=lambda row: order[row[0], row[1]])
    text = "\n".join(["", *repeats_table(honest), "", *plants_table(faults), ""])
    seconds = time.perf_counter() - begun
    text += f"\nWitness of the small V3: {size / 1e3:.0f} kB. torch {torch.__version__}, "
    text += f"{seconds:.0f} s on {cores} cores.\n"
    if target is None:
        print(text)
        return
    page = target.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    example(target.parent / "examples" / "witness-departs.html")
    target.write_text(head + BEGIN + "\n" + text + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
