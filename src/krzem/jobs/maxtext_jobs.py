"""Finds a MaxText job: the trainer on a command line, a configuration, a cluster's values."""

from __future__ import annotations

import math
import posixpath
import re

from krzem.errors import DataError
from krzem.jobs.documents import yaml_tree
from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.launches import Start, options_of, starts_of, state_machine
from krzem.jobs.maxtext import read_settings
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.shell_words import NOWHERE, ShellWord
from krzem.jobs.surroundings import describe, read_card
from krzem.jobs.tree import Entry, Tree, count, settle, text, word_of

ENGINE = "maxtext"
_PROGRAM = r"(?i)maxtext.*train|maxtext.*sft|benchmark_runner(\.py)?$"
_OWN = ("per_device_batch_size", "max_target_length", "ici_fsdp_parallelism", "remat_policy",
        "dcn_data_parallelism", "dcn_fsdp_parallelism", "ici_tensor_parallelism",
        "base_emb_dim")  # fmt: skip
_TYPE = re.compile(r"(v\d+[a-z]*|tpu7x?|v5litepod)-(\d+(?:x\d+)*)")
_CORES = ("v2", "v3", "v4", "v5p")
"""Slices whose name counts cores, two on a chip; later names count chips."""
_TWO_DEVICES = ("v2", "v3", "tpu7x", "tpu7")
"""Chips that show as two devices."""


def claim(sources: Sources) -> Claim | None:
    """The trainer is started, or its settings stand in a file."""
    found = [s for s in starts_of(sources).find(_PROGRAM) if _trains(s)]
    if found:
        return Claim(engine=ENGINE, strength=100, why=f"{found[0].program} is started")
    for name, content in sources.with_suffix(".yaml", ".yml").items():
        keys = {m[1] for m in re.finditer(r"^\s*([a-z_]+):", content, re.M)}
        if sum(key in keys for key in _OWN) >= 2:
            return Claim(engine=ENGINE, strength=70, why=f"MaxText's settings in {name}")
    return None


def _trains(start: Start) -> bool:
    """The runner of benchmarks trains MaxText; other programs by their settings."""
    own = any(key in start.options.entries for key in (*_OWN, "model_name", "steps"))
    return own or any(word.text.endswith(".yml") for word in start.loose)


def read(sources: Sources, job: JobBuilder) -> None:
    """Base, model, configuration and command line, the later wins."""
    read_card(sources, job)
    start = next((s for s in starts_of(sources).find(_PROGRAM) if _trains(s)), None)
    options = _options(start)
    own = _configurations(sources)
    tree = Tree()
    for part in (*own, options):
        tree.update(part)
    model = word_of(tree, "model_name")
    merged = Tree()
    for part in (_given(sources, "base.yml"), _given(sources, f"{model}.yml"), *own, options):
        merged.update(part)
    _shape_of_others(sources, model, merged)
    if start is not None:
        state_machine(job, start, sources)
        _slices(start, job)
        _told(start, sources, job)
    _values(sources, job)
    _topology(merged, job)
    if start is not None and re.search(r"benchmark_runner(\.py)?$", start.program):
        _by_name(merged, job)
    else:
        read_settings(merged, job, complete=_complete(sources, start, job))
    _version(sources, job)
    describe(sources, job)


def _complete(sources: Sources, start: Start | None, job: JobBuilder) -> bool:
    """Whether the configuration that is started is the engine's base, or among the files."""
    named = [w.text for w in start.loose if w.text.endswith((".yml", ".yaml"))] if start else []
    if not named:
        return True
    base = posixpath.basename(named[0])
    if base == "base.yml" or any(posixpath.basename(n) == base for n in sources.files):
        return True
    job.note(f"{base} is started, but was not given")
    return False


def _by_name(tree: Tree, job: JobBuilder) -> None:
    """The benchmark runner: all but the name stands in a table of the engine's own code."""
    entry = tree.entries.get("model_name")
    if entry is not None:
        settle(entry, text("model.name"), job)
    for name in ("seq", "mbs", "model.layers"):
        job.ask(name, "the benchmark's table in MaxText's code decides it", "give its value")


def _options(start: Start | None) -> Tree:
    tree = Tree()
    if start is None:
        return tree
    for name, word in start.launch.command.environment.items():
        if name.startswith("M_") and word.known:
            place = Place(file=word.origin.file, line=word.origin.line, text=f"{name}={word.text}")
            tree.put(Entry(key=name[2:].lower(), value=word.text, place=place))
    tree.update(start.options)
    for name in ("device_type", "num_slices", "project", "zone", "cluster_name", "libtpu_version",
                 "base_docker_image", "device-type", "num-slices"):  # fmt: skip
        tree.entries.pop(name, None)
    return tree


def _given(sources: Sources, name: str) -> Tree:
    """A file of the engine's own folder, where it is among the files."""
    for path, content in sources.with_suffix(".yaml", ".yml").items():
        if posixpath.basename(path) in (name, name.replace(".yml", ".yaml")):
            return yaml_tree(content, path)
    return Tree()


def _shape_of_others(sources: Sources, model: str | None, tree: Tree) -> None:
    """``base.yml`` holds the shape of a model nobody named: it is not this model's."""
    named = model not in (None, "default")
    if not named or any(posixpath.basename(p) == f"{model}.yml" for p in sources.files):
        return
    for key, entry in list(tree.entries.items()):
        of_base = posixpath.basename(entry.place.file) == "base.yml"
        if of_base and (key.startswith("base_") or key in _SHAPE):
            del tree.entries[key]


