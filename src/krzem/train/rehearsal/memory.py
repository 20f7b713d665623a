"""Bytes of a rank over its step, by kind, from the life of every storage."""

from __future__ import annotations

from dataclasses import dataclass

from krzem.train.rehearsal.record import Kind, Record, Storage

KINDS = tuple(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Bytes at one moment of a step."""

    operator: int
    """Index of the operator."""
    bytes: dict[str, int]
    """By kind."""

    @property
    def total(self) -> int:
        """Of all kinds."""
        return sum(self.bytes.values())


def kind_of(record: Record, storage: Storage) -> Kind:
    """What ``storage`` is, by its life where the program did not say.

    What a forward pass leaves behind when it ends is an activation, what a backward pass leaves is
    a gradient; weights that are gathered for longer than a pass are weights; what comes to be
    between passes and stays was received, and counts as an activation.  All else is transient.
    """
    if storage.kind is not None:
        return storage.kind
    leaves = storage.died_phase is None or storage.died_phase > storage.phase
    what = record.phases[storage.phase].what
    if not leaves or what == "update":
        return Kind.WEIGHTS if storage.gathered and leaves else Kind.TRANSIENT
    if storage.gathered:
        return Kind.WEIGHTS
    return Kind.GRADIENTS if what in ("backward", "weights") else Kind.ACTIVATIONS


def timeline(record: Record) -> list[Moment]:
    """Bytes after every change, in order."""
    changes: list[tuple[int, int, Kind]] = []
    for storage in record.storages:
        kind = kind_of(record, storage)
        changes.append((2 * storage.born + 1, storage.size, kind))
        if storage.died is not None:
            changes.append(
                (2 * storage.died + 2 * (storage.died <= storage.born), -storage.size, kind)
            )
    changes.sort(key=lambda change: change[0])
    now = dict.fromkeys(KINDS, 0)
    found = []
    for place, (at, size, kind) in enumerate(changes):
        now[kind] += size
        if place + 1 == len(changes) or changes[place + 1][0] != at:
            found.append(Moment(operator=at // 2, bytes={str(k): n for k, n in now.items()}))
    return found


def peak(moments: list[Moment]) -> Moment:
    """The fullest moment."""
    return max(moments, key=lambda moment: moment.total)
