"""torchtitan's own configuration, checks and model, run inside its environment.

Reads a JSON list of jobs on standard input and writes one JSON answer a line, in order. A job has
``recipe`` (text of a Python module with a function ``run``), ``args`` (what follows ``python -m
torchtitan.train``), ``world`` (ranks) and ``environment``. An answer has ``values`` (settings as
they are after the engine's checks), ``layers`` (per pipeline stage) and ``parameters``, or
``error`` and ``step`` (parse, check, build or cut). With ``--flags`` it writes the table of all
settings instead.

The steps are those of ``Trainer.__init__`` up to the optimizer, with a process group that only
pretends to have ``world`` ranks and the model on the meta device.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import enum
import importlib
import io
import json
import logging
import os
import sys
import tempfile
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import stand_ins

warnings.simplefilter("ignore")
logging.disable()
stand_ins.install({
    "triton": "3.7.0", "datasets": "4.7.0", "torchdata": "0.11.0", "torch_checkpointing": "0.1.1",
    "wandb": "0.20.0", "PIL": "13.0.0", "einops": "0.8.2",
})  # fmt: skip

import torch  # noqa: E402
import torchtitan  # noqa: E402
from torchtitan.tools import utils  # noqa: E402

utils.has_cuda_capability = stand_ins.Device.nvidia
utils.has_rocm_capability = stand_ins.Device.amd
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402
from torchtitan.config import ConfigManager  # noqa: E402
from torchtitan.distributed import ParallelDims, fsdp, pipeline_parallel  # noqa: E402
from torchtitan.distributed import utils as dist_utils  # noqa: E402
from torchtitan.models.common import attention, rope  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402


@contextlib.contextmanager
def told(job: dict[str, Any]) -> Iterator[None]:
    """The recipe, environment and world of one job."""
    stand_ins.Device.pretend(tuple(job["capability"]), job["brand"])
    before = dict(os.environ)
    os.environ |= {"WORLD_SIZE": str(job["world"]), "RANK": "0", **job.get("environment", {})}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "krzem_recipe.py").write_text(job["recipe"], encoding="utf-8")
        sys.path.insert(0, folder)
        sys.modules.pop("krzem_recipe", None)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(folder)
            os.environ.clear()
            os.environ |= before


class Judge:
    """The engine's steps, one after the other; ``step`` names the one that is running."""

    def __init__(self) -> None:
        self.step = "parse"

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """What the engine makes of one job."""
        try:
            with told(job), contextlib.redirect_stdout(io.StringIO()):
                return self._judged(job)
        except (Exception, SystemExit) as error:
            if os.environ.get("TRACE"):
                import traceback

                traceback.print_exc()
            text = " ".join(str(error).split()) or type(error).__name__
            return {"error": f"{type(error).__name__}: {text}", "step": self.step}
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()

    def _judged(self, job: dict[str, Any]) -> dict[str, Any]:
        self.step = "parse"
        config = ConfigManager().parse_args(job["args"])
        self.step = "check"
        torch.distributed.init_process_group(
            "fake", rank=0, world_size=job["world"], store=FakeStore()
        )
        degrees = ParallelDims.from_config(config.parallelism, job["world"])
        degrees.build_mesh()
        self.step = "build"
        spec = config.model_spec
        spec.model.update_from_config(config=config)
        config._validate_cuda_graphs()
        with torch.device("meta"), stand_ins.OnMeta():
            model = spec.model.build()
        model.verify_module_protocol()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.step = "cut"
        self._cut(config, degrees, model)
        return {
            "values": dict(settings(config)),
            "layers": layers_of(config.parallelism.module_fqns_per_model_part),
            "parameters": parameters,
        }

    @staticmethod
    def _cut(config: Any, degrees: Any, model: Any) -> None:
        """Stages, then every other way of cutting, as the first rank does it."""
        spec = config.model_spec
        common = {
            "parallel_dims": degrees, "training": config.training,
            "parallelism": config.parallelism, "compile_config": config.compile,
            "ac_config": config.activation_checkpoint, "dump_folder": config.dump_folder,
        }  # fmt: skip
        dist_utils.set_spmd_backend(config.parallelism.spmd_backend)
        if not degrees.pp_enabled:
            spec.parallelize_fn(model, **common)
            return
        common["training"] = shortened(config)
        loss = config.loss.build(compile_config=config.compile)
        spec.pipelining_fn(
            model, **common, device=torch.device("meta"), model_config=spec.model,
            parallelize_fn=spec.parallelize_fn, loss_fn=loss,
        )  # fmt: skip


