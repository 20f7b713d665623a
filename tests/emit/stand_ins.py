"""What the engines import and a processor does not have: Transformer Engine, Triton and others.

Run inside an engine's own environment. A stand-in answers every import below its name with a
class that does nothing; Transformer Engine's layers get the parameters that its documentation
gives them, so that a model built of them on the meta device has the parameters of the real one.
"""

from __future__ import annotations

import abc
import contextlib
import importlib.abc
import importlib.machinery
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _Meta(abc.ABCMeta):
    """Classes whose unknown attributes are classes again, so that any name can be imported."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing

    def __contains__(cls, item: Any) -> bool:
        return False


class Nothing(metaclass=_Meta):
    """Stands for a class, a decorator or a kernel; a lone function passes through unchanged."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is Nothing and len(args) == 1 and not kwargs and callable(args[0]):
            return args[0]
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes everything, keeps nothing."""

    def __call__(self, function: Any = None, *args: Any, **kwargs: Any) -> Any:
        return function

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        """Nothing to close."""

    def __class_getitem__(cls, item: Any) -> Any:
        return cls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing


class _Module(types.ModuleType):
    """A module that has every name."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module below the packages it stands in for."""

    def __init__(
        self,
        versions: Mapping[str, str],
        names: Mapping[str, Mapping[str, Any]],
        absent: Sequence[str] = (),
    ) -> None:
        self.versions, self.names, self.absent = versions, names, absent

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] not in self.versions or name in self.absent:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = _Module(spec.name)
        module.__dict__["__version__"] = self.versions[spec.name.split(".")[0]]
        module.__dict__.update(self.names.get(spec.name, {}))
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"))


class Linear(nn.Module):
    """A matrix [out, in] and a bias [out], cut over ``tp_size`` ranks as ``parallel_mode`` says."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, tp_size: int = 1,
        parallel_mode: str | None = None, **rest: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        rows = out_features // tp_size if parallel_mode == "column" else out_features
        columns = in_features // tp_size if parallel_mode == "row" else in_features
        self.weight = _weight(rows, columns)
        self.bias = _weight(rows) if bias else None
        self.save_original_input = False


class RMSNorm(nn.Module):
    """A gain per channel."""

    def __init__(self, normalized_shape: int = 0, **rest: Any) -> None:
        super().__init__()
        self.weight = _weight(normalized_shape)


class LayerNorm(RMSNorm):
    """A gain and an offset per channel."""

    def __init__(self, normalized_shape: int = 0, **rest: Any) -> None:
        super().__init__(normalized_shape)
        self.bias = _weight(normalized_shape)


class LayerNormLinear(Linear):
    """A norm before a matrix."""

    def __init__(
        self, in_features: int, out_features: int, *, normalization: str = "LayerNorm", **rest: Any
    ) -> None:
        super().__init__(in_features, out_features, **rest)
        self.layer_norm_weight = _weight(in_features)
        if normalization == "LayerNorm":
            self.layer_norm_bias = _weight(in_features)


class GroupedLinear(nn.Module):
    """The matrices of all experts; one parameter stands for all of theirs."""

    def __init__(
        self, num_gemms: int, in_features: int, out_features: int, *, bias: bool = True,
        **rest: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_gemms = num_gemms
        self.weight0 = _weight(num_gemms, out_features, in_features)
        self.bias0 = _weight(num_gemms, out_features) if bias else None
        self.save_original_input = False


class FusedAdam:
    """An optimizer that is looked at, never made."""

    def __init__(
        self, params: Any, master_weight_dtype: Any, exp_avg_dtype: Any, exp_avg_sq_dtype: Any,
        use_decoupled_grad: bool,
    ) -> None:  # fmt: skip
        """Takes the widths of its states."""


class DotProductAttention(nn.Module):
    """Attention; with a learned softmax it owns a sink per head."""

    def __init__(
        self, num_attention_heads: int, kv_channels: Any, *, softmax_type: str = "vanilla",
        **rest: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if softmax_type == "learnable":
            self.softmax_offset = _weight(num_attention_heads)


NAMES = {
    "transformer_engine.pytorch": {
        "Linear": Linear,
        "RMSNorm": RMSNorm,
        "LayerNorm": LayerNorm,
        "LayerNormLinear": LayerNormLinear,
        "GroupedLinear": GroupedLinear,
        "DotProductAttention": DotProductAttention,
    },
    "torchdata.stateful_dataloader": {"StatefulDataLoader": type("StatefulDataLoader", (), {})},
    "transformer_engine.pytorch.optimizers": {"FusedAdam": FusedAdam},
    "transformer_engine.pytorch.cpu_offload": {
        "get_cpu_offload_context": lambda *_, **__: (contextlib.nullcontext(), None),
    },
}


class Device:
    """The card the engine is told it runs on."""

    capability = (9, 0)
    brand = "nvidia"

    @classmethod
    def pretend(cls, capability: tuple[int, int], brand: str = "nvidia") -> None:
        """Answer the engines' questions about the card with this compute capability."""
        cls.capability, cls.brand = capability, brand

    @classmethod
    def nvidia(cls, *least: int) -> bool:
        """Whether it is a card of NVIDIA with at least this capability."""
        return cls.brand == "nvidia" and cls.capability >= least

    @classmethod
    def amd(cls, *least: int) -> bool:
        """Whether it is a card of AMD with at least this capability."""
        return cls.brand == "amd" and cls.capability >= least


class OnMeta(TorchFunctionMode):
    """Every tensor is made on the meta device, also where the card is asked for by name."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("meta")
        return function(*args, **kwargs)


def pretend_cuda() -> None:
    """Let PyTorch answer questions about a card without having one."""
    cuda: Any = torch.cuda
    cuda.get_device_capability = lambda *_: Device.capability
    cuda.get_device_properties = lambda *_: SimpleNamespace(
        major=Device.capability[0], minor=Device.capability[1], name="card", total_memory=80 << 30,
        multi_processor_count=132,
    )  # fmt: skip
    cuda.Stream = cuda.Event = Nothing
    cuda._lazy_init = lambda: None
    cuda.current_device = lambda: 0


def install(versions: Mapping[str, str], absent: Sequence[str] = ()) -> None:
    """Stand in for these packages; nothing is compiled, nothing needs a card."""
    if not hasattr(typing, "override"):  # Python 3.11
        typing.override = lambda function: function  # type: ignore[attr-defined]
    compile_ = lambda function=None, **_: function or (lambda given: given)  # noqa: E731
    torch.compile = compile_  # type: ignore[assignment]
    sys.meta_path.insert(0, Finder(versions, NAMES, absent))
    pretend_cuda()
