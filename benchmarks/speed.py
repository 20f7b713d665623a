"""How fast krzem answers: seconds and memory from the shell prompt, layouts per second.

    python benchmarks/speed.py [--json FILE] [--repeat N]

Every row is a fresh process, so start-up and imports count.  The best of N repeats is shown: the
others measure what else the machine was doing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

KRZEM = (str(Path(sys.executable).with_name("krzem")),)
IMPORT = (sys.executable, "-c", "import krzem; print(krzem.__name__)")
LAYOUT = "tp=1,pp=16,ep=64,dp=128,mbs=1,zero=1,recompute=modules"
GPT3 = ("plan", "gpt3-175b", "--on", "a100:1024", "--tokens", "300B", "--seq", "2048",
        "--batch", "1536", "--precision", "bf16", "--schedules", "all", "--json")  # fmt: skip
DEEPSEEK = ("plan", "deepseek-v3", "--on", "h800:2048", "--batch", "15360", "--schedules", "all",
            "--json")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command, and what it should stay below."""

    name: str
    command: tuple[str, ...]
    seconds: float
    """Target, from the prompt to the prompt."""
    megabytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row; ``layouts_per_s`` counts every legal layout over the time of the search."""

    name: str
    seconds: float
    megabytes: float
    target_seconds: float
    target_megabytes: float | None
    layouts: int | None = None
    layouts_per_s: float | None = None

    @property
    def met(self) -> bool:
        """Whether both targets are kept."""
        light = self.target_megabytes is None or self.megabytes <= self.target_megabytes
        return self.seconds <= self.target_seconds and light


CASES = (
    Case(name="import krzem", command=IMPORT, seconds=0.1),
    Case(name="krzem --help", command=(*KRZEM, "--help"), seconds=0.3),
    Case(
        name="explain deepseek-v3, one layout",
        command=(*KRZEM, "explain", "deepseek-v3", "--on", "h800:2048", "--layout", LAYOUT),
        seconds=0.5,
    ),
    Case(name="search gpt3-175b, 1,024 A100", command=(*KRZEM, *GPT3), seconds=10, megabytes=500),
    Case(name="search deepseek-v3, 2,048 H800", command=(*KRZEM, *DEEPSEEK), seconds=10,
         megabytes=500),
)  # fmt: skip


def measure(command: Sequence[str]) -> tuple[float, float, str]:
    """Wall seconds, peak resident megabytes (10^6) and output of one process on one core."""
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=alone)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not output:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}, no answer to time")
    scale = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * scale / 1e6, output


def run(case: Case, repeat: int) -> Result:
    """The best of ``repeat`` runs."""
    seconds, megabytes, output = min(measure(case.command) for _ in range(repeat))
    layouts = rate = None
    if "--json" in case.command:
        document = json.loads(output)
        layouts = document["layouts_evaluated"]
        rate = layouts / document["search_seconds"]
    return Result(
        name=case.name,
        seconds=seconds,
        megabytes=megabytes,
        target_seconds=case.seconds,
        target_megabytes=case.megabytes,
        layouts=layouts,
        layouts_per_s=rate,
    )


def row(result: Result) -> str:
    """One line of the table."""
    layouts = f"{result.layouts:>11,}" if result.layouts is not None else " " * 11
    rate = f"{result.layouts_per_s:>11,.0f}" if result.layouts_per_s is not None else " " * 11
    below = f"< {result.target_seconds:g} s"
    if result.target_megabytes is not None:
        below += f", {result.target_megabytes:g} MB"
    mark = "yes" if result.met else "NO"
    return (
        f"{result.name:<32}{result.seconds:>8.3f}{result.megabytes:>8.0f}{layouts}{rate}"
        f"  {below:<15} {mark}"
    )


def main() -> int:
    """Print the table; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each case (default: 3)")
    arguments = parser.parse_args()
    print(f"{'':<32}{'s':>8}{'MB':>8}{'layouts':>11}{'layouts/s':>11}  target          met")
    results = []
    for case in CASES:
        results.append(run(case, arguments.repeat))
        print(row(results[-1]), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        where = {"python": platform.python_version(), "cores": os.cpu_count()}
        rows = [asdict(result) | {"met": result.met} for result in results]
        arguments.json.write_text(json.dumps(where | {"rows": rows}, indent=2) + "\n")
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
