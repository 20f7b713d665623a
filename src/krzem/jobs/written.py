"""Files that a script writes before it starts an engine, as krzem's emitted scripts do."""

from __future__ import annotations

import re
from collections.abc import Mapping

_START = re.compile(r"^write (?P<name>[\w./-]+) <<(?P<quote>'?)(?P<mark>[A-Z]+)(?P=quote)$", re.M)
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
                body = re.sub(r"\\([\\$`])", r"\1", body)
            found.setdefault(start["name"], body)
    return {name: body for name, body in found.items() if name not in files}
