"""What the verbs share: their options, each with its unit; answers printed, files, progress."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from krzem.errors import InputError, UnknownNameError, shorten
from krzem.files import check_target

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

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


Document = dict[str, Any]


def check_files(*paths: str | None) -> None:
    """Refuse, before anything is computed, a file that cannot be written where it is wanted."""
    for path in paths:
        if path is not None:
            check_target(path)


def check_engine(engine: str | None, target: str | None, scheduler: str = "none") -> None:
    """Refuse an engine that nothing can be emitted for; raises UnknownNameError, InputError."""
    if engine is None:
        for option, given in (("--emit-to FILE", target), ("--scheduler NAME", scheduler)):
            if given not in (None, "none"):
                raise InputError(f"{option} needs --emit ENGINE, such as --emit megatron-lm")
        return
    from krzem.plan.emit import ENGINES, SCHEDULERS

    if scheduler not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        raise UnknownNameError("scheduler", scheduler, SCHEDULERS, f"Known: {known}.")

    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES, f"Known: {', '.join(ENGINES)}.")


def show(document: Document, text: str, as_json: bool) -> None:
    """The document or its text on standard output."""
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        click.echo(text, nl=False)


def write_page(document: Document, path: str | None) -> None:
    """The document as a page; nothing where no ``path`` is given."""
    if path is None:
        return
    from krzem.report.html import write_html

    write_html(document, Path(path))
    click.echo(f"wrote {path}", err=True)


def write_script(script: str, path: str) -> None:
    """A launch script, a config or a trace, all or nothing; raises StorageError."""
    from krzem.train.durable import write_atomic

    write_atomic(Path(path), script.encode())
    click.echo(f"wrote {path}", err=True)


PATIENCE = 2.0
"""Seconds without a word."""


class _Line:
    """Counts layouts; shows itself once ``PATIENCE`` is over."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self.shown: tuple[Progress, TaskID] | None = None

    def __call__(self, evaluated: int) -> None:
        """``evaluated`` layouts are priced."""
        if self.shown is None and time.monotonic() - self.started >= PATIENCE:
            self.shown = self._show()
        if self.shown is not None:
            progress, task = self.shown
            progress.update(task, completed=evaluated)

    def _show(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TextColumn("{task.completed:,.0f} layouts priced"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        progress.start()
        return progress, progress.add_task(self.title, total=None)

    def stop(self) -> None:
        """Take the line away."""
        if self.shown is not None:
            self.shown[0].stop()


@contextmanager
def search_progress(title: str, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """What a search calls with the layouts priced so far; None where nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    line = _Line(title)
    try:
        yield line
    finally:
        line.stop()


class Amount(click.FloatRange):
    """``click.FloatRange`` that also refuses ``nan`` and ``inf``, which compare as within it."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number; a usage error that shows the range where it is outside."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number
