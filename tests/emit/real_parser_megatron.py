"""Megatron-LM's own parser, checks and model, run inside its environment.

Reads a JSON list of jobs on standard input and writes one JSON answer a line, in order. A job has
``args`` (the arguments of ``pretrain_gpt.py``), ``world`` (ranks), ``capability`` (the card's) and
``environment``. An answer has ``values`` (arguments as they are after the engine's checks),
``layers`` (decoder layers per chunk and pipeline rank, as the engine spreads them) and
``parameters``, or ``error`` and ``step`` (parse, check, configure, spread or build). With
``--flags`` it writes the table of all arguments instead.

The model is the whole one: built by the engine's builder with every degree of parallelism set to
one, on the meta device.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import stand_ins

warnings.simplefilter("ignore")
logging.disable()
stand_ins.install({
    "transformer_engine": "2.16.0", "transformer_engine_torch": "2.16.0", "triton": "3.7.0",
    "fused_weight_gradient_mlp_cuda": "1",
    "deep_ep": "1.2.0",
})  # fmt: skip

import argparse  # noqa: E402

import torch  # noqa: E402
from megatron.core import __version__, parallel_state  # noqa: E402
from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402
from megatron.core.tensor_parallel.random import (  # noqa: E402
    model_parallel_cuda_manual_seed,
)
from megatron.core.transformer.enums import LayerType  # noqa: E402
from megatron.core.transformer.transformer_block import get_num_layers_to_build  # noqa: E402
from megatron.training import argument_utils, arguments  # noqa: E402
from megatron.training.models.gpt import GPTModelBuilder  # noqa: E402

DEGREES = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size",
    "expert_model_parallel_size", "expert_tensor_parallel_size",
)  # fmt: skip

SHAPE = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups",
    "kv_channels", "normalization", "add_bias_linear", "add_qkv_bias", "qk_layernorm",
    "gated_linear_unit", "num_moe_experts", "moe_ffn_hidden_size", "moe_layer_freq",
    "moe_shared_expert_intermediate_size", "moe_shared_expert_gate", "multi_latent_attention",
    "q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim",
    "mtp_num_layers", "softmax_type", "experimental_attention_variant", "dsa_indexer_n_heads",
    "dsa_indexer_head_dim", "vocab_size", "share_embeddings_and_output_weights",
    "position_embedding_type", "seq_length",
)  # fmt: skip
"""What the parameters of a model follow from."""
SHORT = 5
"""Layers of a shortened model: dense ones, experts and a window are among them."""


class RefusedError(Exception):
    """What the argument parser says before it leaves."""


def _refuse(_: argparse.ArgumentParser, message: str) -> None:
    raise RefusedError(message)


@contextlib.contextmanager
def told(job: dict[str, Any]) -> Iterator[None]:
    """The command line, environment and card of one job."""
    before, argv = dict(os.environ), sys.argv
    os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
    os.environ |= {"RANK": "0", "WORLD_SIZE": str(job["world"]), **job.get("environment", {})}
    sys.argv = ["pretrain_gpt.py", *job["args"]]
    stand_ins.Device.pretend(tuple(job["capability"]))
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ |= before


class Judge:
    """The engine's steps, one after the other; ``step`` names the one that is running."""

    def __init__(self) -> None:
        self.step = "parse"
        self.counts: dict[str, int] = {}
        """Parameters by everything that shapes the model: layouts of one model build it once."""

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """What the engine makes of one job."""
        try:
            with told(job), contextlib.redirect_stdout(io.StringIO()):
                return self._judged()
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            if os.environ.get("TRACE"):
                import traceback

                traceback.print_exc()
            return {"error": f"{type(error).__name__}: {text}", "step": self.step}

    def _judged(self) -> dict[str, Any]:
        self.step = "parse"
        args = arguments.parse_args()
        given = {k: v for k, v in vars(args).items() if isinstance(v, str | int | float | bool)}
        self.step = "check"
        arguments.validate_args(args, {"tokenizer_type": "GPT2BPETokenizer"})
        self.step = "configure"
        config = argument_utils.gpt_config_from_args(args)
        argument_utils.pretrain_cfg_container_from_args(args, config)
        self.step = "spread"
        layers = self._spread(config.transformer)
        values = {k: v for k, v in vars(args).items() if isinstance(v, str | int | float | bool)}
        values["virtual_pipeline_model_parallel_size"] = args.virtual_pipeline_model_parallel_size
        self.step = "build"
        return {
            "values": given | values,
            "layers": layers,
            "vocabulary": padded(config),
            "parameters": self._parameters(config),
        }

    @staticmethod
    def _spread(transformer: Any) -> list[list[int]]:
        """Decoder layers per chunk and rank, shape (chunks, ranks)."""
        written = transformer.pipeline_model_parallel_layout
        chunks = transformer.virtual_pipeline_model_parallel_size

        def held(rank: int, chunk: int) -> int:
            if written is not None:
                return sum(kind is LayerType.decoder for kind in written.layout[rank][chunk])
            stage = None if chunks is None else chunk
            return int(get_num_layers_to_build(transformer, vp_stage=stage, pp_rank=rank))

        ranks = range(transformer.pipeline_model_parallel_size)
        return [[held(rank, chunk) for rank in ranks] for chunk in range(chunks or 1)]

    def _parameters(self, config: Any) -> int:
        """Parameters of the whole model, the padding of its vocabulary included.

        A shape is built whole once; a further layout of it only builds its first layers.
        """
        one = whole(config)
        key = repr([getattr(one, name, None) for name in SHAPE])
        if key in self.counts:
            built(shortened(one))
        else:
            self.counts[key] = sum(p.numel() for p in built(one).parameters())
        return self.counts[key]


