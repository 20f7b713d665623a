"""Every command that a page or a help text shows is one that krzem takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from krzem.cli.main import VERBS, cli
from krzem.errors import DataError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def joined(text: str) -> str:
    """Lines that a backslash or a deeper indentation continues, in one."""
    text = re.sub(r"\\\n\s*", " ", text)
    return re.sub(r"(?m)^(\s*(?:\$ )?krzem .*)\n\s{4,}(--)", r"\1 \2", text)


def shown(text: str) -> Iterator[str]:
    """Commands in fenced blocks and between back-ticks."""
    for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.S):
        for line in joined(block).splitlines():
            for part in re.split(r"\s{3,}(?=krzem )", line.strip().removeprefix("$ ")):
                if re.match(r"krzem [a-z-]", part):
                    yield part
    for line in re.findall(r"`(krzem [a-z][^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.S)):
        yield line


def helped(command: click.Command, path: str) -> Iterator[str]:
    """Commands in the help of a verb and of the verbs below it."""
    for line in joined(command.help or "").splitlines():
        for part in re.split(r"\s{3,}(?=krzem )", line.strip()):
            if part.startswith("krzem "):
                yield part
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield from helped(below, f"{path} {name}")


def words(line: str) -> list[str]:
    """The arguments, without comments, pipes and what a shell would take."""
    line = re.split(r"\s{2,}(?=\S)(?!-)|\s#\s", line)[0]
    line = re.split(r"\s(?:>|\||&&|2>)\s", line)[0]
    return shlex.split(line.replace("…", "X").replace("...", "X"))[1:]


def parse(command: click.Command, arguments: list[str], name: str) -> None:
    """Parse as the command line would, and run nothing; raises click.UsageError."""
    context = command.make_context(name, list(arguments), resilient_parsing=False)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if rest:
            _, below, left = command.resolve_command(context, rest)
            assert below is not None
            parse(below, left, rest[0])


SYNTAX = re.compile(r"[A-Z]{2,}|\w\|\w|\.\.\.|…|\[|<")
"""A command with placeholders shows a form and is no example."""


def cases() -> list[tuple[str, str]]:
    """Every example with the place that shows it."""
    found = [
        (str(page.relative_to(ROOT)), line)
        for page in PAGES
        for line in shown(page.read_text(encoding="utf-8"))
    ]
    for verb in VERBS:
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        found += [(f"{verb} --help", line) for line in helped(command, verb)]
    return sorted({(where, line) for where, line in found if not SYNTAX.search(line)})


@pytest.mark.parametrize(("where", "line"), cases())
def test_the_command_is_taken(
    where: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = words(line)
    for argument in arguments:
        if re.fullmatch(r"[\w./-]+\.(toml|json|csv|jsonl|sh|log|txt|md|py|yaml|pt)", argument):
            made = tmp_path / argument.lstrip("/")
            made.parent.mkdir(parents=True, exist_ok=True)
            made.touch()
    try:
        parse(cli, arguments, "krzem")
    except (click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        pass
    except DataError as error:
        if "such as s3fs for s3://" not in str(error):  # a store whose driver is not here
            raise
    except click.UsageError as error:
        # Prose names a verb and an option of it.
        spared = ("does not exist", "Missing", "requires an argument")
        if not any(word in error.format_message() for word in spared):
            raise AssertionError(f"{where}: {line}: {error.format_message()}") from None


def test_pages_show_commands() -> None:
    assert len(cases()) > 100
