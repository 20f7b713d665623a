"""One small example of every kind of page, from documents made here in a few seconds."""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from tests.supply.fleet_cases import made_goal, made_pool, made_slots, made_speed

from krzem.estimate import Estimate
from krzem.layout.layout import parse_layout
from krzem.layout.space import Space
from krzem.plan.plan import explain, plan
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.report.document import explain_document, plan_document
from krzem.report.html import render

ROOT = Path(__file__).parents[2]
MACHINE = {"device": "NVIDIA H800", "torch": "2.9.0", "backend": "cuda"}


@cache
def planned() -> dict[str, Any]:
    """A plan with a deadline."""
    asked = settle(Question(model="llama-2-7b", on="a100:16", tokens="2T", sequence="4k",
                            global_batch=1024, precision="bf16", start="2026-01-01",
                            deadline="400d"))  # fmt: skip
    found = plan(asked.task, space=Space(domain=8), start=asked.start)
    document: dict[str, Any] = json.loads(json.dumps(plan_document(found, asked)))
    return document


def plan_page() -> str:
    launch = {"engine": "megatron-core", "script": "torchrun pretrain_gpt.py \\\n" + "  --x 1" * 60}
    return render(planned() | {"launch": launch})


def explain_page() -> str:
    asked = settle(Question(model="llama-2-7b", on="a100:16", tokens="2T", sequence="4k",
                            global_batch=1024, precision="bf16"))  # fmt: skip
    layout = parse_layout("tp=2,pp=4,dp=2,mbs=1,zero=1")
    return render(json.loads(json.dumps(explain_document(explain(asked.task, layout), asked))))


def compare_page() -> str:
    one = planned()
    other = copy.deepcopy(one)
    other["cluster"]["device_name"] = "Another Card"
    return render(
        {
            "schema": "krzem.compare/1",
            "model": one["model"],
            "plans": [
                {"cluster": "a100:16", "plan": one, "error": None},
                {"cluster": "other:16", "plan": other, "error": None},
                {"cluster": "tiny:1", "plan": None, "error": "it does not fit 1 x tiny"},
            ],
            "best": dict.fromkeys(("days", "device_hours", "energy_mwh", "cost_usd", "mfu"), 0),
            "makes_deadline": [True, False, None],
            "makes_budget": [None, None, None],
        }
    )


def sweep_page() -> str:
    points = [{"value": float(n), "plan": planned(), "error": None} for n in (16, 32, 256)]
    points.append({"value": 512.0, "plan": None, "error": "the batch does not divide"})
    head = {"schema": "krzem.sweep/1", "sweep": "devices", "label": "devices", "unit": "devices"}
    return render(head | {"points": points})


def check_page() -> str:
    from krzem.jobs.answer import Asking, answer
    from krzem.report.document_check import check_document

    folder = ROOT / "docs" / "examples" / "check"
    asking = Asking(files=(folder / "pretrain.sh",), logs=(folder / "train.log",), on="h100:64",
                    model=None, engine=None, given=(), calibration=None, calibrate=None,
                    most=2)  # fmt: skip
    return render(check_document(answer(asking)))


def rules_page() -> str:
    return _rules(["nvidia-h20-sxm-96", "nvidia-h100-sxm", "nvidia-a100-sxm-80", "amd-mi308x"])


def one_chip_page() -> str:
    return _rules(["nvidia-h20-sxm-96"])


def _rules(chips: list[str]) -> str:
    from krzem.rules import alternatives, load_rules, verdict
    from krzem.rules.page import rules_page as page

    rules = load_rules()
    verdicts = [verdict(chip, dt.date(2026, 6, 1), "CN", rules=rules) for chip in chips]
    return page([(v, alternatives(v, rules)) for v in verdicts], rules)


def outlook_page() -> str:
    from krzem.outlook.assumptions import shipped
    from krzem.outlook.page import outlook_page as page
    from krzem.outlook.whole import outlook

    few = shipped().with_run(
        paths=400, lever_paths=200, fan_paths=400, chunk_paths=400, horizon_years=3.0
    )
    return page(outlook(few, lever_years=2.0))


