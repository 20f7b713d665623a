"""Prices of a spread of layouts, term by term: ``python tests/cost/priced.py`` writes them anew.

They are kept so that a change of the code that was not meant to change a price shows; after a new
calibration, or a mechanism, they are written anew and the difference is read.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

from krzem.api import explain

PRICES = Path(__file__).with_name("prices.json")
DENSE = (
    "tp=1,dp=64", "tp=8,dp=8,zero=1", "tp=2,cp=2,pp=4,dp=4,recompute=full",
    "tp=4,pp=4,vpp=2,dp=4,mbs=2,schedule=interleaved", "dp=64,zero=3,recompute=modules",
    "dp=64,zero=3,shard=8,mbs=2", "pp=4,dp=16,schedule=zb-h1,recompute=attention",
    "tp=2,pp=4,vpp=2,dp=8,schedule=dualpipev", "tp=2,dp=32,sp=0,zero=0",
    "cp=4,dp=16,cpkind=a2a", "cp=4,dp=16,cpkind=allgather,offload=1",
    "pp=8,dp=8,recompute=full,rlayers=1", "pp=4,dp=16,first=5,last=5",
)  # fmt: skip
SPARSE = (
    "ep=8,dp=64", "tp=2,ep=16,dp=32,zero=1", "tp=2,etp=2,ep=8,dp=32,recompute=full",
    "pp=4,dp=16,ep=16,schedule=zb-v,vpp=2", "pp=4,dp=16,ep=8,schedule=dualpipe",
    "pp=4,dp=16,ep=4,vpp=2,schedule=dualpipev,recompute=modules", "ep=8,dp=64,zero=3",
    "cp=2,dp=32,ep=32,mbs=2,recompute=full,rlayers=4",
)  # fmt: skip
ASKED: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    *((m, "h100:64", x, {}) for m, x in product(("llama-3.1-8b", "gemma-3-12b"), DENSE)),
    *((m, "h800:64", x, {}) for m, x in product(("qwen3-30b-a3b", "deepseek-v2"), SPARSE)),
    *(("deepseek-v4-flash", "b200:64", x, {"precision": "fp8-block"}) for x in SPARSE[:6]),
    *(("nemotron-h-8b", on, DENSE[0], {}) for on in ("a100:64", "mi300x:64")),
    *(("llama-3.1-8b", on, x, {}) for on, x in product(
        ("910c:64", "mi250x:64", "tpu-v5p:64", "trainium2:64", "gaudi3:64", "gb200:64",
         "rtx-4090:64"), DENSE[:3])),
    *(("llama-3.1-8b", "h100:64", DENSE[1], {"engine": e}) for e in (
        "torchtitan", "fsdp", "deepspeed", "krzem", "maxtext")),
    *(("llama-3.1-8b", "h100:64", DENSE[0], {"precision": p, "optimizer": o}) for p, o in (
        ("fp8", "adamw"), ("fp32", "adamw"), ("fp16", "adamw"),
        ("bf16", "muon"))),
    ("llama-3.1-8b", "b200:64", DENSE[0], {"precision": "mxfp8"}),
    ("llama-3.1-8b", "b200:64", DENSE[0], {"precision": "nvfp4"}),
    ("llama-3.1-8b", "h100:64", DENSE[0], {"finetune": "lora"}),
    ("llama-3.1-8b", "h100:64", DENSE[0], {"finetune": "qlora"}),
    ("glm-4.5", "h200:64", "pp=8,dp=8,ep=8,schedule=1f1b,recompute=full", {}),
    ("qwen3-next-80b-a3b", "h100:64", "pp=4,dp=16,ep=16,recompute=full", {}),
    ("gpt-oss-120b", "h100:64", "pp=4,dp=16,ep=16,recompute=full", {}),
)  # fmt: skip


def label(model: str, on: str, layout: str, more: dict[str, Any]) -> str:
    """A configuration as one name."""
    return " ".join([model, on, layout, *(f"{k}={v}" for k, v in more.items())])


def price(model: str, on: str, layout: str, more: dict[str, Any]) -> dict[str, float | str]:
    """Seconds by term and GiB by kind, six digits each; or why there is no price."""
    from krzem.errors import KrzemError

    try:
        found = explain(
            model, on=on, layout=layout, batch=256, seq=4096, tokens="1T", date="2026-06-01",
            **more,
        ).as_dict()["layout_plan"]  # fmt: skip
    except KrzemError as error:
        return {"refused": str(error).split(":")[0][:80]}
    terms: dict[str, float | str] = {t["term"]: t["seconds"] for t in found["breakdown"]}
    terms |= {
        f"{rank['rank']} {kind}": value
        for rank in found["ranks"]
        for kind, value in rank.items()
        if kind != "rank"
    }
    terms |= {"step low": found["step_time_s"]["low"], "step high": found["step_time_s"]["high"],
              "fits": found["fits_probability"]}  # fmt: skip
    return {k: float(f"{v:.6g}") for k, v in terms.items() if isinstance(v, float | int)}


if __name__ == "__main__":
    prices = {label(*asked): price(*asked) for asked in ASKED}
    PRICES.write_text(json.dumps(prices, indent=0) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(prices)} prices in {PRICES}\n")
