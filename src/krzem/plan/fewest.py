"""The fewest devices that meet a date: whole nodes, doubled until they do, then halved down."""

from __future__ import annotations

from dataclasses import dataclass

from krzem.errors import ClusterError, GoalError, KrzemError
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import read_cluster
from krzem.plan.answer import Progress
from krzem.plan.request import Question
from krzem.plan.sweep import Point, point_at

CHANCE = 0.8
"""Of meeting the deadline."""
STEPS = 8
"""Numbers of nodes that are tried between half and all of a number that does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fewest:
    """The fewest devices that meet the deadline, and what was tried on the way."""

    chance: float
    """Asked for, of meeting the deadline."""
    best: Point
    tried: tuple[Point, ...]
    """By their number of devices."""


def fewest(
    question: Question, *, chance: float = CHANCE, progress: Progress | None = None
) -> Fewest:
    """The fewest whole nodes with which the run meets ``question.deadline``.

    The cluster of ``question`` says how many there are.  More devices than needed are tried by
    doubling, then numbers of nodes in eighths of the range between: a run on fewer of those tried
    misses the deadline or does not fit.

    Raises GoalError without a deadline, and where all devices miss it; and what a plan raises.
    """
    if question.deadline is None:
        raise GoalError("--fewest looks for the devices that meet a date: give --deadline")
    if not 0 < chance < 1:
        raise GoalError(f"--chance {chance:g}: a chance between 0 and 1 is needed, such as 0.8")
    cluster = question.on if isinstance(question.on, Cluster) else read_cluster(question.on)
    search = _Search(question, cluster, chance, progress)
    first = search.doubled()
    tried = tuple(search.points[n] for n in sorted(search.points))
    if first is None:
        raise _missed(search, tried[-1])
    best = search.between(first // 2, first)
    tried = tuple(search.points[n] for n in sorted(search.points))
    return Fewest(chance=chance, best=search.points[best], tried=tried)


class _Search:
    """Plans at numbers of nodes, each once."""

    def __init__(
        self, question: Question, cluster: Cluster, chance: float, progress: Progress | None
    ) -> None:
        self.question, self.cluster, self.chance = question, cluster, chance
        self.progress = progress
        self.points: dict[int, Point] = {}
        self.error: KrzemError | None = None

    def doubled(self) -> int | None:
        """The first of 1, 2, 4, … nodes, and all of them, that meets the deadline."""
        nodes, most = 1, int(self.cluster.nodes)
        while nodes < most:
            if self.meets(nodes):
                return nodes
            nodes *= 2
        return most if self.meets(most) else None

    def between(self, low: int, high: int) -> int:
        """The fewest of the numbers tried above ``low``, which misses, up to ``high``."""
        step = max(1, (high - low) // STEPS)
        numbers: list[int] = [*range(low + step, high, step), high]
        first, last = 0, len(numbers) - 1
        while first < last:
            middle = (first + last) // 2
            if self.meets(numbers[middle]):
                last = middle
            else:
                first = middle + 1
        return numbers[last]

    def meets(self, nodes: int) -> bool:
        devices = min(nodes * self.cluster.devices_per_node, self.cluster.devices)
        try:
            point = point_at(self.question, "devices", self.cluster, devices, self.progress)
        except (ClusterError, GoalError) as error:
            point, self.error = Point(value=devices, asked=None, plan=None, error=str(error)), error
        self.points[nodes] = point
        chance = None if point.plan is None else point.plan.whole_run.deadline_probability
        return chance is not None and chance >= self.chance


def _missed(search: _Search, last: Point) -> KrzemError:
    devices = search.cluster.devices
    if last.plan is None:
        return search.error or GoalError(f"no plan on {devices:,} devices")
    run = last.plan.whole_run
    if run.days is None:
        return GoalError(f"no chance of meeting a date is known: {' '.join(run.unknown)}")
    return GoalError(
        f"all {devices:,} devices have a {run.deadline_probability:.0%} chance of meeting the"
        f" deadline, and {search.chance:.0%} is asked for: the run takes {run.days.low:,.3g} to"
        f" {run.days.high:,.3g} days. Give more devices in --on, a later --deadline, or a lower"
        " --chance"
    )
