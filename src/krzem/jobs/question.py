"""From a job to a question that can be priced: model, cluster, goal, layout and switches.

What the files and the engine's defaults decide is stated; what decides the price and is missing is
asked for by name; the rest is assumed, and said.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from krzem.accuracy.batch import STEPS, first_to_fit
from krzem.cost.local import Local, read_local
from krzem.engine.description import Engine, engines
from krzem.engine.legal import software_year
from krzem.engine.setup import Choices
from krzem.engine.switches import switches
from krzem.errors import InputError, LayoutError, UnknownNameError, shorten
from krzem.hardware.cluster import Cluster
from krzem.jobs.given import completed
from krzem.jobs.job import Basis, Job, Setting, Value
from krzem.jobs.job_layout import Values, cluster_given, cluster_of_job, memory_policy, replicas
from krzem.jobs.job_model import by_name, model_of
from krzem.layout.layout import (
    Layout,
    Precision,
    StateBytes,
    pack,
)
from krzem.layout.rules import check as check_rules
from krzem.model.architecture import Architecture
from krzem.model.build import read_config
from krzem.model.config_file import load_config
from krzem.plan.goal import SURE, Goal
from krzem.plan.price import Pricer, Task
from krzem.plan.request import Asked
from krzem.quantity import parse_date

ADAPTERS = ("lora", "qlora")
QUANTISED = 0.55
"""Bytes per frozen weight in 4 bits with its scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Posed:
    """A job as a question."""

    job: Job
    """Completed by what was given and by what the log says."""
    task: Task
    layout: Layout
    finetune: str
    recompute_known: bool
    whole: bool
    """Whether the tokens of the whole run are known."""
    assumed: tuple[str, ...]
    """What nobody said and was assumed, each with how to say it."""
    doubts: tuple[str, ...]
    """Why the engine, or the arithmetic of its layouts, may not run this job."""
    notes: tuple[str, ...]

    @property
    def guesses(self) -> int:
        """How many things had to be assumed that intervals depend on."""
        return len(self.assumed) + (not self.recompute_known)

    def pricer(self, task: Task | None = None) -> Pricer:
        """Prices layouts of this job (or of ``task``, a variation of it)."""
        made = Pricer(task or self.task)
        return made.scaled(trained=0.0) if self.finetune in ADAPTERS else made


def pose(
    job: Job,
    *,
    given: Mapping[str, Value] | None = None,
    log: Mapping[str, Setting] | None = None,
    on: str | None = None,
    model: str | None = None,
    texts: Mapping[str, str] | None = None,
    calibration: str | Path | None = None,
) -> Posed:
    """The question that a job asks.

    ``given`` are fields that the user states (``--set``), ``log`` those that its log tells, ``on``
    a cluster or a device, ``model`` a built-in name or a ``config.json``, ``texts`` the files,
    ``calibration`` a file of local factors.

    Raises:
        InputError: what is missing, by name, with how to give it; or why the job cannot run.
        ClusterError, UnknownNameError, UnknownFactError: a device or cluster that cannot be used.
    """
    given = dict(given or {})
    cluster = cluster_given(on, given)
    job = completed(job, given, log or {})
    if job.faults:
        raise InputError(_cannot_run(job))
    assumed: list[str] = []
    missing: list[tuple[str, str]] = []
    architecture = _architecture(job, model, texts or {}, assumed, missing)
    engine = engines()[job.engine]
    values = Values(job, engine, architecture, assumed, missing)
    degrees = values.degrees()
    sequence, batch = values.need("seq"), values.need("global_batch")
    precision = values.precision()
    if cluster is None:
        cluster = cluster_of_job(job, on, missing, values.notes)
    if missing or cluster is None or architecture is None:
        raise InputError(_asks(job, missing))
    year = _year(job, engine, cluster, assumed)
    layout = replace(degrees, dp=replicas(job, degrees, cluster.devices))
    layout = memory_policy(values, layout, engine)
    goal = Goal(
        tokens=float(_tokens(job, batch * sequence)), sequence=sequence, global_batch=batch,
        precision=precision, optimizer=values.optimizer(),
        states=_states(job, engine, cluster, year, precision),
    )  # fmt: skip
    task = Task(
        architecture=architecture, cluster=cluster, goal=goal, engine=job.engine, year=year,
        stated=_stated(job), local=_local(calibration or cluster.calibration, cluster),
    )  # fmt: skip
    return _finished(job, task, layout, assumed, (*values.notes, *cluster.notes))


def _stated(job: Job) -> Choices:
    """What the files and the engine's defaults decide of its switches."""
    found = ((name, job.get(f"switch.{name}")) for name in switches())
    return tuple((name, str(choice)) for name, choice in found if choice is not None)


