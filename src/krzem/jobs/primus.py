"""Primus: an experiment's YAML over a model's and a module's, for one of several engines.

``${VAR:default}`` takes the environment's value or the default; ``extends`` names files below.
The order is module, model, overrides, command line.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping

from krzem.errors import InputError, shorten
from krzem.jobs.documents import yaml_tree
from krzem.jobs.hydra import literal
from krzem.jobs.job import PRECISIONS, JobBuilder
from krzem.jobs.launch import at
from krzem.jobs.launches import Start, starts_of, state_machine
from krzem.jobs.maxtext import read_settings as read_maxtext
from krzem.jobs.megatron import fill
from krzem.jobs.megatron_arguments import arguments_of
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.titan import read_settings as read_titan
from krzem.jobs.tree import (
    Entry,
    Open,
    Tree,
    count,
    number,
    settle,
    truth_of,
    word_of,
)

_IRRELEVANT = re.compile(
    r"(retro|dino|rl|grpo|langrl|inference|vision|ict|bert|biencoder|one_logger|img|mask|retriever"
    r"|indexer|relative_attention|replication|error_injection|sft_tokenizer|hybrid|mamba"
    r"|encoder_tensor|encoder_pipeline|classes|cuda_graph_warmup|pin_cpu)_.*"
    r"|fp4_recipe|scatter_gather_tensors_in_pipeline|short_seq_prob|gradient_reduce_div_fusion"
    r"|suggested_communication_unit_size|sample_rate|enable_gloo_process_groups|enable_one_logger"
    r"|main_params_dtype|num_classes|num_channels|patch_dim|iter_per_epoch|max_tokens_to_oom"
    r"|query_in_block_prob|model_type|clone_scatter_output_in_embedding|moe_token_drop_policy"
    r"|moe_use_fused_router_with_aux_score|use_tokenizer_model_from_checkpoint_args"
    r"|strict_fsdp_dtensor_load|torch_fsdp2_reshard_after_forward|mlp_chunks_for_prefill"
    r"|add_position_embedding"
)
"""Names that a complete table of defaults holds and that a text model's price does not need."""
_ZERO_IS_OFF = ("cpu_offloading_num_layers", "mtp_num_layers")


def fill_from(tree: Tree, job: JobBuilder) -> None:
    """Fill the builder from a table of Megatron's names."""
    rest = Tree()
    for key, entry in tree.entries.items():
        if _IRRELEVANT.fullmatch(key) or (key in _ZERO_IS_OFF and entry.value == 0):
            job.ignore(entry.place, "says nothing about time or memory of a text model")
        else:
            rest.put(entry)
    fill(arguments_of(rest), job)


ENGINE = "primus"
_MODULES = ("pre_trainer", "post_trainer", "sft_trainer")
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?::([^{}]*))?\}")
_MOST_FILES = 60
_OWN = ("framework", "config", "model", "overrides", "name", "trainer_class")


def claim(sources: Sources) -> Claim | None:
    """``modules`` with a trainer that names a framework."""
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if re.search(r"^modules:\s*$", text, re.M) and re.search(
            r"^\s+framework:\s*[\"']?\w+", text, re.M
        ):
            return Claim(engine=ENGINE, strength=100, why=f"modules of a framework in {name}")
    start = _launched(sources)
    if start is not None:
        return Claim(engine=ENGINE, strength=95, why=f"{start.program} is started with EXP")
    return None


