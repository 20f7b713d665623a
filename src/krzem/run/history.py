"""What was trained: the lines of ``metrics.jsonl``, and the one history that they amount to.

After a fault the steps since the last checkpoint are done again, so a step may have several lines.
The history holds the last of them; what they replace was lost work.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from krzem.run.contract import METRICS, StepRecord, parse_record


class MetricsTail:
    """Reads what was added to ``metrics.jsonl`` since the last look."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS
        self._offset = 0
        self.torn = 0
        """Lines that a death left unfinished."""

    def read(self) -> list[StepRecord]:
        """New whole lines; the last one waits until its end is there."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                raw = file.read()
        except FileNotFoundError:
            return []
        end = raw.rfind(b"\n") + 1
        self._offset += end
        lines = [line for line in raw[:end].split(b"\n") if line.strip()]
        found = [parse_record(line) for line in lines]
        self.torn += found.count(None)
        return [record for record in found if record is not None]


@dataclass(slots=True, kw_only=True)
class History:
    """The steps that count, in order, and those that had to be done again."""

    kept: list[StepRecord] = field(default_factory=list)
    lost: list[StepRecord] = field(default_factory=list)

    def add(self, records: Iterable[StepRecord]) -> None:
        """Take new lines in; a step that comes again replaces all from there on."""
        for record in records:
            while self.kept and self.kept[-1].step >= record.step:
                self.lost.append(self.kept.pop())
            self.kept.append(record)

    @classmethod
    def of(cls, run_dir: Path) -> History:
        """From all lines that are there."""
        history = cls()
        history.add(MetricsTail(run_dir).read())
        return history

    @property
    def step(self) -> int:
        """Last step done."""
        return self.kept[-1].step if self.kept else 0

    @property
    def tokens(self) -> int:
        """Tokens trained."""
        return self.kept[-1].tokens if self.kept else 0

    def of_attempt(self, attempt: int) -> list[StepRecord]:
        """The newest steps, as far back as ``attempt`` did them."""
        newest = itertools.takewhile(lambda r: r.attempt == attempt, reversed(self.kept))
        return list(newest)[::-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleProof:
    """Whether every sample was trained exactly once, judged from the recorded indices."""

    first: int
    last: int
    steps: int
    gaps: tuple[str, ...]
    """Sentences about samples that were skipped or repeated; empty in an exact run."""

    @property
    def exact(self) -> bool:
        """No sample skipped, none repeated."""
        return not self.gaps


def prove_samples(kept: Sequence[StepRecord]) -> SampleProof:
    """Check that steps and samples follow each other without a gap from the first on."""
    gaps = []
    if kept and (kept[0].step, kept[0].first_sample) != (1, 0):
        gaps.append(f"begins at step {kept[0].step} with sample {kept[0].first_sample}")
    for before, after in itertools.pairwise(kept):
        if after.step != before.step + 1:
            gaps.append(f"step {before.step} is followed by step {after.step}")
        difference = after.first_sample - before.last_sample - 1
        if difference:
            what = "skipped" if difference > 0 else "repeated"
            gaps.append(f"step {after.step}: {abs(difference)} samples {what}")
    return SampleProof(
        first=kept[0].first_sample if kept else 0,
        last=kept[-1].last_sample if kept else -1,
        steps=len(kept),
        gaps=tuple(gaps),
    )