def fleet_page() -> str:
    return _fleet(days=150)


def infeasible_fleet_page() -> str:
    return _fleet(days=20)


def _fleet(days: int) -> str:
    from krzem.supply.document import fleet_document
    from krzem.supply.fleet import solve
    from krzem.supply.page import fleet_page as page

    goal = made_goal([made_pool("slow and cheap", 1.0), made_pool("fast", 3.0)], days=days)
    return page(fleet_document(solve(goal, made_slots(made_speed(120), made_speed(60)))))


def proposal_page() -> str:
    from krzem.supply.page import proposal_page as page
    from krzem.supply.proposal import proposal

    return page(proposal(planned(), "eurohpc", nodes="4"))


def run_page() -> str:
    from krzem.run.page import report_page

    pools = [
        {"name": name, "tokens": 4_000, "steps": 40, "lost_steps": 3, "attempts": 1, "faults": 1,
         "step_seconds": 12.5, "tokens_per_s": 900.0, "planned_tokens_per_s": planned_rate}
        for name, planned_rate in (("h800", 1000.0), ("910c", None))
    ]  # fmt: skip
    signal = {"kind": "loss", "batch": 0, "error": 1e-6, "tolerance": 1e-5, "floor": 1e-7}
    layers = [{"layer": "layers.0", "forward": 0.2, "backward": 0.4}]
    evidence = {"page": "/runs/a/parity.html", "whole_model": [signal], "layers": layers}
    curve = [(n, 9.0 / math.sqrt(n), 900.0 + n, 1 + n // 40) for n in range(1, 80)]
    status = {
        "name": "two pools", "unknown": ["what the lost ledger held"], "state": "after",
        "proof": "moves proved bit by bit", "reason": None, "tokens": 8_000, "goal_tokens": 8_000,
        "step": 80, "goodput": 0.93, "samples_exact": True, "sample_gaps": [],
        "limits": [{"kept": True, "message": "done 2 days before the deadline"}], "bad_lines": 0,
        "bad_quotes": [], "pools": pools, "curve": curve, "folder": "/runs/a",
        "interruptions": [{"attempt": 1, "pool": "h800", "next_pool": "910c", "cause": "fault",
                           "detail": "rank 3 was lost", "lost_steps": 3, "lost_seconds": 1.2,
                           "recovery_seconds": 30.0}],
        "gates": [{"gate": "loss", "pool": "h800", "action": "move", "message": "the loss jumped",
                   "evidence": [1, 2]}],
        "witness": [{"subject": "910c", "choice": "pass", "reason": "all agree",
                     "evidence": evidence}],
        "decisions": [{"at": 1.0, "subject": "pool", "choice": "h800", "reason": "the first"}],
    }  # fmt: skip
    return report_page(status, {1: "h800", 2: "910c"})


def train_page() -> str:
    from krzem.train.forecast import Forecast
    from krzem.train.page import run_page as page
    from krzem.train.summary import Event, Summary

    curve = tuple((n, 9.0 / math.sqrt(n)) for n in range(1, 50))
    names = ("loss", "tokens_per_s", "grad_norm", "rate", "peak_load")
    summary = Summary(
        step=49, tokens=49_000, first_loss=9.0, loss=1.3, held_out=((20, 2.1), (49, 1.4)),
        seconds=49.0, step_seconds=1.0, tokens_per_s=1000.0, mfu=0.4, memory_bytes=2**33,
        curves=dict.fromkeys(names, curve),
        events=(Event(step=3, kind="checkpoint", message="written"),),
    )  # fmt: skip
    forecast = Forecast(
        layout=parse_layout("tp=1,pp=1,dp=2,mbs=1"), step_seconds=Estimate(0.8, 1.1, 1.4),
        tokens_per_step=1000, memory_bytes=Estimate(7e9, 8e9, 9e9), capacity_bytes=8e10,
        peak_flops=1e15, basis="2 × H100, from its data sheet",
    )  # fmt: skip
    return page("small", 49_000, {"model": "llama", "devices": "2"}, forecast, summary)


def rehearsal_page() -> str:
    from krzem.train.rehearsal.page import rehearsal_page as page

    kinds = ("weights", "gradients", "states", "activations", "transient")
    peak = {kind: (n + 1) * 2**30 for n, kind in enumerate(kinds)}
    timeline = [{"operator": n} | {k: v * min(n, 20) // 20 for k, v in peak.items()}
                for n in range(40)]  # fmt: skip
    rank = {
        "stage": 0, "rank": 0, "layers": [0, 1], "peak_bytes": sum(peak.values()), "peak": peak,
        "timeline": timeline,
        "largest": [{"bytes": 2**30, "kind": "weights", "count": 2, "shape": [4096, 4096],
                     "operator": "aten.mm"}],
        "collectives": [{"operation": "all-reduce", "group": "dp", "ranks": 8, "count": 2,
                         "bytes": 2**30}],
    }  # fmt: skip
    return page(
        {"model": "llama", "layout": "tp=1,pp=2,dp=8,mbs=1", "ranks_in_all": 16, "sequence": 4096,
         "micro_batches": 4, "precision": "bf16", "optimizer": "adamw", "ranks": [rank],
         "peak_bytes": rank["peak_bytes"], "capacity_bytes": 80 * 2**30,
         "faults": [{"kind": "order", "said": "rank 1 waits for rank 0"}]}
    )  # fmt: skip


def witness_page() -> str:
    from krzem.witness.page import verdict_page
    from krzem.witness.quantity import Kind, Quantity
    from krzem.witness.verdict import Departure, Finding, Verdict

    findings = [
        Finding(quantity=Quantity(kind=kind, name=f"layers.{n}.mlp", batch=0), signal="rms",
                error=1e-6 * 10**n, floor=1e-7, tolerance=1e-5)
        for n in range(3) for kind in (Kind.ACTIVATION, Kind.GRADIENT)
    ]  # fmt: skip
    worst = findings[-1]
    findings.append(Finding(quantity=Quantity(kind=Kind.LOSS, name="", batch=0), signal="value",
                            error=1e-7, floor=1e-8, tolerance=1e-6))  # fmt: skip
    first = Departure(direction="forward", layer="layers.2", name="layers.2.mlp", finding=worst,
                      hint="another activation function")  # fmt: skip
    return verdict_page(
        Verdict(model="llama", findings=tuple(findings), first=first, notes=("one note",),
                not_compared=("moments",), source=MACHINE, destination=MACHINE,
                settings=("eager", "compiled"))
    )  # fmt: skip


def certificate_page() -> str:
    from krzem.witness.page import certificate_page as page

    return page(
        {"model": "llama", "passed": True, "message": "llama computes the same here",
         "checkpoint": {"name": "step-7", "step": 7, "files": 3, "files_sha256": "ab" * 32},
         "source": MACHINE, "destination": MACHINE, "floor_settings": ["eager"],
         "created": "2026-06-01T00:00:00Z", "sha256": "cd" * 32, "previous": None,
         "evidence": [{"kind": "bit-exact", "equal": 4, "tensors": {"weight": 4}, "unequal": []},
                      {"kind": "numeric", "arithmetic": "float32", "signals": 9, "depart": 0,
                       "worst_error_over_tolerance": 0.1}],
         "not_compared": ["the data loader"]}
    )  # fmt: skip


def accuracy_page() -> str:
    from krzem.accuracy.evaluate import evaluate
    from krzem.facts.table import read_table
    from krzem.report.html_accuracy import accuracy_page as made

    unreadable = {"id": "none", "source": "somebody", "accelerator": "?"}
    return made(evaluate([*list(read_table("runs.csv"))[:60], unreadable]))


PAGES = {
    "plan": plan_page, "explain": explain_page, "compare": compare_page, "sweep": sweep_page,
    "check": check_page, "rules": rules_page, "one chip": one_chip_page,
    "outlook": outlook_page, "fleet": fleet_page, "infeasible fleet": infeasible_fleet_page,
    "proposal": proposal_page, "run": run_page, "train": train_page,
    "rehearsal": rehearsal_page, "witness": witness_page, "certificate": certificate_page,
    "accuracy": accuracy_page,
}  # fmt: skip
"""How each page is made, by its name."""
