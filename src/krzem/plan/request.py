"""From what a user writes to a task: recipe, precision and schedules settled, each choice noted.

Whatever the user leaves out is taken from the model's published recipe and said in ``notes``; what
is not published either is asked for.  Nothing is guessed silently.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from krzem.cost.local import Local, read_local
from krzem.engine.description import Engine, engine_named, engines
from krzem.engine.legal import check_engine, check_refusals, software_year, trained_without
from krzem.engine.setup import check_stated
from krzem.engine.switches import parse_switches, switches
from krzem.errors import GoalError, InputError, UnknownNameError
from krzem.hardware.catalogue import having, lacks_format
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_builder import unknown
from krzem.hardware.cluster_reader import read_cluster
from krzem.layout.layout import Optimizer, Precision, StateBytes
from krzem.layout.space import Space
from krzem.model.architecture import Architecture
from krzem.model.catalogue import load_model
from krzem.plan.footprint import Grid, read_grid
from krzem.plan.goal import (
    Goal,
    Recipe,
    Tuning,
    check_batch,
    check_software_date,
    config_of,
    is_built_in,
    recipe_of,
)
from krzem.plan.price import Task, engine_for
from krzem.plan.question import (
    Picker,
    Question,
    batch_of,
    budget_of,
    check_positions,
    day_of,
    deadline_of,
    parse_constraints,
    ramp_of,
    schedules_of,
    share_of,
    tokens_of,
)
from krzem.plan.tuning import check_targets, left_out, read_state_bytes, read_tuning, states_of
from krzem.quantity import parse_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question that can be computed."""

    task: Task
    config: Mapping[str, object]
    """The model's ``config.json``; empty where an Architecture was given."""
    space: Space
    recipe: Recipe | None
    from_recipe: tuple[str, ...]
    """Names of what was taken from ``recipe``: tokens, sequence, ..."""
    start: datetime.date | None
    date: datetime.date
    sure: float
    grid: Grid | None = None
    """Whose electricity; None where it is not known."""
    notes: tuple[str, ...]
    """Every choice that was made for the user."""
    batch_notes: tuple[str, ...] = ()
    """That another batch is planned than the one that was asked for."""
    whole: bool = True
    """Whether the tokens of the run are known; without them there is a step and no run."""


def settle(question: Question) -> Asked:
    """The task that ``question`` asks for.

    Raises:
        UnknownNameError: model, device, engine, precision, optimizer or schedule.
        QuantityError: a number that cannot be read.
        GoalError: something is neither given nor published, or makes no run.
        ClusterError, DataError, ModelError: a description or file that cannot be used.
        UnknownFactError: a quantity of the device that nobody has published.
    """
    architecture = _architecture(question.model)
    cluster = question.on if isinstance(question.on, Cluster) else read_cluster(question.on)
    today = datetime.date.today()
    date = today if question.date is None else day_of("--date", question.date)
    date = check_software_date(date, today)
    start = None if question.start is None else day_of("--start", question.start)
    config = config_of(question.model, architecture)
    # What is published is pre-training: of another run than the tuning of its weights.
    pre_training = is_built_in(architecture) and not question.finetune
    recipe = recipe_of(architecture.name) if pre_training else None
    picker = Picker(question, architecture.name, recipe)
    engine = engine_for(
        cluster, _emitting(question.engine, question.emits), architecture,
        (question.finetune or "none").strip().lower(),
    )  # fmt: skip
    year = _software(picker, engine, cluster, _year(date))
    goal = _goal(picker, architecture, cluster, start or date, engine, year)
    task = Task(
        architecture=architecture,
        cluster=cluster,
        goal=goal,
        engine=engine.name,
        year=year,
        stated=_stated(question),
        emitted=bool(engine.emitter) and engine.emitter == question.emits,
        local=_local(picker, question.calibration, cluster),
    )
    task = _runnable(picker, task)
    check_stated(task.setup, task.values)
    space = replace(
        task.space,
        offload=(False, True) if question.offload and engine.runs.offload else (False,),
        limits=parse_constraints(question.limits or ""),
        **schedules_of(question.schedules),
    )
    return Asked(
        task=task,
        config=config,
        space=space,
        recipe=picker.recipe,
        from_recipe=tuple(picker.taken),
        start=start,
        date=date,
        sure=share_of(question.sure),
        grid=read_grid(question.grid, cluster),
        notes=tuple(picker.sentences()),
        whole="tokens" not in picker.lacking,
    )


