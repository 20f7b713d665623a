"""Operators of a device against float64 on the host.

The criteria are those that vendors use among themselves for one operator: Ascend's accuracy
checker (msprobe, docs/en/accuracy_checker, read 2026-11).  In this order: infinities and NaN must
be where float64 has them; a cosine of at most 0.99 is an error; a largest absolute error below
0.001 passes; else the dual rules decide.  Rule "dual k" passes if fewer than 1/k of the elements
have a relative error above 1/k.  With 16 bits, failing dual 100 is an error and dual 1,000 a
warning; with 32 bits, dual 1,000 and dual 10,000.  Values near zero are judged by their absolute
error instead.  The result that float64 gives is rounded to the precision of the operator first:
what remains is the operator's own error and not that of writing a number down.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from krzem.run.probe.backend import Array, Backend, Doubles

COSINE = 0.99
ABSOLUTE = 1e-3
DUAL = {"fp32": (1000, 10_000), "tf32": (100, 1000), "bf16": (100, 1000), "fp16": (100, 1000)}
"""Precision: the k whose failure is an error, the k whose failure is a warning."""
SMALL = {
    "fp32": (2.0**-14, 2.0**-30),
    "tf32": (2.0**-11, 2.0**-16),
    "fp16": (2.0**-11, 2.0**-16),
    "bf16": (2.0**-8, 2.0**-16),
}
"""Precision: values below the first are near zero and may be off by the second."""


class Grade(enum.StrEnum):
    """The outcome for one operator."""

    PASS = "pass"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """One operator in one precision."""

    operator: str
    precision: str
    grade: Grade
    reason: str
    cosine: float
    largest_error: float
    shares: Mapping[str, float]
    """Rule: share of elements beyond its bound."""


def compare(operator: str, precision: str, found: Doubles, truth: Doubles) -> Numerics:
    """Judge ``found`` by the criteria above."""
    finite = np.isfinite(truth)
    if not np.array_equal(finite, np.isfinite(found)):
        count = int(np.sum(finite != np.isfinite(found)))
        return Numerics(
            operator=operator, precision=precision, grade=Grade.ERROR, cosine=float("nan"),
            reason=f"{count:,} infinities or NaN where float64 has none, or the other way round",
            largest_error=float("inf"), shares={},
        )  # fmt: skip
    found, truth = found[finite], truth[finite]
    error = np.abs(found - truth)
    shares = {f"dual {k}": _share(error, truth, precision, k) for k in DUAL[precision]}
    cosine, largest = _cosine(found, truth), float(error.max(initial=0.0))
    grade, reason = _grade(precision, cosine, largest, shares)
    return Numerics(operator=operator, precision=precision, grade=grade, reason=reason,
                    cosine=cosine, largest_error=largest, shares=shares)  # fmt: skip


def _grade(
    precision: str, cosine: float, largest: float, shares: Mapping[str, float]
) -> tuple[Grade, str]:
    if cosine <= COSINE:
        return Grade.ERROR, f"cosine {cosine:.4f}, more than {COSINE} is needed"
    if largest < ABSOLUTE:
        return Grade.PASS, f"largest error {largest:.2g} below {ABSOLUTE}"
    for k, grade in zip(DUAL[precision], (Grade.ERROR, Grade.WARNING), strict=True):
        share = shares[f"dual {k}"]
        if share >= 1 / k:
            return grade, f"{share:.2%} of the elements are off by more than 1/{k:,}"
    return Grade.PASS, "passes the dual rules"


def _share(error: Doubles, truth: Doubles, precision: str, k: int) -> float:
    near_zero, allowed = SMALL[precision]
    small = np.abs(truth) < near_zero
    bad = np.where(small, error > allowed, error > np.abs(truth) / k)
    return float(np.mean(bad)) if bad.size else 0.0


def _cosine(a: Doubles, b: Doubles) -> float:
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 if length == 0 else float(np.vdot(a, b) / length)


def truths() -> dict[str, Callable[..., Doubles]]:
    """The operators in float64 on the host."""
    from krzem.run.probe.backend import NumpyBackend

    return NumpyBackend().operators()


def cases() -> dict[str, tuple[Doubles, ...]]:
    """Inputs of each operator, of a size and range that training gives them."""
    random = np.random.default_rng(4)
    rows = random.standard_normal((64, 1000)) * 3
    queries, keys = (random.standard_normal((4, 128, 64)) for _ in range(2))
    # Away from zero: a mean of many values of either sign has no digits to be right in.
    values = 1.0 + 0.3 * random.standard_normal((4, 128, 64))
    left, right = random.standard_normal((256, 640)), random.standard_normal((640, 192))
    return {
        "matmul": (left, right / 640**0.5),
        "softmax": (rows,),
        "rms_norm": (rows,),
        "silu": (rows,),
        "log_sum_exp": (rows,),
        "sum": (np.abs(rows),),
        "attention": (queries, keys, values),
    }


def check_operators(
    backend: Backend, precision: str, operators: Mapping[str, Callable[..., Array]] | None = None
) -> list[Numerics]:
    """Every operator of ``backend`` in ``precision``; inputs are rounded before both compute."""
    own = backend.operators() if operators is None else operators
    exact, found = truths(), []
    for name, inputs in cases().items():
        rounded = [backend.put(values, precision) for values in inputs]
        result = backend.get(own[name](*rounded))
        truth = exact[name](*(backend.get(values) for values in rounded))
        truth = backend.get(backend.put(truth, precision))
        found.append(compare(name, precision, result, truth))
    return found


def keeps_float32(backend: Backend) -> bool | None:
    """Whether products of float32 keep their 24 bits, and not the eleven of TF32 or fewer.

    A product with the unit matrix gives its operand back, unless that is rounded first.  None where
    the device multiplies no float32 here.
    """
    if "fp32" not in backend.precisions:
        return None
    fine = np.tile(1.0 + 2.0 ** -np.arange(12.0, 20.0), (128, 16))
    given, unit = backend.put(fine, "fp32"), backend.put(np.eye(128), "fp32")
    return bool((backend.get(backend.operators()["matmul"](given, unit)) == fine).all())
