"""``krzem proposal``: what a call for computing time asks for, computed from a plan.

The scaling table is planned anew at each number of nodes, with the plan's own cluster, goal and
engine; a table of own measurements (nodes, step time) corrects it and narrows its interval.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from krzem.errors import DataError, InputError, shorten
from krzem.hardware.catalogue import find_id
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import cluster_of
from krzem.model.catalogue import load_model
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.quantity import parse_date, parse_ratio
from krzem.rules import standing
from krzem.supply.machines import Machine, calls, job_limits, machines, template
from krzem.supply.machines import machine as find_machine
from krzem.supply.scaling import corrected, correction, node_counts, read_measured, strong, weak
from krzem.supply.scaling import table as scaling_table
from krzem.supply.speed import Progress, Speed

SCHEMA = "krzem.proposal/1"
LARGEST_FILE = 20_000_000
HOURS_A_YEAR = 8_760.0
MILESTONES = (0.05, 0.25, 0.5, 0.75, 1.0)
"""Shares of the tokens at which the run is looked at."""
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
    job_hours: float | None = None,
    country: str | None = None,
    parent: str | None = None,
    progress: Progress | None = None,
) -> Document:
    """The document of an application, schema ``krzem.proposal/1``.

    Granted time is judged by ``krzem rules`` as time on chips of others, in the machine's country
    (or in ``country``), for applicants whose seat is ``parent``, on the first day of the run.

    Raises:
        DataError: the plan or the measurements cannot be read.
        InputError: numbers of nodes that cannot be planned.
        Others as the planner.
    """
    asks = template(call)
    place = None if machine is None else find_machine(machine)
    question, notes = _question(plan, model, place)
    asked = settle(question)
    cluster = asked.task.cluster
    place = place or _alike(cluster)
    _granted(call, asks, place)
    share = parse_ratio(evaluation) if evaluation.strip() not in ("0", "0%") else 0.0
    counts = node_counts(nodes, cluster)
    rows = strong(question, asked, counts, progress)
    own = [] if measured is None else read_measured(measured)
    fit = correction(own, rows, question, asked)
    main = rows[cluster.nodes]
    wanted = _resources(main, asked, fit, share)
    growing = weak(question, asked, rows, progress)
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
        "cluster": _described(cluster),
        "goal": dict(plan["goal"]),
        "machine": place.id if place else None,
        "share": _share(place, cluster.nodes, wanted, asks),
        "layout": main.layout,
        "engine": main.engine,
        "software_date": str(plan["engine"]["software_date"]),
        "scaling": scaling_table(rows, fit),
        "weak_scaling": [
            row | {"global_batch": growing[row["nodes"]][0]}
            for row in scaling_table({n: s for n, (_, s) in growing.items()}, fit, measured=False)
        ],
        "correction": fit,
        "memory": plan["best"]["ranks"] if main.layout == plan["best"]["layout_text"] else [],
        "resources": wanted,
        "jobs": _jobs(place, cluster.nodes, wanted, main, job_hours),
        "bands": _bands(place, wanted, asks["kinds"]),
        "storage": _storage(main, asked, copies),
        "milestones": _milestones(asked, wanted),
        "rules": _rules(
            cluster, country or (place.country if place else None), parent, question.start
        ),
        "cost_usd": plan["whole_run"].get("cost_usd"),
        "energy_mwh": plan["whole_run"].get("energy_mwh"),
        "written": dt.date.today().isoformat(),
        "notes": [*notes, *main.notes],
    }


def _question(
    plan: Mapping[str, Any], model: str | None, place: Machine | None
) -> tuple[Question, list[str]]:
    """The question that the plan answers, on the machine's own nodes, and what that changes.

    Raises DataError where a part is missing, InputError where the plan is for other hardware.
    """
    try:
        goal, engine = plan["goal"], plan["engine"]
        states = ",".join(f"{k}={v:g}" for k, v in goal["state_bytes"].items())
        given = _cluster(plan)
        notes: list[str] = []
        if place is not None:
            given, notes = _moved(given, place, str(plan["model"]["name"]))
        question = Question(
            model=load_model(model or _model(plan)),
            on=cluster_of(given, "the plan's cluster"),
            tokens=int(goal["tokens"]),
            sequence=int(goal["sequence"]),
            global_batch=int(goal["global_batch"]),
            precision=str(goal["precision"]),
            optimizer=str(goal["optimizer"]),
            state_bytes=states,
            engine=str(engine["name"]),
            schedules=",".join(engine["schedules"]),
            date=str(engine.get("date", engine["software_date"])),
            start=goal.get("start"),
            sure=float(goal["sure"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the plan lacks or garbles a part ({shorten(str(error), 60)}): write it again with"
            " krzem plan ... --json"
        ) from None
    return question, notes


def _moved(
    given: Mapping[str, Any], place: Machine, model: str
) -> tuple[dict[str, Any], list[str]]:
    """The plan's devices as nodes of the machine; raises InputError for another accelerator."""
    there, devices = find_id(str(place.cluster["device"])), int(given["devices"])
    if find_id(str(given["device"])) != there:
        raise InputError(
            f"--machine {place.id}: the plan is for {given['device']}, and {place.name} has"
            f" {there}: plan on it first, krzem plan {model} --on {place.id}:{devices} ... --json"
        )
    if devices > place.devices:
        raise InputError(
            f"--machine {place.id}: the plan takes {devices:,} devices, and {place.name} has"
            f" {place.nodes:,} nodes of {place.devices_per_node} = {place.devices:,}: plan on fewer"
        )
    nodes = max(math.ceil(devices / place.devices_per_node), 1)
    stated = {key: given[key] for key, _ in _GIVEN.values() if key in given}
    own = dict(place.cluster) | stated | {"name": place.name, "nodes": nodes}
    was = cluster_of(dict(given), "the plan's cluster")
    now = cluster_of(own, place.name)
    notes = []
    if (was.devices_per_node, was.memory_bytes) != (now.devices_per_node, now.memory_bytes):
        notes.append(
            f"the plan is for {devices:,} x {given['device']} in nodes of {was.devices_per_node}"
            f" with {was.memory_bytes / 2**30:.0f} GiB each; here it is planned again on"
            f" {nodes:,} nodes of {place.name} ({now.devices_per_node} a node,"
            f" {now.memory_bytes / 2**30:.0f} GiB each), and all node-hours are of these"
        )
    return own, notes