_SHAPE = ("head_dim", "vocab_size", "num_experts", "num_experts_per_tok", "shared_experts",
          "first_num_dense_layers", "mlp_activations", "logits_via_embedding", "attention_type",
          "decoder_block", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
          "v_head_dim", "use_qk_norm", "sliding_window_size", "capacity_factor")  # fmt: skip


def _configurations(sources: Sources) -> list[Tree]:
    """Files with the engine's settings that are neither its base nor a model's."""
    found: list[Tree] = []
    for name, content in sources.with_suffix(".yaml", ".yml").items():
        shape_alone = "base_emb_dim" in content and "per_device_batch_size" not in content
        if posixpath.basename(name) == "base.yml" or shape_alone:
            continue
        try:
            tree = yaml_tree(content, name)
        except DataError:
            continue
        if sum(key in tree.entries for key in (*_OWN, "model_name")) >= 2:
            found.append(tree)
        arguments = tree.entries.get("workload.defaultArguments")
        if arguments is not None and isinstance(arguments.value, list):
            words = [ShellWord(str(a), NOWHERE) for a in arguments.value]
            inner, _ = options_of(words, {})
            given = Tree()
            for key, entry in inner.entries.items():
                given.put(Entry(key=key, value=entry.value, place=arguments.place))
            found.append(given)
    return found


def _values(sources: Sources, job: JobBuilder) -> None:
    """``workload.gpus`` of a chart's values."""
    for name, content in sources.with_suffix(".yaml", ".yml").items():
        if re.search(r"^workload:", content, re.M):
            entry = yaml_tree(content, name).entries.get("workload.gpus")
            if entry is not None:
                settle(entry, count("devices"), job)


def _slices(start: Start, job: JobBuilder) -> None:
    """``--device-type=v6e-256 --num-slices=2`` of the cluster's tool or the benchmark runner."""
    kinds = [start.options.entries.get(k) for k in ("device_type", "device-type", "tpu-type")]
    word = next((e.value for e in kinds if e is not None), None)
    outer = start.launch.options
    name = word if isinstance(word, str) else None
    for key in ("device-type", "tpu-type", "device_type"):
        if name is None and key in outer and outer[key].known:
            name = outer[key].text
    slices = word_of(start.options, "num_slices", "num-slices")
    if slices is None and "num-slices" in outer and outer["num-slices"].known:
        slices = outer["num-slices"].text
    if name is not None:
        number = int(slices) if slices and re.fullmatch(r"[1-9]\d{0,4}", slices) else 1
        _chips(name, number, job, start.place)


def _told(start: Start, sources: Sources, job: JobBuilder) -> None:
    """The slice that a page names in the section of the command, where it names one."""
    page = sources.files.get(start.place.file, "")
    if not start.place.file.endswith(".md") or job.get("devices") is not None:
        return
    lines = page.splitlines()[: start.place.line]
    heads = [n for n, line in enumerate(lines) if re.match(r"#{1,6} ", line)]
    section = lines[heads[-1] if heads else 0 :]
    named = {m[0]: n for n, line in enumerate(section) for m in _SLICE.finditer(line)}
    if len(named) == 1:
        name, at_line = next(iter(named.items()))
        number = (heads[-1] if heads else 0) + at_line + 1
        place = Place(file=start.place.file, line=number, text=section[at_line].strip()[:200])
        _chips(name, 1, job, place)


_SLICE = re.compile(r"(?<![\w-])(v\d+[a-z]*|tpu7x|v5litepod)-\d+(?:x\d+)*(?![\w-])")


def _topology(tree: Tree, job: JobBuilder) -> None:
    """``compile_topology=v5e-256`` when nothing else says the devices."""
    name = word_of(tree, "compile_topology")
    if name and job.number("devices") is None:
        slices = word_of(tree, "compile_topology_num_slices") or "1"
        number = int(slices) if re.fullmatch(r"[1-9]\d{0,4}", slices) else 1
        _chips(name, number, job, tree.place("compile_topology"))


def _chips(name: str, slices: int, job: JobBuilder, place: Place) -> None:
    match = _TYPE.fullmatch(name)
    if match is None:
        job.not_understood(place, f"{name[:40]!r} is no name of a slice such as v6e-256")
        return
    kind = "v5e" if match[1] == "v5litepod" else match[1]
    total = math.prod(int(n) for n in match[2].split("x"))
    chips = total // 2 if kind in _CORES and "x" not in match[2] else total
    devices = chips * 2 if kind in _TWO_DEVICES else chips
    job.state("device", kind, place)
    if devices:
        why = f"{name}: {chips} chips, {devices} devices a slice, {slices} slices"
        job.derive("devices", devices * slices, why, place)


def _version(sources: Sources, job: JobBuilder) -> None:
    """The commit that a page beside the job names."""
    for content in sources.with_suffix(".md").values():
        match = re.search(r"maxtext(?:\.git)?\)?@([0-9a-f]{7,40})\b", content)
        if match is not None:
            job.version = match[1]


READERS = (Reader(kind="MaxText", engines=(ENGINE,), claim=claim, read=read),)
