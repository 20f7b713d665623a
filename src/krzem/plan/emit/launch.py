"""What an emitter reads and returns: flags with reasons; values of a config, flags of switches."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from krzem.errors import GoalError, LayoutError
from krzem.files import read_toml
from krzem.hardware.cluster import Cluster
from krzem.layout.layout import Layout
from krzem.model.architecture import Architecture
from krzem.plan.goal import Goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be launched; every emitter reads this and nothing else."""

    layout: Layout
    goal: Goal
    arch: Architecture
    cluster: Cluster
    config: Mapping[str, object]
    """The model's ``config.json``, for what an Architecture does not hold (rotary base, norm
    epsilon, router scaling); may be empty."""
    save_steps: int | None = None
    """Steps between checkpoints, as forecast; None asks the user."""
    switches: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Choices of the engine's switches that were priced; what is absent is left as it is."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches per step and data-parallel rank."""
        return self.goal.global_batch // (self.layout.micro_batch * self.layout.dp)

    @property
    def steps(self) -> int:
        """Optimizer steps at the full batch."""
        return -(-int(self.goal.tokens) // self.goal.tokens_per_step)


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting of an engine; ``value`` is empty for a switch."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Flags that belong together."""

    title: str
    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file that a launch writes before it starts the engine."""

    path: str
    syntax: str
    """``yaml``, ``json`` or ``python``: values are written in it, names are dotted paths."""
    sections: tuple[Section, ...]
    preamble: tuple[str, ...] = ()
    """Lines before the settings of a Python file."""
    ending: tuple[str, ...] = ()
    """Lines after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A program whose version a launch was written for."""

    name: str
    command: str
    """Prints the version that is installed."""
    version: str
    """What it has to begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Everything an engine needs to be told."""

    engine: str
    version: str
    """Version of the engine whose source the names were taken from."""
    sections: tuple[Section, ...]
    environment: tuple[Flag, ...] = ()
    """Environment variables to export."""
    preamble: tuple[str, ...] = ()
    """Lines of Python before a recipe."""
    command: str = ""
    """What starts the processes; ``"${args[@]}"`` in it stands for the flags."""
    model: str = ""
    """Name of the model, for people and for who reads the files back."""
    priced: tuple[tuple[str, str], ...] = ()
    """What was priced and no key may say: lines of the head, by their titles."""
    notes: tuple[str, ...] = ()
    """What the engine cannot express, and what was emitted instead."""
    parts: tuple[Part, ...] = ()
    """Files that are written first; the command names them."""
    installed: tuple[Installed, ...] = ()
    """What stops the script with one sentence where another version is found."""

    @property
    def flags(self) -> tuple[Flag, ...]:
        """All flags in order, those of files first."""
        inside = (section for part in self.parts for section in part.sections)
        return tuple(flag for section in (*inside, *self.sections) for flag in section.flags)

    @property
    def asked(self) -> tuple[str, ...]:
        """Shell variables the user has to set, because no plan knows them."""
        texts = [flag.value for flag in (*self.flags, *self.environment)]
        hits = (hit for text in (*texts, self.command) for hit in _ASKED.finditer(text))
        return tuple(dict.fromkeys(hit.group(1) for hit in hits))


_ASKED = re.compile(r"\$\{([A-Z_]+):\?")


def ask(variable: str, what: str) -> str:
    """A value only the user has: the script stops and prints ``what`` while it is not set."""
    return f"${{{variable}:?{what}}}"


def is_asked(value: str) -> bool:
    """Whether ``value`` was made by :func:`ask`."""
    return _ASKED.match(value) is not None


def is_tpu(request: Request) -> bool:
    """Whether the devices are TPUs."""
    return request.cluster.device.family.startswith("google-tpu")


def section(title: str, flags: Iterable[Flag]) -> Section:
    """The flags under a title."""
    return Section(title=title, flags=tuple(flags))


def torchrun(request: Request, what: str) -> str:
    """One process per device under torchrun, the same command on every node.

    Raises LayoutError where the layout does not fill whole nodes.
    """
    devices = request.layout.devices
    each = min(request.cluster.devices_per_node, devices)
    if devices % each:
        raise LayoutError(
            f"the layout occupies tp*cp*pp*dp = {devices} devices, which is not a whole number of"
            f" nodes of {each}; torchrun starts the same number of processes on every node"
        )
    return (
        f"torchrun --nnodes {devices // each} --nproc-per-node {each} --rdzv-id krzem"
        f' --rdzv-backend c10d --rdzv-endpoint "{ask("RDZV", "host:port of the first node")}"'
        f" {what}"
    )


# Values an Architecture does not hold: from the model's config.json, or asked of the user
# ----------------------------------------------------------------------------------------

_ROTARY = ("rope_theta", "rotary_emb_base")
_EPSILON = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps")


def number(config: Mapping[str, object], *names: str) -> float | None:
    """The first of ``names`` that ``config`` gives as a number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def rotary_base(config: Mapping[str, object]) -> float | None:
    """The base of the rotary frequencies; newer configs keep it in ``rope_parameters``."""
    nested = config.get("rope_parameters")
    inner = number(nested, *_ROTARY) if isinstance(nested, Mapping) else None
    return number(config, *_ROTARY) if inner is None else inner


def norm_epsilon(config: Mapping[str, object]) -> float | None:
    """What a norm adds under its square root."""
    return number(config, *_EPSILON)


def rope_scaling(config: Mapping[str, object]) -> str | None:
    """The name of the long-context scaling of the rotary frequencies, None without one."""
    for name in ("rope_scaling", "rope_parameters"):
        nested = config.get(name)
        if isinstance(nested, Mapping):
            kind = nested.get("rope_type", nested.get("type"))
            if isinstance(kind, str) and kind not in ("default", "rope"):
                return kind
    return None


def written(value: float) -> str:
    """A number as an engine reads it: whole ones as integers, others with the digits they need."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def filled(name: str, value: float | None, variable: str, what: str, why: str) -> Flag:
    """A flag with ``value``, or one that asks for ``variable`` where it is not known."""
    return Flag(name, ask(variable, what) if value is None else written(value), why)


# Switches that were priced, as an engine's own flags: every one is written, off ones too
# ---------------------------------------------------------------------------------------

Choices = Mapping[str, Mapping[str, tuple[tuple[str, str], ...]]]
"""Switch → choice → names and values that set it; none where the engine works so anyway."""

MEANS: Mapping[str, str] = {
    "dispatcher": "how tokens travel to experts",
    "overlap-a2a": "expert all-to-all beside the computation of another micro-batch",
    "overlap-tp": "tensor-parallel collectives beside the products",
    "overlap-grad-reduce": "gradient reduction beside the backward pass",
    "overlap-param-gather": "weight gathering beside the forward pass",
    "cuda-graphs": "kernels launched from recorded graphs",
    "loss": "cross-entropy",
    "fused-accumulation": "weight gradients added up inside the product",
    "attention": "attention kernels",
    "fp8-scaling": "scales of 8-bit products",
    "fp8-params": "weights kept in 8 bits only",
    "grad-sync": "gradients reduced at every micro-batch, or at the last",
    "compile": "layers compiled",
    "routing": "real routing, forced to be even, or cut at a capacity",
    "offload-activations": "activations in host memory",
    "partition-activations": "saved activations cut over tensor-parallel ranks",
}
"""What a switch decides, as a comment in a launch file."""

_FOLDER = Path(__file__).parent.parent.parent / "facts" / "engines"


def chosen(engine: str, switches: Mapping[str, str], choices: Choices) -> Iterator[Flag]:
    """The flags of ``switches`` by a table of the emitter's own.

    Raises GoalError for a switch or a choice that the engine lacks.
    """
    for switch, choice in switches.items():
        for name, value in _found(engine, switch, choice, choices):
            yield Flag(name, value, f"{switch} = {choice}: {MEANS.get(switch, switch)}")


def switch_flags(engine: str, switches: Mapping[str, str]) -> Iterator[Flag]:
    """The flags of ``switches`` by ``facts/engines/<engine>.toml``, for command lines.

    Raises GoalError for a switch or a choice that the engine lacks, DataError for a bad file.
    """
    yield from chosen(engine, switches, _described(engine) if switches else {})


def governed(engine: str, switches: Mapping[str, str]) -> frozenset[str]:
    """Names of all flags that set one of ``switches`` in any of its choices."""
    choices = _described(engine) if switches else {}
    return frozenset(
        name
        for switch in switches
        for values in choices.get(switch, {}).values()
        for name, _ in values
    )


def _found(engine: str, switch: str, choice: str, choices: Choices) -> tuple[tuple[str, str], ...]:
    known = choices.get(switch)
    if known is None:
        raise GoalError(
            f"{engine} has no switch {switch} (asked: {switch}={choice}); it can write"
            f" {', '.join(choices) or 'none'}. Plan without it, or emit for another engine"
        )
    if choice not in known:
        raise GoalError(
            f"{engine} has no flag for {switch}={choice}; it can write"
            f" {', '.join(f'{switch}={name}' for name in known)}. Plan with one of these"
        )
    return known[choice]


@cache
def _described(engine: str) -> Choices:
    """The ``flags`` lists of an engine's description, split into names and values."""
    document: dict[str, Any] = read_toml(
        _FOLDER / f"{engine}.toml", hint="emit for an engine that is described"
    )
    return {
        switch: {str(choice): _split(str(text)) for choice, text in entry.get("flags", ())}
        for switch, entry in document.get("switch", {}).items()
    }


def _split(text: str) -> tuple[tuple[str, str], ...]:
    """``--flag value --other`` as names and values; empty where nothing is to be said."""
    found: list[list[str]] = []
    for word in shlex.split(text):
        if word.startswith("--"):
            found.append([word])
        elif found:
            found[-1].append(word)
    return tuple((name, " ".join(values)) for name, *values in found)
