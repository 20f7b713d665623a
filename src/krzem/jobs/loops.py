"""Trainers whose run is one YAML file: LLM Foundry, OLMo, LitGPT, Lingua, VeOmni and their like.

Each is a :class:`Loop`: keys that only it has together, a table of what its keys mean, what its
source decides where they are silent, and arithmetic over several keys.  Settings on the command
line (``--train.micro_batch_size 4``, ``model.dim=2048``) win over the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from krzem.errors import DataError, InputError
from krzem.jobs import composer
from krzem.jobs.composer import equal_heads, finish_foundry, finish_olmo
from krzem.jobs.documents import keys_of, yaml_tree
from krzem.jobs.hydra import Resolver
from krzem.jobs.job import JobBuilder
from krzem.jobs.launches import Start, starts_of, state_machine
from krzem.jobs.loop_keys import (
    ARCTIC,
    ARCTIC_DEFAULTS,
    FACTORY,
    LINGUA,
    LINGUA_DEFAULTS,
    LITGPT,
    PLAIN,
    TORCHTUNE,
    TORCHTUNE_DEFAULTS,
    VEOMNI,
    VEOMNI_DEFAULTS,
    ZERO,
)
from krzem.jobs.priced import read_shape
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.trainer import ask_length
from krzem.jobs.tree import (
    Defaults,
    Entry,
    Table,
    Tree,
    apply,
    fall_back,
    number,
    truth_of,
    unset,
    word_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """One trainer and how its file is known and read."""

    name: str
    engine: str
    own: tuple[tuple[str, ...], ...]
    """Of each group one key must be there; together no other trainer has them."""
    program: str
    """Pattern of the program that is started with the file."""
    table: Table
    finish: Callable[[Tree, JobBuilder], None]
    """What several keys decide together; runs before the defaults."""
    defaults: Defaults = field(default_factory=dict)

    def is_in(self, tree: Tree) -> bool:
        """Whether a file is this trainer's."""
        return all(tree.has(*group) for group in self.own)


def _trees(sources: Sources) -> Iterator[tuple[str, Tree]]:
    """The YAML files that hold a batch, resolved; one that is no YAML is left to others."""
    marks = {"device_train_microbatch_size", "global_train_batch_size", "micro_batch_size",
             "grad_acc_steps", "fsdp_type", "_component_"}  # fmt: skip
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if not marks & keys_of(text):
            continue
        try:
            tree = yaml_tree(text, name)
        except (DataError, InputError):
            continue
        yield name, Resolver(_unpacked(tree), {}).resolved()


def _unpacked(tree: Tree) -> Tree:
    """Without the table ``parameters`` that a cluster's job file puts around the settings."""
    inner = tree.sub("parameters")
    if not inner.has("global_train_batch_size"):
        return tree
    for key, entry in tree.entries.items():
        if not key.startswith("parameters."):
            inner.put(entry)
    return inner


def _found(sources: Sources) -> tuple[Loop, str, Tree] | None:
    for name, tree in _trees(sources):
        for loop in LOOPS:
            if loop.is_in(tree):
                return loop, name, tree
    return None


def claim(sources: Sources) -> Claim | None:
    """Keys that stand together in no other trainer's file."""
    found = _found(sources)
    if found is None:
        return None
    loop, name, _ = found
    return Claim(engine=loop.engine, strength=80, why=f"{loop.name}'s settings in {name}")


def read(sources: Sources, job: JobBuilder) -> None:
    """The file, then the command line; the machine from the launcher."""
    found = _found(sources)
    if found is None:
        raise InputError(
            "no YAML file of a trainer is there: give the file that it is started with"
        )
    loop, _, tree = found
    start = next(iter(starts_of(sources).find(loop.program)), None)
    if start is not None:
        _override(tree, start)
    job.note(f"the trainer is {loop.name}")
    apply(tree, loop.table, job)
    state_machine(job, start, sources)
    if start is not None:
        said = " ".join(word.text for word in start.launch.command.words)
        tree.put(Entry(key="program", value=said, place=start.place))
    loop.finish(tree, job)
    fall_back(job, loop.defaults)
    fall_back(job, PLAIN)
    describe(sources, job)


