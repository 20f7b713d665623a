"""The wall: which resource binds a layout, and what a tenth more of each would gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from krzem.layout.layout import Layout, Layouts, pack
from krzem.model.parameters import count
from krzem.plan.goodput import goodput, optimal_interval, quantity
from krzem.plan.price import Pricer
from krzem.plan.search import Found

MORE = 1.10
DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What a tenth more of one resource gains."""

    resource: str
    label: str
    throughput: float
    """Relative gain in tokens per second (0.03: three per cent)."""


_RATES = {
    "compute": ("compute", ("matmul_flops", "matmul16_flops", "attention_flops")),
    "memory-bandwidth": ("memory bandwidth", ("memory_bytes_per_s",)),
    "scale-up": ("scale-up links", ("up_bytes_per_s",)),
    "network": ("scale-out network", ("out_bytes_per_s",)),
}
_COSTS = {
    "latency": ("link latency", ("up_latency", "out_latency")),
    "host": ("host", ("host_seconds", "gap_seconds", "fixed_seconds")),
}


def gains(pricer: Pricer, found: Found | None, layout: Layout, sure: float) -> tuple[Gain, ...]:
    """The gain of each resource for ``layout``, largest first.

    Rates are raised by a tenth with the layout held; memory capacity is raised by a tenth and the
    best layout that then fits is taken, where a search was made; the bubble is cut by a tenth;
    failures become a tenth rarer.
    """
    x = pack([layout])
    step = pricer.step(x)
    base = _total(step.total)
    out = [Gain(resource=name, label=label, throughput=base / _with(pricer, x, names, MORE) - 1.0)
           for name, (label, names) in _RATES.items()]  # fmt: skip
    out += [
        Gain(resource=name, label=label, throughput=base / _with(pricer, x, names, 1 / MORE) - 1.0)
        for name, (label, names) in _COSTS.items()
    ]
    bubble = _total(step.bubble) * (1.0 - 1.0 / MORE)
    out.append(Gain(resource="bubble", label="pipeline bubble",
                    throughput=base / (base - bubble) - 1.0))  # fmt: skip
    if found is not None:
        out.append(Gain(resource="memory-capacity", label="memory capacity",
                        throughput=_roomier(pricer, found, base, sure)))  # fmt: skip
    rarer = _failures(pricer)
    if rarer is not None:
        out.append(Gain(resource="failures", label="failures", throughput=rarer))
    return tuple(sorted(out, key=lambda g: -g.throughput))


def binding(resources: Sequence[Gain]) -> str:
    """The resource that gains most."""
    return resources[0].resource


def _total(values: object) -> float:
    return float(np.ravel(np.asarray(values, dtype=float))[0])


def _with(pricer: Pricer, x: Layouts, names: Sequence[str], factor: float) -> float:
    return _total(pricer.scaled(**dict.fromkeys(names, factor)).step(x).total)


def _roomier(pricer: Pricer, found: Found, base: float, sure: float) -> float:
    """Gain of the fastest candidate that fits a device with a tenth more memory."""
    memory = pricer.memory(found.layouts)
    fits = pricer.fits(memory, pricer.task.cluster.memory_bytes * MORE)
    best = np.min(np.where(fits >= sure, found.seconds, np.inf))
    return max(base / float(best) - 1.0, 0.0)


def _failures(pricer: Pricer) -> float | None:
    """Gain in goodput when interruptions become a tenth rarer; None where unknown."""
    task = pricer.task
    rate = quantity(task.cluster, "failures_per_device_day")
    restart = quantity(task.cluster, "restart_seconds")
    storage = quantity(task.cluster, "checkpoint_write_bytes_per_s")
    if rate is None or restart is None or storage is None or rate.mid <= 0:
        return None
    states = task.goal.states
    size = count(task.architecture).total * (states.weight + states.master + states.moments)
    write = size / storage.mid
    mean = DAY / (rate.mid * task.cluster.devices)

    def kept(between: float) -> float:
        interval = float(optimal_interval(write, between))
        return float(goodput(interval, write, restart.mid + write, between))

    return kept(mean * MORE) / kept(mean) - 1.0
