"""Finds a job of a trainer over DeepSpeed, FSDP or Accelerate: its options wherever they stand.

Order: configuration file (YAML or JSON), command line.  DeepSpeed's JSON, Accelerate's YAML and
FSDP's settings are read below ``deepspeed.``, ``accelerate.`` and ``fsdp_config.``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping

from krzem.errors import DataError
from krzem.jobs.documents import json_tree, keys_of, yaml_tree
from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.launch import place_of
from krzem.jobs.launches import Start, Starts, starts_of, state_machine
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.shell_words import ShellWord
from krzem.jobs.surroundings import describe
from krzem.jobs.trainer import read_settings
from krzem.jobs.tree import Entry, Open, Tree, count, settle, unset, word_of

_OWN = ("per_device_train_batch_size", "per_gpu_train_batch_size")
_OPTIONS = (*_OWN, "gradient_accumulation_steps", "model_name_or_path", "deepspeed",
            "gradient_checkpointing", "tuner_type", "train_type", "sft_type")  # fmt: skip
_AXOLOTL = ("base_model", "sequence_len")
_TOOLS = (("llamafactory", r"llamafactory|llama_?factory|src/train"), ("swift", r"\bswift\b"),
          ("axolotl", r"axolotl"))  # fmt: skip


def claim(sources: Sources) -> Claim | None:
    """Options of a trainer on a command line or in a file; what shards decides the engine."""
    starts = starts_of(sources)
    start = _start(starts)
    tree = _options(sources, starts, start)
    found = sum(key in tree.entries for key in _OPTIONS)
    own = any(key in tree.entries for key in (*_OWN, *_AXOLOTL))
    if not own or (found < 2 and not all(k in tree.entries for k in _AXOLOTL)):
        return None
    engine = _engine(tree, start)
    where = start.program if start is not None else next(iter(tree.entries.values())).place.file
    return Claim(engine=engine, strength=90, why=f"options of a trainer in {where}")


def _start(starts: Starts) -> Start | None:
    """The program with a trainer's options, or one that is given a file of them."""

    def weight(start: Start) -> int:
        own = sum(key in start.options.entries for key in _OPTIONS)
        files = any(w.text.endswith((".yaml", ".yml", ".json")) for w in start.loose)
        return own * 2 + files + ("config" in start.options.entries)

    ranked = sorted(starts.programs, key=weight, reverse=True)
    return ranked[0] if ranked and weight(ranked[0]) else None


def _engine(tree: Tree, start: Start | None) -> str:
    """DeepSpeed where it is switched on, else PyTorch's own sharding or copies."""
    launcher = start.launch.options if start is not None else {}
    named = {"use_deepspeed", "deepspeed_config_file", "zero_stage"} & set(launcher)
    started = start is not None and "deepspeed" in start.launch.launchers
    kind = (word_of(tree, "accelerate.distributed_type") or "").lower()
    file = tree.any_below("deepspeed") or not unset(tree.value("deepspeed"))
    if file or named or started or kind == "deepspeed":
        return "deepspeed"
    return "fsdp"


def read(sources: Sources, job: JobBuilder) -> None:
    """All options, with the files that they name."""
    starts = starts_of(sources)
    start = _start(starts)
    tree = _options(sources, starts, start)
    tool = _tool(sources, start, tree)
    if tool:
        job.note(f"the trainer is {tool}")
    _machine(job, start, sources)
    entry = tree.entries.get("accelerate.num_processes")
    launched = start is not None and "accelerate" in start.launch.launchers
    if launched and entry is not None and job.number("devices") is None:
        settle(entry, count("devices"), job)
    read_settings(tree, job, tool)
    describe(sources, job)