def _override(tree: Tree, start: Start) -> None:
    """Options of the command that name a key or a table of the file."""
    tops = tree.tops()
    for key, entry in start.options.entries.items():
        name = key.lstrip("+~")
        if name.partition(".")[0] in tops:
            tree.put(Entry(key=name, value=entry.value, place=entry.place))


# -- LitGPT


def _litgpt(tree: Tree, job: JobBuilder) -> None:
    program = word_of(tree, "program") or ""
    pretrain = tree.has("model_name", "model_config", "model") and not tree.has("checkpoint_dir")
    job.default("nodes", 1, "num_nodes is 1")
    if not pretrain and not tree.has("devices"):
        job.default("devices_per_node", 1, "devices is 1")
    devices = (job.number("devices_per_node") or 0) * (job.number("nodes") or 1)
    _lit_model(tree, job)
    if pretrain:
        job.default("finetune", "none", "litgpt pretrain")
        job.default("switch.compile", "on", "pretrain compiles the model")
        job.default("recompute", "none", "pretrain checkpoints no layer")
        job.default("model.tied", False, "tie_embeddings is false")
    else:
        _lit_tuning(tree, job, program)
        job.default("switch.compile", "off", "fine-tuning does not compile")
        if devices:
            job.default("recompute", "full" if devices > 1 else "none",
                        "FSDP checkpoints each block; one device none")  # fmt: skip
        ask_length(job, number(tree, "train.max_seq_length"))
    if devices == 1:
        job.default("zero", 0, "one device")
    elif (job.number("nodes") or 1) == 1:
        job.default("zero", 3, "FSDP over the devices of a node")
    elif pretrain:
        job.default("zero", 3, "HYBRID_SHARD: sharded in a node, copied between nodes")
        if job.number("devices_per_node"):
            job.derive("shard", job.number("devices_per_node") or 1, "HYBRID_SHARD")
    else:
        job.default("zero", 3, "FSDP over all devices")
    if word_of(tree, "precision") == "bf16-true" and job.get("finetune") in ("none", "full"):
        for name, size in (("weight", 2), ("gradient", 2), ("master", 0), ("moments", 4)):
            why, place = "bf16-true keeps nothing in fp32", tree.place("precision")
            job.derive(f"state.{name}", float(size), why, place)


def _lit_model(tree: Tree, job: JobBuilder) -> None:
    folder = word_of(tree, "checkpoint_dir")
    if folder is not None:
        name = re.sub(r"^(\./)?checkpoints/", "", folder.rstrip("/"))
        job.state("model.name", name, tree.place("checkpoint_dir"))
    for table in ("model_config", "model"):
        kind = word_of(tree, f"{table}.mlp_class_name", f"{table}._mlp_class")
        if kind is not None:
            place = tree.place(f"{table}.mlp_class_name", f"{table}._mlp_class")
            job.state("model.gated", kind.lower() in ("llamamlp", "gemmamlp"), place)
        if job.number("seq") is None and number(tree, f"{table}.block_size"):
            job.derive("seq", number(tree, f"{table}.block_size") or 1,
                       "max_seq_length is not set: the model's block_size",
                       tree.place(f"{table}.block_size"))  # fmt: skip
    hidden, heads = job.number("model.hidden"), job.number("model.heads")
    if hidden and heads:
        equal_heads(job)
        job.default("model.positions", "rope", "rotary positions")
        if not tree.has("model_config.intermediate_size", "model.intermediate_size"):
            job.ask("model.ffn", "intermediate_size is not set", "give the inner width")


def _lit_tuning(tree: Tree, job: JobBuilder, program: str) -> None:
    """Adapters by their keys or the program; ``full`` alone may resume."""
    lora = tree.has("lora_r") or "finetune_lora" in program
    four = (word_of(tree, "quantize") or "").startswith(("bnb.nf4", "bnb.fp4"))
    place = tree.place("lora_r", "quantize")
    if lora and place.line:
        job.state("finetune", "qlora" if four else "lora", place)
    elif lora:
        job.default("finetune", "lora", "litgpt finetune_lora")
    elif tree.has("resume") or "finetune_full" in program:
        job.default("finetune", "full", "litgpt finetune_full")
    else:
        job.ask("finetune", "full fine-tuning and adapters share these keys", "full or lora")


# -- Lingua, VeOmni, ArcticTraining, LLaMA-Factory v1


