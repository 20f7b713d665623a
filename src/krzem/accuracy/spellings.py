"""Precision, sharding, recomputation and attention as sources spell them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from krzem.accuracy.case import Row, number, text, whole
from krzem.engine.description import engine_named, engines
from krzem.engine.switches import switches
from krzem.errors import UnknownNameError
from krzem.facts.table import read_table
from krzem.hardware.catalogue import Device
from krzem.layout.layout import Precision, StateBytes

_PRECISIONS: tuple[tuple[str, Precision], ...] = (
    (r"fp4|nvfp|e2m1", Precision.NVFP4),
    (r"mx\W*fp8", Precision.MXFP8),
    (r"fp8.*(block|sub\W*channel|1x128|deepgemm)|block\w*\W*fp8", Precision.FP8_BLOCK),
    (r"fp\W?8|float8|e4m3|e5m2|f8", Precision.FP8),
    (r"bf\W*16|bfloat|brain", Precision.BF16),
    (r"f(p|loat)?\W*16|half|amp", Precision.FP16),
    (r"tf\W?32|f(p|loat)?\W?32|single", Precision.FP32),
)


def precision_of(raw: str) -> Precision | None:
    """Arithmetic of the products: the narrowest kind that is named; None where none is known."""
    if re.search(r"int\W*\d", raw):
        return None
    return next((kind for words, kind in _PRECISIONS if re.search(words, raw)), None)


NODE = -1
"""Stands for the devices of one node, which hybrid sharding means where nothing else is said."""
_GROUP = re.compile(r"(?:fsdp|hsdp|shard\w*)[ _-]*(?:size|group|degree)?[ =:(x]*(\d+)")
_VERSIONS = ("1", "2", "3")
_STAGES: tuple[tuple[str, int], ...] = (
    (r"grad_?op|(zero|stage|z)[\W_]*2|^2", 2),
    (r"fsdp|hsdp|full|hybrid|(zero|stage|z)[\W_]*(3|\+\+|inf)|^3", 3),
    (r"(zero|stage|z)[\W_]*0|^0|^(none|no|off|false|ddp|disabled|replic)|no_shard|^ddp", 0),
    (r"(zero|stage|z)[\W_]*1|^1|dist\w*[\W_]*opt|optimi[sz]er|^(yes|true|on)", 1),
)


def sharding_of(raw: str, shard: str) -> tuple[int | None, int]:
    """(ZeRO stage or None where it is not told, ranks that share one copy, 0 for all, or NODE).

    ``shard`` is a number of ranks or ``node``; ``raw`` may say it as well (``FSDP32``, ``hsdp``).
    """
    stage = next((n for words, n in _STAGES if re.search(words, raw)), None)
    if stage != 3:
        return stage, 0
    if re.fullmatch(r"\d{1,9}(\.0*)?", shard):
        return 3, int(float(shard))
    said = _GROUP.search(raw)
    # FSDP2 is a version, FSDP32 a group.
    if shard == "node":
        return 3, NODE
    if said is not None and said.group(1) not in _VERSIONS:
        return 3, int(said.group(1))
    return 3, NODE if re.search(r"hsdp|hybrid", raw) else 0


_RECOMPUTES: tuple[tuple[str, str], ...] = (
    (
        r"selective|\bsac\b|partial|core|attn|attention|module|custom|minimal|every|op\b",
        "some",
    ),
    (r"^(none|no|off|false|0|without|disabled)\b", "none"),
    (r"full|uniform|block|all|^(yes|true|on|1)\b|checkpoint|\bac\b|layer|remat", "full"),
)


def recompute_of(raw: str) -> str:
    """``none``, ``some``, ``full`` or, where it is not told, an empty text."""
    return next((kind for words, kind in _RECOMPUTES if re.search(words, raw)), "")


def yes_or_no(raw: str) -> bool | None:
    """A switch; None where it is not told."""
    if re.match(r"(1|y|true|on|enabled)", raw):
        return True
    return False if re.match(r"(0|n|false|off|disabled)", raw) else None


def attention_of(raw: str) -> str:
    """``mla``, ``gqa``, ``mqa``, ``mha`` or, where it is not told, an empty text."""
    kinds = ((r"mla|latent", "mla"), (r"gqa|group", "gqa"), (r"mqa|multi\W*query", "mqa"),
             (r"mha|multi\W*head", "mha"))  # fmt: skip
    return next((kind for words, kind in kinds if re.search(words, raw)), "")


# Shapes of models that a row names without repeating them
# --------------------------------------------------------

SHAPE = (
    "layers", "hidden", "ffn_hidden", "heads", "kv_heads", "head_dim", "vocab", "experts",
    "experts_per_token", "shared_experts", "moe_ffn_hidden", "dense_layers",
)  # fmt: skip
_TELLING = ("hidden", "ffn_hidden", "heads", "kv_heads", "experts", "moe_ffn_hidden")
"""Columns in which a row must not differ from a model to be that model."""
_TRAILING = re.compile(
    r"(base|instruct|chat|hf|pre-?train(ing|ed)?|train(ing)?|mlperf|proxy|\d+l|sft|full|reduced|"
    r"fine-?tun\w*|dense|model|it|pt|q?lora|peft|v\d(p\d)?|dropless|mtp|bf16|fp8|\d+k|seq\w*)$"
)


_CUT = r"reduced|cut-?down|proxy|\b\d+l(ayers?)?\b"


def model_of(row: Row) -> str:
    """The model of a row: column ``model``, or ``model_name`` where there is no such column.

    A table with a column ``model`` is never looked up by ``model_name``, which is then a label.
    """
    return (row.get("model" if "model" in row else "model_name") or "").strip()


def completed(row: Row) -> Row:
    """``row`` with blank cells of its shape filled in where its name says which model it is.

    Layers are left alone where the row has them: a cut-down model keeps the widths of the whole.
    """
    name = model_of(row)
    known = known_shape(name)
    if known is None or not _agrees(row, known):
        return row
    cut = whole(row, "layers") not in (None, whole(known, "layers"))
    filled = {name: known[name] for name in SHAPE if not text(row, name)}
    if re.search(_CUT, name.lower()):
        filled.pop("layers", None)
    if not attention_of(text(row, "attention")):
        filled["attention"] = known["attention"]
    if cut:
        filled["dense_layers"] = row.get("dense_layers") or ""
    else:
        filled |= {n: known[n] for n in ("params_b", "active_params_b") if not number(row, n)}
    return {**row, **filled}


def _agrees(row: Row, known: Row) -> bool:
    pairs = ((whole(row, name), whole(known, name)) for name in _TELLING)
    return all(given is None or have is None or given == have for given, have in pairs)


def known_shape(name: str) -> Mapping[str, str] | None:
    """The row of ``facts/shapes.csv`` that ``name`` means, however it is spelled.

    >>> (known_shape("meta-llama/Llama 3.1 70B Instruct") or {})["id"]
    'llama-3-70b'
    """
    return _known(name[:120])


@cache
def _known(name: str) -> Mapping[str, str] | None:
    words = _words(name)
    while words:
        squeezed = "".join(words)
        for pattern, shape in _patterns():
            if pattern.fullmatch(squeezed):
                return shape
        if not _TRAILING.search(words[-1]):
            return None
        words = words[:-1]
    return None


def _words(name: str) -> list[str]:
    """``org/Llama-3.1-8B (proxy)`` as ["llama", "3p1", "8b"]."""
    bare = re.sub(r"[(\[].*", "", name.lower().rsplit("/", 1)[-1])
    bare = re.sub(r"(?<=\d)\.(?=\d)", "p", bare)
    return re.findall(r"[a-z0-9]+", bare)


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], Mapping[str, str]], ...]:
    return tuple((re.compile(row["match"]), row) for row in read_table("shapes.csv"))


# What the columns of a row state about the engine and how it was set up
# ----------------------------------------------------------------------

ON = ("off", "on")
COLUMNS = {"attention": "attention_kernel"}
"""Columns that are not named as their switch."""


def switches_of(row: Row) -> dict[str, str]:
    """The switches that a row states; a cell that holds none of the choices states nothing."""
    found = {
        name: _choice(text(row, COLUMNS.get(name, switch.word)), switch.choices)
        for name, switch in switches().items()
    }
    return {name: choice for name, choice in found.items() if choice}


def _choice(cell: str, choices: tuple[str, ...]) -> str:
    if choices == ON and (said := yes_or_no(cell)) is not None:
        return ON[said]
    return cell if cell in choices else ""


def engine_of(row: Row) -> str:
    """The engine that the row names, by its usual name; an empty text where it names none."""
    name = text(row, "engine").replace("_", "-").replace(" ", "-")
    try:
        return engine_named(name).name if name else ""
    except UnknownNameError:
        return name


AT_HOME = {
    "google-tpu": "maxtext", "aws-neuron": "neuron", "intel-gaudi": "gaudi",
    "amd-cdna2": "primus", "amd-cdna3": "primus", "amd-cdna4": "primus",
    "huawei-ascend-910": "mindspeed-llm", "huawei-ascend-910b": "mindspeed-llm",
    "huawei-ascend-910c": "mindspeed-llm",
}  # fmt: skip
"""The port of Megatron that a family's vendor keeps, or its own engine where there is none."""
PORTED = frozenset({"", "other", "megatron-lm", "megatron-bridge"})
"""Engines that run as the port at home on such a family."""
PORTED_TO = {
    "amd": PORTED | {"fsdp"},
    "huawei": PORTED | {"torchtitan", "deepspeed", "megatron-deepspeed"},
}


