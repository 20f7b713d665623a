"""Scripts as a shell runs them: the arguments arrive, what is not set stops it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from emit_cases import CONFIG, GOAL, cluster

from krzem.layout.layout import parse_layout
from krzem.model import load_model
from krzem.plan.emit import Launch, emit, render
from krzem.plan.emit.launch import Flag, Section

LAYOUT = parse_layout("tp=2,pp=8,dp=128,ep=32,schedule=dualpipev,vpp=2,recompute=modules")
NO_LAYERS = parse_layout("tp=2,pp=8,dp=128,ep=32,schedule=dualpipev,vpp=2")


def launched(engine: str) -> Launch:
    layout = NO_LAYERS if engine == "torchtitan" else LAYOUT
    return emit(engine, layout, GOAL, load_model("deepseek-v3"), cluster(), CONFIG, 250)


def run(text: str, folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script with a torchrun that prints its arguments, one a line."""
    fake = folder / "torchrun"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash"], input=text, cwd=folder, env={"PATH": path, "ANY_VERSION": "1", **variables},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


@pytest.mark.parametrize("explain", [True, False])
@pytest.mark.parametrize("engine", ["megatron-lm", "mindspeed-llm"])
def test_arguments_arrive_as_meant(engine: str, explain: bool, tmp_path: Path) -> None:
    launch = launched(engine)
    done = run(render(launch, explain), tmp_path, dict.fromkeys(launch.asked, "a b"))
    assert done.returncode == 0, done.stderr
    got = done.stdout.splitlines()
    for flag in launch.flags:
        place = got.index(flag.name)
        expected = ["a b"] if flag.value.startswith("${") else flag.value.split()
        assert got[place + 1 : place + 1 + len(expected)] == expected


@pytest.mark.parametrize("engine", ["megatron-lm", "mindspeed-llm", "torchtitan"])
def test_a_missing_value_stops_the_script_and_says_which(engine: str, tmp_path: Path) -> None:
    launch = launched(engine)
    for name in launch.asked:
        given = {other: "x" for other in launch.asked if other != name}
        done = run(render(launch), tmp_path, given)
        assert done.returncode != 0
        assert name in done.stderr


def test_recipe_is_python_and_started_as_a_module(tmp_path: Path) -> None:
    launch = launched("torchtitan")
    done = run(render(launch), tmp_path, dict.fromkeys(launch.asked, "x"))
    assert done.returncode == 0, done.stderr
    assert "krzem_recipe" in done.stdout.splitlines()
    recipe = (tmp_path / "krzem_recipe.py").read_text(encoding="utf-8")
    compile(recipe, "krzem_recipe.py", "exec")
    assert "deepseek_v3_671b()" in recipe


def test_each_flag_carries_its_reason_unless_told_not_to() -> None:
    launch = launched("megatron-lm")
    explained, bare = render(launch), render(launch, explain=False)
    for flag in launch.flags:
        assert flag.why.split()[0] in explained
    assert "# transformer layers" in explained
    assert "# transformer layers" not in bare
    for note in launch.notes:
        assert note.split()[0] in bare  # notes stay: they change what the plan promised


def test_text_that_a_shell_would_eat_is_quoted(tmp_path: Path) -> None:
    nasty = "$(touch owned);'x'"
    launch = Launch(
        engine="megatron-lm", version="0",
        sections=(Section(title="T", flags=(Flag("--a", nasty, "why"),)),),
        command='torchrun "${args[@]}"',
    )  # fmt: skip
    done = run(render(launch), tmp_path, {})
    assert done.stdout.splitlines() == ["--a", *nasty.split(" ")]
    assert not (tmp_path / "owned").exists()
