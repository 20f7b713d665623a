"""Every error krzem raises on purpose.

::

    KrzemError
    ├── InputError            what the user gave cannot be used (exit code 2)
    │   ├── UnknownNameError  a model, device or option that is not in the catalogue
    │   ├── QuantityError     text that is not the quantity asked for
    │   ├── ModelError        a config that is incomplete, contradictory or not supported
    │   ├── ClusterError      a cluster description that cannot be built
    │   ├── LayoutError       a layout that is not legal for this model, cluster and batch
    │   ├── GoalError         tokens, batch, sequence or precision that make no run
    │   ├── DataError         a file that cannot be read as what it should be
    │   └── RunError          a run file, or a request to a run, that cannot be used
    ├── StorageError          a disk that does not take what must be written (exit code 3)
    ├── CheckpointError       a checkpoint that is incomplete, altered or of another model
    ├── LaunchError           a launcher that cannot start or find what it should
    ├── SupersededError       another controller has taken over this run
    └── UnknownFactError      a quantity nobody has published (exit code 2): say it, do not guess

A message says what was asked, shows the arithmetic, lists the valid choices and names the next
step.  ``assert`` is kept for our own bugs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KrzemError(Exception):
    """Base of every error that krzem raises on purpose; ``str()`` of it is for people."""

    exit_code = 2


class InputError(KrzemError):
    """Something the user gave cannot be used."""


class UnknownNameError(InputError):
    """A name that is not in the catalogue; the message offers the nearest ones."""

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.what = what
        self.name = name
        self.nearest = nearest(name, known)
        offer = f" Did you mean {', '.join(self.nearest)}?" if self.nearest else ""
        super().__init__(f"unknown {what} {shorten(name)!r}.{offer}{' ' + hint if hint else ''}")


class QuantityError(InputError):
    """Text that is not the quantity asked for."""


class ModelError(InputError):
    """A model config that is incomplete, contradictory or not supported."""


class ClusterError(InputError):
    """A cluster description that cannot be built."""


class LayoutError(InputError):
    """A layout that is not legal for this model, cluster and batch."""


class GoalError(InputError):
    """Tokens, batch, sequence length or precision that make no run."""


class DataError(InputError):
    """A file that cannot be read as what it should be."""


class RunError(InputError):
    """A run file, or a request to a run, that cannot be used."""


class StorageError(KrzemError):
    """A disk that is full, read-only or failing: nothing that was there before is harmed."""

    exit_code = 3


class CheckpointError(KrzemError):
    """A checkpoint that is incomplete, altered, or of another model than the one that loads it."""


class LaunchError(KrzemError):
    """A launcher that cannot start or find what it should."""


class SupersededError(KrzemError):
    """Another controller has taken over this run; this one must touch nothing any more."""


class UnknownFactError(KrzemError):
    """A quantity that a plan needs and that nobody has published."""


def nearest(name: str, known: Iterable[str], count: int = 4) -> tuple[str, ...]:
    """The names of ``known`` closest to ``name``: those that contain it, then those spelt alike."""
    names = sorted(set(known))
    low = name.lower()[:80]
    inside = [n for n in names if low and low in n.lower()]
    alike = difflib.get_close_matches(low, names, n=count, cutoff=0.5)
    return tuple(dict.fromkeys(inside + alike))[:count]


def shorten(text: str, limit: int = 80) -> str:
    """``text`` cut to ``limit`` characters, so that hostile input cannot flood a message."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
