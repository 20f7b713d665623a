"""A launch as text: a shell script, a Python recipe or a TOML file, each setting explained."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator

from krzem.plan.emit import parts
from krzem.plan.emit.launch import Flag, Launch, is_asked

WIDTH = 100


def render(launch: Launch, explain: bool = True) -> str:
    """The text to save and run; with ``explain`` every flag carries its reason."""
    writer = {"torchtitan": _recipe, "krzem": _toml}.get(launch.engine, _script)
    return "\n".join(writer(launch, explain)) + "\n"


def _script(launch: Launch, explain: bool) -> Iterator[str]:
    yield "#!/usr/bin/env bash"
    yield from _head(launch)
    yield "set -euo pipefail"
    yield ""
    yield from _exports(launch, explain)
    yield from parts.installed(launch.installed)
    if launch.parts:
        yield from parts.asked(launch)
        yield from parts.files(launch, explain)
    if launch.sections or not launch.parts:
        yield from _arguments(launch, explain)
    yield launch.command


def _arguments(launch: Launch, explain: bool) -> Iterator[str]:
    yield "args=("
    for part in launch.sections:
        yield from _comment(part.title, "  ")
        for flag in part.flags:
            value = f" {_shell(flag.value)}" if flag.value else ""
            yield from _explained(f"  {flag.name}{value}", flag, explain)
    yield ")"
    yield ""


def _recipe(launch: Launch, explain: bool) -> Iterator[str]:
    """A shell script that writes the Python recipe beside itself and starts it."""
    yield "#!/usr/bin/env bash"
    yield from _head(launch)
    yield "set -euo pipefail"
    yield ""
    yield from _exports(launch, explain)
    yield from parts.installed(launch.installed)
    yield "cat > krzem_recipe.py <<'PYTHON'"
    base, *settings = launch.flags
    yield from launch.preamble
    yield ""
    yield ""
    yield "def run() -> Trainer.Config:"
    yield from _explained(f"    config = {base.value}", base, explain)
    for flag in settings:
        yield from _explained(f"    config.{flag.name} = {flag.value}", flag, explain)
    yield "    return dataclasses.replace(config)  # checks the whole once more"
    yield "PYTHON"
    yield ""
    yield launch.command


def _toml(launch: Launch, explain: bool) -> Iterator[str]:
    yield from _head(launch)
    for part in launch.sections:
        yield ""
        yield f"[{part.title}]"
        for flag in part.flags:
            yield from _explained(f"{flag.name} = {flag.value}", flag, explain)


def _head(launch: Launch) -> Iterator[str]:
    yield from _comment(f"{launch.engine} {launch.version}, emitted by krzem")
    if launch.model and launch.engine != "krzem":
        yield f"# Model: {launch.model}"
        for title, text in launch.priced:
            yield f"# {title}: {text}"
    if launch.asked:
        yield from _comment(f"Set first: {', '.join(launch.asked)}")
    for note in launch.notes:
        yield from _comment(f"NOTE: {note}")


def _exports(launch: Launch, explain: bool) -> Iterator[str]:
    for flag in launch.environment:
        yield from _explained(f"export {flag.name}={_shell(flag.value)}", flag, explain)
    if launch.environment:
        yield ""


def _explained(line: str, flag: Flag, explain: bool) -> Iterator[str]:
    """The line with its reason behind it, or above it where both do not fit."""
    if not explain:
        yield line
    elif len(line) + len(flag.why) + 4 <= WIDTH:
        yield f"{line}  # {flag.why}"
    else:
        indent = line[: len(line) - len(line.lstrip())]
        yield from _comment(flag.why, indent)
        yield line


def _comment(text: str, indent: str = "") -> Iterator[str]:
    yield from textwrap.wrap(
        text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )


def _shell(value: str) -> str:
    """Quoted for the shell; the parts of a list stay apart."""
    if is_asked(value):
        return f'"{value}"'
    return " ".join(shlex.quote(part) for part in value.split(" "))