def engine_run(row: Row, device: Device) -> tuple[str, str]:
    """(engine that ran, what it was guessed from): the one named, its port to the card, or a guess.

    Sharded weights without tensor, expert or pipeline parallelism are what FSDP loops do; tensor,
    expert or pipeline parallelism on NVIDIA's cards is Megatron's more often than not.
    """
    named = engine_of(row)
    if device.family in AT_HOME and named in PORTED_TO.get(device.id.split("-")[0], PORTED):
        return AT_HOME[device.family], "" if named else "chip"
    if named in engines():
        return named, ""
    if named or device.software != "cuda":
        return "other", "chip"
    stage, _ = sharding_of(text(row, "zero_or_fsdp_stage"), text(row, "shard"))
    cut = [(whole(row, name) or 1) > 1 for name in ("tp", "pp", "ep", "vpp")]
    if any(cut):
        return "megatron-lm", "degrees"
    return ("fsdp" if stage == 3 else "other"), "sharding"


def earliest(engine: str, stated: Mapping[str, str]) -> float:
    """The year in which ``engine`` had all that a row states of its switches; 0 where always."""
    known = engines()[engine].switches
    since = (known[name].since.get(choice, 0.0) for name, choice in stated.items() if name in known)
    return max(since, default=0.0)


def finetune_of(row: Row) -> str:
    """``none``, ``full``, ``lora`` or ``qlora``; an empty text where the row does not say."""
    said = text(row, "finetune")
    return said if said in ("none", "full", "lora", "qlora") else ""


