"""How fast a device is: products, attention, memory, launches; and whether it stays so."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from krzem.run.probe.backend import Backend

_SIZES = (256, 512, 1024, 2048, 4096, 8192)
_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """One measured rate."""

    what: str
    """matmul, attention, memory, launch."""
    precision: str
    size: int
    """Side of the matrices; tokens of attention; bytes of a copy."""
    value: float
    """FLOP/s, bytes/s, or seconds for a launch: the median repeat."""
    best: float
    spread: float
    """(best - worst) / median of the repeats."""


def seconds_of(backend: Backend, work: Callable[[], Any], budget: float) -> list[float]:
    """Seconds of one call, measured several times within about ``budget`` seconds."""
    work()
    backend.wait()
    begun = time.perf_counter()
    work()
    backend.wait()
    once = max(time.perf_counter() - begun, 1e-7)
    calls = max(1, int(budget / _REPEATS / once))
    found = []
    for _ in range(_REPEATS if once < budget else 1):
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        backend.wait()
        found.append((time.perf_counter() - begun) / calls)
    return found


def _rate(what: str, precision: str, size: int, amount: float, seconds: list[float]) -> Rate:
    middle = statistics.median(seconds)
    return Rate(
        what=what,
        precision=precision,
        size=size,
        value=amount / middle,
        best=amount / min(seconds),
        spread=(max(seconds) - min(seconds)) / middle,
    )


def matmul_rates(backend: Backend, precision: str, budget: float) -> list[Rate]:
    """Square products of growing size, until one takes too long for the budget."""
    random = np.random.default_rng(1)
    product = backend.operators()["matmul"]
    found: list[Rate] = []
    each = budget / 3
    for side in _SIZES:
        a, b = (
            backend.put(random.standard_normal((side, side)) / side**0.5, precision)
            for _ in range(2)
        )
        flops = 2.0 * side**3
        seconds = seconds_of(backend, lambda a=a, b=b: product(a, b), each / 2)  # type: ignore[misc]
        found.append(_rate("matmul", precision, side, flops, seconds))
        if 8 * statistics.median(seconds) * 4 > each:
            break
    return found


def attention_rate(backend: Backend, precision: str, budget: float) -> Rate:
    """Causal attention of 8 heads of 64 channels; FLOPs counted for the causal half."""
    random = np.random.default_rng(2)
    attend = backend.operators()["attention"]
    found = None
    for tokens in (256, 512, 1024, 2048, 4096):
        q, k, v = (
            backend.put(random.standard_normal((8, tokens, 64)), precision) for _ in range(3)
        )
        flops = 2 * 2.0 * 8 * tokens * tokens * 64 / 2
        seconds = seconds_of(backend, lambda q=q, k=k, v=v: attend(q, k, v), budget / 8)  # type: ignore[misc]
        found = _rate("attention", precision, tokens, flops, seconds)
        if 4 * statistics.median(seconds) * _REPEATS > budget / 2:
            break
    if found is None:
        raise AssertionError("no size was measured")
    return found


def memory_rate(backend: Backend, budget: float) -> Rate:
    """``a = b * s`` over arrays far larger than any cache: one read and one write an element."""
    size = 1 << (27 if backend.device == "cpu" else 29)
    source, target = (backend.put(np.ones(size // 4), "fp32") for _ in range(2))
    seconds = seconds_of(backend, lambda: backend.scale_into(target, source), budget)
    return _rate("memory", "fp32", size, 2.0 * size, seconds)


def launch_seconds(backend: Backend, budget: float) -> Rate:
    """One small operation after another, as a step of training asks for them."""
    array = backend.put(np.ones(64), "fp32")

    def many() -> None:
        for _ in range(200):
            _ = array * 1.5

    seconds = [s / 200 for s in seconds_of(backend, many, budget)]
    middle = statistics.median(seconds)
    spread = (max(seconds) - min(seconds)) / middle
    return Rate(what="launch", precision="fp32", size=64, value=middle, best=min(seconds),
                spread=spread)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """A product repeated under load: does it slow down, does it ever give other bits?"""

    seconds: float
    side: int
    products: int
    first_rate: float
    last_rate: float
    slowest_share: float
    """Slowest window over the median one."""
    different: int
    """Products whose bits differ from the first one's."""
    digest: str


def soak(backend: Backend, precision: str, side: int, seconds: float) -> Soak:
    """Repeat one product for ``seconds``, timing windows and comparing every window's bits."""
    random = np.random.default_rng(3)
    product = backend.operators()["matmul"]
    a, b = (backend.put(random.standard_normal((side, side)), precision) for _ in range(2))
    expected = backend.digest(product(a, b))
    calls = max(1, int(0.1 * seconds / 8 / seconds_of(backend, lambda: product(a, b), 0.05)[0]))
    rates: list[float] = []
    different = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 4:
        begun = time.perf_counter()
        for _ in range(calls):
            result = product(a, b)
        backend.wait()
        rates.append(calls * 2.0 * side**3 / (time.perf_counter() - begun))
        different += backend.digest(result) != expected
    quarter = max(1, len(rates) // 4)
    return Soak(
        seconds=seconds,
        side=side,
        products=calls * len(rates),
        first_rate=statistics.median(rates[:quarter]),
        last_rate=statistics.median(rates[-quarter:]),
        slowest_share=min(rates) / statistics.median(rates),
        different=different,
        digest=expected,
    )
