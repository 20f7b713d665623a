"""A torchtitan configuration as torchtitan itself resolves it."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from krzem.errors import KrzemError, RunError, shorten
from krzem.train.rehearsal.titan_import import import_torchtitan, quiet, titan

_TABLES = ("parallelism", "training", "compile", "debug")
"""Whose plain values decide time and memory."""
_CLASSES = ("activation_checkpoint", "loss")
"""Of which the class decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TitanStart:
    """How torchtitan is started."""

    words: tuple[str, ...]
    """What follows ``python -m torchtitan.train``."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files that the launch script writes, by name: recipes."""
    folders: tuple[str, ...] = ()
    """Where its modules are looked for."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that its recipes read."""

    @contextmanager
    def surroundings(self, rank: int, ranks: int) -> Iterator[None]:
        """The variables of one rank, and the folders in which recipes are found."""
        told = {"WORLD_SIZE": str(ranks), "RANK": str(rank), "LOCAL_RANK": "0"}
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, {**self.environment, **told}),
        ):
            for name, text in self.files.items():
                Path(folder, Path(name).name).write_text(text, encoding="utf-8")
            before = list(sys.path)
            sys.path[:0] = [folder, *self.folders]
            try:
                yield
            finally:
                sys.path[:] = before


def configuration(start: TitanStart) -> Any:
    """torchtitan's own ``Trainer.Config``, within the surroundings of ``start``.

    Raises RunError where torchtitan refuses it.
    """
    said = io.StringIO()
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            return titan("config").ConfigManager().parse_args(list(start.words))
        except KrzemError:
            raise
        except (Exception, SystemExit) as error:
            text = str(error) if not isinstance(error, SystemExit) else said.getvalue()
            words = " ".join(text.replace("\u2502", " ").split())
            raise RunError(
                f"torchtitan refuses the configuration: {shorten(words[-600:], 600)}"
            ) from None


def resolved(start: TitanStart) -> str:
    """What torchtitan's configuration says after recipe and command line, as its TOML had it."""
    import_torchtitan()
    with quiet(), start.surroundings(0, 1):
        config = configuration(start)
    lines = []
    if "--config" in start.words:
        lines.append(f'_target_ = "{start.words[start.words.index("--config") + 1]}"')
    for name in _CLASSES:
        value = getattr(config, name)
        lines.append(f"[{name}]")
        made = "" if value is None else type(value).__qualname__
        lines.append('mode = "none"' if value is None else f'_target_ = "{made}"')
    for name in _TABLES:
        lines += [f"[{name}]", *_plain(getattr(config, name))]
    return "\n".join(lines) + "\n"


def _plain(part: Any) -> Iterator[str]:
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        value = value.value if isinstance(value, enum.Enum) else value
        if isinstance(value, str | int | float | bool | list):
            yield f"{item.name} = {json.dumps(value)}"