def _launched(sources: Sources) -> Start | None:
    """The start of Primus's script with an experiment that is not among the files."""
    for start in starts_of(sources).programs:
        word = start.launch.command.environment.get("EXP")
        options = sum(key in start.options.entries for key in _PLAIN)
        if word is not None and re.search(r"\.ya?ml$", word.text) and options >= 2:
            return start
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The experiment, what it stands on, and the engine that it names."""
    alone = not any(
        re.search(r"^modules:\s*$", t, re.M) for t in sources.with_suffix(".yaml", ".yml").values()
    )
    start = _launched(sources)
    if alone and start is not None:
        _command(start, sources, job)
        return
    main, text = next(
        (n, t) for n, t in sources.with_suffix(".yaml", ".yml").items()
        if re.search(r"^modules:\s*$", t, re.M)
    )  # fmt: skip
    environment = _environment(sources)
    experiment = _resolved(yaml_tree(text, main), environment)
    module = next((m for m in _MODULES if experiment.any_below(f"modules.{m}")), None)
    if module is None:
        raise InputError(f"{shorten(main, 120)} has no module that trains: {', '.join(_MODULES)}")
    own = experiment.sub(f"modules.{module}")
    framework = (word_of(own, "framework") or "").lower()
    tree = _stack(sources, own, framework, environment, job)
    job.note(f"Primus starts {framework}")
    start = next(iter(starts_of(sources).find(r"primus|run_pretrain")), None)
    state_machine(job, start, sources)
    for name, variable in (("nodes", "NNODES"), ("devices_per_node", "GPUS_PER_NODE")):
        if job.number(name) is None and re.fullmatch(
            r"[1-9]\d{0,5}", environment.get(variable, "")
        ):
            job.derive(name, int(environment[variable]), f"{variable}={environment[variable]}")
    if start is not None:
        for key, entry in start.options.entries.items():
            if key in tree.entries:
                tree.put(Entry(key=key, value=entry.value, place=entry.place))
    _engine(framework, tree, own, job)
    describe(sources, job)


def _command(start: Start, sources: Sources, job: JobBuilder) -> None:
    """What the command line alone decides; the experiment leaves the rest open."""
    word = start.launch.command.environment["EXP"]
    name = posixpath.basename(word.text)
    why = f"the experiment {shorten(name, 60)}, which was not given, may set it"
    job.state("model.name", name, at(word.origin, sources.files))
    job.doubtful = why
    state_machine(job, start, sources)
    for key, field in _PLAIN.items():
        entry = start.options.entries.get(key)
        if entry is not None:
            settle(entry, count(field), job)
    variables = starts_of(sources).variables
    kind = variables.get("PRECISION")
    if kind is not None and kind.known and kind.text in PRECISIONS:
        job.derive("precision", kind.text, f"PRECISION={kind.text}", at(kind.origin, sources.files))
    ranks = variables.get("DP")
    if ranks is not None and ranks.known and re.fullmatch(r"[1-9]\d{0,5}", ranks.text):
        job.derive("dp", int(ranks.text), f"DP={ranks.text}", at(ranks.origin, sources.files))
    total, each = variables.get("NUM_GPUS"), [job.number(n) or 1 for n in ("tp", "pp", "cp", "dp")]
    if total is not None and total.known and total.text == str(math.prod(each)):
        job.derive("devices", int(total.text), f"NUM_GPUS={total.text}",
                   at(total.origin, sources.files))  # fmt: skip
    if "finetune" not in name and "sft" not in name:
        job.derive("finetune", "none", f"{start.program} pre-trains")
    for field in ("model.layers", "recompute"):
        job.ask(field, why, "give the experiment's YAML too")
    describe(sources, job)


_PLAIN = {
    "train_iters": "train_steps", "global_batch_size": "global_batch", "micro_batch_size": "mbs",
    "seq_length": "seq", "tensor_model_parallel_size": "tp", "context_parallel_size": "cp",
    "pipeline_model_parallel_size": "pp", "expert_model_parallel_size": "ep",
}  # fmt: skip
"""Options of Primus's command line that stand for themselves."""


def _stack(
    sources: Sources, own: Tree, framework: str, environment: Mapping[str, str], job: JobBuilder
) -> Tree:
    """Module, model and overrides, the later wins."""
    tree = Tree()
    for kind, key in (("modules", "config"), ("models", "model")):
        name = word_of(own, key)
        if name is None:
            continue
        name = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
        path = sources.find(f"{kind}/{framework}/{name}")
        if path is None or posixpath.basename(path) != posixpath.basename(name):
            job.note(f"{kind}/{framework}/{shorten(name, 60)} is not among the files")
            continue
        tree.update(_extended(sources, path, environment, job, []))
    tree.update(own.sub("overrides"))
    for key, entry in own.entries.items():
        if key.partition(".")[0] not in _OWN:
            tree.put(entry)
    return tree


def _extended(
    sources: Sources, path: str, environment: Mapping[str, str], job: JobBuilder, above: list[str]
) -> Tree:
    """A file over those that it extends."""
    if path in above or len(above) > 12:
        return Tree()
    own = _resolved(yaml_tree(sources.files[path], path), environment)
    tree = Tree()
    value = own.value("extends", "includes")
    for name in value if isinstance(value, list) else [value]:
        if not isinstance(name, str):
            continue
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
        found = wanted if wanted in sources.files else sources.find(wanted)
        if found is None or posixpath.basename(found) != posixpath.basename(name):
            job.note(f"{shorten(wanted, 80)}, which {path} extends, is not among the files")
            continue
        tree.update(_extended(sources, found, environment, job, [*above, path]))
    for key, entry in own.entries.items():
        if key not in ("extends", "includes"):
            tree.put(entry)
    return tree


def _environment(sources: Sources) -> dict[str, str]:
    """Variables that the given scripts export."""
    starts = starts_of(sources)
    return {name: word.text for name, word in starts.variables.items() if word.known}


