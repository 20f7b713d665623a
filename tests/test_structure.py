"""The rooms of the package and who may import whom, as docs/architecture.md draws it."""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "krzem"
FILES = sorted(SOURCE.rglob("*.py"))
BASE = {"errors", "estimate", "files", "keys", "quantity", "selfcontained"}
"""Values, and the frame of a page, that every room may use; they import only errors."""
MAY_IMPORT = {
    "facts": set(),
    "hardware": {"facts"},
    "model": {"facts"},
    "layout": {"model", "hardware"},
    "engine": {"layout"},
    "cost": {"engine"},
    "plan": {"cost"},
    "jobs": {"plan", "accuracy"},
    "accuracy": {"plan"},
    "train": {"layout"},
    "witness": {"train"},
    "run": {"plan", "train", "witness", "jobs", "rules"},
    "rules": {"hardware"},
    "supply": {"plan", "rules"},
    "outlook": {"plan", "rules", "supply"},
    "report": {"plan", "accuracy", "jobs", "supply", "outlook", "witness"},
    "ui": {"report"},
    "cli": {"report", "run", "ui"},
}
"""A room may import these, and what these may import."""
COUNTED_TO = {
    "command": "cli",
    "__main__": "cli",
    "page": "report",
    "selfcontained": "selfcontained",
}
"""The verbs and the page of a room may live beside it; they count as the rooms above."""
WITHOUT_TORCH = set(MAY_IMPORT) - {"train", "witness", "run"}


def allowed(room: str) -> set[str]:
    direct = MAY_IMPORT[room]
    return BASE | {room} | direct | set().union(*(allowed(other) for other in direct))


def room_of(file: Path) -> str:
    return counted(file.relative_to(SOURCE).with_suffix("").parts)


def counted(parts: Sequence[str]) -> str:
    return next((room for name, room in COUNTED_TO.items() if name in parts), parts[0])


def imports(file: Path) -> Iterator[str]:
    """Full names of what ``file`` imports anywhere, functions and type checking included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            package = file.relative_to(SOURCE.parent).parts[: -node.level]
            yield ".".join((*package, node.module or ""))
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(file: Path) -> set[str]:
    """The rooms of ours that ``file`` imports; ``krzem`` itself for the public face."""
    names = [name.split(".") for name in imports(file)]
    return {counted(name[1:] or name) for name in names if name[0] == "krzem"}


def test_the_table_has_no_circle() -> None:
    assert list(TopologicalSorter(MAY_IMPORT).static_order())


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_the_table_allows(room: str) -> None:
    known = allowed(room)
    broken = [
        f"{file.relative_to(SOURCE)} imports krzem.{other}"
        for file in FILES
        if room_of(file) == room
        for other in sorted(ours(file) - known)
        if room != "cli" or other not in MAY_IMPORT
    ]
    assert not broken


def test_base_values_import_nothing_but_errors() -> None:
    assert not [f for f in FILES if room_of(f) in BASE and ours(f) - {"errors"}]


def test_every_package_is_a_room_of_the_table() -> None:
    packages = {p.name for p in SOURCE.iterdir() if p.is_dir() and any(p.rglob("*.py"))}
    assert packages <= set(MAY_IMPORT)


def test_architecture_page_shows_the_table() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    shown = {}
    for row in rows:
        name, _, may = (cell.strip() for cell in row.strip("|").split("|"))
        shown[name.strip("`")] = {other.strip(" `") for other in may.split(",")} - {"–"}
    assert shown == MAY_IMPORT


def test_report_computes_nothing() -> None:
    """Types, constants and nothing else come from the rooms whose results it shows."""
    broken = [
        f"{file.name}: {name}"
        for file in FILES
        if room_of(file) == "report"
        for name in imports(file)
        if name.startswith("krzem.cost.") or name.split(".")[0] in ("numpy", "scipy", "torch")
    ]
    assert not broken


def test_planner_never_imports_torch() -> None:
    files = [f for f in FILES if room_of(f) in WITHOUT_TORCH]
    assert not [f for f in files if any(name.split(".")[0] == "torch" for name in imports(f))]


PLANNER = set(MAY_IMPORT) - {"train", "witness", "run"}
LINUX_ALONE = re.compile(
    r"import (fcntl|resource|pwd|grp|termios|pty)\b"
    r"|os\.(fork|getuid|geteuid|setsid|killpg|mkfifo|statvfs|sysconf|sched_getaffinity)\b"
    r"|os\.O_(NOFOLLOW|NONBLOCK|CLOEXEC|DIRECTORY)\b"
    r"|signal\.SIG(KILL|HUP|USR1|USR2)|%-[dmHIjMS]|[\"'](/proc|/dev|/tmp)/"
)
"""What macOS or Windows lack; strftime's ``%-d`` is glibc's."""


def test_the_planner_runs_on_macos_and_windows() -> None:
    found = [
        f"{file.relative_to(SOURCE)}: {match[0]}"
        for file in FILES
        if room_of(file) in PLANNER
        and "run" not in file.relative_to(SOURCE).parts[:1]
        and file.relative_to(SOURCE).parts[0] not in ("train", "witness")
        for match in LINUX_ALONE.finditer(file.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("krzem", {"numpy", "rich", "click", "torch", "matplotlib", "jinja2"}),
        ("krzem.cli.main", {"numpy", "torch", "matplotlib", "jinja2"}),
        ("krzem.plan.plan", {"torch", "rich", "click", "matplotlib", "jinja2"}),
    ],
)
def test_imports_stay_light(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*(set(sys.modules) & {unwanted!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_modules_and_functions_stay_small() -> None:
    modules, functions = [], []
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        modules.append(len(text.splitlines()))
        functions += [
            (node.end_lineno or 0) - node.lineno + 1
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    assert statistics.median(modules) <= 250
    assert max(modules) <= 600
    assert statistics.median(functions) <= 12
    assert statistics.quantiles(functions, n=10)[-1] <= 35
    assert sum(length > 60 for length in functions) <= 0.02 * len(functions)
