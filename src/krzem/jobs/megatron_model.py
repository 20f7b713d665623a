"""What Megatron's arguments say about the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.megatron_arguments import LONGEST_PATTERN, Argument, Arguments, whole
from krzem.jobs.registry import Sources
from krzem.jobs.shell import Script

_POSITIONS: Mapping[str, str] = {
    "learned_absolute": "learned", "absolute": "learned", "learned": "learned", "rope": "rope",
    "rotary": "rope", "yarn": "rope", "mrope": "rope", "alibi": "alibi", "none": "none",
}  # fmt: skip
_GATED = ("--swiglu", "--geglu", "--gated-linear-unit", "--quick-geglu", "--glu-activation")
_TERM = re.compile(r"\[((?:[01],?)+)\](?:\*(\d{1,4}))?")


def model(args: Arguments, job: JobBuilder, mindspeed: bool) -> None:
    """Every field of the model that the arguments decide."""
    _layers(args, job)
    _dense(args, job)
    _heads(args, job)
    _latent(args, job)
    _embedding(args, job)
    _experts(args, job)
    window = args.number("model.window", "--sliding-window")
    if window is not None:
        job.state("model.window", window[0], window[1])
    _window(args, job)


def _layers(args: Arguments, job: JobBuilder) -> None:
    """Layers that do nothing fill a pipeline of MindSpeed and are no layers of the model."""
    found = args.find("--noop-layers")
    layers = job.setting("model.layers")
    if found is None or layers is None or not isinstance(layers.value, int):
        return
    empty = [part for part in found.text.split(",") if part.strip()]
    job.uneven = "layers that do nothing fill the pipeline"
    job.padded_layers = layers.value
    job.empty_layers = frozenset(int(part) for part in empty if part.strip().isdigit())
    job.state("model.layers", layers.value - len(empty), found.place, override=True)
    job.note(f"{len(empty)} of {layers.value} layers do nothing (--noop-layers {found.text[:60]})")


def _dense(args: Arguments, job: JobBuilder) -> None:
    gated = args.find(*_GATED)
    if not args.doubt("model.gated", *_GATED):
        if gated is not None:
            job.state("model.gated", True, gated.place)
        else:
            job.default("model.gated", False, "no --swiglu")
    hidden = job.number("model.hidden")
    if hidden and not args.open("--ffn-hidden-size", *_GATED):
        narrow = job.get("model.gated") and not args.has("--glu-activation")
        width = int(4 * hidden * 2 / 3) // 64 * 64 if narrow else 4 * hidden
        job.default("model.ffn", width, "no --ffn-hidden-size: 4 * hidden, gated 8/3 in 64s")
    bias = args.find("--disable-bias-linear")
    qkv = args.has("--add-qkv-bias")
    if bias is not None and not qkv:
        job.state("model.bias", False, bias.place)
    elif bias is None:
        job.default("model.bias", True, "no --disable-bias-linear")
    norm = args.find("--qk-layernorm", "--qk-l2-norm")
    if norm is not None:
        job.state("model.qk_norm", True, norm.place)
    elif not args.doubt("model.qk_norm", "--qk-layernorm"):
        job.default("model.qk_norm", False, "no --qk-layernorm")


def _heads(args: Arguments, job: JobBuilder) -> None:
    if _is_latent(args):
        args.find("--kv-channels", "--group-query-attention", "--num-query-groups")
        return
    heads, hidden = job.number("model.heads"), job.number("model.hidden")
    channels = args.number("model.head_dim", "--kv-channels")
    if channels is not None:
        job.state("model.head_dim", *channels)
    elif heads and hidden and hidden % heads == 0 and not args.open("--kv-channels"):
        job.derive("model.head_dim", hidden // heads, f"{hidden} / {heads}")
    grouped = args.find("--group-query-attention")
    unsure = args.doubt("model.kv_heads", "--group-query-attention")
    own = ("--num-key-value-heads", "--n-head-kv")
    kind = args.text("model.kv_heads", "--attention-head-type")
    if kind is not None and kind[0] == "multiquery":
        job.state("model.kv_heads", 1, kind[1])
        return
    groups = args.number("model.kv_heads", "--num-query-groups", *own)
    needs = not args.has(*own)
    if groups is not None and not unsure and (grouped is not None or not needs):
        job.state("model.kv_heads", *groups)
    elif grouped is None and heads and not unsure and not args.open(*own):
        if groups is not None:
            job.note("--num-query-groups does nothing without --group-query-attention")
        job.derive("model.kv_heads", heads, "no --group-query-attention: one per query head")
    elif grouped is not None and groups is None and not args.open("--num-query-groups"):
        job.default("model.kv_heads", 1, "--num-query-groups 1")


def _is_latent(args: Arguments) -> bool:
    return args.has("--multi-latent-attention", "--multi-head-latent-attention")


def _latent(args: Arguments, job: JobBuilder) -> None:
    """Multi-head latent attention, by Megatron's names and by MindSpeed-LLM's older ones."""
    flag = args.find("--multi-latent-attention", "--multi-head-latent-attention")
    if flag is None:
        return
    job.state("model.attention", "mla", flag.place)
    widths = {
        "model.kv_lora_rank": (("--kv-lora-rank",), 32),
        "model.qk_nope": (("--qk-head-dim", "--qk-nope-head-dim"), 128),
        "model.qk_rope": (("--qk-pos-emb-head-dim", "--qk-rope-head-dim"), 64),
        "model.v_head": (("--v-head-dim",), 128),
        "model.q_lora_rank": (("--q-lora-rank",), 0),
    }
    for field, (flags, width) in widths.items():
        found = args.number(field, *flags)
        if found is not None:
            job.state(field, *found)
        else:
            job.default(field, width, f"no {flags[0]}")


def _embedding(args: Arguments, job: JobBuilder) -> None:
    untied = args.find("--untie-embeddings-and-output-weights")
    if untied is not None:
        job.state("model.tied", False, untied.place)
    elif not args.doubt("model.tied", "--untie-embeddings-and-output-weights"):
        job.default("model.tied", True, "no --untie-embeddings-and-output-weights")
    _position(args, job)
    padded = args.number("model.vocab", "--padded-vocab-size", "--pad-vocab-size-to")
    stated = args.number("model.vocab", "--vocab-size", "--true-vocab-size")
    unit = args.number("model.vocab", "--make-vocab-size-divisible-by")
    tp = job.number("tp")
    if padded is not None:
        job.state("model.vocab", *padded)
    elif stated is not None:
        step = unit[0] * tp if unit is not None and tp and unit[0] > 0 else 1
        rows = -(-stated[0] // step) * step
        if rows == stated[0]:
            job.state("model.vocab", *stated)
        else:
            why = f"{stated[0]} padded to a multiple of {step}"
            job.derive("model.vocab", rows, why, stated[1])
    else:
        how = "give the number of rows of the embedding"
        job.ask("model.vocab", "the tokenizer's size stands in no given file", how)


def _position(args: Arguments, job: JobBuilder) -> None:
    rotary = args.find("--use-rotary-position-embeddings",
                       "--use-llama2-rotary-position-embeddings")  # fmt: skip
    kind = args.text("model.positions", "--position-embedding-type")
    if kind is not None and kind[0].strip() in _POSITIONS:
        job.state("model.positions", _POSITIONS[kind[0].strip()], kind[1])
    elif kind is None and rotary is not None:
        job.state("model.positions", "rope", rotary.place)
    elif kind is None and not args.open("--position-embedding-type"):
        job.default("model.positions", "learned", "--position-embedding-type learned_absolute")


def _window(args: Arguments, job: JobBuilder) -> None:
    found = args.find("--window-size")
    if found is None:
        return
    match = re.match(r"\(?\s*(\d+)\s*,\s*-?\d+", found.text)
    if match is not None:
        job.state("model.window", int(match[1]) + 1, found.value_place)


def _experts(args: Arguments, job: JobBuilder) -> None:
    experts = job.setting("model.experts")
    if experts is None:
        return
    top = args.number("model.top_k", "--moe-router-topk", "--topk", "--moe-topk")
    if top is not None:
        job.state("model.top_k", *top)
    else:
        deepspeed = job.engine == "megatron-deepspeed"
        value, flag = (1, "--topk 1") if deepspeed else (2, "--moe-router-topk 2")
        job.default("model.top_k", value, flag)
    width = args.number("model.moe_ffn", "--moe-ffn-hidden-size", "--moe-intermediate-size")
    ffn = job.number("model.ffn")
    if width is not None:
        job.state("model.moe_ffn", *width)
    elif ffn:
        job.derive("model.moe_ffn", ffn, "no --moe-ffn-hidden-size: that of a dense layer")
    _shared(args, job)
    _dense_layers(args, job, experts.place)


def _shared(args: Arguments, job: JobBuilder) -> None:
    whole_width = args.number(
        "model.shared_ffn", "--moe-shared-expert-intermediate-size", "--shared-moe-ffn-hidden-size"
    )
    count = args.number("model.shared_experts", "--n-shared-experts", "--num-shared-experts")
    width = job.number("model.moe_ffn")
    if whole_width is not None:
        job.state("model.shared_ffn", *whole_width)
        if width and whole_width[0] % width == 0:
            why = f"{whole_width[0]} / {width}"
            job.derive("model.shared_experts", whole_width[0] // width, why)
    if count is not None:
        job.state("model.shared_experts", *count)
        if width:
            job.derive("model.shared_ffn", count[0] * width, f"{count[0]} * {width}", count[1])
    if whole_width is None and count is None and not args.open(
        "--moe-shared-expert-intermediate-size", "--n-shared-experts"
    ):  # fmt: skip
        job.default("model.shared_experts", 0, "no shared expert")
        job.default("model.shared_ffn", 0, "no shared expert")


def _dense_layers(args: Arguments, job: JobBuilder, place: Place) -> None:
    first = args.number("model.dense_layers", "--first-k-dense-replace")
    frequency = args.text("model.dense_layers", "--moe-layer-freq")
    if first is not None:
        job.state("model.dense_layers", max(first[0], 0), first[1])
        return
    if frequency is None:
        if not args.open("--moe-layer-freq", "--first-k-dense-replace"):
            job.default("model.dense_layers", 0, "--moe-layer-freq 1")
        return
    pattern = layer_pattern(frequency[0])
    if pattern is None:
        job.not_understood(frequency[1], f"{frequency[0][:60]!r} is no pattern of layers")
        return
    leading = next((i for i, kind in enumerate(pattern) if kind), len(pattern))
    job.state("model.dense_layers", leading, frequency[1])
    if 0 in pattern[leading:]:
        job.note("dense layers also stand between layers of experts (--moe-layer-freq)")


def layer_pattern(text: str) -> list[int] | None:
    """``([0]*3+[1]*58)`` as a list of 0 and 1; ``2`` as every second layer."""
    if len(text) > LONGEST_PATTERN:
        return None
    text = text.strip("'\" ()").replace(" ", "").replace("(", "").replace(")", "")
    number = whole(text)
    if number is not None:
        return [int(i % number == 0) for i in range(number)] if 0 < number < 10_000 else None
    kinds: list[int] = []
    for term in text.split("+"):
        match = _TERM.fullmatch(term)
        if match is None or len(kinds) + len(match[1]) * int(match[2] or 1) > 20_000:
            return None
        kinds += [int(c) for c in match[1] if c in "01"] * int(match[2] or 1)
    return kinds


# The DeepSpeed configuration beside Megatron's arguments: given, or written by the script
# ----------------------------------------------------------------------------------------

_CONFIG = ("--deepspeed-config", "--deepspeed")
LARGEST = 200_000


def deepspeed(args: Arguments, job: JobBuilder, script: Script, sources: Sources) -> None:
    """Stage, batch, precision and offload of the configuration; what it lacks stays open."""
    named = args.find("--deepspeed-config")
    args.find("--deepspeed", "--deepspeed-mpi", "--no-pipeline-parallel")
    if named is not None:
        _configuration(args, named, job, script, sources)
    _states(job)


def _configuration(
    args: Arguments, named: Argument, job: JobBuilder, script: Script, sources: Sources
) -> None:
    text, place = _document(named.text, named.place, script, sources)
    if text is None:
        job.ask(
            "zero",
            f"the configuration {named.text[-80:]} is not among the given files",
            "give that file, or the stage of ZeRO",
        )
        return
    table = parsed(text)
    if table is None:
        job.not_understood(place, "the DeepSpeed configuration is no JSON that can be read")
        return
    _stage(table, job, place)
    _batch(table, job, place)
    _precision(table, job, place)


def _document(name: str, at: Place, script: Script, sources: Sources) -> tuple[str | None, Place]:
    written = script.documents.get(name)
    if written is None:
        tail = name.rsplit("/", 1)[-1]
        found = [d for n, d in script.documents.items() if n.rsplit("/", 1)[-1] == tail]
        written = found[0] if found else None
    if written is not None and "{" in written[0]:
        return written[0], Place(file=written[1].file, line=written[1].line)
    given = sources.find(name)
    if given is not None and given.endswith(".json"):
        return sources.files[given], Place(file=given)
    return None, at


def parsed(text: str) -> dict[str, Any] | None:
    """The table of a JSON text in which variables may be left; those become null."""
    if len(text) > LARGEST:
        return None
    known = re.sub(r"(?<=[:\[,])\s*\$\{?\w+\}?", " null", text)
    known = re.sub(r",\s*([}\]])", r"\1", known)
    try:
        table = json.loads(known)
    except (ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def _stage(table: dict[str, Any], job: JobBuilder, place: Place) -> None:
    zero = table.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    stage = zero.get("stage", 0)
    if isinstance(stage, int) and not isinstance(stage, bool) and 0 <= stage <= 3:
        before = job.number("zero")
        if before is None or before == stage:
            job.state("zero", stage, place)
        else:
            job.fault(place, f"stage {stage} here, but --zero-stage {before}")
    for part in ("offload_optimizer", "cpu_offload"):
        value = zero.get(part)
        device = value.get("device") if isinstance(value, dict) else value
        if device in (True, "cpu", "nvme"):
            job.state("offload", True, place, override=True)
    job.default("offload", False, "no offload_optimizer")


def _batch(table: dict[str, Any], job: JobBuilder, place: Place) -> None:
    names = {
        "mbs": "train_micro_batch_size_per_gpu",
        "global_batch": "train_batch_size",
        "accumulation": "gradient_accumulation_steps",
    }
    for field, key in names.items():
        value = table.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            job.state(field, value, place)


def _precision(table: dict[str, Any], job: JobBuilder, place: Place) -> None:
    for word in ("bf16", "bfloat16", "fp16"):
        value = table.get(word)
        if isinstance(value, dict) and value.get("enabled") is True:
            job.state("precision", word.replace("bfloat16", "bf16"), place)
            return


def _states(job: JobBuilder) -> None:
    """Bytes per parameter of DeepSpeed's fp16 engine with Adam."""
    if job.get("optimizer") == "adamw" and job.get("precision") in ("bf16", "fp16"):
        job.default("state.moments", 8.0, "moments in fp32")
        job.default("state.master", 4.0, "fp32 master weights")
        job.default("state.weight", 2.0, "16-bit weights")
    if job.get("precision") == "fp16":
        job.default("state.gradient", 2.0, "fp16 gradients")
