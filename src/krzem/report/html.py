"""A plan, explanation or comparison as one HTML page that opens without a network.

The page is rendered from the JSON document of ``docs/json.md`` and from nothing else, so it cannot
disagree with ``--json``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from krzem.errors import DataError
from krzem.report.html_answer import answer_view, heading, sentence
from krzem.report.html_check import check_view
from krzem.report.html_compare import compare_view
from krzem.report.html_layout import layout_view
from krzem.report.html_search import search_view
from krzem.report.selfcontained import environment, framed, write_text
from krzem.report.sweep import sweep_view

Document = dict[str, Any]


def write_html(document: Document, path: str | Path) -> None:
    """Write the page of ``document`` to ``path``, all or nothing.

    Raises:
        DataError: a document of another kind.
        KrzemError: the extra ``report`` is not installed.
        StorageError: the disk does not take it.
    """
    write_text(Path(path), render(document))


def render(document: Document) -> str:
    """The page as text; raises as :func:`write_html` does."""
    schema = str(document.get("schema", "none"))
    if schema not in _PAGES:
        raise DataError(
            f"no page for a document of schema {schema[:40]!r}; there is one for"
            f" {', '.join(_PAGES)}"
        )
    name, view = _PAGES[schema]
    template = environment().get_template(name)
    shown = view(document)
    return framed(
        template, kicker=shown["kicker"], title=shown["title"], page=shown, document=document
    )


def _plan(document: Document) -> dict[str, Any]:
    return _one(document, document["best"], "krzem plan") | {"search": search_view(document)}


def _explain(document: Document) -> dict[str, Any]:
    return _one(document, document["layout_plan"], "krzem explain") | {"search": None}


def _one(document: Document, plan: Document, kicker: str) -> dict[str, Any]:
    return answer_view(document, plan) | {
        "kicker": kicker,
        "title": heading(document),
        "answer": sentence(document, plan),
        "layout": layout_view(plan, document["cluster"]),
    }


_PAGES: dict[str, tuple[str, Callable[[Document], dict[str, Any]]]] = {
    "krzem.plan/1": ("plan.html", _plan),
    "krzem.explain/1": ("plan.html", _explain),
    "krzem.compare/1": ("compare.html", compare_view),
    "krzem.sweep/1": ("sweep.html", sweep_view),
    "krzem.check/1": ("check.html", check_view),
}
