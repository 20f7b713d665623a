"""Files that a script writes before it starts an engine, as krzem's emitted scripts do."""

from __future__ import annotations

import re
from collections.abc import Mapping

from krzem.engine.switches import switches
from krzem.jobs.job import Basis, JobBuilder, Place
from krzem.jobs.job_model import by_name

_START = re.compile(r"^write (?P<name>[\w./-]+) <<(?P<quote>'?)(?P<mark>[A-Z]+)(?P=quote)$", re.M)
_ASKED = re.compile(r"(?<![\w\"/])\$\{[A-Z_]+\}(?![\w\"/])")
"""A variable that stands alone: a value that the script asks for."""
_HEAD = re.compile(
    r"^# .*, emitted by krzem\n"
    r"(?:# (?:Model|Length|Prediction modules|Switches|States): .{1,2000}\n)+",
    re.M,
)
_LENGTH = re.compile(r"[1-9]\d{0,8}")
_STATES = ("weight", "gradient", "master", "moments")
_BYTES = re.compile(r"\d{1,2}(\.\d{1,3})?")
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
    """What the head of an emitted script says and no other line does.

    It names the model, the switches and the bytes of states that were priced.  Files hold a shape
    and settings; they win wherever they say anything.
    """
    for file, text in files.items():
        found = _HEAD.search(text)
        if found is None:
            continue
        for number, line in enumerate(text[: found.end()].splitlines(), 1):
            title, _, said = line.removeprefix("# ").partition(": ")
            place = Place(file=file, line=number, text=line)
            if title == "Model" and _nameless(job.get("model.name")):
                job.state("model.name", said, place, override=True)
            elif title == "Length" and job.get("seq") is None and _LENGTH.fullmatch(said):
                job.state("seq", int(said), place)
            elif title == "Prediction modules" and job.get("model.mtp") is None and said.isdigit():
                job.state("model.mtp", int(said[:3]), place)
            elif title in ("Switches", "States"):
                _priced(said, "switch" if title == "Switches" else "state", job, place)
        return


def _nameless(name: object) -> bool:
    """Whether a name is none, or none that is known: a size such as ``8B``, or a preset's."""
    return name is None or by_name(str(name)) is None


def _priced(said: str, table: str, job: JobBuilder, place: Place) -> None:
    known = switches()
    # Weights of 32 bits are weight and master at once: the head says how they were counted.
    whole = job.get("state.weight") == 4 and job.get("state.master") == 0
    for part in said.split():
        name, _, value = part.partition("=")
        setting = job.setting(f"{table}.{name}")
        derived = (
            setting is not None and setting.basis is Basis.DERIVED and whole and table == "state"
        )
        if setting is not None and setting.basis is not Basis.DEFAULT and not derived:
            continue
        if derived:
            job.drop(f"state.{name}")
        if table == "switch" and name in known and value in known[name].choices:
            job.state(f"switch.{name}", value, place)
        elif table == "state" and name in _STATES and _BYTES.fullmatch(value):
            job.state(f"state.{name}", float(value), place)
