"""Writes every study into a folder that holds their goals."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from krzem.errors import InputError, KrzemError
from krzem.supply.studies.fleets import fleet_study, infer_study

FLEETS = {
    "deepseek-v4-pro-fleet": "DeepSeek-V4-Pro-class run on mixed accelerators",
    "eurohpc-400b-moe": "A 400B mixture of experts over four EuroHPC machines",
}


def main(arguments: Sequence[str]) -> int:
    """Write the studies; the exit code."""
    try:
        if len(arguments) not in (1, 2):
            raise InputError("usage: python -m krzem.supply.studies FOLDER [STUDY]")
        folder = Path(arguments[0])
        names = [*FLEETS, "infer"]
        chosen = arguments[1:] or names
        if chosen[0] not in names:
            raise InputError(f"no study {chosen[0][:40]!r}: there are {', '.join(names)}")
        for name in chosen:
            text = infer_study() if name == "infer" else fleet_study(folder, name, FLEETS[name])
            (folder / f"{name}.md").write_text(text, encoding="utf-8")
            print(f"wrote {folder / name}.md")
        return 0
    except KrzemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