def _resolved(tree: Tree, environment: Mapping[str, str]) -> Tree:
    found = Tree()
    for key, entry in tree.entries.items():
        value = _value(entry.value, environment)
        found.put(Entry(key=key, value=value, place=entry.place))
    return found


def _value(value: object, environment: Mapping[str, str]) -> object:
    if isinstance(value, list):
        return [_value(part, environment) for part in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    if any(m[2] is None and m[1] not in environment for m in _VARIABLE.finditer(value)):
        return Open(shorten(value, 60))
    text = _VARIABLE.sub(lambda m: environment.get(m[1], m[2] or ""), value)
    return Open(shorten(text, 60)) if "${" in text else literal(text)


def _engine(framework: str, tree: Tree, own: Tree, job: JobBuilder) -> None:
    if framework == "megatron":
        _megatron(tree, own, job)
    elif framework == "torchtitan":
        job.front = framework
        _titan(tree, job)
    elif framework == "maxtext":
        job.front = framework
        read_maxtext(tree, job)
    else:
        raise InputError(
            f"Primus starts {framework!r} here; read are megatron, torchtitan and maxtext"
        )


def _megatron(tree: Tree, own: Tree, job: JobBuilder) -> None:
    name = word_of(own, "model")
    if name is not None:
        model = name.removesuffix(".yaml").removesuffix(".yml")
        job.state("model.name", model, own.place("model"))
    if truth_of(tree, "enable_primus_turbo") and truth_of(tree, "use_turbo_deepep"):
        job.state("switch.dispatcher", "deepep", tree.place("use_turbo_deepep"))
        tree.entries.pop("moe_token_dispatcher_type", None)
        tree.entries.pop("moe_enable_deepep", None)
    if truth_of(tree, "moe_router_force_load_balancing"):
        place = tree.place("moe_router_force_load_balancing")
        job.state("switch.routing", "balanced", place)
    if truth_of(tree, "use_torch_fsdp2"):
        job.state("zero", 3, tree.place("use_torch_fsdp2"))
        copies = number(tree, "data_parallel_replicate_degree")
        if copies is not None and copies > 1:
            job.instances = (copies, tree.place("data_parallel_replicate_degree"))
    algorithm = word_of(tree, "pp_algorithm") if truth_of(tree, "patch_primus_pipeline") else None
    if algorithm in _ALGORITHMS and (number(tree, "pipeline_model_parallel_size") or 1) > 1:
        job.state("schedule", _ALGORITHMS[algorithm], tree.place("pp_algorithm"))
    rest = Tree({k: e for k, e in tree.entries.items() if not _IGNORED.fullmatch(k)})
    for key, entry in tree.entries.items():
        if key not in rest.entries:
            job.ignore(entry.place, "Primus's own: logging, kernels or data")
    fill_from(rest, job)
    heads = number(tree, "num_query_groups")
    if number(tree, "hc_mult") and heads:  # DeepSeek-V4, a model type of Primus' own
        job.state("model.kv_heads", heads, tree.place("num_query_groups"), override=True)
        job.state("model.positions", "rope", tree.place("hc_mult"), override=True)
        job.drop("model.attention")


_ALGORITHMS = {"zero-bubble": "zb-h1", "zbv-formatted": "zb-v"}
"""Schedules of Primus' own pipeline runtime."""
_IGNORED = re.compile(
    r"(use_turbo|turbo_|patch_primus_pipeline|pp_algorithm|enable_primus_turbo|enable_turbo|mlflow|disable_|torch_profiler|log_avg"
    r"|stderr_|sink_|file_sink|mock_|retro_|dino_|rl_|grpo_|odc_|enable_odc|langrl_|inference_"
    r"|generate_tracelens|use_rocm|wandb|auto_continue|trainable|weight_deosc|pp_warmup|dump_pp"
    r"|muon_|hybrid_|mamba_|vision_|ict_|bert_|biencoder_|overlap_cpu|one_logger|mxfp4_|img_"
    r"|create_|recompute_layer_ids|dataloader_mp|moe_router_force_load_balancing_type|use_sink"
    r"|use_fla_|use_pytorch_profiler|moe_router_force_load_balancing|tensorboard|deprecated_|use_torch_fsdp2).*"
)


def _titan(tree: Tree, job: JobBuilder) -> None:
    assets = word_of(tree, "model.hf_assets_path")
    read_titan(tree, job)
    if assets and re.fullmatch(r"[\w.-]+/[\w.-]+", assets) and not assets.startswith("."):
        job.state("model.name", assets, tree.place("model.hf_assets_path"), override=True)


READERS = (Reader(kind="Primus", engines=(ENGINE,), claim=claim, read=read),)
