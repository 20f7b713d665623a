"""The steady state of a series of steps, by a stated rule, or why there is none."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from krzem.jobs.log_series import Step

RULE = (
    "Lines of another global batch or sequence length than the last lines are left out (ramp-up);"
    " then, after every start, the first line (of two only where they differ, or where it is the"
    " job's first step) and all lines up to the first that agrees with the second half of that"
    " start, slow (compilation, tuning) or fast (a time of dispatch) alike, but never more than"
    " half; then lines with an evaluation, a save"
    " or a profile since the line"
    " before; then lines further from the median than 5 robust standard deviations and than 5 %,"
    " where they are at most a fifth. The value is the median, each line weighted by the steps it"
    " speaks for. No value is given where it moves by more than 5 % and one way from the first"
    " line left to the last, where two starts differ by more than 5 %, where one line is left"
    " after the first of a start, or where fewer than five lines are left and differ by more than"
    " 20 %."
)
"""What :func:`steady` does."""

FAR = 5.0
"""Robust standard deviations beyond which a line is an outlier."""
NEAREST = 0.05
"""Relative distance within which a line never is one."""
MOST_OUTLIERS = 0.2
DRIFT = 0.05
"""Relative change over the whole excerpt that is no steady state, where it goes one way."""
ONE_WAY = 0.5
"""Kendall's tau beyond which a change goes one way."""
FEW = 5
"""Fewer lines than these give a wide error."""
FEWEST = 3
"""Lines of a start whose speed is compared with that of the others."""
DISAGREE = 0.2
"""Relative range beyond which few lines give no value at all."""
WIDE = 0.05
"""Relative error at least, where lines are few."""
_SAMPLE = 300
_ROBUST = 1.4826


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """The steady value of one quantity of a log."""

    unit: str
    value: float | None
    """Weighted median; None: there is none, see ``refused``."""
    spread: float = 0.0
    """Robust standard deviation of one line."""
    error: float = 0.0
    """Standard error of the value, the rounding of the print included."""
    overall: float | None = None
    """Mean over all lines but those after a start: what the job got, saves and all."""
    used: int = 0
    seen: int = 0
    first: int = 0
    """Number of the first step used, and of the last."""
    last: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Lines left out, by reason."""
    refused: str = ""
    derived: str = ""
    """The arithmetic, where the log does not print the quantity."""
    rule: str = RULE

    def __str__(self) -> str:
        left = ", ".join(f"{count} {why}" for why, count in self.dropped.items() if count)
        text = f"{self.used} of {self.seen} lines" + (f" ({left} left out)" if left else "")
        if self.value is None:
            return f"no steady state: {self.refused}; {text}"
        wide = f"; only {self.used}: wide" if self.used < FEW else ""
        return f"{self.value:.6g} {self.unit} ± {self.error:.2g}, {text}{wide}"


def steady(
    steps: Sequence[Step], name: str, unit: str, *, factor: float = 1.0, derived: str = ""
) -> Steady | None:
    """The steady state of ``name`` over ``steps`` by :data:`RULE`; None: no line has it.

    ``factor`` multiplies every value (to derive one quantity from another).
    """
    have = [s for s in steps if (s.get(name) or 0.0) > 0.0]
    if not have:
        return None
    kept, dropped = _same_work(have)
    kept = _without(kept, dropped, "after a start", _warm(kept, name))
    overall = _mean(kept, name)
    kept = _without(kept, dropped, "with an evaluation, a save or a profile", _disturbed(kept))
    kept = _without(kept, dropped, "far from the others", _outliers(kept, name))
    values = [s.values[name] for s in kept]
    middle = _median(values, [s.interval for s in kept])
    spread = _ROBUST * statistics.median(abs(v - middle) for v in values)
    refused = (
        _apart(kept, name, unit, factor)
        or _drift(kept, name, unit, factor)
        or _too_few(values, middle, dropped)
    )
    return Steady(
        unit=unit, value=None if refused else middle * factor, spread=spread * factor,
        error=_error(values, middle, spread) * factor,
        overall=None if overall is None else overall * factor,
        used=len(kept), seen=len(have), first=kept[0].number, last=kept[-1].number,
        dropped={why: count for why, count in dropped.items() if count},
        refused=refused, derived=derived,
    )  # fmt: skip


def _same_work(steps: list[Step]) -> tuple[list[Step], dict[str, int]]:
    """The steps whose batch and length are those of the last one."""
    last = steps[-1]
    want = {k: last.values[k] for k in ("batch", "seq", "batch_tokens") if k in last.values}
    same = [s for s in steps if all(s.values.get(k, v) == v for k, v in want.items())]
    return same, {"of another batch": len(steps) - len(same)}


def _without(
    steps: list[Step], dropped: dict[str, int], why: str, out: Iterable[int]
) -> list[Step]:
    """``steps`` less those at the places ``out``, unless nothing would be left."""
    places = set(out)
    kept = [s for i, s in enumerate(steps) if i not in places]
    if not kept:
        return steps
    dropped[why] = dropped.get(why, 0) + len(steps) - len(kept)
    return kept


def _warm(steps: Sequence[Step], name: str) -> list[int]:
    """Places of the lines at the head of each start that are not yet the steady state."""
    out: list[int] = []
    begin = 0
    for end in range(1, len(steps) + 1):
        if end < len(steps) and steps[end].start == steps[begin].start:
            continue
        head = _head([s.values[name] for s in steps[begin:end]])
        if end - begin == 2 and steps[begin].number <= 1 and steps[end - 1].interval == 1:
            head = 1
        out += [begin + i for i in range(head)]
        begin = end
    return out


def _head(values: Sequence[float]) -> int:
    """How many of the first values belong to a start: one at least, where three are there."""
    if len(values) < 3:
        return int(len(values) == 2 and abs(values[0] - values[1]) > NEAREST * values[1])
    rest = values[len(values) // 2 :]
    middle = statistics.median(rest)
    sigma = _ROBUST * statistics.median(abs(v - middle) for v in rest)
    bound = max(FAR * sigma, NEAREST * middle)
    head = 1
    while head < len(values) // 2 and abs(values[head] - middle) > bound:
        head += 1
    return head


def _disturbed(steps: Sequence[Step]) -> list[int]:
    """Places of lines after a report of something else, where enough others are left."""
    out = [i for i, s in enumerate(steps) if s.near]
    return out if len(steps) - len(out) >= max(3, len(steps) * 0.2) else []


def _outliers(steps: Sequence[Step], name: str) -> list[int]:
    values = [s.values[name] for s in steps]
    middle = statistics.median(values)
    sigma = _ROBUST * statistics.median(abs(v - middle) for v in values)
    bound = max(FAR * sigma, NEAREST * middle)
    out = [i for i, v in enumerate(values) if abs(v - middle) > bound]
    return out if len(out) <= MOST_OUTLIERS * len(values) else []


def _apart(steps: Sequence[Step], name: str, unit: str, factor: float) -> str:
    """Why the starts of a log are not one job at one speed, or ''."""
    by_start: dict[int, list[float]] = {}
    for step in steps:
        by_start.setdefault(step.start, []).append(step.values[name])
    middles = {s: statistics.median(v) for s, v in by_start.items() if len(v) >= FEWEST}
    if len(middles) < 2 or max(middles.values()) <= (1 + DRIFT) * min(middles.values()):
        return ""
    told = ", ".join(f"{s + 1}: {m * factor:.4g}" for s, m in list(middles.items())[:6])
    return f"its starts run at different speeds ({told} {unit}): read them one by one"


def _too_few(values: Sequence[float], middle: float, dropped: Mapping[str, int]) -> str:
    """Why a few lines give no value at all, or ''."""
    if len(values) == 1 and dropped.get("after a start"):
        return "only one line is left after the first of the job"
    apart = (max(values) - min(values)) / middle
    if len(values) >= FEW or apart <= DISAGREE:
        return ""
    return f"only {len(values)} lines are left, and they differ by {apart:.0%}"


def _drift(steps: Sequence[Step], name: str, unit: str, factor: float) -> str:
    """Why the values are no steady state, or ''."""
    every = -(-len(steps) // _SAMPLE)
    values = [s.values[name] for s in steps][::every]
    if len(values) < 6:
        return ""
    middle = statistics.median(values)
    pairs = [
        ((b - a), (b - a) / (j - i))
        for i, a in enumerate(values)
        for j, b in enumerate(values[i + 1 :], i + 1)
    ]
    tau = sum((d > 0) - (d < 0) for d, _ in pairs) / len(pairs)
    change = statistics.median(slope for _, slope in pairs) * (len(values) - 1) / middle
    if abs(change) <= DRIFT or abs(tau) < ONE_WAY:
        return ""
    third = max(1, len(values) // 3)
    a, b = (statistics.median(v) * factor for v in (values[:third], values[-third:]))
    return (
        f"it drifts by {change:+.0%} from step {steps[0].number} to step {steps[-1].number}"
        f" (first third {a:.4g} {unit}, last third {b:.4g})"
    )


def _error(values: Sequence[float], middle: float, spread: float) -> float:
    """Standard error of the median; wide where lines are few."""
    n = len(values)
    rounding = _resolution(values) / math.sqrt(12)
    if n < FEW:
        return max((max(values) - min(values)) / 2, WIDE * middle, rounding)
    return math.hypot(1.2533 * spread / math.sqrt(n), rounding)


def _resolution(values: Sequence[float]) -> float:
    """The least step between printed values that repeat; of one value alone, its last digit."""
    distinct = sorted(set(values))
    if len(distinct) == len(values):
        return 0.0
    if len(distinct) == 1:
        return float(10.0 ** -len(f"{distinct[0]:.9f}".rstrip("0").partition(".")[2]))
    return min(b - a for a, b in pairwise(distinct))


def _mean(steps: Sequence[Step], name: str) -> float | None:
    weight = sum(s.interval for s in steps)
    return sum(s.values[name] * s.interval for s in steps) / weight if weight else None


def _median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The value that half of the weight lies below; the mean of two where it lies between."""
    pairs = sorted(zip(values, weights, strict=True))
    half, total = sum(weights) / 2, 0.0
    for i, (value, weight) in enumerate(pairs):
        total += weight
        if total > half:
            return value
        if total == half:
            return (value + pairs[i + 1][0]) / 2
    return pairs[-1][0]