def _machine(job: JobBuilder, start: Start | None, sources: Sources) -> None:
    """Launcher, then variables that the tool's own launcher reads."""
    if start is None:
        return
    if any(w.text.endswith("mason.py") for w in start.launch.command.words):
        for name, field in (("num_nodes", "nodes"), ("gpus", "devices_per_node")):
            word = start.launch.options.get(name)
            if word is not None and word.known and re.fullmatch(r"[1-9]\d{0,5}", word.text):
                job.state(field, int(word.text), place_of(word, sources.files))
        return
    own = {"NPROC_PER_NODE": "devices_per_node", "NNODES": "nodes"}
    tools = re.search(r"swift|llamafactory|axolotl", start.program)
    for name, field in own.items() if tools else ():
        word = start.launch.command.environment.get(name)
        if word is not None and word.known and re.fullmatch(r"[1-9]\d{0,5}", word.text):
            job.state(field, int(word.text), place_of(word, sources.files))
    if tools and job.number("devices_per_node") is not None:
        job.default("nodes", 1, "NNODES is not set")
        return
    state_machine(job, start, sources)


def _tool(sources: Sources, start: Start | None, tree: Tree) -> str:
    said = " ".join(w.text for w in start.launch.command.words) if start is not None else ""
    for tool, pattern in _TOOLS:
        if re.search(pattern, said):
            return tool
    if tree.has("finetuning_type") and tree.has("template", "cutoff_len"):
        return "llamafactory"
    if tree.has("tuner_type", "train_type", "sft_type") or tree.has("swift_version"):
        return "swift"
    return "axolotl" if all(tree.has(k) for k in _AXOLOTL) else ""


def _options(sources: Sources, starts: Starts, start: Start | None) -> Tree:
    """Files of options, then the command line, then what they name."""
    tree = Tree()
    for part in _files(sources, start):
        tree.update(part)
    if start is not None:
        for key, entry in start.options.entries.items():
            name = key.replace("-", "_")
            tree.put(Entry(key=name, value=entry.value, place=entry.place))
        tree.update(_launcher(start, sources))
    _deepspeed(tree, sources, starts)
    _accelerate(tree, sources, start)
    _fsdp(tree, sources, starts)
    return tree


def _files(sources: Sources, start: Start | None) -> Iterator[Tree]:
    """Files of trainer options: the one that is started, else all that have them."""
    named = {posixpath.basename(w.text) for w in start.loose} if start is not None else set()
    if start is not None:
        named |= {posixpath.basename(str(e.value)) for k, e in start.options.entries.items()
                  if k in ("config", "config_file")}  # fmt: skip
    found = list(_trees(sources, alone=start is None))
    chosen = [t for n, t in found if posixpath.basename(n) in named]
    yield from chosen or [t for _, t in found]


def _trees(sources: Sources, *, alone: bool) -> Iterator[tuple[str, Tree]]:
    """Files with a trainer's options; where they are ``alone``, a broken one is an error."""
    broken: DataError | None = None
    found = False
    for name, text in sources.with_suffix(".yaml", ".yml", ".json", ".args").items():
        if not {*_OWN, "base_model"} & keys_of(text):
            continue
        try:
            read_as = json_tree if text.lstrip().startswith("{") else yaml_tree
            tree = read_as(text, name)
        except DataError as error:
            broken = broken or error
            continue
        if any(key in tree.entries for key in (*_OWN, "base_model")):
            found = True
            yield name, tree
    if broken is not None and alone and not found:
        raise broken


_ACCELERATE = ("mixed_precision", "use_deepspeed", "deepspeed_config_file", "zero_stage",
               "offload_optimizer_device", "use_fsdp", "fsdp_sharding_strategy",
               "fsdp_reshard_after_forward", "fsdp_offload_params", "fsdp_version",
               "fsdp_activation_checkpointing", "gradient_accumulation_steps")  # fmt: skip
_RENAMED = {"zero_stage": "deepspeed.zero_optimization.stage",
            "offload_optimizer_device": "deepspeed.zero_optimization.offload_optimizer.device",
            "deepspeed_config_file": "deepspeed"}  # fmt: skip


