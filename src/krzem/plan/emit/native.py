"""The plan as the TOML that krzem's own tools read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields

from krzem.engine.legal import layout_judge
from krzem.engine.setup import Setup
from krzem.engine.values import problem_values
from krzem.layout.rules import Problem
from krzem.plan.emit.launch import Flag, Launch, Request, Section, section
from krzem.plan.emit.switches import MEANS

SCHEMA = "plan file, schema 1"
TODAY = 9999.0
"""The trainer that this krzem comes with."""


def launch(request: Request) -> Launch:
    """Tables ``model``, ``layout``, ``goal`` and ``cluster``; a note where the trainer refuses."""
    return Launch(
        engine="krzem",
        version=SCHEMA,
        notes=_notes(request),
        sections=(
            section("model", _model(request)),
            section("layout", _layout(request)),
            section("goal", _goal(request)),
            Section(title="cluster", flags=_cluster(request)),
            Section(title="switches", flags=tuple(_switches(request))),
        ),
    )


def _notes(request: Request) -> tuple[str, ...]:
    """What krzem's own trainer does not run of a layout; a plan file may hold any."""
    setup = Setup(engine="krzem", year=TODAY, precision=request.goal.precision)
    problem = Problem(
        architecture=request.arch,
        devices=request.cluster.devices,
        sequence=request.goal.sequence,
        global_batch=request.goal.global_batch,
    )
    device = request.cluster.device
    values = {**problem_values(problem), "family": device.family, "stack": device.software,
              "nodes": request.cluster.nodes, "node": request.cluster.devices_per_node,
              "domain": request.cluster.scale_up_domain}  # fmt: skip
    reasons = layout_judge(setup, values, problem).reasons(request.layout)
    again = "plan with --engine krzem, which searches what it runs"
    return tuple(f"krzem train does not run this: {reason}; {again}" for reason in reasons)


def _model(request: Request) -> Iterator[Flag]:
    arch = request.arch
    yield Flag("name", json.dumps(arch.name), "built-in name, or the folder of its config.json")
    yield Flag("source", json.dumps(arch.source), "where its config comes from")


def _layout(request: Request) -> Iterator[Flag]:
    layout = request.layout
    yield Flag("text", json.dumps(str(layout)), "the layout as the --layout option reads it")
    yield Flag("devices", str(layout.devices), "tp * cp * pp * dp")


def _goal(request: Request) -> Iterator[Flag]:
    goal = request.goal
    yield Flag("tokens", repr(float(goal.tokens)), "tokens of the whole run")
    yield Flag("sequence", str(goal.sequence), "tokens per sequence")
    yield Flag("global_batch", str(goal.global_batch), "sequences per optimizer step")
    yield Flag("precision", json.dumps(goal.precision.value), "arithmetic of matrix products")
    yield Flag("optimizer", json.dumps(goal.optimizer.value), "optimizer")
    states = ", ".join(f"{f.name} = {getattr(goal.states, f.name)!r}" for f in fields(goal.states))
    yield Flag("states", f"{{ {states} }}", "bytes per parameter that training keeps")
    if goal.deadline_days is not None:
        yield Flag("deadline_days", repr(goal.deadline_days), "days from the first step")
    if goal.budget_usd is not None:
        yield Flag("budget_usd", repr(goal.budget_usd), "money for device-hours")


def _switches(request: Request) -> Iterator[Flag]:
    for name, choice in request.switches.items():
        yield Flag(name, json.dumps(choice), MEANS.get(name, "as priced"))


def _cluster(request: Request) -> tuple[Flag, ...]:
    cluster = request.cluster
    return (
        Flag("device", json.dumps(cluster.device.id), "catalogue id"),
        Flag("devices", str(cluster.devices), cluster.device.device_is),
        Flag("devices_per_node", str(cluster.devices_per_node), "devices of one server"),
    )
