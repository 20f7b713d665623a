"""How well the job readers read public training jobs: right, wrong and open fields per engine.

    python -m benchmarks.jobs --mirrors DIR [--half develop] [--logs] [--write docs/engines.md]

``DIR`` holds bare git copies of the repositories that ``benchmarks/jobs/collection.csv`` names, as
``owner+name/repo`` or ``owner+name.git``.  A field counts only where ``labels.csv`` has a row for
it; one labelled ``open`` must be left open.  With ``--write`` the table goes between the markers
``jobs:begin`` and ``jobs:end`` of a page.  With ``--logs`` the logs of ``logs.csv`` are judged
instead; their table goes between ``logs:begin`` and ``logs:end``.  ``--half fresh`` reads the jobs
that were collected after the readers were finished (``fresh:begin``, ``fresh:end``).
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.job_logs import (
    LOGS_BEGIN,
    LOGS_END,
    Found,
    judge_log,
    left_out,
    log_text,
    logs_table,
    read_text_of_log,
    stored,
)

from krzem.errors import KrzemError
from krzem.jobs.job import FIELDS, Job, Value
from krzem.jobs.reading import read_job

FOLDER = Path(__file__).parent / "jobs"
BEGIN, END = "<!-- jobs:begin -->", "<!-- jobs:end -->"
FRESH = ("<!-- fresh:begin -->", "<!-- fresh:end -->")
HALVES = ("develop", "aside", "fresh", "again", "all")


@dataclass(slots=True)
class Score:
    """Counts of judged fields of one job, and what was not right."""

    right: int = 0
    wrong: int = 0
    missed: int = 0
    """Decided by the files, left open by the reader."""
    guessed: int = 0
    """Open in the files, filled by the reader; counts as wrong."""
    errors: list[str] = field(default_factory=list)

    def add(self, other: Score) -> None:
        """Add the counts of another job."""
        self.right += other.right
        self.wrong += other.wrong
        self.missed += other.missed
        self.guessed += other.guessed

    @property
    def judged(self) -> int:
        """Fields that have a label."""
        return self.right + self.wrong + self.missed + self.guessed


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where it does not exist."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def mirror(folder: Path, repository: str) -> Path:
    """The bare copy of a repository."""
    found = copy(folder, repository)
    if found is None:
        raise SystemExit(f"no copy of {repository} in {folder}")
    return found


def copy(folder: Path, repository: str) -> Path | None:
    """The bare copy of a repository, or None."""
    owner, _, name = repository.partition("/")
    for candidate in (f"{owner}+{name}/repo", f"{owner}+{name}.git", f"{owner}/{name}.git"):
        if (folder / candidate).is_dir():
            return folder / candidate
    return None


def texts(row: dict[str, str], folder: Path) -> dict[str, str]:
    """The files of a job by their paths."""
    git = mirror(folder, row["repository"])
    found = {}
    for path in row["paths"].split(";"):
        shown = subprocess.run(
            ["git", "-C", str(git), "show", f"{row['revision']}:{path.strip()}"],
            capture_output=True, check=False,
        )  # fmt: skip
        if shown.returncode:
            raise SystemExit(f"{row['id']}: {path} is not in the copy at that revision")
        found[path.strip()] = shown.stdout.decode("utf-8", errors="replace")
    return found


def same(label: str, value: Value) -> bool:
    """Whether a label means the value."""
    if isinstance(value, bool):
        return label.strip().lower() == str(value).lower()
    if isinstance(value, (int, float)):
        try:
            return float(label) == float(value)
        except ValueError:
            return False
    if isinstance(value, tuple):
        return set(re.split(r"[+,; ]+", label.strip())) == set(value)
    return _word(label) == _word(value)


def _word(text: str) -> str:
    return re.sub(r"[\s_-]+", "", text).lower()


def judge(job: Job | None, labels: Iterable[dict[str, str]]) -> Score:
    """Compare a job, or None where reading failed, with its labels."""
    score = Score()
    for row in labels:
        name, label = row["field"], row["value"].strip()
        if name not in FIELDS:
            score.errors.append(f"{name}: no such field")
            continue
        value = _value(job, name)
        if label == "open":
            score.right += value is None
            score.guessed += value is not None
        else:
            score.missed += value is None
            score.right += value is not None and same(label, value)
            score.wrong += value is not None and not same(label, value)
        if value is None and label == "open":
            continue
        if value is None or label == "open" or not same(label, value):
            score.errors.append(f"{name}: {label!r} read as {value!r} ({row['evidence'][:90]})")
    return score


def _value(job: Job | None, name: str) -> Value | None:
    if job is None:
        return None
    if name == "engine":
        return job.engine
    if name == "engine_version":
        return job.get(name) or job.engine_version or None
    return job.get(name)


def read(row: dict[str, str], folder: Path) -> tuple[Job | None, str, float]:
    """The job, or why it could not be read, and the seconds it took."""
    start = time.perf_counter()
    try:
        job = read_job(text=texts(row, folder))
        return job, "", time.perf_counter() - start
    except KrzemError as error:
        return None, str(error), time.perf_counter() - start


def table(scores: dict[str, dict[str, Score]], jobs: Counter[tuple[str, str]]) -> str:
    """The figures as a Markdown table, an engine a row."""
    lines = [
        "| engine | half | jobs | fields judged | right | wrong | left open |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    total: dict[str, Score] = defaultdict(Score)
    for engine in sorted(scores):
        for half, score in sorted(scores[engine].items()):
            total[half].add(score)
            lines.append(_row(engine, half, jobs[engine, half], score))
    for half, score in sorted(total.items()):
        count = sum(n for (_, h), n in jobs.items() if h == half)
        lines.append(_row("all", half, count, score))
    return "\n".join(lines)


def _row(engine: str, half: str, jobs: int, score: Score) -> str:
    whole = max(score.judged, 1)
    wrong = score.wrong + score.guessed
    return (
        f"| {engine} | {half} | {jobs} | {score.judged} | {100 * score.right / whole:.1f} % |"
        f" {100 * wrong / whole:.1f} % | {100 * score.missed / whole:.1f} % |"
    )


def write(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put the table between the markers of a page."""
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    if begin not in before or end not in before:
        raise SystemExit(f"{page} has no markers {begin} and {end}")
    head, rest = before.split(begin, 1)
    tail = rest.split(end, 1)[1]
    page.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")