STATES = ("weight", "gradient", "master", "moments")


def state_bytes_of(row: Row) -> dict[str, float]:
    """Bytes per parameter that the row states: ``weight=2,gradient=4,master=4,moments=8``."""
    found: dict[str, float] = {}
    for part in text(row, "state_bytes").replace(";", ",").split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        zero = value in ("0", "0.0")
        amount = 0.0 if zero else number({name: value}, name)
        if name in STATES and amount is not None and amount <= 16.0:
            found[name] = amount
    return found


def states_of(row: Row) -> StateBytes | None:
    """The bytes of states that the row states; what it leaves out is the usual."""
    found = state_bytes_of(row)
    if not found:
        return None
    weight, moments = found.get("weight", 0.0), found.get("moments", 8.0)
    usual = StateBytes()
    if "gradient" not in found and weight:
        usual = replace(usual, gradient=weight)
    if weight >= 4.0 or (weight == 2.0 and moments <= 4.0):
        usual = replace(usual, master=0.0)  # one precision throughout
    return replace(usual, **found)


def offload_of(row: Row) -> bool:
    """Whether optimizer states wait in host memory, or are paged to it."""
    cell = text(row, "offload")
    return cell == "paged" or bool(yes_or_no(cell))


def modules_of(row: Row) -> tuple[str, ...]:
    """Names of the modules that are recomputed, where the row lists them."""
    cell = text(row, "recompute_modules").replace(",", "+")
    return tuple(name.strip() for name in cell.split("+") if name.strip())


_MEMORY_KINDS = {
    "allocated": "allocated", "nvidia-smi": "shown", "rocm-smi": "shown", "npu-smi": "shown",
    "shown": "shown",
}  # fmt: skip


def memory_kind_of(row: Row) -> str:
    """What a memory figure counts: ``allocated``, ``reserved`` (also unsaid) or ``shown``."""
    return _MEMORY_KINDS.get(text(row, "memory_kind"), "reserved")


def network_of(row: Row) -> float | None:
    """Bytes/s of network per device and direction, or None where the row does not say."""
    gigabits = number(row, "network_gbit_per_device")
    return None if gigabits is None or not 1e-3 <= gigabits <= 1e5 else gigabits / 8.0 * 1e9


def organisation_of(row: Row) -> str:
    """Who ran it; the source where the row does not say."""
    return (row.get("organisation") or "").strip() or (row.get("source") or "?")


MAKERS = {
    "NVIDIA": {"nvidia", "nvidia-nemo"},
    "AMD": {"amd", "amd-agi", "rocm"},
    "Huawei": {"huawei", "ascend", "mindspore-lab", "mindspore-ai", "pangu-tech", "torchtitan-npu"},
    "Google": {"google", "ai-hypercomputer"},
    "AWS": {"aws", "amazon", "aws-neuron"},
    "Intel": {"intel", "habana", "habanaai"},
    "Moore Threads": {"moorethreads", "mthreads"},
    "Iluvatar": {"iluvatar", "deep-spark"},
}
"""Words of a source's first name and of its address that stand for a maker of chips."""
FORGES = {"github.com", "gitlab.com", "gitee.com", "huggingface.co"}
"""Hosts whose addresses begin with an owner."""
SUBMISSIONS = {"mlperf", "mlcommons"}
"""Words of benchmarks to which a maker's tuned code is submitted, whoever submits."""


def from_the_maker(row: Row, device: Device) -> bool:
    """Whether a figure is its chip's maker's own: a benchmark, tuned by who knows the chip best.

    The column ``organisation`` says it; in a table without one, the address and the first name of
    the source.
    """
    if "organisation" in row:
        said = row["organisation"].strip()
        return bool(said) and device.vendor.casefold().startswith(said.casefold())
    address = text(row, "url_or_repo").partition("://")[2] or text(row, "url_or_repo")
    host, _, path = address.partition("/")
    words = {*host.split("."), path.partition("/")[0] if host in FORGES else ""}
    words |= set(re.split(r"[/\s,:]+", text(row, "source"))[:1])
    maker = next((n for n in MAKERS if device.vendor.startswith(n)), "")
    return bool(words & (MAKERS.get(maker, set()) | SUBMISSIONS))
