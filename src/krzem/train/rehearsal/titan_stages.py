"""torchtitan's pipeline stages where no other rank tells what it will send."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed.pipelining.stage as torch_stage
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.tensor import DTensor, Replicate, Shard

from krzem.train.rehearsal.titan_import import titan

_extract: Any = vars(torch_stage)["extract_tensor_metas"]
_Meta: Any = vars(torch_stage)["_StageMeta"]
_Mode: Any = vars(torch_stage)["InferenceMode"]


def stages_of(schedule: Any) -> Sequence[Any]:
    """The pipeline stages of a rank."""
    found: Sequence[Any] = getattr(schedule, "_stages", None) or [schedule._stage]
    return found


def state_shapes(trainer: Any) -> None:
    """Tell each stage what it receives and sends, as ranks tell one another before a first step."""
    rows = trainer.config.parallelism.pipeline_parallel_microbatch_size
    length = trainer.config.training.seq_len // trainer.parallel_dims.cp
    with unset_fake_temporarily():
        tokens = torch.empty(rows, length, dtype=torch.int64, device="meta")
        for stage in stages_of(trainer.pp_schedule):
            width = trainer.model_config.dim
            hidden, gradient = _handed(trainer, rows, length, width)
            received = tokens if stage.is_first else hidden
            given: Tensor = hidden
            if stage.is_last and not stage.submod._skip_lm_head:
                given, gradient = _handed(trainer, rows, length, trainer.model_config.vocab_size)
            stage._user_meta = _Meta(
                inputs=_extract((received,)),
                outputs=_extract((given,)),
                input_grads=_extract(
                    (None if stage.is_first else _like(received),), allow_none=True
                ),
                output_grads=_extract((gradient,), allow_none=True),
            )
            for tensor in (received, given):
                stage._mesh_cache.update_from_tensors((tensor,))


def _handed(trainer: Any, rows: int, length: int, width: int) -> tuple[Tensor, Tensor]:
    """What one stage hands to the next, and its gradient; cut over tensor ranks by position."""
    dtype = titan("config").TORCH_DTYPE_MAP[trainer.config.training.mixed_precision_param]
    dims = trainer.parallel_dims
    if not dims.tp_enabled:
        found = torch.empty(rows, length, width, dtype=dtype, device="meta", requires_grad=True)
        return found, _like(found)
    cut = trainer.config.parallelism.enable_sequence_parallel
    local = torch.empty(rows, length // (dims.tp if cut else 1), width, dtype=dtype, device="meta")
    place = [Shard(1) if cut else Replicate()]
    whole = DTensor.from_local(local, dims.get_mesh("tp"), place, run_check=False)
    return whole.requires_grad_(), _like(whole)


def _like(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(False)


def schedule_parts(trainer: Any) -> Iterator[tuple[Any, str, Any]]:
    """What a schedule is given: shapes that are known, and a batch that is cut already.

    Releases of PyTorch before 2.14 cut a step's batch themselves.
    """
    kind = type(trainer.pp_schedule)
    yield kind, "_warmup_p2p", _known
    if "arg_mbs" not in inspect.signature(kind.step).parameters:
        yield kind, "step", _step


def _known(_: Any, stages: Sequence[Any], *__: Any) -> None:
    for stage in stages:
        stage._inference_mode = _Mode.STATIC


def _step(
    self: Any,
    *,
    arg_mbs: Any = None,
    kwarg_mbs: Any = None,
    target_mbs: Any = None,
    losses: Any = None,
    loss_kwargs: Any = None,
    return_outputs: bool = True,
) -> None:
    for stage in stages_of(self):
        stage.has_backward = True
        stage.clear_runtime_states()
    self._step_microbatches(
        arg_mbs, kwarg_mbs, target_mbs, losses, return_outputs, loss_kwargs=loss_kwargs
    )