def _granted(call: str, asks: Mapping[str, Any], place: Machine | None) -> None:
    """Refuse a machine that the call does not grant."""
    names = asks["machines"]
    if place is None or not names or place.id in names:
        return
    raise InputError(
        f"--for {call} grants time on {', '.join(names)}, and the plan is for {place.id}:"
        f" plan on one of these (krzem plan ... --on {names[0]}:64 nodes --json), or choose another"
        " call"
    )


def _rules(
    cluster: Cluster, country: str | None, parent: str | None, start: Any
) -> Document | None:
    """The verdict on the machine's chip; None where no country is known."""
    if country is None:
        return None
    on = dt.date.today() if start is None else parse_date(start)
    return asdict(standing(cluster.device.id, on, country, parent, rents=True))


def _described(cluster: Cluster) -> Document:
    return {
        "name": cluster.name,
        "device": cluster.device.id,
        "device_name": cluster.device.name,
        "device_is": cluster.device.device_is,
        "devices": cluster.devices,
        "nodes": cluster.nodes,
        "devices_per_node": cluster.devices_per_node,
        "memory_gib": cluster.memory_bytes / 2**30,
    }


def _share(
    place: Machine | None, nodes: int, wanted: Mapping[str, Any], asks: Mapping[str, Any]
) -> Document | None:
    """Of the machine's nodes and of its year, against the call's floors."""
    if place is None:
        return None
    of_year = wanted["node_hours_total"]["mid"] / (place.nodes * HOURS_A_YEAR)
    return {
        "nodes": nodes,
        "machine_nodes": place.nodes,
        "of_nodes": nodes / place.nodes,
        "floor_of_nodes": asks.get("share"),
        "of_year": of_year,
        "floor_of_year": asks.get("annual"),
        "cap": asks.get("cap"),
    }


def _jobs(
    place: Machine | None, nodes: int, wanted: Mapping[str, Any], speed: Speed, given: float | None
) -> Document:
    """How many jobs of the queue's longest duration make the run."""
    limits = job_limits(place.id if place else None)
    hours = given or limits.get("job_hours")
    days = wanted["days"]
    return {
        "hours": hours,
        "source": "--job-hours" if given else limits.get("source"),
        "count": {k: math.ceil(v * 24.0 / hours) for k, v in days.items()} if hours else None,
        "nodes": nodes,
        "most_nodes": limits.get("nodes"),
        "checkpoint_bytes": speed.checkpoint_bytes,
    }


def _milestones(asked: Asked, wanted: Mapping[str, Any]) -> list[Document]:
    """What is reached when, in tokens, steps, node-hours and days."""
    goal = asked.task.goal
    return [
        {
            "share": share,
            "tokens": goal.tokens * share,
            "steps": round(goal.tokens * share / goal.tokens_per_step),
            "node_hours": {k: v * share for k, v in wanted["node_hours_training"].items()},
            "days": {k: v * share for k, v in wanted["days"].items()},
        }
        for share in MILESTONES
    ]


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


def _alike(cluster: Cluster) -> Machine | None:
    """The public machine that the cluster is: same name, or the only one of such nodes."""
    known = machines().values()
    named = [m for m in known if m.name == cluster.name]
    alike = [m for m in known if m.cluster["device"] == cluster.device.id
             and m.devices_per_node == cluster.devices_per_node]  # fmt: skip
    return named[0] if named else alike[0] if len(alike) == 1 else None


def _bands(
    place: Machine | None, resources: Mapping[str, Any], kinds: Sequence[str]
) -> list[Document]:
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
        if place is not None and c.machine == place.id and (not kinds or c.call in kinds)
    ]