def _finished(
    job: Job, task: Task, layout: Layout, assumed: list[str], notes: tuple[str, ...]
) -> Posed:
    """The question, with recomputation where nobody says it, and with its doubts."""
    known = job.get("recompute") is not None
    posed = Posed(
        job=job, task=task, layout=layout, finetune=_finetune(job), recompute_known=known,
        whole=job.get("train_tokens") is not None, assumed=tuple(dict.fromkeys(assumed)),
        doubts=(), notes=notes,
    )  # fmt: skip
    if not known:
        posed = _least_recompute(posed)
    return replace(posed, doubts=tuple(_doubt(posed)))


def _finetune(job: Job) -> str:
    return str(job.get("finetune") or "none")


def _cannot_run(job: Job) -> str:
    faults = [str(fault) for fault in job.faults]
    more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return f"this job cannot run as written: {'; '.join(faults[:3])}{more}"


# -- what is missing

HOW: Mapping[str, str] = {
    "device": "--on h100, or --set device=h100",
    "devices": "--on h100:64, or --set devices=64",
    "global_batch": "--set global_batch=1024 (sequences a step)",
    "seq": "--set seq=4096",
    "mbs": "--set mbs=1 (sequences of a micro-batch)",
    "precision": "--set precision=bf16",
}


def _asks(job: Job, missing: list[tuple[str, str]]) -> str:
    """One sentence that asks for everything that is missing."""
    why = {ask.name: ask.why for ask in job.asks}
    names = list(dict.fromkeys(name for name, _ in missing))
    if "devices" in names and job.get("accumulation") and job.get("mbs"):
        names = [name for name in names if name != "global_batch"]
    shape = [name for name in names if name.startswith("model.")]
    parts = []
    if len(shape) > 3:
        names = [name for name in names if name not in shape]
        parts.append("the shape of the model: give --model NAME, --model config.json, or --set"
                     f" {'=… --set '.join(shape)}=…")  # fmt: skip
    for name in names:
        said = f" ({shorten(why[name], 90)})" if why.get(name) else ""
        parts.append(f"{name}{said}: give {HOW.get(name, f'--set {name}=…')}")
    if 0 < len(shape) <= 3:
        parts.append("or the whole shape with --model NAME or --model config.json")
    return f"the files do not decide what the price depends on: {'; '.join(parts)}"


# -- model


def _architecture(
    job: Job, model: str | None, texts: Mapping[str, str], assumed: list[str],
    missing: list[tuple[str, str]],
) -> Architecture | None:  # fmt: skip
    name = model or _family_name(job, texts)
    if model is not None and (model.endswith(".json") or ("/" in model and Path(model).exists())):
        load_config(model)
        return read_config(model)
    if model is not None and by_name(model) is None:
        raise UnknownNameError("model", model, (), "See `krzem models`, or give a config.json.")
    found = model_of(job, name)
    assumed.extend(found.notes)
    missing.extend((name, "") for name in found.missing)
    return found.architecture


_FLAVOUR = re.compile(r"[\d.]+[BbMmTt](-[Aa][\d.]+[Bb])?$")


def _family_name(job: Job, texts: Mapping[str, str]) -> str | None:
    """A flavour (``8B``) with the family that the same table names (``llama3``)."""
    setting = job.settings.get("model.name")
    if setting is None or not _FLAVOUR.match(str(setting.value)):
        return None
    lines = texts.get(setting.file, "").splitlines()
    for line in lines[max(0, setting.line - 8) : setting.line + 8]:
        if found := re.match(r"\s*name\s*[:=]\s*[\"']?([A-Za-z][\w.-]*)", line):
            family = re.sub(r"(?<=[a-z])3$", "-3.1", found[1]) if "llama" in found[1] else found[1]
            return f"{family}-{setting.value}"
    return None


# -- cluster


def _local(path: str | Path, cluster: Cluster) -> Local | None:
    """The local factors asked for, or of the cluster's own file."""
    return read_local(path, cluster.device.id) if path else None


# -- date


def _middle_of_month(date: Setting) -> float:
    day = parse_date(str(date.value))
    return day.year + (day.month - 0.5) / 12


