"""Experiments of OpenEuroLLM's templates that run Megatron-LM: Hydra over ``backend.megatron``."""

from __future__ import annotations

import re

from krzem.errors import InputError
from krzem.jobs.hydra import composed, has_defaults, launched_on
from krzem.jobs.job import JobBuilder
from krzem.jobs.primus import fill_from
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe

ENGINE = "megatron-lm"
_BACKEND = re.compile(r"^backend:\s*$|^\s*-\s*/backend(/megatron)?:\s", re.M)


def claim(sources: Sources) -> Claim | None:
    """An experiment that composes a Megatron backend."""
    main = _main(sources)
    if main is None:
        return None
    text = sources.files[main]
    if re.search(r"^\s{2}megatron:\s*$|/backend:\s*megatron", text, re.M):
        return Claim(engine=ENGINE, strength=80, why=f"{main} composes a Megatron backend")
    return None


def _main(sources: Sources) -> str | None:
    """The experiment: a file with a defaults list and a backend."""
    return sources.first(lambda t: has_defaults(t) and bool(_BACKEND.search(t)), ".yaml", ".yml")


def read(sources: Sources, job: JobBuilder) -> None:
    """The composed experiment; files of its defaults list that are not given are named."""
    main = _main(sources)
    if main is None:
        raise InputError("no given file is an experiment with a defaults list and a backend")
    tree = composed(sources, main, job)
    launched_on(tree, "backend.torchrun_args", job)
    own = tree.sub("backend.megatron")
    for key in [k for k in own.entries if k.startswith("aux.") or k == "aux"]:
        del own.entries[key]
    fill_from(own, job)
    describe(sources, job)


READERS = (Reader(kind="OpenEuroLLM's templates", engines=(ENGINE,), claim=claim, read=read),)
