"""Files that a script writes before it starts an engine, as krzem's emitted scripts do."""

from __future__ import annotations

import re
from collections.abc import Mapping

from krzem.jobs.job import JobBuilder, Place

_START = re.compile(r"^write (?P<name>[\w./-]+) <<(?P<quote>'?)(?P<mark>[A-Z]+)(?P=quote)$", re.M)
_ASKED = re.compile(r"(?<![\w\"/])\$\{[A-Z_]+\}(?![\w\"/])")
"""A variable that stands alone: a value that the script asks for."""
_NAMED = re.compile(r"^# .*, emitted by krzem\n# Model: (?P<name>[\w. /-]{1,100})$", re.M)
MOST = 20
"""Files of one script."""


def written_files(files: Mapping[str, str]) -> dict[str, str]:
    """The here-documents that scripts hand to a function ``write``, by the names of the files.

    Variables of the shell stay as they are written; ``\\$`` is a dollar sign in an open document.
    """
    found: dict[str, str] = {}
    for text in files.values():
        for start in _START.finditer(text):
            end = re.compile(rf"^{start['mark']}$", re.M).search(text, start.end() + 1)
            if end is None or len(found) >= MOST:
                continue
            body = text[start.end() + 1 : end.start()]
            if not start["quote"]:
                body = re.sub(r"\\([\\$`])", r"\1", _ASKED.sub(r'"\g<0>"', body))
            found.setdefault(start["name"], body)
    return {name: body for name, body in found.items() if name not in files}


def name_model(files: Mapping[str, str], job: JobBuilder) -> None:
    """The model whose name an emitted script bears, where nothing else names one.

    Files hold a shape; the name stands for what no argument says.
    """
    for file, text in files.items():
        found = _NAMED.search(text)
        if found is not None and job.get("model.name") is None:
            line = text.count("\n", 0, found.start("name")) + 1
            place = Place(file=file, line=line, text=f"# Model: {found['name']}")
            job.state("model.name", found["name"], place)
            return
