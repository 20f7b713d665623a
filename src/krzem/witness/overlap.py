"""Steps that the old machine has done, done again on the new one, and compared one by one.

A witness shows one step.  What needs several to show, a drift, a schedule that begins anew, a
collective that is rare, shows where both machines train the same steps from the same checkpoint.
The old machine's are in the run's ``metrics.jsonl`` already.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from krzem.errors import DataError

Steps = Mapping[int, Mapping[str, Any]]
"""Records of ``metrics.jsonl`` by step."""
EACH, MEAN, NORM, DRIFT = 0.01, 0.005, 0.10, 0.001
"""Relative: of the loss of a step (MindSpore's guide: 1 %), of its mean, of the mean gradient norm
(10 %, the same guide), and of a mean difference of one sign."""
SIGMAS = 4.0
"""A mean difference of one sign is a drift where it is so many standard errors from nought."""
EXACT = ("tokens", "first_sample", "last_sample", "rate")
"""What depends on settings alone: any difference is one of the run."""
_EQUAL = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How steps done twice compare."""

    steps: tuple[int, ...]
    departs: tuple[str, ...]
    """What is apart, each as a sentence, the first step first."""
    worst_loss: float
    """Largest relative difference of a step."""
    mean_loss: float
    """Mean of the differences with their sign."""
    mean_norm: float
    """Mean relative difference of gradient norms."""

    @property
    def passed(self) -> bool:
        """Whether the steps are the same."""
        return not self.departs

    @property
    def message(self) -> str:
        """One sentence."""
        span = f"steps {self.steps[0]:,} to {self.steps[-1]:,}"
        if self.departs:
            return f"{span} are others here: {self.departs[0]}"
        return (
            f"{span} again: loss within {self.worst_loss:.2%} at each, {self.mean_loss:+.3%} in"
            f" the mean, gradient norm {self.mean_norm:.2%}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": "krzem.witness.overlap/1", "passed": self.passed,
                "message": self.message, **asdict(self)}  # fmt: skip


def read_steps(metrics: Path) -> Steps:
    """The records of a ``metrics.jsonl`` by step, the newest of each; other lines are passed over.

    Raises:
        DataError: the file cannot be read.
    """
    found: dict[int, dict[str, Any]] = {}
    try:
        with metrics.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    value = json.loads(line)
                    found[int(value["step"])] = value
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
    except OSError as error:
        raise DataError(f"cannot read the metrics {metrics}: {error.strerror}") from None
    return found


def compare_steps(old: Steps, new: Steps) -> Overlap:
    """Judge the steps that both machines did.

    Raises:
        DataError: there is no such step.
    """
    both = tuple(sorted(old.keys() & new.keys()))
    if not both:
        raise DataError("no step was done on both machines: there is nothing to compare")
    departs = [sentence for step in both for sentence in _exact(step, old[step], new[step])]
    losses = [_relative(old[s].get("loss"), new[s].get("loss")) for s in both]
    norms = [abs(_relative(old[s].get("grad_norm"), new[s].get("grad_norm"))) for s in both]
    for step, apart in zip(both, losses, strict=True):
        if not abs(apart) <= EACH:
            departs.append(f"step {step:,}: loss {apart:+.2%} off, {EACH:.0%} is tolerated")
    mean, norm = statistics.fmean(losses), statistics.fmean(norms)
    if not statistics.fmean(map(abs, losses)) <= MEAN:
        departs.append(f"the loss is {statistics.fmean(map(abs, losses)):.2%} off in the mean")
    if not norm <= NORM:
        departs.append(f"the gradient norm is {norm:.1%} off in the mean, {NORM:.0%} is tolerated")
    if len(both) > 2 and abs(mean) > DRIFT:
        error = statistics.stdev(losses) / math.sqrt(len(both))
        if abs(mean) > SIGMAS * error:
            departs.append(f"the loss drifts: {mean:+.2%} in the mean over {len(both)} steps")
    return Overlap(
        steps=both, departs=tuple(departs), worst_loss=max(map(abs, losses)), mean_loss=mean,
        mean_norm=norm,
    )  # fmt: skip


def _exact(step: int, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    for name in EXACT:
        if name in old and name in new and not abs(_relative(old[name], new[name])) <= _EQUAL:
            found.append(f"step {step:,}: {name} is {new[name]} here and was {old[name]}")
    return found


def _relative(old: Any, new: Any) -> float:
    """Signed, over the old value; NaN where one of both is no number."""
    try:
        a, b = float(old), float(new)
    except (TypeError, ValueError):
        return 0.0 if old is None and new is None else math.nan
    if not (math.isfinite(a) and math.isfinite(b)):
        return 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else math.nan
    return 0.0 if a == b else (b - a) / max(abs(a), 1e-30)


def start_of_overlap(
    checkpoints: Sequence[tuple[int, Path]], old: Steps, steps: int
) -> Path | None:
    """The newest checkpoint after which ``steps`` steps are recorded, or else the most of them."""
    after = [(min(steps, sum(s > step for s in old)), step, folder) for step, folder in checkpoints]
    most, _, folder = max(after, key=lambda x: x[:2], default=(0, 0, None))
    return folder if most else None


def train_again(run_file: Path, checkpoint: Path, steps: int, folder: Path) -> Steps:
    """Train ``steps`` steps from ``checkpoint`` in a ``folder`` of their own; called by all ranks.

    Nothing is saved, and the run's own folder is left alone.

    Raises:
        RunError, CheckpointError: the run file or the checkpoint has faults.
    """
    from krzem.train.start import prepare

    (folder / "metrics.jsonl").unlink(missing_ok=True)
    trainer = prepare(run_file, resume_from=checkpoint, folder=folder)
    trainer.resume(checkpoint)
    trainer.train_steps(steps)
    return read_steps(folder / "metrics.jsonl")