def _runnable(picker: Picker, task: Task) -> Task:
    """The task as the engine can run it.

    What was asked for is kept or refused; a published optimizer or published bytes of states that
    the engine (or what is emitted for it) lacks give way to the usual ones, and parts of the model
    that it trains without are left out, all of it noted.

    Raises ModelError and GoalError with the reason and its place in the engine's source.
    """
    for omission in trained_without(task.setup, task.values):
        if omission.part == "mtp":
            task = replace(task, architecture=replace(task.architecture, mtp_layers=0))
            picker.notes.append(
                f"multi-token prediction is left out: {omission.why} ({omission.source})"
            )
    while True:
        try:
            check_engine(task.setup, task.architecture, task.cluster.device.family)
            check_refusals(task.setup, task.values)
            return task
        except GoalError as error:
            other = _usual(picker, task.goal)
            if other is None:
                raise
            picker.notes.append(f"the published {other[0]}: {error}")
            task = replace(task, goal=other[1])


def _usual(picker: Picker, goal: Goal) -> tuple[str, Goal] | None:
    """The goal with the next published choice given up; None where all is as asked."""
    kept = goal.states.gradient
    if "state_bytes" in picker.taken:
        picker.taken.remove("state_bytes")
        moments = 8.0 if goal.optimizer is Optimizer.ADAMW else 4.0
        usual = StateBytes(gradient=kept, moments=moments)
        given = read_state_bytes(picker.question.state_bytes)
        return "bytes of states give way to the usual ones", replace(
            goal, states=replace(usual, **given)
        )
    if "optimizer" in picker.taken and goal.optimizer is not Optimizer.ADAMW:
        picker.taken.remove("optimizer")
        given = read_state_bytes(picker.question.state_bytes)
        states = replace(StateBytes(gradient=kept, moments=8.0), **given)
        return f"{goal.optimizer} gives way to adamw", replace(
            goal, optimizer=Optimizer.ADAMW, states=states
        )
    return None


def _architecture(model: str | Path | Architecture) -> Architecture:
    return model if isinstance(model, Architecture) else load_model(model)


def _software(picker: Picker, engine: Engine, cluster: Cluster, year: float) -> float:
    """The age of the software: never newer than the last that supports the chips."""
    found, why = software_year(year, engine.name, cluster.device.family)
    if why is not None:
        picker.notes.append(f"software of {found:.1f} is planned: {why}")
    return found


def _local(picker: Picker, path: str | Path | None, cluster: Cluster) -> Local | None:
    """The local factors asked for, or of the cluster's own file, and the note that says so."""
    path = path or cluster.calibration or None
    if path is None:
        return None
    local = read_local(path, cluster.device.id)
    picker.notes.append(local.note)
    return local


def _emitting(engine: str | None, emits: str | None) -> str | None:
    """The engine that is planned for: the one named, or the one whose files are wanted.

    Raises InputError where the two are not the same.  A plan file of krzem's may hold any plan.
    """
    if emits is None or emits == "krzem":
        return engine
    writer = next((e for e in engines().values() if e.emitter == emits), None)
    if writer is None:
        return engine
    if engine is None:
        return writer.name
    if engine_named(engine).emitter != emits:
        raise InputError(
            f"--engine {engine} with --emit {emits}: a plan for one engine is not a script of"
            f" another; leave --engine out, or write --emit {engine_named(engine).emitter or '…'}"
        )
    return engine


def _stated(question: Question) -> tuple[tuple[str, str], ...]:
    """The switches that the question states, in their order."""
    found = parse_switches([question.switched or ""], [question.switched_off or ""])
    return tuple((name, found[name]) for name in switches() if name in found)


def _goal(
    picker: Picker,
    architecture: Architecture,
    cluster: Cluster,
    start: datetime.date,
    engine: Engine,
    year: float,
) -> Goal:
    question = picker.question
    sequence = picker.number("sequence", question.sequence, parse_length, "--seq (such as 4k)")
    check_positions(picker, architecture, sequence)
    batch = batch_of(picker, sequence)
    large = check_batch(batch, sequence, question.batch_tokens is not None)
    picker.notes += [] if large is None else [large]
    tokens = tokens_of(picker, batch * sequence)
    precision = _precision(picker, cluster, engine)
    tuning = _tuning(picker, architecture)
    optimizer = _optimizer(picker)
    kept = engine.design_at(
        year, precision.value, stack=cluster.device.software
    ).state_gradient_bytes
    states = states_of(picker, optimizer, kept, tuning, cluster.devices)
    picker.ask_for_the_rest()
    return Goal(
        tokens=tokens,
        sequence=sequence,
        global_batch=batch,
        precision=precision,
        optimizer=optimizer,
        states=states,
        ramp=ramp_of(picker, sequence, tokens),
        deadline_days=deadline_of(question.deadline, start),
        budget_usd=budget_of(question.budget),
        tuning=tuning,
    )


