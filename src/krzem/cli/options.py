"""The options that plan, compare and explain share, each with its unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from krzem.errors import InputError, shorten

F = TypeVar("F", bound=Callable[..., Any])

_RECIPE = "Default: the model's published recipe"

TOKENS = (
    click.option(
        "--tokens", metavar="N", help=f"Tokens of the run: 14.8T, 300B; 1k is 1,000. {_RECIPE}."
    ),
)  # fmt: skip

STEP = (
    click.option(
        "--seq", "sequence", metavar="N", help=f"Tokens per sequence; 4k is 4,096. {_RECIPE}."
    ),
    click.option(
        "--batch", "--global-batch", "global_batch", metavar="N",
        help=f"Global batch in sequences per step; 2k is 2,000. {_RECIPE}.",
    ),
    click.option(
        "--batch-tokens", metavar="N",
        help="The global batch in tokens instead: 16M is 16,000,000.",
    ),
    click.option(
        "--precision", metavar="TYPE",
        help="Arithmetic of matrix products: bf16, fp16, fp8 (tensor-wise), fp8-block"
        f" (DeepSeek's), mxfp8, nvfp4, fp32. {_RECIPE}, or 16 bits where the device lacks it.",
    ),
    click.option(
        "--optimizer", metavar="NAME", help=f"adamw or muon. {_RECIPE}, else adamw."
    ),
    click.option(
        "--state-bytes", metavar="K=B,...",
        help="Bytes per parameter of weight, gradient, master, moments (all moments together):"
        " moments=4. Default: the recipe over weight=2,gradient=4,master=4,moments=8.",
    ),
)  # fmt: skip

TUNING = (
    click.option(
        "--finetune", metavar="KIND",
        help="Tune weights that exist instead of pre-training: full (all weights), lora (adapters"
        " beside 16-bit weights) or qlora (beside 4-bit ones).",
    ),
    click.option("--lora-rank", metavar="R", help="Rank of the adapters. Default: 16."),
    click.option(
        "--lora-targets", metavar="LIST",
        help="Matrices with adapters: all, attention, mlp, or q_proj,v_proj,...;"
        " embeddings: both ends are trained whole. Default: all.",
    ),
)  # fmt: skip

ELECTRICITY = (
    click.option(
        "--grid", metavar="WHERE",
        help="Whose electricity, for CO2: a country (fr, us, cn), world, or grams per kWh."
        " Default: that of a public machine.",
    ),
)  # fmt: skip

LIMITS = (
    click.option(
        "--deadline", metavar="WHEN", help="Days (60d) or a date; reports the chance of meeting it."
    ),
    click.option(
        "--budget", metavar="USD", help="US dollars ($5M); reports the chance of staying within it."
    ),
    click.option("--start", metavar="DATE", help="First day of the run; gives finishing dates."),
)  # fmt: skip

GOAL = (*TOKENS, *STEP, *TUNING, *LIMITS, *ELECTRICITY)
"""All that may be said of a run."""

ENGINE = (
    click.option(
        "--engine", metavar="NAME",
        help="Training engine: megatron-lm, megatron-bridge, torchtitan, fsdp, deepspeed,"
        " mindspeed-llm, primus, maxtext, deepseek, krzem, ... Default: the one that --emit"
        " writes for, or the usual one of the device.",
    ),
    click.option(
        "--with", "switched", metavar="LIST",
        help="Switches that the engine is set to: deepep, overlap-a2a, cuda-graphs=full."
        " What is not stated is chosen, as far as the engine's version and the layout allow it.",
    ),
    click.option(
        "--without", "switched_off", metavar="LIST", help="Switches that are off: overlap-tp."
    ),
    click.option(
        "--date", metavar="DATE",
        help="Age of the software stack: 2024-12, at most half a year ahead. Default: today.",
    ),
)  # fmt: skip

SEARCH = (
    click.option(
        "--layout", "limits", metavar="LIMITS",
        help="Hold the search to layouts: tp<=8,cp=1,zero=1|3,pp=4..16,recompute=full.",
    ),
    click.option(
        "--schedules", metavar="LIST",
        help="Pipeline schedules to search: 1f1b, interleaved, zb-h1, zb-v, dualpipe, dualpipev,"
        " or all. Default: those that the engine can run.",
    ),
    click.option(
        "--sure", type=float, default=0.9, show_default=True, metavar="P",
        help="Minimum chance of fitting in memory for a layout to be recommended.",
    ),
    click.option(
        "--offload", is_flag=True, help="Also try layouts with optimizer states in host memory."
    ),
    click.option(
        "--top", type=click.IntRange(1, 100), default=5, show_default=True, metavar="N",
        help="Other layouts to show, one of each parallel shape.",
    ),
)  # fmt: skip

SWEEP = (
    click.option(
        "--sweep", metavar="NAME=LOW..HIGH",
        help="The best plan over a range: devices=64..4096 (doubling), batch=512..2048..512,"
        " seq, tokens, scale-up, scale-out (GB/s), price; a table, with --html a figure.",
    ),
)  # fmt: skip

SEVERAL = (
    click.option(
        "--phase", "phases", multiple=True, metavar="K=V,...",
        help="A run in phases, once for each: tokens=14T,seq=4k,batch-tokens=16M then"
        " tokens=800B,seq=32k; batch=512..2048 grows. What a phase leaves out is as the other"
        " options say. FILE.toml: the [[phase]] tables of a list or of a run file.",
    ),
    click.option(
        "--fewest", is_flag=True,
        help="The fewest whole nodes, up to those in --on, that meet --deadline.",
    ),
    click.option(
        "--chance", type=float, default=0.8, show_default=True, metavar="P",
        help="Minimum chance of meeting the deadline, for --fewest.",
    ),
)  # fmt: skip

EMIT = (
    click.option(
        "--emit", "emit_engine", metavar="ENGINE",
        help="Print launch files: megatron-lm, megatron-bridge, mindspeed-llm, torchtitan, primus,"
        " maxtext, mindformers, deepspeed, fsdp, krzem.",
    ),
    click.option("--emit-to", metavar="FILE", help="Write them to FILE instead."),
    click.option(
        "--scheduler", metavar="NAME", default="none", show_default=True,
        help="A batch file around them: slurm, pbs or none; [launch] of the cluster file says"
        " account, partition, time, modules, container and setup.",
    ),
)  # fmt: skip

CALIBRATION = (
    click.option(
        "--calibration", metavar="FILE",
        help="Local factors of the cluster, as `krzem check --calibrate` writes them.",
    ),
)  # fmt: skip

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/json.md).")
QUIET = click.option("--quiet", is_flag=True, help="Only the answer in one sentence, no progress.")
OUTPUT = (
    JSON,
    click.option("--html", metavar="FILE", help="Also write a page that needs no network."),
    QUIET,
)

MODEL = click.argument("model", metavar="MODEL")


def _one(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> str:
    """The one cluster; raises InputError where there are several."""
    if len(given) > 1:
        raise InputError(
            f"--on is given {len(given)} times ({', '.join(shorten(one, 30) for one in given)}) and"
            " one cluster is planned for: keep one, or set them side by side with krzem compare"
        )
    return given[0]


ON = click.option(
    "--on", required=True, multiple=True, metavar="CLUSTER", callback=_one,
    help="DEVICE:COUNT (nvidia-h800-sxm:2048, h100:2k is 2,048, '910c:512 cards'), a public machine"
    " (leonardo:64, 'leonardo:64 nodes') or a TOML file; h100:512@2.1 at $2.1 a device-hour.",
)  # fmt: skip
ON_SEVERAL = click.option(
    "--on", required=True, multiple=True, metavar="CLUSTER",
    help="DEVICE:COUNT (h800:2048), a public machine or a TOML file; once for each cluster;"
    " h100:512@2.1 at $2.1 a device-hour.",
)  # fmt: skip


def options(*groups: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    """All options of ``groups`` in order."""

    def decorate(function: F) -> F:
        for group in reversed(groups):
            for option in reversed(group):
                function = option(function)
        return function

    return decorate
