"""Writes the worked study: ``python -m krzem.outlook.study docs/studies/outlook.md``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from krzem.errors import InputError, KrzemError
from krzem.outlook.assumptions import Assumptions, shipped
from krzem.outlook.figures import fan_figure, lag_figure, odds_figure, tornado_figure
from krzem.outlook.text import sections
from krzem.outlook.whole import Outlook, outlook
from krzem.report.selfcontained import save_svg, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMMAND = "python -m krzem.outlook.study docs/studies/outlook.md"


def write_study(target: Path, assumptions: Assumptions) -> tuple[Path, ...]:
    """The study as Markdown with its figures beside it; returns the files written.

    Raises StorageError, and KrzemError where the extra ``report`` is missing.
    """
    result = outlook(assumptions)
    figures = _figures(result)
    written = []
    for name, figure in figures.items():
        path = target.with_name(f"{target.stem}-{name}.svg")
        write_text(path, save_svg(figure))
        written.append(path)
    write_text(target, study_text(result, target.stem))
    return (*written, target)


def study_text(result: Outlook, stem: str) -> str:
    """The Markdown: every section of the outlook, the figures, then all assumptions."""
    a = result.forecast.assumptions
    lines = [
        f"# Outlook: {a.title}",
        "",
        f"Written by `{COMMAND}`; change nothing here by hand. How the model works: "
        "[outlook.md](../outlook.md). Data of Epoch AI are used under CC BY.",
    ]
    pictures = {2: ["odds"], 3: ["fan", "lag"], 4: ["tornado"]}
    for i, (title, body) in enumerate(sections(result)):
        lines += ["", f"## {'Summary' if i == 0 else title}", "", body]
        for name in pictures.get(i, ()):
            lines += ["", f"![{name}]({stem}-{name}.svg)"]
    lines += ["", "## Assumptions", "", *assumption_lines(a)]
    return "\n".join(lines) + "\n"


def _figures(result: Outlook) -> dict[str, Figure]:
    assert result.levers is not None, "a study is made with levers"
    return {
        "odds": odds_figure(result.forecast),
        "fan": fan_figure(result.forecast),
        "lag": lag_figure(result.forecast),
        "tornado": tornado_figure(result.levers),
    }


def assumption_lines(a: Assumptions) -> list[str]:
    """Evidence, scenarios and quantities, one bullet each with its source."""
    rows = [
        f"- `{q.name}` {q.low:,.4g} / {q.mid:,.4g} / {q.high:,.4g} ({q.unit}; {q.kind}): {q.source}"
        for q in a.quantities.values()
    ]
    seen = [
        f"- evidence `{name}` {e.value:g} +- {e.deviation:g}: {e.source}"
        for name, e in a.evidence.items()
    ]
    chances = [
        f"- scenario `{name}` {', '.join(f'{o} {p:g}' for o, p in options.items())}: "
        f"{a.scenario_source[name]}"
        for name, options in a.scenarios.items()
    ]
    return [*seen, *chances, *rows]


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    try:
        if len(arguments) != 1:
            raise InputError(f"give the file to write: {COMMAND}")
        for path in write_study(Path(arguments[0]), shipped()):
            print(path)
    except KrzemError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
