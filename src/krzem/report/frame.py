"""Answers as columns, as one line, and as a small table for notebooks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

from krzem.errors import InputError
from krzem.report.text import Document, format_sentence
from krzem.report.text_table import UNKNOWN, plain

Columns = dict[str, list[Any]]
LIBRARIES: Mapping[str, Callable[[Any, Columns], Any]] = {
    "pandas": lambda library, columns: library.DataFrame(columns),
    "polars": lambda library, columns: library.DataFrame(columns),
    "pyarrow": lambda library, columns: library.table(columns),
}
_RUN = ("days", "device_hours", "energy_mwh", "cost_usd")
_LAYOUT = (
    "tp",
    "cp",
    "pp",
    "vpp",
    "ep",
    "etp",
    "dp",
    "micro_batch",
    "zero",
    "schedule",
    "recompute",
)


def columns(document: Document) -> Columns:
    """A row per layout (plan, explanation) or per cluster (comparison); None is unknown.

    An interval is three columns: ``step_time_s_low``, ``step_time_s``, ``step_time_s_high``.
    """
    rows = list(_rows(document))
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _rows(document: Document) -> Iterator[dict[str, Any]]:
    if "plans" in document:
        for entry in document["plans"]:
            yield {"cluster": entry["cluster"], **_cluster(entry["plan"]), "error": entry["error"]}
        return
    first = document.get("best") or document["layout_plan"]
    for chosen in (first, *document.get("alternatives", ())):
        yield _layout(chosen)


def _cluster(plan: Document | None) -> dict[str, Any]:
    if plan is None:
        return {}
    found: dict[str, Any] = {"devices": plan["cluster"]["devices"]}
    found["precision"] = plan["goal"]["precision"]
    for name in _RUN:
        found |= _three(name, plan["whole_run"][name])
    return found | _layout(plan["best"])


def _layout(chosen: Document) -> dict[str, Any]:
    found: dict[str, Any] = {"layout": chosen["layout_text"]}
    for name in ("step_time_s", "tokens_per_s_per_device", "mfu", "memory_gib"):
        found |= _three(name, chosen[name])
    found["fits_probability"] = chosen["fits_probability"]
    return found | {name: chosen["layout"][name] for name in _LAYOUT}


def _three(name: str, interval: Document | None) -> dict[str, Any]:
    ends = {f"{name}_low": "low", name: "mid", f"{name}_high": "high"}
    return {column: interval and interval[end] for column, end in ends.items()}


def framed(found: Columns, library: str | None) -> Any:
    """The columns as a frame of ``library``; as they are without one.

    Raises InputError for a library that is not known or not installed.
    """
    if library is None:
        return found
    if library not in LIBRARIES:
        raise InputError(f"to_frame({library!r}): known are {', '.join(LIBRARIES)}, or none")
    try:
        return LIBRARIES[library](importlib.import_module(library), found)
    except ModuleNotFoundError:
        raise InputError(
            f"to_frame({library!r}): {library} is not installed: pip install {library}, or take"
            " the columns of to_frame()"
        ) from None


def short(document: Document) -> str:
    """The answer in one line."""
    if "plans" not in document:
        return format_sentence(document, document.get("best") or document["layout_plan"])
    return f"{document['model']['name']}: {'; '.join(_short(e) for e in document['plans'])}"


def _short(entry: Document) -> str:
    plan = entry["plan"]
    if plan is None:
        return f"{entry['cluster']} no plan"
    days = plan["whole_run"]["days"]
    return f"{entry['cluster']} {UNKNOWN if days is None else plain(days['mid'])} days"


_SHOWN = ("cluster", "days", "cost_usd", "layout", "step_time_s", "mfu", "memory_gib",
          "fits_probability", "error")  # fmt: skip


def as_html(document: Document) -> str:
    """A sentence and a table of the main columns; everything is escaped."""
    found = columns(document)
    names = [name for name in _SHOWN if any(v is not None for v in found.get(name, ()))]
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    rows = zip(*(found[name] for name in names), strict=True)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(v)}</td>' for v in row)}</tr>" for row in rows)
    return (
        f"<p>{escape(short(document))}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return escape(plain(value) if isinstance(value, int | float) else str(value))
