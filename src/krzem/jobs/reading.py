"""Read the files of a training job, whatever its engine."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from krzem.errors import DataError, InputError, UnknownNameError, shorten
from krzem.files import read_text
from krzem.jobs.closing import close
from krzem.jobs.job import Job, JobBuilder
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.written import name_model, written_files

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
