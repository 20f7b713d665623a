"""What the columns of a row state about the engine and how it was set up."""

from __future__ import annotations

import re
from dataclasses import replace

from krzem.accuracy.cells import Row, number, text, whole
from krzem.accuracy.spellings import sharding_of, yes_or_no
from krzem.engine.description import engine_named, engines
from krzem.engine.switches import switches
from krzem.errors import UnknownNameError
from krzem.hardware.catalogue import Device
from krzem.layout.layout import StateBytes

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
