"""The experts' gated networks: two grouped products with an activation between them."""

from __future__ import annotations

from torch import Tensor

from krzem.train.ops.grouped import Groups, grouped_linear
from krzem.train.ops.registry import operator
from krzem.train.ops.swiglu import swiglu


@operator
def grouped_network(
    x: Tensor, up: Tensor, down: Tensor, groups: Groups, limit: float | None = None
) -> Tensor:
    """Rows ``x [P, D]`` through their group's network: ``[P, D]``.

    ``up [E, 2W, D]`` holds the gate's rows before those of the value, ``down [E, D, W]``; ``limit``
    is that of :func:`swiglu`.
    """
    gate, value = grouped_linear(x, up, groups).chunk(2, dim=-1)
    return grouped_linear(swiglu(gate, value, limit), down, groups)
