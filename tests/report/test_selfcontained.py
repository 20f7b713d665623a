"""Pages and files: escaped, without a network, whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from krzem.errors import KrzemError, StorageError
from krzem.report.selfcontained import inline_svg, new_figure, page, save_svg, write_text


def test_values_are_escaped() -> None:
    text = page("<t>", "<p>{{ word }}</p>", word="<script>alert(1)</script>")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "<title>&lt;t&gt;</title>" in text


def test_a_forgotten_value_is_an_error() -> None:
    with pytest.raises(Exception, match="undefined"):
        page("t", "{{ missing }}")


def test_filters_are_used() -> None:
    assert "6" in page("t", "{{ 3 | twice }}", filters={"twice": lambda x: 2 * x})


def test_tables_get_a_head_scopes_and_a_region_with_a_name() -> None:
    first = "<table><tr><th>a</th><th>b</th></tr><tr><th>r</th><td>1</td></tr></table>"
    text = page("t", f"<h2>Odds</h2>{first}<table><tr><td>1</td></tr></table>")
    assert 'role="region" aria-label="Odds: table">' in text
    assert 'role="region" aria-label="Odds: table 2">' in text
    assert '<thead><tr><th scope="col">a</th><th scope="col">b</th></tr></thead>' in text
    assert '<tr><th scope="row">r</th>' in text


def test_the_same_figure_gives_the_same_text() -> None:
    def draw() -> str:
        figure = new_figure()
        figure.add_subplot().plot([1, 2, 3])
        return save_svg(figure)

    assert draw() == draw()


def test_inline_figures_carry_no_document_head() -> None:
    text = str(inline_svg(new_figure(), "a <b>", "in words"))
    assert text.startswith("<svg")
    assert "a &lt;b&gt;</title>" in text
    assert "in words</desc>" in text
    assert "DOCTYPE" not in text


@pytest.mark.parametrize(
    ("module", "call"),
    [("matplotlib.figure", new_figure), ("jinja2", lambda: page("t", "x"))],
)
def test_without_the_extra_one_sentence(
    module: str, call: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(KrzemError, match=r"^HTML pages need .*pip install 'krzem\[report\]'$"):
        call()  # type: ignore[operator]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    for text in ("first", "second, in ünïcode"):
        write_text(target, text)
        assert target.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("krzem.report.selfcontained.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_text(target, "new")
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]
