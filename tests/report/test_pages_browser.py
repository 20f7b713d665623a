"""Every kind of page in a real browser: axe finds nothing, nothing is cut off, keys reach all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from tests.report.sample_pages import PAGES  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
PATIENCE = 120_000
"""Milliseconds: what a loaded machine may need."""
SHEETS = 12
"""Of A4 paper that the longest page of these may take."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as player:
        found = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@cache
def text_of(name: str) -> str:
    return PAGES[name]()


@pytest.fixture(params=PAGES)
def opened(request: pytest.FixtureRequest, browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page, every part of it unfolded, with a network that fails whatever is asked of it."""
    file = tmp_path / "page.html"
    file.write_text(text_of(request.param), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    yield page
    context.close()


def test_a_page_is_readable_for_all_on_desk_phone_and_paper(opened: Any) -> None:
    for width, scheme in ((1400, "light"), (400, "dark")):
        opened.set_viewport_size({"width": width, "height": 900})
        opened.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(opened, context=WITHOUT_STROKES)
        assert found.violations_count == 0, found.generate_report()
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.evaluate(CUT_OFF) == []
    assert opened.evaluate("document.querySelectorAll('th:not([scope])').length") == 0
    assert opened.evaluate("document.querySelectorAll('table:not([tabindex] table)').length") == 0
    assert opened.evaluate(UNNAMED) == 0
    assert opened.pdf(format="A4").count(b"/Type /Page\n") <= SHEETS


WITHOUT_STROKES = {"exclude": [["svg[role=img] > *"]]}
"""The thousands of strokes of a chart, which are one image to a reader of screens."""

CUT_OFF = """() => [...document.querySelectorAll('body *:not(svg *)')].filter(node => {
  if (node.closest('.scroll, pre')) return false;
  return node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 0
    && getComputedStyle(node).display !== 'inline';
}).map(node => node.outerHTML.slice(0, 120))"""
"""What is wider than its box, outside regions that scroll."""

UNNAMED = """() => [...document.querySelectorAll('main svg')].filter(chart =>
  chart.getAttribute('role') !== 'img' || !chart.querySelector('title')?.textContent
  || !chart.querySelector('desc')?.textContent).length"""
"""Charts that a reader of screens cannot name."""


def test_a_region_that_scrolls_is_reached_and_moved_by_keys(browser: Any) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.set_content(text_of("run"))
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.scroll:has(table)')"):
            break
    before = page.evaluate("document.activeElement.scrollLeft")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("old => document.activeElement.scrollLeft > old", arg=before)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("What ran")
    context.close()
