"""The tools for programs, asked by the SDK's own client."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

mcp = pytest.importorskip("mcp")

from tests.command_line import say  # noqa: E402

from krzem.ui.mcp import server  # noqa: E402

TOOLS = {"plan", "explain", "compare", "check", "devices", "models", "rules", "fleet"}


def ask(tool: str, **given: Any) -> tuple[bool, Any]:
    """Whether the tool refused, and its document or its sentence."""

    async def call() -> tuple[bool, Any]:
        async with mcp.Client(server()) as client:
            found = await client.call_tool(tool, given)
            text = found.content[0].text
            return bool(found.is_error), text if found.is_error else json.loads(text)

    return anyio.run(call)


def test_every_tool_is_listed_with_what_it_takes() -> None:
    async def listed() -> list[Any]:
        async with mcp.Client(server()) as client:
            return list((await client.list_tools()).tools)

    found = anyio.run(listed)
    assert {tool.name for tool in found} == TOOLS
    assert all(tool.description and tool.input_schema["type"] == "object" for tool in found)
    taken = next(tool for tool in found if tool.name == "plan").input_schema
    assert taken["required"] == ["model", "on"]
    assert "description" in taken["properties"]["model"]


@pytest.mark.parametrize(
    ("tool", "given", "words"),
    [
        ("plan", {"model": "llama-3.1-8b", "on": "h100:8", "batch": "64", "tokens": "1T",
                  "layout": "tp<=2"},
         "plan llama-3.1-8b --on h100:8 --batch 64 --tokens 1T --layout tp<=2"),
        ("explain", {"model": "llama-3.1-8b", "on": "h100:8", "batch": "64", "layout": "tp=2"},
         "explain llama-3.1-8b --on h100:8 --batch 64 --layout tp=2"),
        ("compare", {"model": "llama-3.1-8b", "on": ["h100:8", "a100:8"], "batch": "64",
                     "tokens": "1T"},
         "compare llama-3.1-8b --on h100:8 --on a100:8 --batch 64 --tokens 1T"),
        ("devices", {"name": "h800"}, "devices h800"),
        ("devices", {"name": "nvidia-h100-sxm"}, "devices nvidia-h100-sxm"),
        ("devices", {"name": "ascend"}, "devices ascend"),
        ("models", {"name": "deepseek-v3"}, "models deepseek-v3"),
        ("rules", {"chip": "h20", "day": "2024-06-01"}, "rules --chip h20 --on 2024-06-01"),
    ],
)  # fmt: skip
def test_a_tool_returns_the_document_of_its_verb(
    tool: str, given: dict[str, Any], words: str
) -> None:
    refused, document = ask(tool, **given)
    assert not refused, document
    printed = json.loads(say(*words.split(), "--json").out)
    timed = {"search_seconds"}
    for key in printed.keys() & document.keys() - timed:
        assert without(document[key], timed) == without(printed[key], timed), key
    assert document["schema"] == printed["schema"]


def without(value: Any, names: set[str]) -> Any:
    """A document without keys that differ from one answer to the next."""
    if isinstance(value, dict):
        return {k: without(v, names) for k, v in value.items() if k not in names}
    return [without(v, names) for v in value] if isinstance(value, list) else value


def test_a_refusal_is_the_sentence_of_the_command_line() -> None:
    refused, sentence = ask("plan", model="no-such-model", on="h100:8")
    assert refused
    assert "unknown model 'no-such-model'" in sentence
    assert "Traceback" not in sentence


def test_a_job_is_checked(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    written = say("plan", "llama-3.1-8b", "--on", "h100:8", "--batch", "64", "--tokens", "1T",
                  "--emit", "torchtitan", "--emit-to", str(script), "--quiet")  # fmt: skip
    assert written.code == 0, written.err
    refused, document = ask("check", files=[str(script)], on="h100:8")
    assert not refused, document
    assert document["answer"]


def test_the_verb_speaks_over_standard_input() -> None:
    async def listed() -> int:
        run = mcp.StdioServerParameters(command=sys.executable, args=["-m", "krzem", "mcp"])
        async with mcp.Client(mcp.stdio_client(run)) as client:
            return len((await client.list_tools()).tools)

    assert anyio.run(listed) == len(TOOLS)
