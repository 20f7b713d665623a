"""Every pair of features in few layouts: a covering array over what the trainer runs on four ranks.

Each factor below is crossed with each other one.  Faults of training under a layout are, with few
exceptions, faults of two features that meet; a pair that no layout can have is left out.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from functools import cache
from typing import Any

from tests.train.configs import DEEPSEEK_V3

from krzem.errors import KrzemError
from krzem.layout.layout import parse_layout
from krzem.train.config import ModelSpec, model_spec
from krzem.train.engine import check_layout
from krzem.train.parallel.pipeline import check_micro_batches
from krzem.train.parallel.stages import parts

RANKS, SEQUENCES = 4, 8
FACTORS: dict[str, tuple[Any, ...]] = {
    "experts": ("one rank", "fewer", "all", "etp"),
    "recompute": ("none", "attention", "modules", "full"),
    "schedule": ("none", "1f1b", "interleaved", "zb-v", "dualpipev"),
    "mtp": (0, 1, 2),
    "zero": (0, 1, 2, 3),
    "cp": ("none", "a2a"),
    "tp": (1, 2),
    "documents": (False, True),
    "precision": ("fp32", "bf16", "fp8-block"),
}
FAMILIES: list[dict[str, Any]] = [
    {"model": "gemma3_text", "layout": "pp=2,tp=2,zero=0,mbs=1,schedule=1f1b"},
    {"model": "olmo3", "layout": "cp=2,cpkind=a2a,tp=2,zero=3,mbs=2,recompute=modules"},
    {"model": "gpt_oss", "layout": "dp=2,cp=2,cpkind=a2a,ep=4,zero=3,mbs=1,recompute=full"},
    {
        "model": "deepseek_v32",
        "layout": "cp=2,cpkind=a2a,tp=2,ep=2,zero=2,mbs=2,recompute=attention",
    },
    {"model": "qwen3_next", "layout": "cp=2,cpkind=a2a,tp=2,zero=2,mbs=2,recompute=attention"},
    {"model": "qwen3_next", "layout": "dp=2,pp=2,ep=2,zero=3,mbs=1,schedule=1f1b"},
    {"model": "glm_moe_dsa", "layout": "cp=2,cpkind=a2a,tp=2,ep=2,zero=3,mbs=2,recompute=full"},
    {"model": "gpt_oss", "layout": "dp=2,tp=2,ep=2,zero=1,mbs=2"},
    {"model": "qwen2_moe", "layout": "dp=2,tp=2,ep=2,etp=2,zero=3,mbs=1"},
    {"model": "apertus", "layout": "dp=2,tp=2,zero=2,mbs=1,recompute=modules"},
    {"model": "glm4_moe", "layout": "dp=2,pp=2,ep=2,zero=2,mbs=1,schedule=1f1b"},
]
"""What families have of their own, cut over ranks."""
Row = dict[str, Any]
Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs_of(row: Row) -> frozenset[Pair]:
    """Every two settings that meet in ``row``; in narrow types those with the type.

    Only float32 tells a wrong sum from a rounded one, so two features count as tried there.
    """
    chosen = [(name, row[name]) for name in FACTORS]
    pairs = frozenset(itertools.combinations(chosen, 2))
    if row["precision"] == "fp32":
        return pairs
    return frozenset(p for p in pairs if p[1][0] == "precision")


def layout_of(row: Row) -> str:
    """The layout that ``row`` means; refused by the trainer where it means none."""
    pp = 1 if row["schedule"] == "none" else 2
    cp, tp = 2 if row["cp"] == "a2a" else 1, row["tp"]
    dp = RANKS // (pp * cp * tp)
    each = RANKS // pp
    ep, etp = {
        "one rank": (1, 1), "fewer": (each // 2, 1), "all": (each, 1), "etp": (each // 2, 2),
    }[row["experts"]]  # fmt: skip
    parts_ = [f"dp={dp},pp={pp},tp={tp},ep={ep},etp={etp},zero={row['zero']},mbs=1"]
    if pp > 1:
        parts_.append(f"schedule={row['schedule']}")
        parts_ += ["vpp=2"] if row["schedule"] == "interleaved" else []
    parts_ += ["cp=2,cpkind=a2a"] if cp > 1 else []
    return ",".join([*parts_, f"recompute={row['recompute']}"])


@cache
def _spec(mtp: int) -> ModelSpec:
    return model_spec({**DEEPSEEK_V3, "num_nextn_predict_layers": mtp})


def is_run(row: Row) -> bool:
    """Whether the trainer runs it."""
    try:
        spec = _spec(row["mtp"])
        layout = parse_layout(layout_of(row))
        if layout.devices != RANKS or (row["experts"] == "fewer" and layout.ep == 1):
            return False
        check_layout(spec, layout)
        parts(len(spec.layers), layout)
        check_micro_batches(layout, SEQUENCES // layout.dp, "the batch")
    except KrzemError:
        return False
    return True


@cache
def legal() -> tuple[Row, ...]:
    """Every combination that the trainer runs.  Layouts are judged once for all precisions."""
    free = {"documents", "precision"}
    fixed = [n for n in FACTORS if n not in free]
    combinations = itertools.product(*(FACTORS[n] for n in fixed))
    return _with_precisions(dict(zip(fixed, values, strict=True)) for values in combinations)


def drawn(layouts: int, seed: int) -> tuple[Row, ...]:
    """``layouts`` combinations drawn at random, under every precision."""
    draw, seen = random.Random(seed), set()
    while len(seen) < layouts:
        row = {n: draw.choice(FACTORS[n]) for n in FACTORS if n not in ("documents", "precision")}
        if is_run(row):
            seen.add(tuple(row.items()))
    return _with_precisions(dict(row) for row in sorted(seen, key=str))


def _with_precisions(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(
        {**row, "documents": d, "precision": p}
        for row in rows
        if is_run(row)
        for d, p in itertools.product(FACTORS["documents"], FACTORS["precision"])
    )


def covering(rows: tuple[Row, ...], seed: int = 0) -> list[Row]:
    """Few of ``rows`` in which every pair that occurs in them occurs, the richest first."""
    candidates = list(rows)
    random.Random(seed).shuffle(candidates)
    having = [(row, pairs_of(row)) for row in candidates]
    left = set().union(*(pairs for _, pairs in having))
    chosen = []
    while left:
        row, pairs = max(having, key=lambda item: len(item[1] & left))
        chosen.append(row)
        left -= pairs
    return chosen


def cases(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """What the worker trains."""
    return [
        {
            "model": "deepseek_v3",
            "layout": layout_of(row),
            "mtp": row["mtp"],
            "documents": row["documents"],
            "precision": row["precision"],
        }
        for row in rows
    ]


def faults(case: dict[str, Any], result: dict[str, Any]) -> str:
    """How far ``result`` is from one process beyond what its arithmetic explains, or nothing.

    float32 within rounding; bfloat16 rounds to 2^-9, float8 to 2^-4 in blocks that a layout cuts
    elsewhere.  Two steps at rate 1e-3 move a parameter by 2e-3 at most.
    """
    loss, norm, parameter = {
        "fp32": (1.01e-6, 2e-6, 1e-5), "bf16": (2e-2, 2e-2, 4e-3), "fp8-block": (5e-2, 0.1, 4e-3),
    }[case["precision"]]  # fmt: skip
    apart = [
        f"{name} {result[name]:.2g} > {limit:g}"
        for name, limit in (("loss", loss), ("norm", norm), ("parameter", parameter))
        if not result[name] <= limit
    ]
    return f"{case}: {', '.join(apart)} (in {result['worst']})" if apart else ""


def table(cases: list[dict[str, Any]], results: list[dict[str, Any]]) -> str:
    """A row for each case: how far losses, gradient norm and parameters are from one process."""
    lines = [
        "| model | layout | MTP | documents | arithmetic | loss | gradient norm | parameter |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, result in zip(cases, results, strict=True):
        told = (
            case["model"],
            f"`{case['layout']}`",
            case.get("mtp", "–"),
            "yes" if case["documents"] else "no",
            case["precision"],
            *(f"{result[k]:.0e}" for k in ("loss", "norm", "parameter")),
        )
        lines.append(f"| {' | '.join(map(str, told))} |")
    return "\n".join(lines) + "\n"
