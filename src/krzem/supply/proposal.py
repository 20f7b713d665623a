"""``krzem proposal``: what a call for computing time asks for, computed from a plan.

The scaling table is planned anew at each number of nodes, with the plan's own cluster, goal and
engine; a table of own measurements (nodes, step time) corrects it and narrows its interval.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from krzem.errors import ClusterError, DataError, GoalError, InputError, UnknownNameError, shorten
from krzem.estimate import Estimate
from krzem.hardware.catalogue import find_id
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import cluster_of
from krzem.model.catalogue import load_model
from krzem.plan.request import Asked, Question, settle
from krzem.quantity import parse_devices, parse_ratio
from krzem.supply.machines import Machine, calls, machines
from krzem.supply.machines import machine as find_machine
from krzem.supply.speed import Progress, Speed, speed_of

SCHEMA = "krzem.proposal/1"
FILE = "proposals.toml"
LARGEST_FILE = 20_000_000
MOST_ROWS = 12
PER_DOUBLING = 0.03
"""Log standard deviation added for each doubling beyond what was measured."""
LEAST_SPREAD = 0.05
"""Of a prediction that measurements correct: what repeated runs of one job differ by."""
Document = dict[str, Any]

_GIVEN: Mapping[str, tuple[str, Callable[[float], Any]]] = {
    "failures per device day": ("device_days_between_interruptions", lambda v: round(1 / v)),
    "restart seconds": ("restart_time", lambda v: f"{v} s"),
    "checkpoint write bytes per s": ("storage_bandwidth", lambda v: f"{v / 1e9} GB/s"),
    "checkpoint bytes per s": ("storage_bandwidth", lambda v: f"{v / 1e9} GB/s"),
    "pue": ("pue", lambda v: v),
    "system power ratio": ("system_power_ratio", lambda v: v),
}
"""What a plan's facts call a quantity that its user gave: key of a cluster file, how written."""


@cache
def templates() -> Mapping[str, Mapping[str, Any]]:
    """What each call asks for, with sources."""
    text = resources.files("krzem.facts").joinpath(FILE).read_text(encoding="utf-8")
    return tomllib.loads(text)


def template(call: str) -> Mapping[str, Any]:
    """One call; raises UnknownNameError."""
    if call not in templates():
        raise UnknownNameError("call", call, templates(), f"Known: {', '.join(templates())}.")
    return templates()[call]


def read_plan(path: str | Path) -> Document:
    """A plan that ``krzem plan --json`` wrote; raises DataError."""
    file = Path(path)
    name = shorten(str(file), 120)
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_FILE:
            raise DataError(
                f"{name} is not a plan: write one with krzem plan ... --json > plan.json"
            )
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{name} is not JSON: write it with krzem plan ... --json") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != "krzem.plan/1":
        raise DataError(
            f"{name} holds {shorten(str(schema), 40)!r} and not krzem.plan/1: write it with"
            " krzem plan ... --json > plan.json"
        )
    return dict(document)


def proposal(
    plan: Mapping[str, Any],
    call: str,
    *,
    model: str | None = None,
    nodes: str | None = None,
    measured: Path | None = None,
    evaluation: str = "5%",
    copies: int = 3,
    machine: str | None = None,
    progress: Progress | None = None,
) -> Document:
    """The document of an application, schema ``krzem.proposal/1``.

    Raises:
        DataError: the plan or the measurements cannot be read.
        InputError: numbers of nodes that cannot be planned.
        Others as the planner.
    """
    asks = template(call)
    question = _question(plan, model)
    asked = settle(question)
    share = parse_ratio(evaluation) if evaluation.strip() not in ("0", "0%") else 0.0
    counts = _nodes(nodes, asked.task.cluster)
    rows = _rows(question, asked, counts, progress)
    own = [] if measured is None else read_measured(measured)
    fit = _correction(own, rows, question, asked)
    main = rows[asked.task.cluster.nodes]
    place = _machine(asked.task.cluster) if machine is None else _asked(machine, asked).id
    wanted = _resources(main, asked, fit, share)
    return {
        "schema": SCHEMA,
        "call": call,
        "title": asks["title"],
        "unit": asks["unit"],
        "asks": list(asks["asks"]),
        "sources": list(asks["sources"]),
        "date": asks["date"],
        "sections": list(asks["sections"]),
        "yours": list(asks["yours"]),
        "model": dict(plan["model"]),
        "cluster": dict(plan["cluster"]),
        "goal": dict(plan["goal"]),
        "machine": place,
        "layout": main.layout,
        "engine": main.engine,
        "scaling": _scaling(rows, fit),
        "correction": fit,
        "memory": plan["best"]["ranks"],
        "resources": wanted,
        "bands": _bands(place, wanted),
        "storage": _storage(main, asked, copies),
        "cost_usd": plan["whole_run"].get("cost_usd"),
        "energy_mwh": plan["whole_run"].get("energy_mwh"),
        "written": dt.date.today().isoformat(),
        "notes": list(main.notes),
    }


