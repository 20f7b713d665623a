"""How many small faults a room's own tests notice: a seeded sample of mutants, one at a time.

    python benchmarks/mutants.py ROOM [--count 120] [--seed 1] [--json FILE]

A mutant is the room with one place changed: a comparison turned or shifted by its edge, ``+`` for
``-``, ``*`` for ``/``, ``and`` for ``or``, a condition negated, a number moved by one (or a tenth),
a ``return`` of nothing.  It is *killed* where one of the room's tests fails or hangs, and
*survives* where all pass; where the room can no longer be imported it is *broken*, and counts as
noticed.  The tests run on the room as it is before the first mutant and after the last.  The share
of survivors comes with its 80 % interval (Jeffreys); they are printed with their lines: some are
equal to the original in all that can be seen.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TURNED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
EDGE: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
}  # fmt: skip
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One place of one module, changed."""

    file: str
    line: int
    was: str
    becomes: str
    ended: str = ""
    """survived, killed or broken."""


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What ``node`` may become."""
    if isinstance(node, ast.Compare):
        for table in (TURNED, EDGE):
            for i, operator in enumerate(node.ops):
                if type(operator) in table:
                    other = copy.deepcopy(node)
                    other.ops[i] = table[type(operator)]()  # type: ignore[call-overload]
                    yield other
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        other_sum = copy.deepcopy(node)
        other_sum.op = SWAPPED[type(node.op)]()  # type: ignore[assignment]
        yield other_sum
    if isinstance(node, ast.BoolOp):
        turned = copy.deepcopy(node)
        turned.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield turned
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    if isinstance(node, ast.IfExp):
        swapped = copy.deepcopy(node)
        swapped.body, swapped.orelse = swapped.orelse, swapped.body
        yield swapped
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        moved = node.value + 1 if isinstance(node.value, int) else node.value * 1.1 + 0.1
        yield ast.Constant(moved)
    if isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        yield ast.Return(ast.Constant(None))


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """(parent, field, index, node) of code that runs: no annotations, no texts."""
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list", "slice"):
                continue
            for i, child in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(child, ast.AST):
                    yield parent, field, i, child


def mutants(path: Path) -> Iterator[tuple[Mutant, str]]:
    """Every mutant of a module, with the module's new text."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    for parent, field, index, node in list(places(tree)):
        for other in changes(node):
            put(parent, field, index, other)
            ast.fix_missing_locations(tree)
            text = ast.unparse(tree)
            put(parent, field, index, node)
            yield Mutant(
                file=path.name, line=getattr(node, "lineno", 0), was=ast.unparse(node)[:100],
                becomes=ast.unparse(other)[:100],
            ), text  # fmt: skip


def put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    """Set a child."""
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


ORDER = "KRZEM_MUTANTS_ORDER"
"""Names the file of seconds by test: pytest loads this module as a plugin and keeps them there."""
took: dict[str, float] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember how long a test took, its fixtures included."""
    took[report.nodeid] = took.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish() -> None:
    """Keep the seconds of the first session, the one without a change."""
    kept = Path(os.environ[ORDER])
    if not kept.exists():
        kept.write_text(json.dumps(took), encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: most mutants end there."""
    kept = Path(os.environ[ORDER])
    if kept.exists():
        seconds = json.loads(kept.read_text(encoding="utf-8"))
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


def outcome(room: str, source: Path, limit: float) -> tuple[str, str]:
    """What the room's tests say of the package in ``source``, and the end of their output.

    ``survived``, ``killed`` (a test failed, or none ended in ``limit`` seconds) or ``broken``
    (nothing could be collected: the change shows when the module is imported).
    """
    done = [sys.executable, "-B", "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "mutants",
            f"tests/{room}"]  # fmt: skip
    paths = os.pathsep.join((str(source), str(ROOT / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1",
                   ORDER: str(source.parent / "seconds.json")}  # fmt: skip
    try:
        said = subprocess.run(
            done, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "killed", f"no end in {limit:.0f} s"
    names = {0: "survived", 1: "killed"}
    return names.get(said.returncode, "broken"), (said.stdout + said.stderr)[-2000:]


def interval(survivors: int, count: int) -> tuple[float, float]:
    """80 % interval of a share by Jeffreys' prior."""
    from scipy.stats import beta

    found = beta(survivors + 0.5, count - survivors + 0.5)
    return float(found.ppf(0.1)), float(found.ppf(0.9))


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("room")
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        files = sorted((source / "krzem" / given.room).rglob("*.py"))
        begun = time.monotonic()
        first, said = outcome(given.room, source, 3600.0)
        if first != "survived":
            raise SystemExit(f"the tests of {given.room} fail as it is:\n{said}")
        limit = 60.0 + 10 * (time.monotonic() - begun)
        every = [(file, *found) for file in files for found in mutants(file)]
        print(f"{len(every):,} places in {given.room}; {given.count} of them, seed {given.seed}")
        tried: list[Mutant] = []
        for file, mutant, text in draw.sample(every, min(given.count, len(every))):
            kept = file.read_text(encoding="utf-8")
            file.write_text(text, encoding="utf-8")
            ended, said = outcome(given.room, source, limit)
            file.write_text(kept, encoding="utf-8")
            tried.append(Mutant(**{**asdict(mutant), "ended": ended}))
            if ended != "killed":
                print(f"{ended}  {mutant.file}:{mutant.line}  {mutant.was}  ->  {mutant.becomes}",
                      flush=True)  # fmt: skip
            if ended == "broken":
                print(said.strip().splitlines()[-1:], flush=True)
            left = sum(m.ended == "survived" for m in tried)
            print(f"{len(tried)}: {left} survive", file=sys.stderr, end="\r", flush=True)
        last, said = outcome(given.room, source, limit)
        if last != "survived":
            raise SystemExit(f"the tests of {given.room} fail after the mutants are gone:\n{said}")
    left = sum(m.ended == "survived" for m in tried)
    broken = sum(m.ended == "broken" for m in tried)
    low, high = interval(left, len(tried))
    print(f"{given.room}: {left} of {len(tried)} survive, {left / len(tried):.0%} "
          f"({low:.0%} to {high:.0%}); {broken} end when they are imported")  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps([asdict(m) for m in tried], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
