"""What the columns of a row state about the engine and how it was set up."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from krzem.accuracy.cells import Row, number, text
from krzem.accuracy.spellings import yes_or_no
from krzem.hardware.device import Device

ON = ("off", "on")
SWITCHES: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "dispatcher": ("dispatcher", ("alltoall", "allgather", "deepep", "hybridep")),
        "overlap-a2a": ("overlap_a2a", ON),
        "overlap-tp": ("overlap_tp", ON),
        "overlap-grad-reduce": ("overlap_grad_reduce", ON),
        "overlap-param-gather": ("overlap_param_gather", ON),
        "cuda-graphs": ("cuda_graphs", ("none", "partial", "full")),
        "loss": ("loss", ("plain", "fused", "chunked")),
        "fused-accumulation": ("fused_accumulation", ON),
        "attention": ("attention_kernel", ("fused", "eager")),
        "fp8-scaling": ("fp8_scaling", ("tensor", "delayed", "row")),
        "fp8-params": ("fp8_params", ON),
        "grad-sync": ("grad_sync", ("every", "last")),
        "compile": ("compile", ON),
        "routing": ("routing", ("real", "balanced", "capacity")),
        "offload-activations": ("offload_activations", ON),
        "partition-activations": ("partition_activations", ON),
    }
)
"""Switches by name: the column that states one, and the choices it may hold."""


def switches_of(row: Row) -> dict[str, str]:
    """The switches that a row states; a cell that holds none of the choices states nothing."""
    found = {name: _choice(text(row, column), all_) for name, (column, all_) in SWITCHES.items()}
    return {name: choice for name, choice in found.items() if choice}


def _choice(cell: str, choices: tuple[str, ...]) -> str:
    if choices == ON and (said := yes_or_no(cell)) is not None:
        return ON[said]
    return cell if cell in choices else ""


def traits_of(switches: Mapping[str, str], finetune: str) -> frozenset[str]:
    """What the cost model so far calls traits, from the switches alone."""
    graphs = switches.get("cuda-graphs")
    found = {
        "ep-overlap": switches.get("overlap-a2a") == "on",
        "cuda-graph": graphs in ("partial", "full"),
        "full-graph": graphs == "full",
        "async-tp": switches.get("overlap-tp") == "on",
        "capacity": switches.get("routing") == "capacity",
        "balanced": switches.get("routing") == "balanced",
        "rowwise": switches.get("fp8-scaling") == "row",
        "dedup": switches.get("dispatcher") in ("deepep", "hybridep"),
        "adapters": finetune in ("lora", "qlora"),
    }
    return frozenset(name for name, holds in found.items() if holds)


ALIASES = {
    "megatron-core": "megatron-lm", "megatron": "megatron-lm", "mcore": "megatron-lm",
    "nemo": "megatron-bridge", "mindspeed": "mindspeed-llm", "fsdp2": "fsdp", "accelerate": "fsdp",
    "automodel": "fsdp", "gpt-neox": "megatron-deepspeed", "xla": "maxtext", "jax": "maxtext",
    "mindspore": "mindformers",
}  # fmt: skip
"""Other names of engines."""


def engine_of(row: Row) -> str:
    """The engine that the row names, by its usual name; an empty text where it names none."""
    name = text(row, "engine").replace("_", "-").replace(" ", "-")
    return ALIASES.get(name, name)


CALIBRATED = {
    "megatron-bridge": "megatron-core", "deepspeed": "megatron-deepspeed",
    "mindspeed-llm": "mindspeed", "mindformers": "mindspore", "megatron-deepspeed":
    "megatron-deepspeed", "torchtitan": "torchtitan", "fsdp": "fsdp", "primus": "primus",
    "neuron": "neuron", "gaudi": "gaudi", "deepseek": "deepseek",
}  # fmt: skip
"""Engines by the names under which coefficients are kept so far; all others are ``other``."""
MEGATRON_CORE_SINCE = 2023.5
"""Year from which Megatron-LM is built on Megatron-Core."""
AT_HOME = {
    "google-tpu": "xla", "aws-neuron": "neuron", "intel-gaudi": "gaudi", "amd-cdna2": "primus",
    "amd-cdna3": "primus", "amd-cdna4": "primus", "huawei-ascend-910": "mindspeed",
    "huawei-ascend-910b": "mindspeed", "huawei-ascend-910c": "mindspeed",
}  # fmt: skip
"""The port of Megatron that a family's vendor keeps, or its own engine where there is none."""
PORTED = frozenset({"", "other", "megatron-lm", "megatron-bridge"})
"""Engines that run as the port at home on such a family."""
PORTED_TO = {
    "amd": PORTED | {"fsdp"},
    "huawei": PORTED | {"torchtitan", "deepspeed", "megatron-deepspeed"},
}


def calibrated_engine(engine: str, switches: Mapping[str, str], device: Device, year: float) -> str:
    """The name under which coefficients of ``engine`` on ``device`` in ``year`` are kept."""
    if device.family in AT_HOME and engine in PORTED_TO.get(device.id.split("-")[0], PORTED):
        return AT_HOME[device.family]
    if engine == "maxtext":
        return "xla-gpu" if device.software == "cuda" else "xla"
    if engine == "megatron-lm":
        if year < MEGATRON_CORE_SINCE:
            return "megatron-lm"
        # Runs with every overlap of tensor parallelism off have had numbers of their own.
        return "simumax" if switches.get("overlap-tp") == "off" else "megatron-core"
    return CALIBRATED.get(engine, "other")


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