def _question(plan: Mapping[str, Any], model: str | None) -> Question:
    """The question that the plan answers; raises DataError where a part is missing."""
    try:
        goal, engine = plan["goal"], plan["engine"]
        states = ",".join(f"{k}={v:g}" for k, v in goal["state_bytes"].items())
        cluster = cluster_of(_cluster(plan), "the plan's cluster")
        return Question(
            model=load_model(model or _model(plan)),
            on=cluster,
            tokens=int(goal["tokens"]),
            sequence=int(goal["sequence"]),
            global_batch=int(goal["global_batch"]),
            precision=str(goal["precision"]),
            optimizer=str(goal["optimizer"]),
            state_bytes=states,
            engine=str(engine["name"]),
            schedules=",".join(engine["schedules"]),
            date=str(engine["software_date"]),
            start=goal.get("start"),
            sure=float(goal["sure"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the plan lacks or garbles a part ({shorten(str(error), 60)}): write it again with"
            " krzem plan ... --json"
        ) from None


def _model(plan: Mapping[str, Any]) -> str:
    name, source = str(plan["model"]["name"]), str(plan["model"].get("source", ""))
    return source if source.endswith(".json") and Path(source).is_file() else name


def _cluster(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan's cluster as keys of a cluster file; what its user stated comes from the facts."""
    c = plan["cluster"]
    given = {
        "device": c["device"],
        "name": str(c["name"]),
        "devices": int(c["devices"]),
        "devices_per_node": int(c["devices_per_node"]),
        "memory": f"{c['memory_gib']} GiB",
        "memory_bandwidth": f"{c['memory_gb_per_s']} GB/s",
        "scale_up_domain": int(c["scale_up_domain"]),
        "scale_up_bandwidth": f"{c['scale_up_gb_per_s']} GB/s",
        "scale_out_bandwidth": f"{c['scale_out_gb_per_s']} GB/s",
        "oversubscription": float(c["oversubscription"]),
    }
    for fact in plan["facts"]:
        if fact["confidence"] == "given" and fact["what"] in _GIVEN and fact["value"]:
            key, write = _GIVEN[fact["what"]]
            given[key] = write(fact["value"])
    return given


def _nodes(text: str | None, cluster: Cluster) -> list[int]:
    """Numbers of nodes of the table, the plan's own among them."""
    here = cluster.nodes
    if text is None:
        found = {here // 4, here // 2, here, here * 2} - {0}
    else:
        found = {parse_devices(part.strip()) for part in text.split(",") if part.strip()} | {here}
    if len(found) > MOST_ROWS:
        raise InputError(f"--nodes: at most {MOST_ROWS} numbers of nodes make a table")
    return sorted(found)


def _rows(
    question: Question, asked: Asked, counts: Sequence[int], progress: Progress | None
) -> dict[int, Speed]:
    """The speed at each number of nodes where the run fits; the plan's own must."""
    own = asked.task.cluster.nodes
    rows: dict[int, Speed] = {}
    for nodes in counts:
        if progress is not None:
            progress(f"{nodes:,} nodes")
        try:
            rows[nodes] = _speed(question, asked, nodes)
        except (ClusterError, GoalError):
            if nodes == own:
                raise
    return rows


def _speed(question: Question, asked: Asked, nodes: int) -> Speed:
    cluster = asked.task.cluster
    devices = cluster.devices if nodes == cluster.nodes else nodes * cluster.devices_per_node
    resized = replace(cluster, devices=devices)
    return speed_of(settle(replace(question, on=resized)))


def read_measured(path: Path) -> list[tuple[int, float]]:
    """Nodes and seconds per step of own runs, from a CSV; raises DataError."""
    name = shorten(str(path), 120)
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        found = [(int(row["nodes"]), float(row["step_time_s"])) for row in rows]
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{name}: a CSV with the columns nodes and step_time_s is needed, numbers in each row"
        ) from None
    if not found or any(n < 1 or not 0 < s < 1e6 for n, s in found):
        raise DataError(f"{name}: at least one row with nodes >= 1 and step_time_s > 0 is needed")
    return found


def _correction(
    own: Sequence[tuple[int, float]], rows: Mapping[int, Speed], question: Question, asked: Asked
) -> Document | None:
    """Measured over predicted step time: the mean ratio, its spread, the largest size measured."""
    if not own:
        return None
    logs = []
    for nodes, seconds in own:
        predicted = rows[nodes] if nodes in rows else _speed(question, asked, nodes)
        logs.append(math.log(seconds / predicted.step_seconds.mid))
        reached = predicted.mfu.mid * predicted.step_seconds.mid / seconds
        if reached > 1:
            raise InputError(
                f"--measured: {seconds:g} s a step on {nodes:,} nodes would be {reached:.0%} of the"
                f" dense peak ({predicted.mfu.mid:.1%} x {predicted.step_seconds.mid:.3g} s /"
                f" {seconds:g} s): the batch, the model or the nodes are others than the plan's"
            )
    mean = sum(logs) / len(logs)
    spread = math.sqrt(sum((v - mean) ** 2 for v in logs) / max(len(logs) - 1, 1))
    return {
        "ratio": math.exp(mean),
        "log_spread": max(spread, LEAST_SPREAD),
        "measured": [{"nodes": n, "step_time_s": s} for n, s in own],
        "largest_nodes": max(n for n, _ in own),
    }


def corrected(estimate: Estimate, nodes: int, fit: Mapping[str, Any] | None) -> Estimate:
    """A predicted time at ``nodes``, brought to what was measured where something was."""
    if fit is None:
        return estimate
    beyond = max(math.log2(nodes / fit["largest_nodes"]), 0.0)
    sigma = math.hypot(fit["log_spread"], PER_DOUBLING * beyond)
    return Estimate.lognormal(estimate.mid * fit["ratio"], sigma, estimate.basis)


def _scaling(rows: Mapping[int, Speed], fit: Mapping[str, Any] | None) -> list[Document]:
    """One entry per number of nodes; efficiency against the smallest."""
    found: list[Document] = []
    for nodes, speed in rows.items():
        step = corrected(speed.step_seconds, nodes, fit)
        factor = speed.step_seconds.mid / step.mid
        per_s = step.inverse(speed.tokens_per_s.mid * speed.step_seconds.mid)
        first = found[0]["tokens_per_s"]["mid"] / found[0]["nodes"] if found else None
        mine = per_s.mid / nodes
        found.append(
            {
                "nodes": nodes,
                "devices": speed.devices,
                "step_time_s": step.as_dict(),
                "tokens_per_s": per_s.as_dict(),
                "efficiency": mine / first if first else 1.0,
                "mfu": speed.mfu.mid * factor,
                "memory_gib": speed.memory_bytes.scaled(2.0**-30).as_dict(),
                "layout": speed.layout,
            }
        )
    return found


def _resources(
    speed: Speed, asked: Asked, fit: Mapping[str, Any] | None, evaluation: float
) -> Document:
    """Node-hours: steps alone, with checkpoints and restarts, with evaluation."""
    nodes = asked.task.cluster.nodes
    hours = corrected(speed.days, nodes, fit).scaled(24.0 * nodes)
    tokens = asked.task.goal.tokens
    seconds = corrected(speed.step_seconds, nodes, fit).mid * tokens
    steps = seconds / asked.task.goal.tokens_per_step / 3600.0 * nodes
    return {
        "nodes": nodes,
        "node_hours_steps": steps,
        "node_hours_restarts": hours.mid - steps,
        "node_hours_training": hours.as_dict(),
        "evaluation_share": evaluation,
        "node_hours_evaluation": hours.mid * evaluation,
        "node_hours_total": hours.scaled(1.0 + evaluation).as_dict(),
        "days": hours.scaled(1 / 24.0 / nodes).as_dict(),
        "goodput": None if speed.goodput is None else speed.goodput.as_dict(),
    }


def _storage(speed: Speed, asked: Asked, copies: int) -> Document:
    """Bytes of checkpoints and of the tokens."""
    tokens = asked.task.goal.tokens
    width = 2 if asked.task.architecture.vocab <= 2**16 else 4
    return {
        "checkpoint_bytes": speed.checkpoint_bytes,
        "copies": copies,
        "checkpoints_bytes": speed.checkpoint_bytes * copies,
        "bytes_per_token": width,
        "data_bytes": tokens * width,
        "total_bytes": speed.checkpoint_bytes * copies + tokens * width,
    }


def _asked(name: str, asked: Asked) -> Machine:
    """The machine applied for; raises InputError where the plan is for another accelerator."""
    found, cluster = find_machine(name), asked.task.cluster
    there = find_id(str(found.cluster["device"]))
    if cluster.device.id != there:
        raise InputError(
            f"--machine {found.id}: the plan is for {cluster.device.id}, and {found.name} has"
            f" {there}: plan on it first, krzem plan {asked.task.architecture.name} --on"
            f" {found.id}:{cluster.devices} ... --json"
        )
    return found


def _machine(cluster: Cluster) -> str | None:
    """The public machine that the cluster looks like: same name, or same accelerator and node."""
    for known in machines().values():
        if known.name == cluster.name:
            return known.id
    alike = [
        m.id
        for m in machines().values()
        if m.cluster["device"] == cluster.device.id
        and m.devices_per_node == cluster.devices_per_node
    ]
    return alike[0] if len(alike) == 1 else None


def _bands(machine: str | None, resources: Mapping[str, Any]) -> list[Document]:
    """The calls of that machine and whether the request lies in their band."""
    total = resources["node_hours_total"]["mid"]
    return [
        {
            "call": c.call,
            "least": c.least,
            "most": c.limit,
            "fits": (c.least or 0) <= total <= (c.limit or 0),
            "source": f"{c.source}, {c.date}",
        }
        for c in calls()
        if c.machine == machine
    ]