def _lingua(tree: Tree, job: JobBuilder) -> None:
    read_shape(tree.sub("model"), job)
    kind, place = word_of(tree, "distributed.fsdp_type"), tree.place("distributed.fsdp_type")
    shard = number(tree, "distributed.dp_shard") or 1
    if kind == "full_shard":
        job.derive("zero", 2, "full_shard, and layers are not resharded after forward", place)
        if shard > 1 and not tree.has("distributed.dp_replicate"):
            job.derive("shard", shard, "dp_shard", tree.place("distributed.dp_shard"))
        elif shard > 1:
            job.state("shard", shard, tree.place("distributed.dp_shard"))
    elif kind in (None, "no_shard"):
        job.default("zero", 0, "fsdp_type is no_shard")
    if not unset(tree.value("distributed.float8_recipe")):
        job.state("precision", "fp8", tree.place("distributed.float8_recipe"), override=True)
    if (job.number("tp") or 1) > 1:
        job.derive("sp", True, "norms are sequence-parallel beside tensor parallelism")


def _veomni(tree: Tree, job: JobBuilder) -> None:
    modes = ("train.data_parallel_mode", "train.accelerator.fsdp_config.fsdp_mode")
    shards = ("train.enable_full_shard", "train.accelerator.fsdp_config.full_shard")
    mode, place = (word_of(tree, *modes) or "").lower(), tree.place(*modes)
    if mode in ("fsdp1", "fsdp2"):
        job.derive("zero", 2 if truth_of(tree, *shards) is False else 3,
                   f"{mode} with full_shard as set", place)  # fmt: skip
    elif mode == "ddp":
        job.state("zero", 0, place)
    if (job.number("cp") or 1) > 1:
        job.derive("cpkind", "a2a", "Ulysses exchanges heads")
    if tree.has("model.lora_config", "train.lora_config", "model.lora"):
        job.drop("finetune")
        job.ask("finetune", "a table of adapters is set", "lora or qlora")
    elif not unset(tree.value("model.model_path")):
        job.default("finetune", "full", "weights are loaded, no adapter")
    plain = (word_of(tree, "data.data_type") or "").lower() == "plaintext"
    keys = ("train.rmpad_with_pos_ids", "train.rmpad", "train.dyn_bsz")
    packed = tree.has("train.accelerator") and truth_of(tree, "train.dyn_bsz") is not False
    if not plain and not packed and not any(truth_of(tree, key) for key in keys):
        ask_length(job, number(tree, "data.max_seq_len"))


def _arctic(tree: Tree, job: JobBuilder) -> None:
    if not tree.has(ZERO):
        job.default("zero", 2, "zero_optimization is of stage 2 unless given")
    key = f"{ZERO}.offload_optimizer.device"
    if (word_of(tree, key) or "none").lower() in ("cpu", "nvme"):
        job.state("offload", True, tree.place(key))
    if (job.number("cp") or 1) > 1:
        job.derive("cpkind", "a2a", "Ulysses exchanges heads")
    kind = (word_of(tree, "type") or "sft").lower()
    if kind not in ("sft", "causal"):
        job.not_understood(tree.place("type"), f"type: {kind[:30]} is no pre-training or tuning")
    if truth_of(tree, "model.disable_activation_checkpoint"):
        place = tree.place("model.disable_activation_checkpoint")
        job.state("recompute", "none", place)
    if tree.has("model.peft_config"):
        job.ask("finetune", "a table of adapters is set", "lora or qlora")
    if kind != "causal" and not truth_of(tree, "data.pack_samples"):
        ask_length(job, number(tree, "data.max_length"))


def _factory(tree: Tree, job: JobBuilder) -> None:
    kind, place = (word_of(tree, "dist_config.name") or "").lower(), tree.place("dist_config.name")
    if kind == "fsdp2":
        job.derive("zero", 3, "fsdp2 shards weights", place)
    elif kind:
        job.ask("zero", f"dist_config.name is {kind[:30]} ({place})", "give the stage")
    if tree.has("peft_config"):
        name = (word_of(tree, "peft_config.name") or "").lower()
        if name == "lora" and not tree.has("quant_config"):
            job.state("finetune", "lora", tree.place("peft_config.name"))
        else:
            job.ask("finetune", f"peft_config is {name[:30] or 'set'}", "full, lora or qlora")
    ask_length(job, number(tree, "cutoff_len"))


