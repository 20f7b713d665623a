"""The site builds without a warning, and pages name files and pages that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:src/krzem|tests|benchmarks|scripts|examples)/[\w./-]+)`", text))
    missing = sorted(name for name in named if not (ROOT / name.rstrip("/")).exists())
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [
        link for link in links
        if not re.match(r"[a-z]+:", link) and not (page.parent / link).exists()
    ]  # fmt: skip
    assert not missing


def test_messages_name_pages_that_exist() -> None:
    named = set()
    for file in (ROOT / "src").rglob("*.py"):
        named |= set(re.findall(r"\bdocs/[\w/-]+\.md", file.read_text(encoding="utf-8")))
    assert named
    assert not sorted(name for name in named if not (ROOT / name).exists())


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    run = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "out" / "site" / "index.html").is_file()
