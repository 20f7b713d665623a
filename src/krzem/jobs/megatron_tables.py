"""Megatron's arguments in YAML tables of other launchers: FlagScale's, and Megatron-LM's cases.

FlagScale keeps them under ``system`` and ``model``, composed by Hydra
(``flagscale/runner/utils.py`` turns every leaf into a flag); a case of Megatron-LM's functional
tests keeps them under ``MODEL_ARGS`` with their dashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from krzem.errors import InputError
from krzem.jobs.documents import keys_of, yaml_tree
from krzem.jobs.hydra import composed, has_defaults, launched_on
from krzem.jobs.job import JobBuilder
from krzem.jobs.primus import fill_from
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.tree import Entry, Tree

ENGINE = "megatron-lm"
_CASE = re.compile(r"^MODEL_ARGS\s*:", re.M)
_SCALE = re.compile(r"^\s{4}backend:\s*[\"']?megatron", re.M)
_GROUPS = ("system", "model", "data")
_INNER = re.compile(
    r"(precision|logging|checkpoint|recompute|optimizer(\.lr_scheduler)?|tokenizer|parallel|moe"
    r"|optimization)\."
)
"""Tables inside FlagScale's groups; their leaves are flags like all others."""
_LAUNCHER = ("no_shared_fs", "no_save", "sampling", "seed")


def claim(sources: Sources) -> Claim | None:
    """A table of Megatron's arguments."""
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if _CASE.search(text):
            return Claim(engine=ENGINE, strength=70, why=f"MODEL_ARGS in {name}")
    main = _main(sources)
    if main is not None:
        return Claim(engine=ENGINE, strength=82, why=f"FlagScale's system and model for {main}")
    return None


def _main(sources: Sources) -> str | None:
    """The experiment of FlagScale, else a file of its two groups."""
    whole = sources.first(lambda t: has_defaults(t) and bool(_SCALE.search(t)), ".yaml", ".yml")
    return whole or sources.first(_has_groups, ".yaml", ".yml")


def _has_groups(text: str) -> bool:
    tops = set(re.findall(r"^(\w+):", text, re.M))
    return {"system", "model"} <= tops and "tensor_model_parallel_size" in keys_of(text)


def _alone(sources: Sources) -> Iterator[Tree]:
    """Files of the two groups, for an experiment whose defaults name another one."""
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if _has_groups(text):
            yield yaml_tree(text, name)


def read(sources: Sources, job: JobBuilder) -> None:
    """The flags of the table; nodes and devices where FlagScale's runner names them."""
    files = sources.with_suffix(".yaml", ".yml")
    cases = [n for n, t in files.items() if _CASE.search(t)]
    main = _main(sources)
    if main is not None:
        _flag_scale(sources, main, job)
    elif cases:
        fill_from(_dashless(yaml_tree(files[cases[0]], cases[0]).sub("MODEL_ARGS")), job)
    else:
        raise InputError("no given file holds a table of Megatron's arguments")
    describe(sources, job)


def _flag_scale(sources: Sources, main: str, job: JobBuilder) -> None:
    made = composed(sources, main, job)
    tree = made.sub("train") if made.any_below("train") else made
    alone = next((t for t in _alone(sources) if not tree.any_below("model")), None)
    tree = tree if alone is None else alone
    launched_on(made, "experiment.runner", job)
    flags = Tree()
    for group in _GROUPS:
        for key, entry in tree.sub(group).entries.items():
            name = _INNER.sub("", key)
            if name not in _LAUNCHER and "." not in name:
                flags.put(Entry(key=name, value=entry.value, place=entry.place))
    fill_from(flags, job)


def _dashless(table: Tree) -> Tree:
    """``--num-layers: 14`` by the name of Megatron's configuration."""
    found = Tree()
    for key, entry in table.entries.items():
        name = key.lstrip("-").replace("-", "_")
        found.put(Entry(key=name, value=entry.value, place=entry.place))
    return found


READERS = (
    Reader(kind="tables of Megatron's arguments", engines=(ENGINE,), claim=claim, read=read),
)
