"""Tables of strong and weak scaling: planned at each number of nodes, corrected by measurements.

Strong scaling keeps the batch of a step, weak scaling the sequences of each node.  A size that was
measured shows what was measured.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from krzem.errors import ClusterError, DataError, GoalError, InputError, shorten
from krzem.estimate import Estimate
from krzem.hardware.cluster import Cluster
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.quantity import parse_devices
from krzem.supply.speed import Progress, Speed, speed_of

MOST_ROWS = 12
PER_DOUBLING = 0.03
"""Log standard deviation added for each doubling beyond what was measured."""
LEAST_SPREAD = 0.05
"""Of a prediction that measurements correct: what repeated runs of one job differ by."""
Document = dict[str, Any]


def node_counts(text: str | None, cluster: Cluster) -> list[int]:
    """Numbers of nodes of the table, the plan's own among them; raises InputError."""
    here = cluster.nodes
    if text is None:
        found = {here // 4, here // 2, here, here * 2} - {0}
    else:
        found = {parse_devices(part.strip()) for part in text.split(",") if part.strip()} | {here}
    if len(found) > MOST_ROWS:
        raise InputError(f"--nodes: at most {MOST_ROWS} numbers of nodes make a table")
    return sorted(found)


def strong(
    question: Question, asked: Asked, counts: Sequence[int], progress: Progress | None
) -> dict[int, Speed]:
    """The speed at each number of nodes where the run fits; the plan's own must."""
    own = asked.task.cluster.nodes
    rows: dict[int, Speed] = {}
    for nodes in counts:
        if progress is not None:
            progress(f"{nodes:,} nodes")
        try:
            rows[nodes] = speed_at(question, asked, nodes)
        except (ClusterError, GoalError):
            if nodes == own:
                raise
    return rows


def weak(
    question: Question, asked: Asked, known: Mapping[int, Speed], progress: Progress | None
) -> dict[int, tuple[int, Speed]]:
    """Batch and speed at the numbers of nodes of ``known``, the batch in proportion to them."""
    own, batch = asked.task.cluster.nodes, asked.task.goal.global_batch
    rows: dict[int, tuple[int, Speed]] = {}
    for nodes in known:
        if nodes == own:
            rows[nodes] = batch, known[own]
            continue
        if progress is not None:
            progress(f"{nodes:,} nodes, weak")
        sequences = batch * nodes // own
        if sequences < 1 or batch * nodes % own:
            continue
        try:
            rows[nodes] = (
                sequences,
                speed_at(
                    replace(question, global_batch=sequences, batch_tokens=None), asked, nodes
                ),
            )
        except (ClusterError, GoalError):
            continue
    return rows


def speed_at(question: Question, asked: Asked, nodes: int) -> Speed:
    """The run on so many nodes; raises as the planner."""
    cluster = asked.task.cluster
    devices = cluster.devices if nodes == cluster.nodes else nodes * cluster.devices_per_node
    return speed_of(settle(replace(question, on=replace(cluster, devices=devices))))


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


def correction(
    own: Sequence[tuple[int, float]], rows: Mapping[int, Speed], question: Question, asked: Asked
) -> Document | None:
    """Measured over predicted step time: the mean ratio, its spread, the largest size measured.

    Raises InputError where a measurement is above the dense peak.
    """
    if not own:
        return None
    logs = []
    for nodes, seconds in own:
        predicted = rows[nodes] if nodes in rows else speed_at(question, asked, nodes)
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


def _measured_at(nodes: int, fit: Mapping[str, Any] | None) -> float | None:
    """The (geometric) mean of what was measured on so many nodes."""
    if fit is None:
        return None
    logs = [math.log(m["step_time_s"]) for m in fit["measured"] if m["nodes"] == nodes]
    return math.exp(sum(logs) / len(logs)) if logs else None


def table(
    rows: Mapping[int, Speed], fit: Mapping[str, Any] | None, *, measured: bool = True
) -> list[Document]:
    """One entry per number of nodes; efficiency against the smallest."""
    found: list[Document] = []
    for nodes, speed in rows.items():
        own = _measured_at(nodes, fit) if measured else None
        step = corrected(speed.step_seconds, nodes, fit)
        if own is not None:
            step = Estimate.lognormal(own, LEAST_SPREAD)
        factor = speed.step_seconds.mid / step.mid
        per_s = step.inverse(speed.tokens_per_s.mid * speed.step_seconds.mid)
        first = found[0]["tokens_per_s"]["mid"] / found[0]["nodes"] if found else None
        mine = per_s.mid / nodes
        found.append(
            {
                "nodes": nodes,
                "devices": speed.devices,
                "measured": own is not None,
                "step_time_s": step.as_dict(),
                "tokens_per_s": per_s.as_dict(),
                "efficiency": mine / first if first else 1.0,
                "mfu": speed.mfu.mid * factor,
                "memory_gib": speed.memory_bytes.scaled(2.0**-30).as_dict(),
                "layout": speed.layout,
            }
        )
    return found
