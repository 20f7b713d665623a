"""The user's own torchtitan, imported where there may be no accelerator.

krzem neither brings nor needs torchtitan: it is the one of the environment that runs krzem.  What
it imports beside PyTorch and no step runs (data sets, kernels in Triton) is stood in for where it
is not installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import sys
import types
import typing
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from krzem.errors import RunError

VERSION = "0.3"
"""Whose way from a configuration to a step a rehearsal follows."""
_BESIDE_A_STEP = {
    "datasets": ("datasets", "datasets.distributed"),
    "torchdata": ("torchdata", "torchdata.stateful_dataloader"),
    "triton": ("torchtitan.distributed.minimal_async_ep.kernels",),
}
"""Packages that torchtitan imports and no rehearsed step runs: the modules to stand in for."""


class Runtime:
    """What torchtitan asks of a device's module; streams and events do nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def set_device(self, *_: Any) -> None:
        """There is one device."""

    def current_device(self) -> int:
        """The only one."""
        return 0


class _Empty(types.ModuleType):
    """A module in which every name is an empty class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def quiet() -> Iterator[None]:
    """Below, torchtitan and what it imports say nothing: neither log nor warn nor print."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    said = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def need_torchtitan() -> str:
    """The version of the torchtitan that is installed.

    Raises RunError where there is none, or one whose steps are taken otherwise.
    """
    advice = f"install it where krzem is: pip install torchtitan=={VERSION}.0"
    try:
        found = importlib.metadata.version("torchtitan")
    except importlib.metadata.PackageNotFoundError:
        raise RunError(
            f"the rehearsal runs torchtitan's own code, and this Python has no torchtitan: {advice}"
        ) from None
    if not found.startswith(f"{VERSION}."):
        raise RunError(
            f"the rehearsal follows torchtitan {VERSION}, and {found} is installed: {advice}, or "
            "check the job without --rehearse"
        )
    return found


def titan(name: str) -> Any:
    """A module of torchtitan, once it is imported."""
    return importlib.import_module(f"torchtitan.{name}")


def import_torchtitan() -> Any:
    """The module ``torchtitan.trainer``.

    Raises RunError where torchtitan, or something that it imports, is missing.
    """
    need_torchtitan()
    for package, modules in _BESIDE_A_STEP.items():
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            for name in modules:
                sys.modules.setdefault(name, _Empty(name))
    if not hasattr(typing, "override"):  # Python 3.11
        typing.override = lambda function: function  # type: ignore[attr-defined]
    with (
        quiet(),
        mock.patch.object(torch._utils, "_get_device_module", return_value=Runtime()),
        mock.patch.object(torch._utils, "_get_available_device_type", return_value="cuda"),
    ):
        try:
            return titan("trainer")
        except ImportError as error:
            raise RunError(
                f"torchtitan does not load here ({error}): install what it imports"
            ) from error
