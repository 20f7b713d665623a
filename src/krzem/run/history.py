"""What was trained: the lines of ``metrics.jsonl``, and the one history that they amount to.

After a fault the steps since the last checkpoint are done again, so a step may have several lines.
The history holds the last of them; what they replace was lost work.  It also keeps the steps as
columns, so that sums over hundreds of thousands of steps cost a redraw next to nothing.
"""

from __future__ import annotations

import itertools
import json
import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from krzem.run.contract import COUNTS, METRICS, StepRecord, parse_record, record_of
from krzem.run.untrusted import LARGEST, MOST, BadInputError, open_bounded, quoted

_BLOCK = 8 << 20
_SHOWN = 5
"""Bad lines that are kept to be quoted."""
_REAL = ("loss", "seconds", "tokens_per_s")


class Columns:
    """The steps that count as one array for each field: views, valid until the next step comes."""

    def __init__(self) -> None:
        self._whole = {name: array("q") for name in COUNTS}
        self._real = {name: array("d") for name in _REAL}

    @property
    def count(self) -> int:
        """How many steps there are."""
        return len(self._whole["step"])

    def extend(self, records: Sequence[StepRecord]) -> None:
        """Further steps."""
        for name, column in self._whole.items():
            column.extend([getattr(record, name) for record in records])
        for name, values in self._real.items():
            values.extend([getattr(record, name) for record in records])

    def shorten(self, count: int) -> None:
        """Only the first ``count`` steps stay."""
        for column in self._whole.values():
            del column[count:]
        for values in self._real.values():
            del values[count:]

    def whole(self, name: str) -> NDArray[np.int64]:
        """step, tokens, first_sample, last_sample or attempt."""
        return np.array(self._whole[name], dtype=np.int64)

    def real(self, name: str) -> NDArray[np.float64]:
        """loss, seconds or tokens_per_s."""
        return np.array(self._real[name], dtype=np.float64)


@dataclass(slots=True, kw_only=True)
class History:
    """The steps that count, in order, and those that had to be done again."""

    kept: list[StepRecord] = field(default_factory=list)
    lost: list[StepRecord] = field(default_factory=list)
    columns: Columns = field(default_factory=Columns)

    def __post_init__(self) -> None:
        self.columns.extend(self.kept)

    def add(self, records: Iterable[StepRecord]) -> None:
        """Take new lines in; a step that comes again replaces all from there on.

        A line of an attempt that a newer one has replaced is work that was lost.
        """
        for record in records:
            if self.kept and record.attempt < self.kept[-1].attempt:
                self.lost.append(record)
                continue
            if self.kept and self.kept[-1].step >= record.step:
                self._undo(record.step)
            self.kept.append(record)
        self.columns.extend(self.kept[self.columns.count :])

    def _undo(self, step: int) -> None:
        """Take back what was done from ``step`` on."""
        while self.kept and self.kept[-1].step >= step:
            self.lost.append(self.kept.pop())
        self.columns.shorten(min(len(self.kept), self.columns.count))

    @classmethod
    def of(cls, run_dir: Path) -> History:
        """From all lines that are there."""
        metrics = Metrics(run_dir)
        metrics.read()
        return metrics.history

    @property
    def step(self) -> int:
        """Last step done."""
        return self.kept[-1].step if self.kept else 0

    @property
    def tokens(self) -> int:
        """Tokens trained."""
        return self.kept[-1].tokens if self.kept else 0

    def of_attempt(self, attempt: int, most: int | None = None) -> list[StepRecord]:
        """The newest steps (at most ``most``), as far back as ``attempt`` did them."""
        mine = itertools.takewhile(lambda r: r.attempt == attempt, reversed(self.kept))
        return list(itertools.islice(mine, most))[::-1]


