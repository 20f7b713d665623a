"""What a run amounts to: training compute against legal thresholds, carbon, loss to expect.

Compute is model FLOPs (forward and backward, nothing recomputed, causal attention once) of all
tokens: the architecture-based way of counting that the European Commission's guidelines describe.
Carbon is energy at the facility's meter times the yearly mean of the grid.  Loss is what published
laws say of this size and these tokens, each on its own text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from krzem.errors import GoalError, UnknownNameError
from krzem.estimate import Estimate
from krzem.facts.table import read_table
from krzem.hardware.cluster import Cluster
from krzem.hardware.machines import known_machine
from krzem.model.parameters import count
from krzem.plan.forecast import WholeRun
from krzem.plan.goodput import dense_laws
from krzem.plan.price import Task
from krzem.plan.tuning import trained_flops

MOST_G_PER_KWH = 1500.0
"""Above any grid: power from lignite alone has about 1,100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """An amount of training compute that a law attaches duties to."""

    id: str
    flop: float
    place: str
    law: str
    duty: str
    status: str
    """in force, not in force yet, repealed, guideline."""
    date: str
    """Since when, or until when."""
    counts: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Carbon intensity of a country's electricity."""

    id: str
    """ISO 3166 code; ``given`` for a number."""
    name: str
    g_per_kwh: float
    year: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What one law says of a size and tokens, nats per token on the law's own text."""

    law: str
    low: float
    """Of a dense model with all parameters of a mixture of experts."""
    high: float
    """Of a dense model with its active parameters; both are one for a dense model."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a run amounts to beside time and money."""

    flop: float
    """Model FLOPs of this run."""
    thresholds: tuple[Threshold, ...]
    """All that are known, smallest first."""
    grid: Grid | None
    co2_tonnes: Estimate | None
    """Tonnes of CO2 equivalents; None without energy or grid."""
    losses: tuple[Loss, ...]
    """Empty for fine-tuning."""
    notes: tuple[str, ...]


def footprint_of(task: Task, run: WholeRun, grid: Grid | None) -> Footprint:
    """The footprint of ``task`` with this forecast."""
    flop = trained_flops(task.goal, task.architecture) * task.goal.tokens
    return footprint_with(task, flop, run.energy_mwh, grid)


def footprint_with(
    task: Task, flop: float, energy: Estimate | None, grid: Grid | None
) -> Footprint:
    """The footprint of a run of ``task`` that takes ``flop`` and ``energy`` (megawatt-hours)."""
    tuned = task.goal.tuning.kind != "none"
    notes = []
    if tuned:
        notes.append("thresholds count the base model's training too; this is the tuning alone")
    if grid is None:
        notes.append("CO2 is unknown: give --grid, such as --grid fr, or grams per kWh (--grid 56)")
    return Footprint(
        flop=flop,
        thresholds=thresholds(),
        grid=grid,
        co2_tonnes=None if grid is None or energy is None else energy.scaled(grid.g_per_kwh / 1e3),
        losses=() if tuned else losses(task),
        notes=tuple(notes),
    )


def losses(task: Task) -> tuple[Loss, ...]:
    """The loss that each law of dense models expects of the model and its tokens."""
    counted = count(task.architecture)
    return losses_of(counted.total, counted.active, task.goal.tokens)


def losses_of(total: float, active: float, tokens: float) -> tuple[Loss, ...]:
    """The same for so many parameters, all and active, and tokens; doubted laws left out."""
    return tuple(
        Loss(
            law=law.name,
            low=law.loss(total, tokens),
            high=law.loss(active, tokens),
            source=law.source,
        )
        for law in dense_laws().values()
        if not law.doubt
    )


@cache
def thresholds() -> tuple[Threshold, ...]:
    """Every threshold of ``facts/compute_thresholds.csv``, smallest first."""
    rows = read_table("compute_thresholds.csv")
    found = (Threshold(**{**row, "flop": float(row["flop"])}) for row in rows)  # type: ignore[arg-type]
    return tuple(sorted(found, key=lambda t: (t.flop, t.status != "in force")))


@cache
def grids() -> Mapping[str, Grid]:
    """Every grid of ``facts/grids.csv`` by id."""
    return MappingProxyType(
        {
            row["id"]: Grid(
                id=row["id"], name=row["name"], g_per_kwh=float(row["g_per_kwh"]),
                year=row["year"], source=row["source"],
            )
            for row in read_table("grids.csv")
        }
    )  # fmt: skip


def read_grid(text: str | None, cluster: Cluster) -> Grid | None:
    """The grid asked for (``fr``, ``France``, or grams per kWh), or that of a public machine.

    Raises UnknownNameError with the nearest names, GoalError for grams beyond any grid.
    """
    if text is None:
        machine = known_machine(cluster.name)
        return None if machine is None else grids().get(machine.country.lower())
    asked = text.strip().lower()
    try:
        grams = float(asked.removesuffix("g"))
    except ValueError:
        return _named(asked)
    if not 0 <= grams <= MOST_G_PER_KWH:
        raise GoalError(
            f"--grid {text}: grams of CO2 per kilowatt-hour from 0 to {MOST_G_PER_KWH:g}, or a"
            " country such as fr"
        )
    return Grid(id="given", name="as given", g_per_kwh=grams, year="", source="given")


def _named(asked: str) -> Grid:
    names: dict[str, str] = {}
    for row in read_table("grids.csv"):
        for name in (row["id"], row["name"].lower(), *filter(None, row["short"].split(";"))):
            names[name] = row["id"]
    if asked not in names:
        raise UnknownNameError(
            "grid", asked, names, "Write a country code (fr, de, us, cn), world, or grams per kWh."
        )
    return grids()[names[asked]]