def logs(options: argparse.Namespace) -> str:
    """The table of logs, and what is not right on the way."""
    scores: dict[tuple[str, str], Found] = defaultdict(Found)
    out: Counter[str] = Counter()
    for row in rows(FOLDER / "logs.csv"):
        chosen = options.half in ("all", row["half"]) and row["id"].startswith(options.only)
        if not chosen:
            continue
        git = copy(options.mirrors, row["repository"]) if stored(row) else None
        content = None if git is None else log_text(row, git)
        if content is None:
            out["without a copy" if stored(row) else "in threads or stored without a name"] += 1
            continue
        log, why = read_text_of_log(content)
        score = judge_log(log, row)
        scores[row["engine"], row["half"]].add(score)
        if not options.quiet:
            print(f"{row['id']}: {score.right} right, {score.wrong} wrong {why}")
            print("".join(f"    {line}\n" for line in score.errors), end="")
    return f"{logs_table(scores)}\n\n{left_out(out)}".rstrip()


def main(argv: Sequence[str] | None = None) -> None:
    """Read, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mirrors", type=Path, required=True)
    parser.add_argument("--half", choices=HALVES, default="develop")
    parser.add_argument("--only", default="", help="only jobs whose id begins so")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--quiet", action="store_true", help="no list of what was not right")
    parser.add_argument("--logs", action="store_true", help="judge logs instead of jobs")
    options = parser.parse_args(argv)
    if options.logs:
        text = logs(options)
        print(text)
        if options.write is not None:
            write(options.write, text, LOGS_BEGIN, LOGS_END)
        return
    labels: dict[str, list[dict[str, str]]] = defaultdict(list)
    for name in _labels(options.half):
        for row in rows(FOLDER / name):
            labels[row["id"]].append(row)
    scores: dict[str, dict[str, Score]] = defaultdict(lambda: defaultdict(Score))
    jobs: Counter[tuple[str, str]] = Counter()
    for row in rows(FOLDER / "collection.csv"):
        chosen = options.half in ("all", row["half"]) and row["id"].startswith(options.only)
        if not chosen or not labels[row["id"]]:
            continue
        job, why, seconds = read(row, options.mirrors)
        score = judge(job, labels[row["id"]])
        scores[row["engine"]][row["half"]].add(score)
        jobs[row["engine"], row["half"]] += 1
        if not options.quiet:
            print(f"{row['id']}: {score.right} of {score.judged}, {seconds:.2f} s {why}")
            for line in score.errors:
                print(f"    {line}")
    text = table(scores, jobs)
    print(text)
    if options.write is not None:
        write(options.write, text, *(FRESH if options.half == "fresh" else (BEGIN, END)))


def _labels(half: str) -> tuple[str, ...]:
    """The files with the labels of a half; those set aside are opened only when asked for."""
    each = {
        "develop": ("labels.csv",),
        "fresh": ("labels_fresh.csv",),
        "again": ("labels_fresh.csv",),
    }
    both = ("labels.csv", "labels_aside.csv")
    return each.get(half, both if half == "aside" else (*both, "labels_fresh.csv"))


if __name__ == "__main__":
    main()