def _torchtune(tree: Tree, job: JobBuilder) -> None:
    """Recipes share their keys: one device or several, and full or adapters, by what is there."""
    name = word_of(tree, "model._component_") or ""
    if "lora" in name:
        four = name.rpartition(".")[2].startswith("qlora") or truth_of(tree, "model.quantize_base")
        kind = "qlora" if four else "lora"
        job.state("finetune", kind, tree.place("model._component_"))
        plain = re.sub(r"^q?lora_", "", name.rpartition(".")[2])
        job.state("model.name", plain, tree.place("model._component_"), override=True)
    else:
        job.default("finetune", "full", "no adapter among the model's components")
    program = word_of(tree, "program") or ""
    several = tree.has("tensor_parallel_dim", "data_parallel_shard_dim", "custom_sharded_layers")
    if several or "distributed" in program:
        job.default("zero", 3, "fully_shard, layers resharded after the forward pass")
    elif "single_device" in program:
        job.default("devices", 1, "a recipe for one device")
    shards = number(tree, "data_parallel_shard_dim")
    if shards is not None and shards > 0:
        job.state("shard", shards, tree.place("data_parallel_shard_dim"))
    longest = number(tree, "tokenizer.max_seq_len")
    if longest and truth_of(tree, "dataset.packed"):
        job.state("seq", longest, tree.place("tokenizer.max_seq_len"))
    else:
        ask_length(job, longest)


_FOUNDRY_KEYS = ("train_loader", "callbacks", "fsdp_config")
LOOPS = (
    Loop(
        name="OLMo", engine="fsdp", program=r"train\.py$", table=composer.TABLE,
        finish=finish_olmo,
        own=(("model.mlp_ratio", "model.mlp_hidden_size"), ("model.d_model",),
             ("device_train_microbatch_size", "global_train_batch_size")),
        defaults=composer.OLMO_DEFAULTS,
    ),
    Loop(
        name="LLM Foundry", engine="fsdp", program=r"train\.py$", table=composer.TABLE,
        finish=finish_foundry,
        own=(("global_train_batch_size",), _FOUNDRY_KEYS, ("model.name",)),
        defaults=composer.FOUNDRY_DEFAULTS,
    ),
    Loop(
        name="LitGPT", engine="fsdp", program=r"litgpt|pretrain|finetune", table=LITGPT,
        finish=_litgpt,
        own=(("train.micro_batch_size",), ("model_name", "checkpoint_dir", "model_config",
                                           "model.n_embd")),
    ),
    Loop(
        name="Lingua", engine="fsdp", program=r"lingua|train", table=LINGUA, finish=_lingua,
        own=(("distributed.fsdp_type", "grad_acc_steps"), ("data.batch_size",), ("data.seq_len",),
             ("model.dim",)),
        defaults=LINGUA_DEFAULTS,
    ),
    Loop(
        name="VeOmni", engine="fsdp", program=r"train", table=VEOMNI, finish=_veomni,
        own=(("train.micro_batch_size",), ("data.max_seq_len",),
             ("model.model_path", "model.config_path")),
        defaults=VEOMNI_DEFAULTS,
    ),
    Loop(
        name="ArcticTraining", engine="deepspeed", program=r"arctic_training", table=ARCTIC,
        finish=_arctic,
        own=(("micro_batch_size", "deepspeed"), ("model.name_or_path",), ("data.sources",)),
        defaults=ARCTIC_DEFAULTS,
    ),
    Loop(
        name="torchtune", engine="fsdp", program=r"tune$|full_finetune|lora_finetune",
        table=TORCHTUNE, finish=_torchtune,
        own=(("model._component_",), ("batch_size",), ("loss._component_", "loss")),
        defaults=TORCHTUNE_DEFAULTS,
    ),
    Loop(
        name="LLaMA-Factory v1", engine="fsdp", program=r"llamafactory|llama_?factory",
        table=FACTORY, finish=_factory,
        own=(("micro_batch_size",), ("cutoff_len",), ("train_dataset",), ("model",)),
    ),
)  # fmt: skip

READERS = (Reader(kind="one YAML file", engines=("fsdp", "deepspeed"), claim=claim, read=read),)
