"""Models, chips and layouts that the emitters of launch files are tried on."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from krzem.engine.switches import switches
from krzem.errors import GoalError, LayoutError, ModelError
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import read_cluster
from krzem.layout.layout import Layout, Precision, StateBytes, parse_layout
from krzem.layout.rules import Problem
from krzem.layout.space import Space, layouts
from krzem.model import load_model
from krzem.model.architecture import Architecture
from krzem.plan.emit import Launch, emit, render
from krzem.plan.emit.launch import MEANS
from krzem.plan.emit.parts import ASKED, lines
from krzem.plan.goal import Goal

CONFIG: Mapping[str, object] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000,
    "routed_scaling_factor": 2.5,
    "compress_rope_theta": 160_000,
}
GOAL = Goal(tokens=1e12, sequence=4096, global_batch=1024)
GOALS = (
    GOAL,
    replace(GOAL, precision=Precision.FP8),
    replace(GOAL, precision=Precision.MXFP8, states=StateBytes(gradient=2, moments=4)),
)
EVERY: Mapping[str, tuple[str, ...]] = {name: switch.choices for name, switch in switches().items()}
"""The canonical switches with all their choices."""
assert set(EVERY) == set(MEANS)


@cache
def cluster(text: str) -> Cluster:
    return read_cluster(text)


@cache
def some_layouts(model: str, devices: int, few: int = 12) -> tuple[Layout, ...]:
    """A few legal layouts of the whole space, spread over it, the same at every call."""
    problem = Problem(
        architecture=load_model(model), devices=devices, sequence=GOAL.sequence,
        global_batch=GOAL.global_batch,
    )  # fmt: skip
    space = Space(max_tp=8, max_cp=4, max_micro_batch=2)
    found: list[Layout] = []
    for block in layouts(problem, space):
        count = len(block)
        found += [block.at(place) for place in sorted({0, count // 3, count // 2, count - 1})]
    step = max(1, len(found) // few)
    return tuple(found[::step])


def own_code(model: str) -> bool:
    """Whether layers of a model compute what no engine's arguments say."""
    known = load_model(model)
    return known.particular or bool(known.recurrences)


def launches(
    engine: str, model: str, chip: str, devices: int, goals: tuple[Goal, ...] = GOALS
) -> Iterator[tuple[Launch, Layout, Goal]]:
    """What is emitted; a refusal must name a reason of layout, model or goal."""
    arch = load_model(model)
    for layout in some_layouts(model, devices):
        for goal in goals:
            launch = tried(engine, layout, goal, arch, cluster(f"{chip}:{devices}"))
            if launch is not None:
                yield launch, layout, goal


def tried(
    engine: str,
    layout: Layout,
    goal: Goal,
    arch: Architecture,
    on: Cluster,
    switches: Mapping[str, str] | None = None,
) -> Launch | None:
    """The launch, or None where it is refused with a sentence."""
    refusal = ""
    try:
        return emit(engine, layout, goal, arch, on, CONFIG, 250, switches or {})
    except (LayoutError, ModelError, GoalError) as error:
        refusal = str(error)
    assert len(refusal) > 30, "a refusal says why"
    return None


def text(name: str) -> Layout:
    return parse_layout(name)


def written(launch: Launch, folder: Path) -> dict[str, str]:
    """The files that the script writes, with 1 for all that it asks for; nothing is started."""
    script = render(launch)
    start = script.index(launch.command)
    before = re.sub(r"^\[\[ .*exit 1; }$", "", script[:start], flags=re.MULTILINE)
    done = subprocess.run(
        ["bash"], input=before, cwd=folder, text=True, capture_output=True, check=False,
        env={"PATH": "/usr/bin:/bin", **dict.fromkeys(launch.asked, "1")}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {part.path: (folder / part.path).read_text("utf-8") for part in launch.parts}


def plain(launch: Launch) -> dict[str, str]:
    """The same files without a shell: 1 for all that is asked for."""
    return {
        part.path: ASKED.sub("1", "\n".join(lines(part, explain=True))) for part in launch.parts
    }


def every_switch(
    make: Callable[[Mapping[str, str]], Launch],
) -> Iterator[tuple[str, str, Launch]]:
    """A launch with one switch for every choice that the engine takes."""
    for switch, choices in EVERY.items():
        for choice in choices:
            try:
                launch = make({switch: choice})
            except GoalError as error:
                refusal = str(error)
            else:
                yield switch, choice, launch
                continue
            assert switch in refusal, "a refusal names the switch"
