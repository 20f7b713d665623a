"""What an emitter returns: flags with their reasons, and what could not be said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from krzem.errors import LayoutError
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


def section(title: str, flags: Iterator[Flag]) -> Section:
    """The flags of a generator under a title."""
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
