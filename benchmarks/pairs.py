"""Every pair of the trainer's features in one covering array of layouts, beside one process.

    OMP_NUM_THREADS=1 python benchmarks/pairs.py [--seed 0] [--from 0] [--at-once 4] [--table FILE]

Experts over ranks x recomputation x schedule x MTP modules x ZeRO x context x tensor x documents x
precision, on four ranks: about 40 layouts hold every pair that occurs at all, in float32 those of
layouts, in bfloat16 and float8 each feature with the type; then what families have of their own.
Prints a line a layout; ends with 1 where one is further from one process than its arithmetic
explains, or breaks.  Several minutes.  ``--table`` writes what agreed as docs/pairs.md shows it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.train.parallel.pairs import FAMILIES, cases, covering, faults, legal, table
from tests.train.parallel.spawn import spawn


def main() -> None:
    """Run the array from ``--from`` on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="which covering array")
    parser.add_argument("--from", dest="first", type=int, default=0, help="row to begin with")
    parser.add_argument("--at-once", type=int, default=4, help="layouts for one set of processes")
    parser.add_argument("--table", type=Path, help="file for the table of what agreed")
    options = parser.parse_args()
    own = ({"documents": True, "precision": "fp32", **family} for family in FAMILIES)
    array = [*cases(covering(legal(), options.seed)), *own]
    bad, agreed, found = 0, [], []
    for start in range(options.first, len(array), options.at_once):
        part = array[start : start + options.at_once]
        try:
            results = spawn("worker.py", 4, part, timeout=900)
        except AssertionError as error:
            bad += 1
            print(f"rows {start} to {start + len(part) - 1} broke: {error}", flush=True)
            continue
        for number, (case, result) in enumerate(zip(part, results, strict=True), start):
            fault = faults(case, result)
            bad += bool(fault)
            if not fault:
                agreed.append(case)
                found.append(result)
            sizes = " ".join(f"{k} {result[k]:.1e}" for k in ("loss", "norm", "parameter"))
            print(f"{number:>3} {fault or 'equal'}  {case['layout']}  {sizes}", flush=True)
    if options.table is not None:
        options.table.write_text(table(agreed, found))
    print(f"{len(array)} layouts, {bad} faults")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
