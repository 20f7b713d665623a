"""What stands in for parts of torchtitan that need values, a device's runtime, data or a disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.overrides import TorchFunctionMode

from krzem.train.rehearsal.pretend import PretendMode, attention_kernel, outside
from krzem.train.rehearsal.titan_import import titan

_MESH_METHODS = (
    "build_mesh", "get_mesh", "get_optional_mesh", "get_activated_mesh", "resolve_mesh",
    "resolve_shared_mesh",
)  # fmt: skip


@contextmanager
def stood_in(module: Any, config: Any, mode: PretendMode, crowding: float) -> Iterator[None]:
    """Below, the trainer of ``config`` can be built and a step of it taken.

    * Loader, tokenizer, checkpoints and metrics are not made: a step needs none of them.
    * Initial values, seeds and the device's peak are not asked for.
    * Meshes are computed with tensors that have values.
    * FlexAttention is compiled into one kernel, which keeps what FlashAttention keeps.
    * Autocast, which C++ decides by device, casts what products read.
    * How many rows experts are sent is assumed: an even share, or ``crowding`` times that.
    """
    with ExitStack() as stack:
        for target, name, value in (
            *_without_surroundings(config),
            *_without_values(),
            *_kernels(),
            *_routing(mode, crowding),
            (module, "prepare_context_parallel_input", _cut(module)),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        yield


Replacement = tuple[Any, str, Any]


def _without_surroundings(config: Any) -> Iterator[Replacement]:
    saver = SimpleNamespace(maybe_wait_for_staging=_nothing, close=_nothing)
    for part, made in (
        (config.metrics, _metrics()),
        (config.tokenizer, None),
        (config.dataloader, None),
        (config.checkpoint, saver),
    ):
        yield type(part), "build", lambda *_, made=made, **__: made


def _metrics() -> Any:
    stats = SimpleNamespace(max_reserved_gib=0.0, max_reserved_pct=0.0)
    monitor = SimpleNamespace(device_name="", get_peak_stats=lambda: stats)
    return SimpleNamespace(
        color=titan("tools.utils").NoColor(), device_memory_monitor=monitor, close=_nothing,
        should_log=lambda _: False, ntokens_since_last_log=0, data_loading_times=[],
    )  # fmt: skip


def _without_values() -> Iterator[Replacement]:
    dims = titan("distributed").ParallelDims
    yield titan("distributed.utils"), "set_determinism", _nothing
    yield titan("tools.utils"), "get_peak_flops", lambda *_: 1.0
    yield titan("protocols.model").BaseModel, "init_weights", _nothing
    for name in _MESH_METHODS:
        yield dims, name, outside(vars(dims)[name])


def _nothing(*_: Any, **__: Any) -> None:
    """Stands for what a rehearsal has no use of."""


def _kernels() -> Iterator[Replacement]:
    flex = titan("models.common.attention").FlexAttention
    yield flex, "compiled_flex_attn", staticmethod(flex_kernel)
    yield torch, "autocast", _Casts
    mask = "create_attention_mask"
    for name, module in list(sys.modules.items()):
        if name.startswith("torchtitan.") and hasattr(module, mask):
            yield module, mask, block_mask


def block_mask(
    mask: Any, batch: int | None, heads: int | None, queries: int, keys: int, *,
    device: torch.device, BLOCK_SIZE: Any = 128, **_: Any,
) -> BlockMask:  # fmt: skip
    """FlexAttention's tables of blocks, whose making is compiled as well."""
    size = BLOCK_SIZE if isinstance(BLOCK_SIZE, tuple) else (BLOCK_SIZE, BLOCK_SIZE)
    rows, columns = -(-queries // size[0]), -(-keys // size[1])
    shape = (batch or 1, heads or 1, rows)
    counts = [torch.zeros(shape, dtype=torch.int32, device=device) for _ in range(2)]
    places = [c.new_zeros((*shape, columns)) for c in counts]
    return BlockMask.from_kv_blocks(
        counts[0], places[0], counts[1], places[1], BLOCK_SIZE=size, mask_mod=mask,
        seq_lengths=(queries, keys),
    )  # fmt: skip


def flex_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> tuple[Tensor, Any]:
    """FlexAttention ``[B, H, S, N]`` as one kernel: query, key, value, result and a number a row
    are kept for its backward pass."""
    if query.shape[-1] == value.shape[-1]:
        out = attention_kernel(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    else:
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        needs = torch.is_grad_enabled() and query.requires_grad
        out = efficient(query, key, value, None, needs, 0.0, True, scale=scale)[0]
    rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
    return out, SimpleNamespace(lse=rows)


class _Casts(TorchFunctionMode):
    """``torch.autocast``: what matrix products read is cast to ``dtype``."""

    def __init__(self, device_type: str, dtype: torch.dtype, enabled: bool = True) -> None:
        super().__init__()
        self._dtype = dtype if enabled else None

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.linear and self._dtype is not None:
            args = tuple(a.to(self._dtype) if isinstance(a, Tensor) else a for a in args)
        return function(*args, **(kwargs or {}))


def _routing(mode: PretendMode, crowding: float) -> Iterator[Replacement]:
    dispatcher = titan("models.common.token_dispatcher").AllToAllTokenDispatcher
    given = dispatcher.dispatch
    rows: dict[int, int] = {}

    def dispatch(self: Any, x: Tensor, scores: Tensor, experts: Tensor, *rest: Any) -> Any:
        rows[id(self)] = experts.numel()
        return given(self, x, scores, experts, *rest)

    def counts(self: Any, own: Tensor, others: Tensor, ranks: int) -> Any:
        others = torch.ops._c10d_functional.wait_tensor(others).reshape(-1)
        mode.read_all(others)
        each, more = divmod(rows[id(self)], ranks)
        sent = [each + (i < more) for i in range(ranks)]
        return others, sent, [round(n * crowding) for n in sent]

    yield dispatcher, "dispatch", dispatch
    yield dispatcher, "_sync_token_count_exchange", counts


def _cut(module: Any) -> Any:
    """Sequences are cut over context ranks; masks, which are part of the kernel, are not."""
    given = module.prepare_context_parallel_input

    def cut(inputs: Tensor, labels: Tensor, more: dict[str, Any], *rest: Any) -> Any:
        masks = more.pop("attention_masks", None)
        inputs, labels, more = given(inputs, labels, more, *rest)
        return inputs, labels, more if masks is None else more | {"attention_masks": masks}

    return cut
