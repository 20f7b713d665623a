"""Experiments of OpenEuroLLM's templates that run Megatron-LM: Hydra over ``backend.megatron``."""

from __future__ import annotations

import re

from krzem.errors import InputError
from krzem.jobs.hydra import compose, has_defaults
from krzem.jobs.job import JobBuilder
from krzem.jobs.primus import fill_from
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.tree import count, settle

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
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if has_defaults(text) and _BACKEND.search(text):
            return name
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The composed experiment; files of its defaults list that are not given are named."""
    main = _main(sources)
    if main is None:
        raise InputError("no given file is an experiment with a defaults list and a backend")
    made = compose(sources.with_suffix(".yaml", ".yml"), main)
    if made.missing:
        job.note(f"not among the files: {', '.join(made.missing[:8])}")
    for key, name in (("nnodes", "nodes"), ("nproc_per_node", "devices_per_node")):
        entry = made.tree.entries.get(f"backend.torchrun_args.{key}")
        if entry is not None:
            settle(entry, count(name), job)
    own = made.tree.sub("backend.megatron")
    for key in [k for k in own.entries if k.startswith("aux.") or k == "aux"]:
        del own.entries[key]
    fill_from(own, job)
    describe(sources, job)


READERS = (Reader(kind="OpenEuroLLM's templates", engines=(ENGINE,), claim=claim, read=read),)
