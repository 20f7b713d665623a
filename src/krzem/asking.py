"""What may be said of a run from Python: the keywords of plan, explain and compare."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, TypeVar, get_type_hints

from krzem.plan.goal import SURE
from krzem.quantity import Written


class Asking(TypedDict, total=False):
    """What may be said of a run beside model and cluster; what is left out is the recipe's.

    The names are those of the command line.  :data:`KEYWORDS` says what each means.
    """

    tokens: Written | None
    seq: Written | None
    batch: Written | None
    batch_tokens: Written | None
    precision: str | None
    optimizer: str | None
    state_bytes: str | None
    finetune: str | None
    lora_rank: Written | None
    lora_targets: str | None
    deadline: str | None
    budget: Written | None
    grid: str | None
    start: str | None
    engine: str | None
    with_: str | None
    without: str | None
    date: str | None
    calibration: str | Path | None


class Searching(Asking, total=False):
    """What may be said of a search too."""

    layout: str | None
    schedules: str | None
    sure: float
    offload: bool


KEYWORDS = {
    "tokens": "tokens of the run (14.8e12, '14.8T')",
    "seq": "tokens per sequence; '4k' is 4,096",
    "batch": "sequences per optimizer step",
    "batch_tokens": "the same in tokens",
    "precision": "bf16, fp16, fp8, fp8-block, mxfp8, nvfp4 or fp32",
    "optimizer": "adamw or muon",
    "state_bytes": "bytes per parameter: 'weight=2,gradient=4,master=4,moments=8'",
    "finetune": "full, lora or qlora; None: pre-training",
    "lora_rank": "rank of the adapters (16)",
    "lora_targets": "'all', 'attention', 'mlp', names such as 'q_proj,v_proj'; 'embeddings': ends",
    "deadline": "a duration ('60d') or a date",
    "budget": "US dollars (5e6, '$5M')",
    "grid": "whose electricity: 'fr', or grams of CO2 per kWh ('56')",
    "start": "first day of the run, ISO 8601",
    "engine": "training engine to price; None: the usual one of the device",
    "with_": "switches stated on ('deepep,cuda-graphs=full'); the others are chosen",
    "without": "switches stated off",
    "date": "age of the software stack, ISO 8601; None: today",
    "calibration": "a file of local factors, as `krzem check --calibrate` writes it",
    "layout": "what a search keeps to: 'tp<=8,cp=1,pp=4..16'",
    "schedules": "pipeline schedules, separated by commas, or 'all'; None: what the engine runs",
    "sure": "minimum chance of fitting in memory for a layout to be recommended (0.9)",
    "offload": "also try optimizer states in host memory",
}
"""Keywords of :func:`plan`, :func:`explain` and :func:`compare`, as on the command line."""


FIELDS = {
    "seq": "sequence", "batch": "global_batch", "with_": "switched", "without": "switched_off",
    "layout": "limits",
}  # fmt: skip
"""Keywords whose field of a Question has another name."""


F = TypeVar("F", bound=Callable[..., Any])


def spelled_out(asking: type) -> Callable[[F], F]:
    """Every keyword of ``asking`` in the signature and the docstring, for ``help()``."""
    names = tuple(get_type_hints(asking))

    def spell(function: F) -> F:
        shown = inspect.signature(function)
        kept = [p for p in shown.parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY,
                default={"sure": SURE, "offload": False}.get(name),
            )
            for name in names
        ]  # fmt: skip
        function.__signature__ = shown.replace(parameters=[*kept, *more])  # type: ignore[attr-defined]
        lines = "\n".join(f"    {name}: {KEYWORDS[name]}." for name in names)
        function.__doc__ = (
            f"{inspect.getdoc(function)}\n\nKeywords, as on the command line:\n{lines}\n"
        )
        return function

    return spell