class Metrics:
    """Follows ``metrics.jsonl``: reads what was added since the last look, keeps the history."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS
        self.newest_attempt = MOST
        """A line of an attempt that nobody started is no step."""
        self._begin()

    def _begin(self) -> None:
        self._offset = 0
        self._line = 0
        self._skipping = False
        self.history = History()
        self.bad = 0
        """Lines that are no record of a step, those that a death cut short included."""
        self.quotes: deque[str] = deque(maxlen=_SHOWN)
        """What is wrong with the last of them."""

    def size(self) -> int:
        """Bytes that are there now."""
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def read(self, until: int = MOST) -> list[StepRecord]:
        """New whole lines up to byte ``until``; the last one waits until its end is there.

        A file that has become shorter was replaced, and is read anew.
        """
        found: list[StepRecord] = []
        try:
            with os.fdopen(open_bounded(self._path), "rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._begin()
                file.seek(self._offset)
                while block := file.read(max(0, min(_BLOCK, until - self._offset))):
                    taken = self._take(block, found)
                    if not taken:
                        break
                    file.seek(self._offset)
        except FileNotFoundError:
            return []
        except BadInputError as error:
            if str(error) not in self.quotes:
                self._refuse(str(error))
        return found

    def _take(self, block: bytes, found: list[StepRecord]) -> int:
        """Parse the whole lines of a block; how many of its bytes are done with."""
        end = block.rfind(b"\n") + 1
        if not end and len(block) > LARGEST:  # a line without end is no record, whatever follows
            end, self._skipping = len(block), True
            self._offset += end
            return end
        self._offset += end
        lines = list(self._lines(block[:end]))
        new = self._all(lines)
        self.history.add(new)
        found += new
        return end

    def _lines(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        lines = block.split(b"\n")[:-1]
        if self._skipping and lines:
            self._skipping = False
            self._line += 1
            self._refuse(f"line {self._line:,}: longer than {LARGEST:,} bytes")
            del lines[0]
        for line in lines:
            self._line += 1
            if line.strip():
                yield self._line, line

    def _all(self, lines: Sequence[tuple[int, bytes]]) -> list[StepRecord]:
        """The records of numbered lines: of all at once where they are good, else line by line."""
        if all(line[:1] == b"{" and line[-1:] == b"}" for _, line in lines):
            try:
                values = json.loads(b"[" + b",".join(line for _, line in lines) + b"]")
                found = [record_of(value) for value in values]
                if len(found) == len(lines) and all(map(self._is_known, found)):
                    return found
            except (ValueError, RecursionError):  # BadInputError included: say which line it is
                pass
        return [record for line in lines if (record := self._parse(*line))]

    def _parse(self, number: int, line: bytes) -> StepRecord | None:
        try:
            record = parse_record(line)
            if not self._is_known(record):
                raise BadInputError(f"attempt {record.attempt:,} was never started")
            return record
        except BadInputError as error:
            self._refuse(f"line {number:,}: {error}: {quoted(line)}")
            return None

    def _is_known(self, record: StepRecord) -> bool:
        return record.attempt <= self.newest_attempt

    def _refuse(self, why: str) -> None:
        self.bad += 1
        self.quotes.append(why)


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


_MOST_GAPS = 20
"""Sentences about samples; what is beyond is counted."""


def prove_samples(
    kept: Sequence[StepRecord], columns: Columns | None = None, *, from_start: bool = True
) -> SampleProof:
    """Check that steps and samples follow each other without a gap from the first on.

    Without ``from_start`` the first may be any: what came before was trained elsewhere.
    """
    c = columns or History(kept=list(kept)).columns
    step, first, last = (c.whole(n) for n in ("step", "first_sample", "last_sample"))
    gaps = []
    if from_start and len(step) and (step[0], first[0]) != (1, 0):
        gaps.append(f"begins at step {step[0]} with sample {first[0]}")
    odd = np.flatnonzero((np.diff(step) != 1) | (first[1:] - last[:-1] != 1))
    for at in odd[:_MOST_GAPS]:
        if step[at + 1] != step[at] + 1:
            gaps.append(f"step {step[at]} is followed by step {step[at + 1]}")
        difference = first[at + 1] - last[at] - 1
        if difference:
            what = "skipped" if difference > 0 else "repeated"
            gaps.append(f"step {step[at + 1]}: {abs(difference)} samples {what}")
    if len(odd) > _MOST_GAPS:
        gaps.append(f"and {len(odd) - _MOST_GAPS:,} more places")
    return SampleProof(
        first=int(first[0]) if len(step) else 0,
        last=int(last[-1]) if len(step) else -1,
        steps=len(step),
        gaps=tuple(gaps),
    )
