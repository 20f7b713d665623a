"""Switches that were priced, as an engine's own flags: every one is written, off ones too."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from krzem.errors import GoalError
from krzem.files import read_toml
from krzem.plan.emit.launch import Flag

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
