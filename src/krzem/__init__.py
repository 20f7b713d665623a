"""krzem plans, runs and moves the pre-training of large language models.

::

    import krzem

    plan = krzem.plan("deepseek-v3", on="nvidia-h800-sxm:2048", tokens="14.8T")
    print(plan.best.layout, plan.whole_run.days)
    print(plan)                                     # the report of `krzem plan`

Names are loaded when they are first used: importing krzem loads nothing else.  Two of them are
packages too: ``krzem.plan`` and ``krzem.accuracy`` can be called and hold modules.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from krzem.api import (
        Comparison,
        Explanation,
        Model,
        Plan,
        accuracy,
        compare,
        devices,
        explain,
        models,
        plan,
    )
    from krzem.errors import KrzemError
    from krzem.estimate import Estimate
    from krzem.hardware.cluster import Cluster
    from krzem.hardware.cluster_reader import read_cluster
    from krzem.layout.layout import Layout, parse_layout
    from krzem.plan.goal import Goal

__all__ = [
    "Cluster",
    "Comparison",
    "Estimate",
    "Explanation",
    "Goal",
    "KrzemError",
    "Layout",
    "Model",
    "Plan",
    "accuracy",
    "compare",
    "devices",
    "explain",
    "models",
    "parse_layout",
    "plan",
    "read_cluster",
]

_HOMES = {
    "Cluster": "krzem.hardware.cluster",
    "Estimate": "krzem.estimate",
    "Goal": "krzem.plan.goal",
    "KrzemError": "krzem.errors",
    "Layout": "krzem.layout.layout",
    "parse_layout": "krzem.layout.layout",
    "read_cluster": "krzem.hardware.cluster_reader",
}
"""Where a name is found that is not in ``krzem.api``."""
_CALLABLE = ("plan", "accuracy")
"""Packages of krzem that are also functions of its API."""


class _Verb(ModuleType):
    """A package that can be called: it passes the call on to the function of ``krzem.api``."""

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the function."""
        return inspect.signature(self._function)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """That of the function, which ``help`` shows, and the package's own."""
        own = vars(self).get("__doc__") or ""
        return f"{self.__name__}{self.__signature__}\n\n{inspect.getdoc(self._function)}\n\n{own}"

    @property
    def _function(self) -> Any:
        return getattr(importlib.import_module("krzem.api"), self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function of the same name in ``krzem.api``."""
        return self._function(*args, **kwargs)


class _Face(ModuleType):
    """This module; the import system sets subpackages on it, and some become callable thereby."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _CALLABLE and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'krzem' has no attribute {name!r}")
    if name in _CALLABLE:
        return importlib.import_module(f"krzem.{name}")
    return getattr(importlib.import_module(_HOMES.get(name, "krzem.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
