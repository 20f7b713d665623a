"""The seam between files and the readers of single engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from krzem.jobs.job import JobBuilder


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The text of a job's files by the name that the user gave, in the order given."""

    files: Mapping[str, str]
    engine: str | None = None
    """The canonical engine the user names; None: to be found out."""
    opened: dict[str, object] = field(default_factory=dict, compare=False)
    """What readers parsed already (by a key of their own), so that no file is parsed twice."""

    def with_suffix(self, *suffixes: str) -> dict[str, str]:
        """The files whose name ends so (``.yaml``); ``""`` means names without a suffix."""
        return {n: t for n, t in self.files.items() if PurePosixPath(n).suffix.lower() in suffixes}

    def first(self, test: Callable[[str], bool], *suffixes: str) -> str | None:
        """The first file with such a suffix whose text passes ``test``."""
        return next((n for n, t in self.with_suffix(*suffixes).items() if test(t)), None)

    def find(self, reference: str) -> str | None:
        """The given file that a path in another file means: the longest common tail wins."""
        want = PurePosixPath(reference.strip()).parts
        best: tuple[int, str] | None = None
        for name in self.files:
            have = PurePosixPath(name).parts
            same = 0
            while same < min(len(want), len(have)) and want[-1 - same] == have[-1 - same]:
                same += 1
            if same and (best is None or same > best[0]):
                best = (same, name)
        return None if best is None else best[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A reader says that the files are a job of its engine."""

    engine: str
    """Canonical name."""
    strength: int
    """100: the engine's own program is started; 80: its configuration's tables are there;
    50: keys that others have too; 20: a guess from one key.  The highest claim reads the job."""
    why: str
    """What in the files shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One family of engines; a module of this room lists its own in ``READERS``."""

    kind: str
    """Name of the family, for messages."""
    engines: tuple[str, ...]
    """Canonical engines it reads."""
    claim: Callable[[Sources], Claim | None]
    """Finds its engine in the files, never from comments; must be quick and must not raise."""
    read: Callable[[Sources, JobBuilder], None]
    """Fills the builder (whose engine is set); arithmetic over its settings is closed later."""
