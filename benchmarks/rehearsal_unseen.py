"""Layouts that benchmarks/rehearsal.py does not hold, on models cut short: planned, rehearsed.

    python benchmarks/rehearsal_unseen.py [TEXT]     rehearse what rehearsal_unseen.json lacks
    python benchmarks/rehearsal_unseen.py --plan     what was rehearsed beside the plan of today

Some three processor minutes for all.  TEXT is a part of "model layout".
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rehearsal import pricer_of

from krzem.cost.memory import RankBytes
from krzem.cost.trainer_memory import trainer_ranks
from krzem.layout.layout import pack, parse_layout
from krzem.model.catalogue import load_model_config
from krzem.train.config import ModelSpec, model_spec

FOUND = Path(__file__).with_suffix(".json")
OFF = 0.03
"""From here on a line is marked."""


@dataclass(frozen=True)
class Case:
    model: str
    layers: int
    layout: str
    batch: int
    sequence: int = 4096
    changes: dict[str, Any] = field(default_factory=dict)
    documents: bool = False

    @property
    def name(self) -> str:
        """As rows are called."""
        said = "".join(f" {key}={value}" for key, value in self.changes.items())
        return f"{self.model} {self.layers} layers{said} {self.layout}"

    @property
    def stages(self) -> dict[str, int]:
        """Pipeline ranks that the planner tells apart."""
        pp = parse_layout(self.layout).pp
        return {"first": 0, "middle": 1, "last": pp - 1} if pp > 2 else {"first": 0, "last": pp - 1}

    def spec(self) -> ModelSpec:
        """The model, cut short."""
        given, name = load_model_config(self.model)
        config = {**given, "num_hidden_layers": self.layers, **self.changes}
        for key in ("layer_types", "mlp_layer_types"):
            if isinstance(words := config.get(key), list):
                config[key] = words[: self.layers]
        return model_spec(config, name=name)


def _mtp(modules: int) -> dict[str, Any]:
    return {"num_nextn_predict_layers": modules, "first_k_dense_replace": 1}


_A2A = "cp=2,cpkind=a2a"
CASES = [
    Case("glm-4.5-air", 9, "pp=4,vpp=2,schedule=interleaved,dp=8,ep=4,zero=1", 64),
    Case("glm-4.5-air", 8, "tp=2,pp=2,dp=4,ep=2,etp=2,zero=1,recompute=modules", 32),
    Case("mixtral-8x7b", 8, "pp=4,vpp=2,schedule=zb-v,dp=4,ep=4,zero=1", 32),
    Case("mixtral-8x7b", 4, "dp=8,ep=4,zero=3,recompute=attention", 16),
    Case("mixtral-8x7b", 8, "tp=2,pp=2,dp=4,ep=4,zero=1,recompute=modules", 32),
    Case("gemma-3-4b", 8, "dp=8,zero=2,recompute=full", 32),
    Case("gemma-3-12b", 12, "tp=2,pp=3,dp=4,zero=1", 32),
    Case("olmo-3-7b", 8, "dp=8,zero=1,recompute=modules", 32),
    Case("olmo-3-7b", 8, "pp=4,vpp=2,schedule=dualpipev,dp=4,zero=1", 64),
    Case("deepseek-v2", 8, "pp=4,vpp=2,schedule=zb-v,dp=8,ep=8,zero=1", 64),
    Case("deepseek-v2", 6, f"tp=2,{_A2A},pp=2,dp=4,ep=4,zero=1,recompute=attention", 32),
    Case("qwen3-next-80b-a3b", 8, "pp=2,dp=8,ep=4,zero=1,recompute=full", 32),
    Case("qwen3-next-80b-a3b", 4, f"{_A2A},tp=2,dp=4,ep=4,zero=1", 8),
    Case("llama-3.1-8b", 16, "pp=4,vpp=2,schedule=interleaved,dp=4,zero=1", 24),
    Case("llama-3.1-8b", 16, "pp=4,vpp=4,schedule=interleaved,dp=4,zero=1", 80),
    Case("deepseek-v3", 8, "pp=4,vpp=2,schedule=zb-v,dp=8,ep=8,zero=1", 64, changes=_mtp(2)),
    Case("deepseek-v3", 8, "pp=4,vpp=2,schedule=dualpipev,dp=8,ep=4,zero=1", 64, changes=_mtp(0)),
    Case("deepseek-v3", 4, "dp=16,ep=8,zero=3,recompute=full", 32, changes=_mtp(2)),
    Case("llama-3.1-8b", 8, f"{_A2A},dp=4,zero=1,recompute=attention", 8, 16384, documents=True),
    Case("qwen3-8b", 8, "tp=4,dp=4,zero=1", 8),
    Case("qwen3-30b-a3b", 8, "dp=16,ep=4,zero=3,shard=4,recompute=modules", 32),
    Case("llama-3.1-8b", 16, "pp=4,dp=4,zero=3", 32),
    Case("llama-3.1-8b", 16, "pp=4,dp=4,zero=1,recompute=full,rlayers=2", 32),
    Case("qwen3-1.7b", 28, "tp=4,dp=16,zero=1,recompute=full", 32),
    Case("gpt-oss-20b", 8, "pp=2,dp=4,ep=4,zero=1", 32),
    Case("qwen3-30b-a3b", 8, "tp=2,pp=2,dp=8,ep=4,etp=2,zero=1,recompute=modules", 32),
]


def planned(case: Case) -> tuple[dict[str, float], bool]:
    """The planner's bytes by place, and whether it counts this model tensor by tensor."""
    layout = parse_layout(case.layout)
    pricer = pricer_of(case.spec().arch, f"h800:{layout.devices}", case.sequence, case.batch)
    x = pack([layout])
    if not pricer.counted:
        memory = pricer.memory(x)
        ranks: dict[str, RankBytes] = {place: getattr(memory, place) for place in case.stages}
    else:
        sizes = pricer.sizes(pricer.choose(x).settings[0])
        rank = trainer_ranks(pricer.task.architecture, pricer.table, x, case.batch, sizes)
        ranks = {place: rank(np.array([stage])) for place, stage in case.stages.items()}
    return {place: float(np.ravel(one.total)[0]) for place, one in ranks.items()}, pricer.counted


