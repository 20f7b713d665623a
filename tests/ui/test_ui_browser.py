"""The what-if page in a real browser: load, move, compare, copy, drop, keys alone, and axe."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
uvicorn = pytest.importorskip("uvicorn")

from krzem.ui.server import app  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
PATIENCE = 120_000
"""Milliseconds: what a loaded machine may need for a search, not what is asked of the page."""
QUERY = "model=llama-3.1-8b&devices=8&batch=64&tokens=100B&price=2&engine=torchtitan"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = app(tmp_path_factory.mktemp("desk"), "secret")
    server = uvicorn.Server(uvicorn.Config(made, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(600):
        if server.started:
            break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as player:
        found = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Any]:
    """Opens the page in a window; every message of the console fails the test."""
    contexts, said = [], []

    def open_page(width: int = 1400, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
        )
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{address}?key=secret&{QUERY}")
        page.wait_for_selector("#sentence")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not [line for line in said if "409" not in line and "422" not in line]


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_cut_off(opened: Any, width: int, scheme: str) -> None:
    page = opened(width, scheme)
    page.wait_for_selector("#curve section")
    page.wait_for_load_state("networkidle")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_slider_moves_the_answer_and_the_address(opened: Any) -> None:
    page = opened()
    before = page.text_content("#sentence")
    page.focus("#price-slide")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("old => document.querySelector('#sentence')?.textContent !== old",
                           arg=before)  # fmt: skip
    assert page.input_value("#price") == "2.25"
    assert "price=2.25" in page.url
    assert 'price = "$2.25/h"' in page.text_content("#toml")


def test_an_address_opens_the_same_answer_again(opened: Any) -> None:
    first = opened()
    sentence = first.text_content("#sentence")
    second = opened()
    second.goto(first.url)
    second.wait_for_selector("#sentence")
    assert second.text_content("#sentence") == sentence


def test_pinned_answers_stand_side_by_side(opened: Any) -> None:
    page = opened()
    page.click("#pin")
    page.wait_for_selector("#pinned table")
    page.fill("#devices", "16")
    page.wait_for_selector("#pinned td:has-text('16 ×')")
    assert "pin=" in page.url
    assert page.locator("#pinned td:has-text('8 × NVIDIA')").count() == 1
    page.click("#unpin")
    assert page.locator("#pinned table").count() == 0


def test_the_command_is_copied(opened: Any) -> None:
    page = opened()
    page.click("[data-copy=command]")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("krzem plan llama-3.1-8b")


def test_a_dropped_configuration_becomes_the_model(opened: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024,
            "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 8, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048, "tie_word_embeddings": False,
        }), encoding="utf-8",
    )  # fmt: skip
    page = opened()
    page.fill("#seq", "2k")
    page.check("input[name=precision][value=bf16]", force=True)
    page.set_input_files("#files", str(config))
    page.wait_for_selector("#dropped p")
    assert page.input_value("#model").startswith("dropped:"), page.text_content("#dropped")


def test_everything_is_reached_by_keyboard(opened: Any) -> None:
    page = opened()
    reached = set()
    page.focus("body")
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    wanted = {"pin", "theme", "model", "device", "devices", "devices-slide", "price", "tokens",
              "batch", "files"}  # fmt: skip
    assert wanted <= reached


def test_an_impossible_question_says_why_and_keeps_the_form(opened: Any) -> None:
    page = opened()
    page.fill("#device", "h1000")
    page.wait_for_selector(".problem")
    assert re.search("unknown device.*h1000", page.text_content(".problem") or "", re.S)
    page.fill("#device", "h100")
    page.wait_for_selector("#sentence")


def test_nothing_is_loaded_from_elsewhere(opened: Any, address: str) -> None:
    page = opened()
    names = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert names
    assert all(name.startswith((address, "data:")) for name in names)
