"""Calibrate on the runs of one cluster: a few factors, shrunk towards what is shipped.

Every run that is judged with ``--calibrate FILE`` is kept in the file as the fields of its job and
what it measured, and all of them are fitted again: the most probable logarithms of
:data:`krzem.cost.local.FACTORS` under a Gaussian prior around the shipped coefficients, with the
robust error of the shipped calibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from krzem.accuracy.fit import gauss_newton, robust
from krzem.cost.coefficients import fitted
from krzem.cost.local import FACTORS, HINT, SCHEMA, Factor, Local, moved, prior_sigma
from krzem.errors import DataError, InputError, shorten
from krzem.files import read_toml
from krzem.jobs.check import Check, Verdict, sigma_of
from krzem.jobs.job import CHOICES, FIELDS, JobBuilder, Place, Value
from krzem.jobs.priced import price_all
from krzem.jobs.question import ADAPTERS, Posed, pose
from krzem.plan.price import Pricer

NAMES = tuple(FACTORS)
STEP = 0.02
ITERATIONS = 8
EXPECTED = 0.7
"""Spread that calibrated predictions are expected to have, over the shipped one, before a run left
out has told."""
WORTH = 6.0
"""Runs that this expectation counts as."""
LEAST = 0.4
"""No number of runs narrows the spread below this part of the shipped one."""
MOST_RUNS = 200
Residuals = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class LocalFit:
    """Factors fitted on N runs."""

    theta: np.ndarray
    """[P] logarithms, in the order of :data:`NAMES`."""
    sigma: np.ndarray
    before: np.ndarray
    """[N] log of predicted over measured seconds without factors."""
    after: np.ndarray
    left_out: np.ndarray
    """[N] the same of each run, predicted by factors fitted on the others."""


def fit_local(residuals: Residuals, prior: np.ndarray, weight: np.ndarray) -> LocalFit:
    """The most probable factors; ``residuals(theta)`` are logs of predicted over measured."""
    theta = np.zeros(len(prior))
    before = residual = residuals(theta)
    jac = _jacobian(residuals, theta, residual)
    for _ in range(ITERATIONS):
        step = np.clip(gauss_newton(jac, residual, theta, prior, weight), -0.3, 0.3)
        theta = theta + step
        residual = residuals(theta)
        if np.max(np.abs(step)) < 2e-3:
            break
        jac = _jacobian(residuals, theta, residual)
    normal = (jac * robust(residual, weight)[:, None]).T @ jac + np.diag(prior**-2.0)
    spread = np.sqrt(np.diag(np.linalg.inv(normal)))
    left = np.array([
        _without(i, jac, residual, theta, prior, weight) for i in range(len(residual))
    ])  # fmt: skip
    return LocalFit(theta, spread, before, residual, left)


def _jacobian(residuals: Residuals, theta: np.ndarray, base: np.ndarray) -> np.ndarray:
    columns = []
    for i in range(len(theta)):
        other = theta.copy()
        other[i] += STEP
        columns.append((residuals(other) - base) / STEP)
    return np.stack(columns, axis=1)


def _without(
    held: int, jac: np.ndarray, residual: np.ndarray, theta: np.ndarray, prior: np.ndarray,
    weight: np.ndarray,
) -> float:  # fmt: skip
    """The residual of one run under factors fitted on the others (along straight lines)."""
    keep = np.arange(len(residual)) != held
    at = theta
    for _ in range(ITERATIONS):
        straight = residual + jac @ (at - theta)
        step = gauss_newton(jac[keep], straight[keep], at, prior, weight[keep])
        at = at + np.clip(step, -0.3, 0.3)
        if np.max(np.abs(step)) < 1e-3:
            break
    return float(residual[held] + jac[held] @ (at - theta))


def narrowed(left_out: np.ndarray, shipped: np.ndarray) -> float:
    """Spread over the shipped one: what is expected, corrected by what runs left out show."""
    scaled = np.clip(left_out / shipped, -2.5, 2.5)
    square = (WORTH * EXPECTED**2 + float(np.sum(scaled**2))) / (WORTH + len(scaled))
    return float(min(max(math.sqrt(square), LEAST), 1.0))


# -- runs of jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured run, as it is kept."""

    name: str
    seconds: float
    error: float
    """Standard error, seconds."""
    fields: Mapping[str, Value]
    engine: str
    on: str | None
    model: str | None

    def posed(self) -> Posed:
        """The question again."""
        builder = JobBuilder(self.engine)
        for name, value in self.fields.items():
            builder.state(name, value, Place(text=self.name), override=True)
        return pose(builder.job(), on=self.on, model=self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Factors of a cluster, and how its runs are predicted with them and without."""

    local: Local
    runs: tuple[Run, ...]
    fit: LocalFit
    shipped: np.ndarray
    """[N] standard deviations of the logarithm without factors."""


def run_of(found: Check, name: str, on: str | None, model: str | None) -> Run:
    """A judged run as it is kept; raises InputError where it may not be learnt from."""
    posed = found.posed
    if found.speed is None or found.verdict is Verdict.MIXED:
        why = "no steady speed" if found.speed is None else "files and log are of two jobs"
        raise InputError(f"nothing can be learnt from {shorten(name, 60)}: {why}")
    if posed.finetune in ADAPTERS:
        raise InputError("adapters beside frozen weights calibrate no cluster: give other runs")
    year = posed.task.year
    fields = {name: setting.value for name, setting in posed.job.settings.items()}
    fields["date"] = f"{int(year)}-{int((year % 1.0) * 12) + 1:02d}"
    fields.pop("engine_version", None)
    fields |= {"devices": posed.task.cluster.devices, "dp": posed.layout.dp}
    return Run(
        name=name, seconds=found.speed.seconds, error=found.speed.error,
        fields=MappingProxyType(fields), engine=posed.job.engine, on=on, model=model,
    )  # fmt: skip


def calibrated(runs: Sequence[Run], cluster: str = "") -> Calibration:
    """Fit the factors of the cluster that ``runs`` are of.

    Raises InputError where they are of several kinds of device or several engines.
    """
    posed = [run.posed() for run in runs]
    devices = {p.task.cluster.device.id for p in posed}
    engines = {p.task.setup.design(()).fits for p in posed}
    for what, names in (("devices", devices), ("engines", engines)):
        if len(names) > 1:
            raise InputError(
                f"runs of several {what} ({', '.join(sorted(names))}) make no calibration of one"
                " cluster: keep a file for each"
            )
    device, engine = posed[0].task.cluster.device, engines.pop()
    local = Local(
        cluster=cluster or device.id, device=device.id, family=device.family, engine=engine,
        factors={}, runs=len(runs), narrowed=1.0,
    )  # fmt: skip
    shipped = np.array([_sigma(p) for p in posed])
    prior = np.array([prior_sigma(name) for name in NAMES])
    fit = fit_local(_residuals(posed, runs, local), prior, np.ones(len(runs)))
    local = replace(
        local, narrowed=narrowed(fit.left_out, shipped), factors=factors_of(fit),
    )  # fmt: skip
    return Calibration(local=local, runs=tuple(runs), fit=fit, shipped=shipped)


def factors_of(fit: LocalFit) -> Mapping[str, Factor]:
    """The fitted factors by name."""
    rows = zip(NAMES, fit.theta.tolist(), fit.sigma.tolist(), strict=True)
    return MappingProxyType({n: Factor(log=round(t, 4), sigma=round(s, 4)) for n, t, s in rows})


def _sigma(posed: Posed) -> float:
    return sigma_of(posed, price_all(posed.pricer(), [(posed.layout, posed.task.setup)])[0])


def _residuals(posed: Sequence[Posed], runs: Sequence[Run], local: Local) -> Residuals:
    base = fitted()
    measured = np.array([run.seconds for run in runs])

    def residuals(theta: np.ndarray) -> np.ndarray:
        factors = {n: Factor(log=float(t), sigma=0.0) for n, t in zip(NAMES, theta, strict=True)}
        offsets = replace(local, factors=factors).offsets(local.engine)
        coefficients = moved(base, offsets)
        found = [
            price_all(Pricer(p.task, coefficients), [(p.layout, p.task.setup)])[0].seconds
            for p in posed
        ]
        return np.asarray(np.log(np.array(found) / measured))

    return residuals


# -- the file


def read_runs(path: Path) -> tuple[Run, ...]:
    """The runs in a calibration file; none where there is no such file yet.

    Raises DataError where it is something else.
    """
    if not path.exists():
        return ()
    raw = read_toml(path, hint=HINT)
    rows = raw.get("run", [])
    if raw.get("schema") != SCHEMA or not isinstance(rows, list):
        raise DataError(f"{shorten(str(path), 80)} is no calibration: give another name.")
    try:
        return tuple(_run(row) for row in rows[:MOST_RUNS])
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise DataError(f"{shorten(str(path), 80)}: a run cannot be read ({error!r}).") from None


def _run(row: Mapping[str, Any]) -> Run:
    fields = {name: _field(name, value) for name, value in row["fields"].items()}
    return Run(
        name=str(row["name"]), seconds=float(row["seconds"]), error=float(row.get("error", 0.0)),
        fields=MappingProxyType(fields), engine=str(row["engine"]),
        on=row.get("on"), model=row.get("model"),
    )  # fmt: skip


def _field(name: str, value: Any) -> Value:
    kind = FIELDS[name]
    if kind is tuple:
        return tuple(str(part) for part in value)
    if kind is float:
        return float(value)
    if type(value) is not kind or value not in CHOICES.get(name, (value,)):
        raise ValueError(f"{name} = {value!r}")
    return kind(value)  # type: ignore[no-any-return]


def added(runs: Sequence[Run], run: Run) -> tuple[Run, ...]:
    """``runs`` with ``run``, in the place of an earlier one of that name."""
    return (*(r for r in runs if r.name != run.name), run)


def file_text(found: Calibration) -> str:
    """The calibration as TOML, for people and for ``--calibration``."""
    local, fit = found.local, found.fit
    lines = [
        "# Written by `krzem check --calibrate`; used by --calibration of plan, explain and check.",
        "# Factors are natural logarithms on the shipped coefficients: 0.05 is 5 % more rate",
        "# (host and engine: 5 % more time), each with its standard deviation.",
        f"schema = {_toml(SCHEMA)}", f"cluster = {_toml(local.cluster)}",
        f"device = {_toml(local.device)}", f"family = {_toml(local.family)}",
        f"engine = {_toml(local.engine)}", f"runs = {local.runs}",
        f"narrowed = {local.narrowed:.3f}  # spread of a step time over the shipped one",
    ]  # fmt: skip
    for name, factor in local.factors.items():
        lines += ["", f"[factor.{name}]", f"log = {factor.log}", f"sigma = {factor.sigma}"]
    for i, run in enumerate(found.runs):
        lines += [
            "", "[[run]]", f"name = {_toml(run.name)}", f"engine = {_toml(run.engine)}",
            f"seconds = {run.seconds:.6g}", f"error = {run.error:.3g}",
            f"# predicted over measured: {math.exp(fit.before[i]):.3f} as shipped,"
            f" {math.exp(fit.after[i]):.3f} calibrated, {math.exp(fit.left_out[i]):.3f} left out",
        ]  # fmt: skip
        lines += [f"{key} = {_toml(v)}" for key, v in (("on", run.on), ("model", run.model)) if v]
        lines += ["[run.fields]", *(f"{_toml(n)} = {_toml(v)}" for n, v in run.fields.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(part) for part in value)}]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text) + '"'
