"""A group of verbs whose modules are imported when a verb is used, not when help is shown."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from krzem.errors import KrzemError

_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """Where a verb's command is, and its line in the help of the group."""

    at: str
    """``module:attribute``."""
    help: str
    extra: str = ""
    """The extra of the distribution that its imports come with."""

    @property
    def exists(self) -> bool:
        """Whether its module is installed; looks at the file, imports nothing."""
        path = _PACKAGE.joinpath(*self.at.partition(":")[0].split(".")[1:])
        return path.with_suffix(".py").is_file() or path.joinpath("__init__.py").is_file()

    def load(self, name: str) -> click.Command:
        """Import the command; where a package is missing, KrzemError says how to install it."""
        module, _, attribute = self.at.partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            missing = error.name or "a package"
            if missing.startswith("krzem") or not self.extra:
                raise
            raise KrzemError(
                f"`krzem {name}` needs {missing}, which is not installed:"
                f" pip install 'krzem[{self.extra}]'"
            ) from None
        assert isinstance(command, click.Command)
        return command


class LazyGroup(click.Group):
    """Commands by name from ``verbs``; those whose module does not exist are not there."""

    verbs: Mapping[str, Verb] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of ``verbs``."""
        return [name for name, verb in self.verbs.items() if verb.exists]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None if there is none of that name."""
        verb = self.verbs.get(cmd_name)
        return verb.load(cmd_name) if verb is not None and verb.exists else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, written from their lines and not from their modules."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, self.verbs[name].help) for name in self.list_commands(ctx)])
