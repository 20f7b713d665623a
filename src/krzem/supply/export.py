"""An application as a file: Markdown and HTML by krzem, Word, LaTeX and PDF through pandoc.

pandoc is a program of its own (pandoc.org); krzem calls the one on the PATH and holds no copy.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from krzem.errors import InputError, KrzemError, shorten

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
