"""A controller in a process of its own, to be killed: ``controller_main.py RUN_TOML``.

A file ``clock-jump`` beside the run file holds seconds by which the date is then wrong.
"""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.run.run_helpers import run_it  # noqa: E402

from krzem.errors import KrzemError  # noqa: E402


def main() -> int:
    path = Path(sys.argv[1])
    jump = path.parent / "clock-jump"
    right = time.time

    def wrong() -> float:
        return right() + (float(jump.read_text() or 0) if jump.exists() else 0.0)

    time.time = wrong
    try:
        print(run_it(path, say=lambda text: print(text, flush=True)))
    except KrzemError as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
