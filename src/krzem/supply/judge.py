"""Is an inference right?  Each known run is asked about, its hardware and shortfall left out."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from krzem.errors import InputError, KrzemError, shorten
from krzem.supply.infer import Evidence, infer, speed_on
from krzem.supply.known import TABLE, known_runs, model_of, run_of
from krzem.supply.speed import Progress

USUAL_DAYS = 30.0
"""Days of a run whose hours are known and whose cards are not, for the plan of its shortfall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One known run and what an inference says of it."""

    id: str
    device: str
    probability: float
    """Of the true kind."""
    family: float
    """Of its family."""
    in_credible: bool
    """The true kind is among the fewest that hold 80 %."""
    credible: tuple[str, ...]
    devices: float | None
    cards_in_interval: bool | None
    """The true number is within the 80 % interval; None where it is not published."""
    cards: tuple[float, float]
    trouble: str = ""


def evidence_of(row: Mapping[str, str]) -> Evidence:
    """A known run as evidence, its hardware left out."""
    days = (float(row["days_low"]), float(row["days_high"])) if row["days_low"] else None
    hours = float(row["device_hours"]) if row["device_hours"] else None
    return Evidence(
        model=model_of(row),
        run=run_of(row),
        card_hours=hours,
        days=days,
        cards=float(row["devices"]) if row["devices"] and not (hours or days) else None,
        done=row["done"],
        lab=row["lab"],
        country=row["country"],
        leave_out=row["id"],
    )


def judged(row: Mapping[str, str], progress: Progress | None = None) -> Judged:
    """One run asked about."""
    devices = float(row["devices"]) if row["devices"] else None
    try:
        found = infer(evidence_of(row), progress)
    except KrzemError as error:
        return Judged(id=row["id"], device=row["device"], probability=0.0, family=0.0,
                      in_credible=False, credible=(), devices=devices, cards_in_interval=None,
                      cards=(0.0, 0.0), trouble=str(error))  # fmt: skip
    true = next((k for k in found.kinds if k.device == row["device"]), None)
    low, high = found.cards.low, found.cards.high
    # The number itself was given where nothing else is known.
    inside = None if devices is None or not row["device_hours"] else low <= devices <= high
    return Judged(
        id=row["id"],
        device=row["device"],
        probability=true.probability if true else 0.0,
        family=found.families.get(true.speed.family, 0.0) if true else 0.0,
        in_credible=row["device"] in found.credible(0.8),
        credible=found.credible(0.8),
        devices=devices,
        cards_in_interval=inside,
        cards=(low, high),
    )


def every(progress: Progress | None = None) -> Iterator[Judged]:
    """All known runs."""
    for row in known_runs():
        if progress is not None:
            progress(row["id"])
        yield judged(row)


def shares(found: Sequence[Judged]) -> dict[str, float | int]:
    """What the acceptance of the method is measured by."""
    counted = [j for j in found if j.cards_in_interval is not None]
    return {
        "runs": len(found),
        "kind_in_80": sum(j.in_credible for j in found) / len(found),
        "number_in_80": sum(bool(j.cards_in_interval) for j in counted) / max(len(counted), 1),
        "numbers": len(counted),
        "below_5_percent": sum(j.probability < 0.05 for j in found),
    }


def shortfall(row: Mapping[str, str]) -> float | None:
    """Published over expected card-hours on the true kind and number; None without hours."""
    if not row["device_hours"]:
        return None
    hours = float(row["device_hours"])
    about = 2 ** round(math.log2(hours / 24.0 / USUAL_DAYS))
    count = round(float(row["devices"])) if row["devices"] else about
    evidence = replace(evidence_of(row), days=(hours / 24 / count * 0.9, hours / 24 / count * 1.1))
    speed = speed_on(evidence, row["device"], count)
    return hours / (speed.days.mid * 24.0 * count)


def renewed(path: Path, progress: Progress | None = None) -> str:
    """The text of the table at ``path`` with every shortfall measured again."""
    import csv
    import io

    text = path.read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    for row, filled in zip(rows, known_runs(), strict=True):
        if progress is not None:
            progress(row["id"])
        try:
            value = shortfall(filled)
        except KrzemError:
            value = None
        row["shortfall"] = "" if value is None else f"{value:.3f}"
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return "\n".join(comments) + "\n" + out.getvalue()


def table_path() -> Path:
    """Where the table lies."""
    from krzem import facts

    return Path(facts.__file__).parent / TABLE


# An application as a file: Markdown and HTML by krzem, Word, LaTeX and PDF through pandoc
# ----------------------------------------------------------------------------------------

PLAIN = (".md", ".markdown", ".txt")
PAGES = (".html", ".htm")
THROUGH_PANDOC = (".docx", ".odt", ".tex", ".pdf", ".rtf")
ENGINES = ("typst", "tectonic", "xelatex", "lualatex", "pdflatex", "weasyprint", "wkhtmltopdf")
"""Programs by which pandoc makes a PDF, in order of preference."""
SECONDS = 300


def check_suffix(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is planned.

    Raises InputError for a suffix that is not known, KrzemError where a program is missing.
    """
    known = (*PLAIN, *PAGES, *THROUGH_PANDOC)
    suffix = path.suffix.lower()
    if suffix not in known:
        raise InputError(
            f"--out {shorten(str(path), 80)}: write a file ending in {', '.join(known)}"
        )
    if suffix in THROUGH_PANDOC:
        _pandoc()
    if suffix == ".pdf":
        _engine()


def write(path: Path, markdown: str, page: Callable[[], str]) -> None:
    """Write ``markdown`` as the suffix of ``path`` says; ``page`` makes the HTML.

    Raises KrzemError where a program is missing or fails.
    """
    from krzem.report.selfcontained import write_text

    suffix = path.suffix.lower()
    if suffix in THROUGH_PANDOC:
        _convert(path, markdown)
    else:
        write_text(path, page() if suffix in PAGES else markdown)


def _pandoc() -> str:
    found = shutil.which("pandoc")
    if found is None:
        raise KrzemError(
            "Word, LaTeX and PDF are written through pandoc, which is not on the PATH: install it"
            " (pandoc.org, or your system's package pandoc), or write a .md or .html file"
        )
    return found


def _engine() -> str:
    found = next((name for name in ENGINES if shutil.which(name)), None)
    if found is None:
        raise KrzemError(
            f"pandoc makes a PDF through one of {', '.join(ENGINES)}, and none is on the PATH:"
            " install one (typst is the smallest), or write a .docx or .tex file"
        )
    return found


def _convert(path: Path, markdown: str) -> None:
    command = [_pandoc(), "--from", "gfm", "--standalone", "--output", str(path)]
    if path.suffix.lower() == ".pdf":
        command += ["--pdf-engine", _engine()]
    try:
        done = subprocess.run(
            command, input=markdown, text=True, capture_output=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KrzemError(f"pandoc could not be run: {shorten(str(error), 200)}") from None
    if done.returncode:
        raise KrzemError(f"pandoc could not write {path.name}: {shorten(done.stderr.strip(), 400)}")
