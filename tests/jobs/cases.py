"""A small job and what its files settle."""

from __future__ import annotations

from dataclasses import dataclass, field

from krzem.jobs.job import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Files of a job and the fields that they settle."""

    engine: str
    files: dict[str, str]
    fields: dict[str, Value]
    open: tuple[str, ...] = ()
    """Fields that the files do not decide."""
    asks: tuple[str, ...] = ()
    unknown: tuple[str, ...] = field(default=())
    """Parts of the lines that are not understood."""
