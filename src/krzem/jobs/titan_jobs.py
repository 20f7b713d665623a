"""Finds a torchtitan job: a TOML file, a Python recipe, a template of another tool, a launcher."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from krzem.errors import DataError, InputError, shorten
from krzem.jobs.documents import keys_of, toml_tree, yaml_tree
from krzem.jobs.hydra import composed, has_defaults, launched_on
from krzem.jobs.job import JobBuilder
from krzem.jobs.launches import Start, Starts, starts_of, state_machine
from krzem.jobs.priced import read_shape
from krzem.jobs.recipe import Recipe
from krzem.jobs.recipe_values import Node
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe, read_card
from krzem.jobs.titan import read_settings, recomputed_layers
from krzem.jobs.tree import Entry, Open, Tree, word_of

ENGINE = "torchtitan"
_PROGRAM = r"torchtitan[./](train|experiments)|run_train\.sh|run_llama_train\.sh"
_TABLES = ("model", "training", "parallelism", "experimental", "activation_checkpoint", "job",
           "metrics", "profiling", "checkpoint", "comm", "float8", "compile")  # fmt: skip
_OWN = ("training.local_batch_size", "training.data_parallel_degree", "model.flavor",
        "parallelism.data_parallel_shard_degree", "parallelism.tensor_parallel_degree",
        "training.tensor_parallel_degree", "training.data_parallel_shard_degree",
        "experimental.pipeline_parallel_degree",
        "parallelism.pipeline_parallel_degree")  # fmt: skip
_IMPORT = re.compile(r"^\s*(from|import)\s+torchtitan\b", re.M)


def claim(sources: Sources) -> Claim | None:
    """The engine's own module is started, or its tables, or a recipe that imports it."""
    for name, text in sources.with_suffix(".toml").items():
        tree = _quiet(text, name)
        if tree is not None and _is_titan(tree):
            return Claim(engine=ENGINE, strength=80, why=f"torchtitan's tables in {name}")
    for name, text in sources.with_suffix(".py").items():
        if _IMPORT.search(text) and re.search(r"Trainer\.Config|config_registry", text):
            return Claim(engine=ENGINE, strength=80, why=f"a recipe for torchtitan in {name}")
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if {"titan", "local_batch_size"} <= keys_of(text):
            return Claim(engine=ENGINE, strength=80, why=f"settings of torchtitan in {name}")
    found = starts_of(sources).find(_PROGRAM)
    if any("torchtitan" in launch.program or _config_of(launch) for launch in found):
        return Claim(engine=ENGINE, strength=100, why=f"{found[0].program} is started")
    return None


def _quiet(text: str, name: str) -> Tree | None:
    try:
        return toml_tree(text, name)
    except DataError:
        return None


def _is_titan(tree: Tree) -> bool:
    tops = tree.tops() & set(_TABLES)
    return len(tops) >= 2 and any(key in tree.entries for key in _OWN)


def read(sources: Sources, job: JobBuilder) -> None:
    """The configuration that is started, with what the command line changes."""
    read_card(sources, job)
    starts = starts_of(sources)
    launch = _launch(sources, starts)
    tree, complete = _configuration(sources, starts, launch, job)
    state_machine(job, launch, sources)
    if launch is not None:
        tree.update(_overrides(launch))
        _asked_devices(job, launch)
    read_settings(tree, job, complete=complete)
    _flavor(sources, job, tree)
    recomputed_layers(tree, job)
    if complete and (job.number("model.experts") or (job.number("ep") or 1) > 1):
        job.default("switch.routing", "real", "moe_force_load_balance is false")
    describe(sources, job)


def _launch(sources: Sources, starts: Starts) -> Start | None:
    """The program that trains: one whose configuration is given, else the first."""
    loops = starts.find(r"(^|/)train\.py$")
    found = (*starts.find(_PROGRAM), *(x for x in loops if word_of(x.options, *_FILES)))
    tomls = sources.with_suffix(".toml")
    given = [x for x in found if (c := _config_of(x)) and sources.find(c) in sources.files]
    old = [x for x in found if _config_of(x)] if tomls else []
    return next(iter(given or old or found), None)


_FILES = ("job.config_file", "config_file", "job.config-file")