def _year(job: Job, engine: Engine, cluster: Cluster, assumed: list[str]) -> float:
    """Age of the software: of the version, of the date that is stated, of the log, or today."""
    version = str(job.get("engine_version") or job.engine_version or "")
    said = job.settings.get("date")
    today = datetime.date.today()
    year = today.year + (today.timetuple().tm_yday - 1) / 365.25
    if said is not None and said.basis is Basis.STATED:
        year = _middle_of_month(said)
    elif (found := version_year(engine, version)) is not None:
        year = min(found, year)
    elif said is not None:
        year = min(_middle_of_month(said), year)
        assumed.append(f"software of {year:.1f}: no version; {said.text}, {said.value}"
                       " (--set date=2025-06 corrects it)")  # fmt: skip
    elif engine.name == "torchtitan" and _in_toml(job):
        year = min(LAST_TOML, year)
        assumed.append("software of 2026-02: TOML files are those of torchtitan 0.2.2 and before"
                       " (--set date=2025-06 corrects it)")  # fmt: skip
    else:
        told = f"version {shorten(version, 40)} has no known date" if version else "no version"
        assumed.append(f"software of today: {told} (--set date=2025-06 corrects it)")
    found_year, why = software_year(year, engine.name, cluster.device.family)
    if why is not None:
        assumed.append(f"software of {found_year:.1f}: {why}")
    return found_year


LAST_TOML = 2026.12
"""Up to then torchtitan's configurations were TOML; Python since."""


def _in_toml(job: Job) -> bool:
    return any(setting.file.endswith(".toml") for setting in job.settings.values())


_CONTAINER = re.compile(r"(?:^|\D)(2[2-9])\.?(0[1-9]|1[0-2])(?:\D|$)")


def version_year(engine: Engine, version: str) -> float | None:
    """When a version came out: a release of the engine, or the month of a container."""
    number = version.lower().removeprefix("core").strip(" v_r")
    for release in reversed(engine.releases):
        known = release.version.lower().removeprefix("core").strip(" v_r")
        if number and (number == known or number.startswith(f"{known}.")):
            return release.year
    if found := _CONTAINER.search(version):
        return 2000 + int(found[1]) + (int(found[2]) - 0.5) / 12
    return None


# -- layout


def _least_recompute(posed: Posed) -> Posed:
    """The likeliest recomputation, as rows of tables are read: the least that fits, if it fits."""
    pricer, layers = posed.pricer(), posed.task.architecture.layers
    tries = []
    for mode, share in STEPS:
        count = None if share == 1.0 else max(1, round(share * layers / posed.layout.pp))
        tries.append(replace(posed.layout, recompute=mode, recompute_layers=count))
    chances = first_to_fit(pricer.fits(pricer.memory(pack(tries))))
    chosen = tries[int(np.argmax(chances))]
    word = f"recompute={chosen.recompute.value}: nothing says what is recomputed, and this is the"
    assumed = (*posed.assumed, f"{word} least that fits (--set recompute=…)")
    return replace(posed, layout=chosen, assumed=assumed)


# -- goal


def _tokens(job: Job, of_a_step: int) -> int:
    tokens = job.get("train_tokens")
    return max(int(tokens), of_a_step) if isinstance(tokens, int) else of_a_step


def _states(
    job: Job, engine: Engine, cluster: Cluster, year: float, precision: Precision
) -> StateBytes:
    """Bytes per parameter; weights in 32 bits are 16-bit ones and the rest beside the states."""
    design = engine.design_at(year, precision.value, stack=cluster.device.software)
    usual = StateBytes(gradient=design.state_gradient_bytes)
    found = {
        name: float(value) if isinstance(value := job.get(f"state.{name}"), int | float)
        else getattr(usual, name)
        for name in ("weight", "gradient", "master", "moments")
    }  # fmt: skip
    if job.get("state.master") is None and found["weight"] >= 4.0:
        found["master"] = 0.0
    extra = max(found["weight"] - design.weight_bytes, 0.0)
    found |= {"weight": found["weight"] - extra, "master": found["master"] + extra}
    if _finetune(job) in ADAPTERS:
        weight = QUANTISED if _finetune(job) == "qlora" else found["weight"]
        return StateBytes(weight=weight, gradient=0.0, master=0.0, moments=0.0)
    return StateBytes(**found)


# -- doubts


def _doubt(posed: Posed) -> Iterator[str]:
    """Rules of layouts and refusals of the engine's own code that this job meets."""
    try:
        check_rules(posed.task.problem, posed.layout)
    except LayoutError as error:
        yield str(error)
    for why in posed.pricer().judge.reasons(posed.layout):
        if not (why.startswith("it has no recompute") or why.startswith("it has no zero")):
            yield f"{posed.task.description.title}: {why}"


def asked_of(posed: Posed) -> Asked:
    """The question as every other verb asks one: documents of all verbs say it the same way."""
    year = min(max(posed.task.year, 2017.0), 2100.0)
    date = datetime.date(int(year), 1, 1) + datetime.timedelta(days=round((year % 1.0) * 364))
    return Asked(
        task=posed.task, config={}, space=posed.task.space, recipe=None, from_recipe=(), start=None,
        date=date, sure=SURE, notes=(), whole=posed.whole,
    )  # fmt: skip
