"""Read the files of a training job, whatever its engine."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from krzem.engine.switches import switches
from krzem.errors import DataError, InputError, UnknownNameError, shorten
from krzem.files import read_text
from krzem.jobs.given import close
from krzem.jobs.job import Basis, Job, JobBuilder, Place
from krzem.jobs.job_model import by_name
from krzem.jobs.registry import Claim, Reader, Sources

# Files that a script writes before it starts an engine, as krzem's emitted scripts do
# ------------------------------------------------------------------------------------

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


# Read the files of a training job, whatever its engine
# -----------------------------------------------------

LARGEST_FILE = 2_000_000
"""Bytes of one file of a job."""
MOST_FILES = 200

ENGINES = (
    "megatron-lm", "megatron-bridge", "mindspeed-llm", "torchtitan", "fsdp", "deepspeed",
    "megatron-deepspeed", "primus", "maxtext", "neuron", "gaudi", "mindformers", "internevo",
    "deepseek", "krzem", "other",
)  # fmt: skip
ALIASES: Mapping[str, str] = {
    "megatron-core": "megatron-lm", "megatron": "megatron-lm", "mcore": "megatron-lm",
    "nemo": "megatron-bridge", "mindspeed": "mindspeed-llm", "fsdp2": "fsdp",
    "accelerate": "fsdp", "automodel": "fsdp", "gpt-neox": "megatron-deepspeed",
    "xla": "maxtext", "jax": "maxtext", "mindspore": "mindformers",
}  # fmt: skip

MODULES = ("megatron", "mindspeed_fsdp", "mindspeed_mm", "configurations")
"""Modules of this room that list readers in ``READERS``."""
_HINT = "give the files of a training job: its script and the configurations it names"


def read_job(
    paths: Sequence[Path] = (),
    *,
    text: Mapping[str, str] | None = None,
    engine: str | None = None,
) -> Job:
    """The job that the files decide; ``text`` gives further files by name, already read.

    ``engine`` names the engine where the files do not show it.  Raises DataError for files that
    cannot be read, InputError where no engine (or more than one) is found in them.
    """
    files = {**dict(_texts(paths)), **(text or {})}
    files |= written_files(files)
    if not files:
        raise InputError(f"no file of a job was given: {_HINT}")
    sources = Sources(files=files, engine=None if engine is None else canonical(engine))
    reader, claim = find_reader(sources)
    builder = JobBuilder(claim.engine)
    builder.note(f"engine {claim.engine}: {claim.why}")
    reader.read(sources, builder)
    name_model(sources.files, builder)
    close(builder)
    return builder.job()


def canonical(engine: str) -> str:
    """The canonical name of an engine; raises UnknownNameError."""
    name = engine.strip().lower()
    name = ALIASES.get(name, name)
    if name not in ENGINES:
        raise UnknownNameError("engine", engine, (*ENGINES, *ALIASES))
    return name


def readers() -> tuple[Reader, ...]:
    """The readers of all engines."""
    modules = (importlib.import_module(f"krzem.jobs.{name}") for name in MODULES)
    return tuple(reader for module in modules for reader in module.READERS)


def find_reader(sources: Sources) -> tuple[Reader, Claim]:
    """The reader whose claim on the files is strongest; raises InputError."""
    claims, refused = _claims(sources)
    if sources.engine is not None:
        return _named(sources, claims)
    if not claims and refused is not None:
        raise refused
    if not claims:
        raise InputError(
            f"no engine is recognised in {_names(sources)}: no known training program is started"
            " and no known configuration is there; name the engine, or give the launch script"
            f" ({', '.join(ENGINES[:-1])})"
        )
    best = max(claim.strength for _, claim in claims)
    first = [(r, c) for r, c in claims if c.strength == best]
    if len({c.engine for _, c in first}) > 1:
        found = "; ".join(f"{c.engine} ({c.why})" for _, c in first)
        raise InputError(f"{_names(sources)} hold jobs of several engines: {found}; name one")
    return first[0]


def _claims(sources: Sources) -> tuple[list[tuple[Reader, Claim]], DataError | None]:
    """What readers find in the files, and why the first that could not look could not."""
    claims: list[tuple[Reader, Claim]] = []
    refused: DataError | None = None
    for reader in readers():
        try:
            claim = reader.claim(sources)
        except DataError as error:
            refused = refused or error
            continue
        if claim is not None:
            claims.append((reader, claim))
    return claims, refused


def _named(sources: Sources, claims: list[tuple[Reader, Claim]]) -> tuple[Reader, Claim]:
    name = sources.engine
    assert name is not None
    mine = [(r, c) for r, c in claims if c.engine == name]
    if mine:
        return max(mine, key=lambda pair: pair[1].strength)
    claim = Claim(engine=name, strength=0, why="named by the user")
    for reader in readers():
        if name in reader.engines:
            return reader, claim
    raise InputError(f"jobs of {name} are not read yet; they can be given by hand")


def _names(sources: Sources) -> str:
    names = list(sources.files)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shorten(name, 60) for name in names[:3]) + more


def _texts(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    if len(paths) > MOST_FILES:
        raise DataError(f"{len(paths)} files are no job; at most {MOST_FILES} are read: {_HINT}")
    for path in paths:
        yield str(path), read_text(path, most=LARGEST_FILE, hint=_HINT)