def rehearsed(case: Case, stage: int) -> dict[str, Any]:
    """One rank of the step, in this process."""
    from krzem.train.optim import OptimizerConfig
    from krzem.train.rehearsal.rank import Step
    from krzem.train.rehearsal.stages import stage_rank, summary_of

    layout = parse_layout(case.layout)
    step = Step(
        spec=case.spec(),
        layout=layout,
        sequence=case.sequence,
        micro_batches=case.batch // (layout.dp * layout.micro_batch),
        optimizer=OptimizerConfig(),
        documents=case.documents,
    )
    found = summary_of(step, stage_rank(layout, stage))
    at = f"{found.at.what} {found.at.chunk}.{found.at.micro_batch}"
    return {"peak": dict(found.peak.bytes), "at": at, "seconds": round(found.seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", default="")
    parser.add_argument("--plan", action="store_true")
    asked = parser.parse_args()
    known = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
    for case in (case for case in CASES if asked.only in case.name):
        plan, counted = planned(case)
        for place, stage in case.stages.items():
            places = known.setdefault(case.name, {})
            if place not in places and not asked.plan:
                places[place] = rehearsed(case, stage)
                FOUND.write_text(json.dumps(known, indent=1), encoding="utf-8")
            if place in places:
                a, b = sum(places[place]["peak"].values()), plan[place]
                mark = "***" if abs(b / a - 1) > OFF else ""
                kind = "" if counted else " (general formulas)"
                print(
                    f"{mark:3} {b / a - 1:+6.1%}  {a / 2**30:7.2f} {b / 2**30:7.2f} GiB  "
                    f"{case.name} {place}, {places[place]['at']}{kind}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
