"""What stands around a job: a card that describes the workload, and names in the path of a file.

They fill only what the job's own files leave open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from krzem.errors import DataError, InputError
from krzem.jobs.documents import yaml_tree
from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.registry import Sources
from krzem.jobs.tree import Read, Tree, UnclearError, count, text, unset

_CARD: Mapping[str, Read] = {
    "workload.model.model_arch.num_layers": count("model.layers"),
    "workload.model.model_arch.num_heads": count("model.heads"),
    "workload.model.model_arch.head_dim": count("model.head_dim"),
    "workload.hardware.xpu_spec.model": text("device"),
    "workload.hardware.xpu_spec.total_count": count("devices"),
    "workload.hardware.xpu_spec.count_per_node": count("devices_per_node"),
}
"""Keys of the cards that collections of workloads keep beside each job."""
_PLAN = "Model-executor.model_plan_parallelization"
_DEGREES = ("tp", "pp", "cp", "ep")
_MARK = "workload.hardware.xpu_spec.model"

_CHIP = re.compile(
    r"(?<![a-z0-9])(?:\d+x|dgx|hgx)?(gb200|gb300|b200|b300|h100|h200|h800|h20|a100|a800|v100"
    r"|mi210|mi250x?|mi300[xa]|mi325x|mi355x|v5e|v5p|v6e|tpu7x)(?![a-z0-9])",
)
_MACHINES = {"a3ultra": "H200", "a3mega": "H100", "a4x": "GB200", "trillium": "v6e",
             "ironwood": "tpu7x"}  # fmt: skip
"""Names that a cloud gives machines, and their chip."""
_LOWER = ("v5e", "v5p", "v6e", "tpu7x")


def read_card(sources: Sources, job: JobBuilder) -> None:
    """What a card says; the job's own files, read later, win."""
    for name, content in sources.with_suffix(".yaml", ".yml").items():
        if "xpu_spec" not in content:
            continue
        try:
            tree = yaml_tree(content, name)
        except (DataError, InputError):
            continue
        if not unset(tree.value(_MARK)):
            _settle(tree, job)


def describe(sources: Sources, job: JobBuilder) -> None:
    """The chip by a name in the path of the main file, where nothing else says it."""
    main = next(iter(sources.files), "")
    found = {chip(match[1]) for match in _CHIP.finditer(main.lower())}
    found |= {c for word, c in _MACHINES.items() if word in re.split(r"[/_.-]", main.lower())}
    if len(found) == 1 and job.get("device") is None:
        job.derive("device", found.pop(), "a name in the path of the file", Place(file=main))


def chip(name: str) -> str:
    """A chip as its vendor writes it."""
    return name if name in _LOWER else name.upper()


def _settle(tree: Tree, job: JobBuilder) -> None:
    keys = {**_CARD, **{f"{_PLAN}.{name}": count(name) for name in _DEGREES}}
    for key, read in keys.items():
        if unset(tree.value(key)):
            continue
        try:
            found = read.parse(tree.value(key))
        except UnclearError:
            continue
        for field, value in found.items():
            place = tree.place(key)
            job.derive(field, value, place.text, place)