def _launcher(start: Start, sources: Sources) -> Tree:
    """Options of ``accelerate launch``."""
    tree = Tree()
    options: Mapping[str, ShellWord] = start.launch.options
    for name in _ACCELERATE:
        word = options.get(name)
        if word is None or not word.known:
            continue
        place = place_of(word, sources.files)
        key = _RENAMED.get(name) or (name if name in ("mixed_precision",
                                                      "gradient_accumulation_steps")
                                     else f"accelerate.{name}")  # fmt: skip
        if name not in ("use_deepspeed", "use_fsdp") and key not in tree.entries:
            tree.put(Entry(key=key, value=word.text, place=place))
    if "use_fsdp" in options:
        tree.put(Entry(key="accelerate.distributed_type", value="FSDP", place=Place()))
    if "use_deepspeed" in options:
        tree.put(Entry(key="accelerate.distributed_type", value="DEEPSPEED", place=Place()))
    return tree


def _named(value: object, sources: Sources, starts: Starts) -> tuple[str, str] | None:
    """The file that an option names: one the scripts write, else one that is given."""
    said = value.text if isinstance(value, Open) else value if isinstance(value, str) else ""
    base = posixpath.basename(said)
    if not re.fullmatch(r"[\w.-]+\.(json|ya?ml|conf)", base):
        return None
    for name, text in starts.documents.items():
        if posixpath.basename(name) == base:
            return name, text
    for name, text in sources.files.items():
        if posixpath.basename(name) == base:
            return name, text
    return None


def _deepspeed(tree: Tree, sources: Sources, starts: Starts) -> None:
    """DeepSpeed's JSON below ``deepspeed.``; ms-swift's short names stand for stages."""
    value, place = tree.value("deepspeed", "deepspeed_config"), tree.place("deepspeed")
    found = _named(value, sources, starts)
    if found is None and isinstance(value, str):
        match = re.fullmatch(r"zero([0-3])(_offload)?", value)
        if match is not None:
            tree.put(Entry(key="deepspeed.zero_optimization.stage", value=int(match[1]),
                           place=place))  # fmt: skip
            if match[2]:
                tree.put(Entry(key="deepspeed.zero_optimization.offload_optimizer.device",
                               value="cpu", place=place))  # fmt: skip
        return
    if found is None:
        return
    try:
        inner = json_tree(found[1], found[0])
    except DataError:
        return
    tree.update(inner, "deepspeed.")


def _accelerate(tree: Tree, sources: Sources, start: Start | None) -> None:
    """Accelerate's YAML; its numbers of processes hold only where it is launched with it."""
    for name, text in sources.with_suffix(".yaml", ".yml", ".conf").items():
        if "distributed_type:" not in text:
            continue
        try:
            inner = yaml_tree(text, name)
        except DataError:
            continue
        for key, entry in inner.entries.items():
            short = key.removeprefix("fsdp_config.")
            if key.startswith("deepspeed_config."):
                _from_accelerate(tree, key.removeprefix("deepspeed_config."), entry)
            else:
                tree.put(Entry(key=f"accelerate.{short}", value=entry.value, place=entry.place))


def _from_accelerate(tree: Tree, name: str, entry: Entry) -> None:
    known = {"zero_stage": "zero_optimization.stage",
             "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
             "offload_param_device": "zero_optimization.offload_param.device"}  # fmt: skip
    key = f"deepspeed.{known.get(name, name)}"
    if key not in tree.entries:
        tree.put(Entry(key=key, value=entry.value, place=entry.place))


def _fsdp(tree: Tree, sources: Sources, starts: Starts) -> None:
    """``--fsdp override.json`` and ``--fsdp_config settings.json``."""
    for option in ("fsdp", "fsdp_config"):
        found = _named(tree.value(option), sources, starts)
        if found is None:
            continue
        try:
            inner = json_tree(found[1], found[0])
        except DataError:
            continue
        if option == "fsdp":
            tree.entries.pop("fsdp", None)
            tree.update(inner)
        else:
            tree.update(inner, "fsdp_config.")


READERS = (
    Reader(
        kind="trainers over DeepSpeed and FSDP",
        engines=("deepspeed", "fsdp"),
        claim=claim,
        read=read,
    ),
)
