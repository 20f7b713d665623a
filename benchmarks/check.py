"""``krzem check`` over the public jobs: what is asked, what is suggested, and whether it holds.

    python -m benchmarks.check --mirrors DIR [--half develop]

Every job of the collection (``benchmarks/jobs/collection.csv``) is made a question, on its own chip
or on ``--on`` where its files name none.  Every suggestion is applied to the files, the files are
read back, and the price must be the promised one.  Logs that lie beside a job are judged.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import jobs as collection

from krzem.errors import KrzemError
from krzem.jobs.advice import advise
from krzem.jobs.answer import apply, prove, reposing
from krzem.jobs.check import check
from krzem.jobs.job import Job
from krzem.jobs.priced import price_all
from krzem.jobs.question import pose
from krzem.jobs.reading import read_job

SAME = 5e-3
DEVICES = 64
"""Of jobs whose files name no number."""


def _told(job: Job, on: str) -> dict[str, Any]:
    """A chip and a number of devices where the files name none."""
    chip = None if job.get("device") else on
    if job.get("devices") is None:
        return {"on": chip, "given": {"devices": DEVICES}}
    return {"on": chip}


def judge(row: dict[str, str], mirrors: Path, on: str, counts: dict[str, int]) -> str:
    """One job; what became of it in a line."""
    files = collection.texts(row, mirrors)
    start = time.process_time()
    counts["jobs"] += 1
    try:
        job = read_job(text=files)
        told = _told(job, on)
        posed = pose(job, texts=files, **told)
    except KrzemError as error:
        return f"{row['id']}: {str(error)[:150]}"
    counts["priced"] += 1
    pricer = posed.pricer()
    found = check(posed, None, pricer)
    repose = reposing(texts=files, **told)
    made = held = 0
    suggestions = advise(found, pricer, 30)
    for suggestion in suggestions:
        proved = prove(suggestion, posed, files, lambda f: read_job(text=f), repose)
        if not proved.edits:
            continue
        made += 1
        again = repose(read_job(text=apply(files, proved)))
        priced = price_all(again.pricer(), [(again.layout, again.task.setup)])[0]
        gain = found.priced.seconds / priced.seconds - 1.0
        held += abs(gain - suggestion.gain.mid) <= SAME
    counts["suggested"] += len(suggestions)
    counts["edits"] += made
    counts["held"] += held
    step = found.plan.step_seconds
    spent = time.process_time() - start
    return (
        f"{row['id']}: {step.mid:.3g} s ({step.low:.3g}-{step.high:.3g}), {len(suggestions)}"
        f" suggested, {made} as edits, {held} reprice, {spent:.1f} s"
    )


def main() -> None:
    """Print a line a job and the sums of each engine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mirrors", type=Path, required=True)
    parser.add_argument("--half", default="develop")
    parser.add_argument("--on", default="h100", help="chip of jobs that name none")
    asked = parser.parse_args()
    sums: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in collection.rows(collection.FOLDER / "collection.csv"):
        if row["half"] == asked.half:
            print(judge(row, asked.mirrors, asked.on, sums[row["engine"]]))
    print("\n| engine | jobs | priced | suggestions | as edits | reprice as promised |")
    print("|---|---:|---:|---:|---:|---:|")
    names = ("jobs", "priced", "suggested", "edits", "held")
    for engine, counts in sorted(sums.items()):
        print(f"| {engine} | {' | '.join(str(counts[name]) for name in names)} |")
    whole = [sum(counts[name] for counts in sums.values()) for name in names]
    print(f"| all | {' | '.join(map(str, whole))} |")


if __name__ == "__main__":
    main()