def padded(config: Any) -> int:
    """Rows of the embedding."""
    from megatron.training.vocab_utils import calculate_padded_vocab_size

    size: int = config.vocab_size
    if config.should_pad_vocab:
        size = calculate_padded_vocab_size(
            size, config.make_vocab_size_divisible_by,
            config.transformer.tensor_model_parallel_size, logging_enabled=False,
        )  # fmt: skip
    return size


def whole(config: Any) -> Any:
    """The model uncut: every degree one, everything that only speeds it up set back."""
    config.vocab_size, config.should_pad_vocab = padded(config), False
    transformer = config.transformer
    for name in DEGREES:
        setattr(transformer, name, 1)
    transformer.virtual_pipeline_model_parallel_size = None
    transformer.pipeline_model_parallel_layout = None
    transformer.sequence_parallel = False
    transformer.account_for_embedding_in_pipeline_split = False
    transformer.account_for_loss_in_pipeline_split = False
    transformer.perform_initialization = False
    if transformer.moe_token_dispatcher_type == "flex":  # it wants more than one rank
        transformer.moe_token_dispatcher_type = "alltoall"
    return config


def shortened(config: Any) -> Any:
    """The model with its first layers alone."""
    transformer = config.transformer
    transformer.num_layers = min(transformer.num_layers, SHORT)
    for name in ("moe_layer_freq", "window_attn_skip_freq"):
        pattern = getattr(transformer, name)
        if isinstance(pattern, list):
            setattr(transformer, name, pattern[: transformer.num_layers])
    return config


def built(config: Any) -> torch.nn.Module:
    """The model on the meta device."""
    groups = ProcessGroupCollection.use_mpu_process_groups()
    with torch.device("meta"), stand_ins.OnMeta():
        model: torch.nn.Module = GPTModelBuilder(config).build_model(
            groups, pre_process=True, post_process=True
        )
    return model


def remember_docstrings() -> None:
    """The parser reads them out of the source, for every command line again."""
    factory = argument_utils.ArgumentGroupFactory
    read, known = factory._get_field_docstrings, {}

    def remembered(self: Any, source: type) -> Any:
        if source not in known:
            known[source] = read(self, source)
        return known[source]

    factory._get_field_docstrings = remembered


def start() -> None:
    """One process that is its own world."""
    remember_docstrings()
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    with contextlib.suppress(Exception):
        model_parallel_cuda_manual_seed(1)


def table() -> list[dict[str, str]]:
    """All arguments: name, type, default, choices, and the group that declares it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    arguments.add_megatron_arguments(parser)
    rows = []
    for group in parser._action_groups:
        for action in group._group_actions:
            for name in action.option_strings:
                if name.startswith("--") and name != "--help":
                    rows.append({
                        "name": name, "type": kind_of(action), "default": plain(action.default),
                        "choices": " ".join(map(spelled, action.choices or ())),
                        "source": group.title or "",
                    })  # fmt: skip
    return rows


def kind_of(action: argparse.Action) -> str:
    """What follows an argument: nothing, a word of some type, or several."""
    if action.nargs == 0:
        return "switch"
    kind = getattr(action.type, "__name__", "str")
    return f"list[{kind}]" if action.nargs in ("*", "+") else kind


def spelled(value: Any) -> str:
    """A choice as it is written."""
    return str(getattr(value, "name", value))


def plain(value: Any) -> str:
    """A default as JSON, empty where there is none to write."""
    with contextlib.suppress(TypeError):
        return "" if value is argparse.SUPPRESS else json.dumps(value)
    return json.dumps(spelled(value))


def main() -> None:
    """Answer the jobs, or write the table."""
    argparse.ArgumentParser.error = _refuse  # type: ignore[assignment]
    if "--flags" in sys.argv:
        print(json.dumps({"version": __version__, "flags": table()}))
        return
    start()
    judge = Judge()
    for job in json.load(sys.stdin):
        print(json.dumps(judge.answer(job)), flush=True)


if __name__ == "__main__":
    main()
