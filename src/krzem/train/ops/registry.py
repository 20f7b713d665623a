"""Operators with a portable version and, per device type, a vendor's own.

A version is chosen when the operator is called, by the device type of its first tensor; a vendor
version is taken only where its ``ready`` says that its library is there.  Every version of an
operator computes the same thing; the tests hold each against float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, ParamSpec, TypeVar

import torch

from krzem.errors import UnknownNameError

P = ParamSpec("P")
R = TypeVar("R")

OPERATORS: dict[str, Operator[..., object]] = {}
"""Every operator by name."""
_PORTABLE: ContextVar[bool] = ContextVar("portable", default=False)


@contextmanager
def portable_only() -> Iterator[None]:
    """Below, every operator computes by its portable version, in torch's plain operators."""
    token = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(token)


def is_portable() -> bool:
    """Whether plain versions are asked for."""
    return _PORTABLE.get()


def interpreted() -> bool:
    """Whether operators are run one by one: no compiler is looking at what they are made of."""
    return not torch.compiler.is_compiling()


class Operator(Generic[P, R]):
    """One operator: called like its portable version."""

    def __init__(self, name: str, portable: Callable[P, R]) -> None:
        self.name = name
        self.portable = portable
        self.versions: dict[str, tuple[Callable[P, R], Callable[[], bool]]] = {}
        self.__doc__ = portable.__doc__
        OPERATORS[name] = self  # type: ignore[assignment]

    def version(
        self,
        device_type: str,
        ready: Callable[[], bool] = lambda: True,
        *,
        traceable: bool = False,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorator that adds the version for tensors on ``device_type``.

        A compiler gets it where it is ``traceable``, else the portable one.
        """

        def usable() -> bool:
            return (traceable or interpreted()) and ready()

        def add(function: Callable[P, R]) -> Callable[P, R]:
            self.versions[device_type] = (function, usable)
            return function

        return add

    def chosen(self, device_type: str) -> Callable[P, R]:
        """The version that tensors on ``device_type`` get."""
        function, ready = self.versions.get(device_type, (self.portable, lambda: True))
        return function if ready() else self.portable

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute with the version for the first argument's device."""
        if not self.versions or (interpreted() and _PORTABLE.get()):
            return self.portable(*args, **kwargs)
        tensor = args[0][0] if isinstance(args[0], tuple) else args[0]
        assert isinstance(tensor, torch.Tensor)
        return self.chosen(tensor.device.type)(*args, **kwargs)


def operator(function: Callable[P, R]) -> Operator[P, R]:
    """Make ``function`` the portable version of an operator of its name."""
    return Operator(function.__name__, function)


def find_operator(name: str) -> Operator[..., object]:
    """The operator called ``name``.

    Raises:
        UnknownNameError: no such operator.
    """
    if name not in OPERATORS:
        raise UnknownNameError("operator", name, OPERATORS)
    return OPERATORS[name]