def _config_of(launch: Start) -> str | None:
    path = word_of(launch.options, *_FILES)
    return path or launch.word("CONFIG_FILE")


def _overrides(launch: Start) -> Tree:
    """Options with a dot are settings; a dash in them is an underscore."""
    tree = Tree()
    chosen = [(word.text, launch.place) for word in launch.loose]
    for key, entry in launch.options.entries.items():
        parts = entry.value if isinstance(entry.value, list) else [entry.value]
        chosen += [(str(part), entry.place) for part in parts if _CHOICE.fullmatch(str(part))]
        if "." in key and key != "job.config_file":
            left = [part for part in parts if not _CHOICE.fullmatch(str(part))]
            value = True if not left else left[0] if len(left) == 1 else left
            tree.put(Entry(key=key.replace("-", "_"), value=value, place=entry.place))
    for text, place in chosen:
        kind = _CHECKPOINTS.get(text.partition(":")[2]) if _CHOICE.fullmatch(text) else None
        if kind is not None:
            key, value = kind
            tree.put(Entry(key=f"activation_checkpoint.{key}", value=value, place=place))
    return tree


_CHOICE = re.compile(r"activation[-_]checkpoint:[a-z-]+")
"""A choice among classes stands by itself on the command line of 0.3, behind the options."""
_CHECKPOINTS = {
    "none": ("mode", "none"),
    "full": ("_target_", "FullAC.Config"),
    "selective": ("_target_", "SelectiveAC.Config"),
}


def _asked_devices(job: JobBuilder, launch: Start) -> None:
    """``NGPU`` is the script's own number of devices."""
    count = launch.word("NGPU")
    known = job.number("devices") or job.number("devices_per_node")
    if count is not None and re.fullmatch(r"[1-9]\d{0,5}", count) and known is None:
        job.state("devices_per_node", int(count), launch.place)


@dataclass(frozen=True, slots=True, kw_only=True)
class TitanCommand:
    """How a job starts torchtitan."""

    words: tuple[str, ...] = ()
    """What follows ``-m torchtitan.train``; none where the job is of the age of TOML files."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Recipes, by name: those that are given and those that the script writes."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Variables of the command; None where only the user's shell knows."""


def command_of(sources: Sources) -> TitanCommand:
    """The command of a job; of a recipe alone, the one configuration that it makes.

    Raises InputError for words that only a shell knows.
    """
    starts = starts_of(sources)
    launch = _launch(sources, starts)
    files = {**starts.documents, **sources.with_suffix(".py")}
    if launch is None:
        return TitanCommand(words=_recipe_alone(sources), files=files)
    unknown = [word.text for word in launch.launch.args if not word.known]
    if unknown:
        raise InputError(
            f"{launch.place.file} leaves {shorten(', '.join(unknown[:4]), 120)} to the shell that "
            "runs it: set these in the script"
        )
    words = [word.text for word in launch.launch.args]
    for name in ("config", "module"):
        value = launch.word(name.upper())
        if value is not None and f"--{name}" not in words:
            words[:0] = [f"--{name}", value]
    known = launch.launch.command.environment.items()
    return TitanCommand(
        words=tuple(words) if "--config" in words else (),
        files=files,
        environment={name: word.text if word.known else None for name, word in known},
    )


def _recipe_alone(sources: Sources) -> tuple[str, ...]:
    recipes = [n for n, t in sources.with_suffix(".py").items() if _IMPORT.search(t)]
    if not recipes:
        return ()
    recipe = Recipe(sources.files[recipes[0]], recipes[0])
    makers = _makers(recipe)
    if len(makers) != 1:
        return ()
    module = posixpath.basename(recipes[0]).removesuffix(".py")
    return ("--module", module, "--config", makers[0])


def _makers(recipe: Recipe) -> list[str]:
    """Functions of a recipe that make a configuration."""
    functions = [n for n in recipe.functions if not n.startswith("_")]
    return [n for n in functions if isinstance(recipe.call(n), Node)]