def _tuning(picker: Picker, architecture: Architecture) -> Tuning:
    """Pre-training, or the fine-tuning that is asked for.

    Raises GoalError as well where launch files are wanted, which no emitter writes for it.
    """
    asked = picker.question
    found = read_tuning(asked.finetune, asked.lora_rank, asked.lora_targets, picker.notes)
    check_targets(found, architecture)
    picker.notes += filter(None, [left_out(found, architecture)])
    if found.kind != "none" and asked.emits is not None:
        raise GoalError(
            f"--emit {asked.emits} writes files of pre-training, and --finetune {found.kind} is"
            " asked for: plan without --emit, and put layout and micro-batch into your own files"
        )
    return found


def _precision(picker: Picker, cluster: Cluster, engine: Engine) -> Precision:
    """What is asked for if the device has it; the recipe's, else the widest 16-bit type it has."""
    known = [p.value for p in Precision]
    asked = picker.question.precision
    if asked is not None:
        name = asked.strip().lower()
        if name not in known:
            raise UnknownNameError("precision", asked, known, f"Known: {', '.join(known)}.")
        return _on_device(Precision(name), cluster)
    published = picker.published("precision")
    if published is None:
        plain = next((p for p in (Precision.BF16, Precision.FP16) if _has(p, cluster)), None)
        found = _on_device(plain or Precision.BF16, cluster)
        picker.notes.append(f"no precision is given or published: {found} is planned (--precision)")
        return found
    for choice in dict.fromkeys((Precision(published), Precision.BF16, Precision.FP16)):
        if _has(choice, cluster) and _able(choice, engine):
            if choice != published:
                picker.taken.remove("precision")
                lacks = (
                    f"not in the published peaks of {cluster.device.id}"
                    if not _has(Precision(published), cluster)
                    else f"no recipe of {engine.title}"
                )
                picker.notes.append(
                    f"the recipe's {published} is {lacks}: {choice} is planned instead"
                )
            return choice
    return _on_device(Precision(published), cluster)


def _able(precision: Precision, engine: Engine) -> bool:
    return not engine.runs.precisions or precision.value in engine.runs.precisions


def _has(precision: Precision, cluster: Cluster) -> bool:
    kind = precision.arithmetic
    peak = ("tf32" if kind == "fp32" else kind) in cluster.device.peak_flops
    return peak and not lacks_format(cluster.device, precision.value)


def _on_device(precision: Precision, cluster: Cluster) -> Precision:
    if _has(precision, cluster):
        return precision
    device = cluster.device
    usable = [p.value for p in Precision if _has(p, cluster)]
    if not (_has(Precision.BF16, cluster) or _has(Precision.FP16, cluster)):
        raise unknown(device, cluster.name, [], cluster.devices)
    if lacks_format(device, precision.value):
        raise GoalError(
            f"{precision} on {device.id}: its matrix units do not have this format;"
            f" {', '.join(having(precision.value))} have it. {device.id} has {', '.join(usable)}:"
            " give one of them with --precision"
        )
    raise GoalError(
        f"{precision} on {device.id}: no dense peak is published for it. Published:"
        f" {', '.join(usable)}: give one of them with --precision, or the peak under [peak] in a"
        " cluster file"
    )


def _optimizer(picker: Picker) -> Optimizer:
    known = [o.value for o in Optimizer]
    asked = picker.question.optimizer
    if asked is not None:
        name = asked.strip().lower()
        if name not in known:
            raise UnknownNameError("optimizer", asked, known, f"Known: {', '.join(known)}.")
        return Optimizer(name)
    published = picker.published("optimizer")
    if published is None:
        picker.notes.append("no optimizer is given or published: AdamW is planned (--optimizer)")
        return Optimizer.ADAMW
    return Optimizer(published)


def _year(date: datetime.date) -> float:
    return date.year + (date.timetuple().tm_yday - 1) / 365.25
