"""What a witness asks of a model: a step in a given setting, its modules and its tensors.

A setting is how one and the same step is computed: what may honestly differ between two runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from krzem.witness.batches import WitnessBatch
from krzem.witness.quantity import Kind
from krzem.witness.rule import UpdateRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way to compute the step; the result should be the same up to rounding."""

    name: str = "as it is"
    micro_batch: int | None = None
    """Sequences at a time; None: as the model is set up."""
    threads: int | None = None
    """Compute threads of the processor; None: as they are."""
    split: float | None = None
    """Matrix products in two parts, of which the first gets this share of the contracted axis, and
    attention by plain products: another reduction order."""
    narrow: bool = False
    """Operands of products rounded to TF32: what some devices call float32."""
    reverse: bool = False
    """The batch's sequences from last to first: another order of summing gradients."""
    layout: str | None = None
    """Another parallel layout, as ``--layout`` reads it."""
    dtype: str | None = None
    """Another arithmetic type than the one the model is set up in."""


def usual_settings(
    *,
    micro_batch: int,
    threads: int,
    cores: int,
    device_type: str,
    layouts: tuple[str, ...] = (),
) -> tuple[Setting, ...]:
    """The ways that give a noise floor on this machine, cheapest first, other layouts last."""
    found = [
        Setting(name="the same again"),
        Setting(name="products in 1/3 and 2/3", split=1 / 3),
        Setting(name="products in 2/3 and 1/3", split=2 / 3),
        Setting(name="sequences reversed", reverse=True),
    ]
    # None larger: the memory of an accelerator is planned for the micro-batch that it has.
    sizes = {1, micro_batch // 2} if micro_batch else {1, 2}
    found += [
        Setting(name=f"micro-batch {n}", micro_batch=n)
        for n in sorted(sizes)
        if n and n != micro_batch
    ]
    if device_type == "cpu" and cores > 1:
        other = 1 if threads > 1 else 2
        found.append(Setting(name=f"{other} threads", threads=other))
    return (*found, *(Setting(name=f"layout {x}", layout=x) for x in layouts))


Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which model this is."""

    kind: str
    """krzem or transformers."""
    name: str
    config: Mapping[str, Any]
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTensor:
    """A parameter, or this rank's part of it."""

    name: str
    shape: tuple[int, ...]
    """Of the whole."""
    region: tuple[slice, ...]
    """The part of it that ``part`` is."""
    part: Tensor
    grad: Tensor | None
    spacing: Tensor | None = None
    """Of a change: how far apart the numbers are that the changed elements can be stored as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A module whose output is watched, in the stage that it is run by."""

    name: str
    module: nn.Module
    root: nn.Module


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """What one forward and backward pass gave, over all ranks."""

    losses: Mapping[str, float]
    gradient_norm: float
    loads: Mapping[str, Tensor] = field(default_factory=dict)
    """Choices per expert by router, over all tokens; empty on ranks that only hold copies."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """This rank's part of a batch.

    Where there are more data-parallel ranks and pipeline slots than sequences, sequences are
    computed several times: the mean over all of them is the mean over the batch.
    """

    rows: Rows
    """Numbers of the sequences that this rank computes, in order."""
    copies: int
    """How often every sequence is computed, over all ranks."""
    tokens: tuple[int, int]
    """First token and one past the last, between layers."""


class Subject(Protocol):
    """A model under witness; every rank has one."""

    identity: Identity
    rule: UpdateRule | None

    @property
    def device_type(self) -> str:
        """As torch calls it."""

    @property
    def dtype(self) -> str:
        """Arithmetic of activations: float32, bfloat16 or float16."""

    @property
    def micro_batch(self) -> int:
        """Sequences at a time."""

    def under(self, setting: Setting) -> AbstractContextManager[None]:
        """Set up for ``setting`` within, and as before afterwards."""

    def share(self, batch: WitnessBatch) -> Share:
        """Which part of the batch this rank computes."""

    def step(self, batch: WitnessBatch, rows: Rows) -> Stepped:
        """Forward and backward of the sequences ``rows``; then the tensors have gradients."""

    def updated(self, norm: float) -> AbstractContextManager[Iterable[HeldTensor]]:
        """The optimizer's next step, whose changes are given within; undone afterwards."""

    def sites(self) -> Iterator[Site]:
        """Modules to watch."""

    def tensors(self) -> Iterator[HeldTensor]:
        """Every parameter part that this rank answers for."""

    def moments(self) -> Iterator[HeldTensor]:
        """The optimizer's state, under the names ``parameter:kind``."""

    def numbers(self) -> Iterator[tuple[Kind, str, float]]:
        """What else is loaded: updates counted, and the learning rate of the next step."""

    def biases(self) -> dict[str, Tensor]:
        """Balancing biases of routers by name; empty on ranks that only hold copies."""

    def tensor_count(self) -> int:
        """Parameter tensors of the whole model."""

    def software(self) -> dict[str, Any]:
        """Versions, device, layout: what a reader needs to know of the machine."""