def _configuration(
    sources: Sources, starts: Starts, launch: Start | None, job: JobBuilder
) -> tuple[Tree, bool]:
    """The settings, and whether what they leave out is at the engine's default."""
    config = _config_of(launch) if launch is not None else None
    tomls = {n: t for n, t in {**starts.documents, **sources.with_suffix(".toml")}.items()
             if n.endswith(".toml")}  # fmt: skip
    if tomls:
        name = _same(config, tomls) or next(iter(tomls))
        return toml_tree(tomls[name], name), True
    yamls = sources.with_suffix(".yaml", ".yml").items()
    templates = [(n, t) for n, t in yamls if re.search(r"^\s*titan:\s*$", t, re.M)]
    if templates:
        # What composes others is the experiment, they are its parts.
        name, text = max(templates, key=lambda item: has_defaults(item[1]))
        tree = composed(sources, name, job) if has_defaults(text) else yaml_tree(text, name)
        return _template(tree, job), True
    recipes = {n: t for n, t in {**starts.documents, **sources.with_suffix(".py")}.items()
               if n.endswith(".py") and _IMPORT.search(t)}  # fmt: skip
    if recipes:
        return _recipe(recipes, launch)
    return _named(launch), False


def _same(config: str | None, files: dict[str, str]) -> str | None:
    if config is None:
        return None
    base = config.rpartition("/")[2]
    return next((name for name in files if name.rpartition("/")[2] == base), None)


def _template(tree: Tree, job: JobBuilder) -> Tree:
    """The part of an experiment's YAML that is torchtitan's own, and the launcher beside it."""
    found = Tree()
    for key, entry in tree.entries.items():
        before, mark, rest = f".{key}".partition(".titan.")
        if mark and ".titan" not in before:
            value = Open(str(entry.value)) if _interpolates(entry.value) else entry.value
            found.put(Entry(key=rest, value=value, place=entry.place))
    launched_on(tree, "backend.torchrun_args", job)
    for key, entry in tree.entries.items():
        if key.endswith("env.TORCHDYNAMO_DISABLE") and str(entry.value) == "1":
            found.put(Entry(key="compile.enable", value=False, place=entry.place))
    return found


def _interpolates(value: object) -> bool:
    return isinstance(value, str) and "${" in value


def _recipe(files: dict[str, str], launch: Start | None) -> tuple[Tree, bool]:
    module = word_of(launch.options, "module") if launch is not None else None
    wanted = word_of(launch.options, "config") if launch is not None else None
    name = next((n for n in files if module and n.rpartition("/")[2] == f"{module}.py"), None)
    name = name or next(iter(files))
    recipe = Recipe(files[name], name)
    functions = [n for n in recipe.functions if not n.startswith("_")]
    makers = _makers(recipe) if not wanted else [wanted]
    if len(makers) != 1 or makers[0] not in recipe.functions:
        known = ", ".join(shorten(n, 40) for n in functions[:12])
        raise InputError(
            f"{shorten(name, 120)} holds {len(functions)} configurations ({known});"
            f" give the command that starts one (--config NAME)"
        )
    value = recipe.call(makers[0])
    if not isinstance(value, Node):
        raise InputError(f"{makers[0]} of {shorten(name, 120)} returns no configuration")
    return recipe.tree(value), value.name.endswith("Trainer.Config")


def _named(launch: Start | None) -> Tree:
    """``--module llama3 --config llama3_8b``: a recipe of the engine's own code."""
    tree = Tree()
    config = launch.options.entries.get("config") if launch is not None else None
    if config is not None:
        tree.put(Entry(key="_target_", value=config.value, place=config.place))
    return tree


def _flavor(sources: Sources, job: JobBuilder, tree: Tree) -> None:
    """The model's arguments, where the table of flavors is among the files."""
    name = word_of(tree, "model.flavor", "model_spec.0")
    if name is None or job.number("model.layers") is not None:
        return
    for file, text in sources.with_suffix(".py").items():
        if f'"{name}"' not in text or "Args(" not in text:
            continue
        recipe = Recipe(text, file)
        tables = [t for t in recipe.names.values() if isinstance(t, Node)]
        found = [v for t in tables if isinstance(v := t.fields.get(name), Node)]
        if len(found) == 1:
            read_shape(recipe.tree(found[0]), job)
            if not re.search(r"tying|tie_", text):
                job.default("model.tied", False, "the model has an output matrix of its own")
            if "qk_norm" not in text:
                job.default("model.qk_norm", False, "no flavor normalises queries and keys")
            return


READERS = (Reader(kind="torchtitan", engines=(ENGINE,), claim=claim, read=read),)