def not_sharded(module: Any, **_: Any) -> Any:
    """Stands for ``fully_shard``: torchtitan 0.3.0 wants a newer one than that of PyTorch 2.13."""
    for part in module if isinstance(module, list) else [module]:
        part.set_modules_to_forward_prefetch = lambda *_: None
        part.set_modules_to_backward_prefetch = lambda *_: None
    return module


def shortened(config: Any) -> Any:
    """The training with fewer micro-batches: the tables of a schedule grow with their square."""
    ranks, each = (config.parallelism.pipeline_parallel_degree,
                   config.parallelism.pipeline_parallel_microbatch_size)  # fmt: skip
    count = config.training.local_batch_size // each
    least = min(count, 2 * ranks + count % ranks)
    return dataclasses.replace(config.training, local_batch_size=least * each)


def layers_of(parts: list[list[str]] | None) -> list[int]:
    """Decoder layers per pipeline stage, in forward order."""
    return [sum(name.startswith("layers.") for name in part) for part in parts or ()]


def copied(module: Any) -> Any:
    """A module with parts of its own and the same parameters: splitting takes parts away only."""
    twin = copy.copy(module)
    vars(twin).update(
        _modules={name: copied(part) for name, part in module._modules.items() if part is not None}
        | {name: None for name, part in module._modules.items() if part is None},
        _parameters=dict(module._parameters),
        _buffers=dict(module._buffers),
    )
    return twin


def remembered(make: Any) -> Any:
    """A table of rotary positions is the same for all layers."""
    known: dict[str, Any] = {}

    def once(self: Any) -> Any:
        key = repr(self.config)
        if key not in known:
            known[key] = make(self)
        return known[key].clone()

    return once


def hurry() -> None:
    """Leave out what takes long and decides nothing."""
    for kind in (rope.ComplexRoPE, rope.CosSinRoPE):
        kind._precompute_cache = remembered(kind._precompute_cache)
    fsdp.fully_shard = not_sharded
    pipeline_parallel.copy = SimpleNamespace(deepcopy=copied)
    attention.activate_flash_attention_impl = lambda *_: None  # a package for cards


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values of a configuration by their dotted names."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name == "model_spec":
            continue
        if dataclasses.is_dataclass(value):
            yield f"{prefix}{item.name}", type(value).__qualname__
            yield from settings(value, f"{prefix}{item.name}.")
        elif isinstance(value, str | int | float | bool):
            yield f"{prefix}{item.name}", value.value if isinstance(value, enum.Enum) else value


def table() -> list[dict[str, Any]]:
    """All settings of a run: dotted name, type as declared, default."""
    return list(_rows(Trainer.Config, ""))


def _rows(kind: Any, prefix: str) -> Iterator[dict[str, Any]]:
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        name, hint = f"{prefix}{item.name}", hints[item.name]
        yield {
            "name": name, "type": written(hint), "default": default(item),
            "choices": " ".join(words_of(hint)), "source": kind.__module__,
        }  # fmt: skip
        inner = made(item)
        if inner is not None:
            yield from _rows(inner, f"{name}.")


def made(item: dataclasses.Field[Any]) -> Any:
    """The class of the configuration that a field holds where nothing else is put there."""
    if item.default_factory is dataclasses.MISSING:
        return None
    value = item.default_factory()
    return type(value) if dataclasses.is_dataclass(value) else None


def words_of(hint: Any) -> Iterator[str]:
    """The words a setting may have, where they are listed."""
    if typing.get_origin(hint) is typing.Literal:
        yield from map(str, typing.get_args(hint))
    for part in typing.get_args(hint):
        yield from words_of(part)


def written(hint: Any) -> str:
    """A type as one writes it."""
    if typing.get_origin(hint) is typing.Literal:
        return "str"
    return hint.__qualname__ if type(hint) is type else str(hint).replace("typing.", "")


def default(item: dataclasses.Field[Any]) -> str:
    """A default as JSON, empty where it is made or missing."""
    with contextlib.suppress(TypeError):
        if item.default is not dataclasses.MISSING:
            return json.dumps(item.default)
    return ""


def main() -> None:
    """Answer the jobs, or write the table."""
    if "--flags" in sys.argv:
        print(json.dumps({"version": torchtitan.__version__, "flags": table()}))
        return
    hurry()
    judge = Judge()
    for job in json.load(sys.stdin):
        print(json.dumps(judge.answer(job)), flush=True)


if __name__ == "__main__":
    main()
