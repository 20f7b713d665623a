"""Counts how often the host reads a value of the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")
"""Operators whose result, or its size, the host has to know."""
_METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
"""Ways to read that a processor's tensors take without an operator."""


class HostReads(TorchDispatchMode):
    """``places`` are the names of the reads inside.

    What an operator's kernel for processors does inside is its own matter: there the host is the
    device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name.startswith(_WAITING):
            self.places.append(name)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count inside, methods that need no operator too."""
        with ExitStack() as stack:
            for name in _METHODS:
                stack.enter_context(mock.patch.object(Tensor, name, self._seen(name)))
            stack.enter_context(self)
            yield

    def _seen(self, name: str) -> Any:
        given = getattr(torch.Tensor, name)

        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if _get_current_dispatch_mode() is self:
                self.places.append(name)
            return given(tensor, *args, **kwargs)

        return read
