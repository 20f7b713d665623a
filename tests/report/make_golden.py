"""Writes the golden report again: run it when the report is meant to change, and read the diff."""

import json
from pathlib import Path

from krzem.report.text import format_plan

HERE = Path(__file__).parent


def main() -> None:
    document = json.loads((HERE / "golden_plan.json").read_text(encoding="utf-8"))
    (HERE / "golden_plan.txt").write_text(format_plan(document), encoding="utf-8")


if __name__ == "__main__":
    main()
