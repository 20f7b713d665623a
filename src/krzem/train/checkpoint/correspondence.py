"""Which boxes of whose tensors are the same numbers: the bridge between two naming schemes.

A correspondence is data, not code: a list of copies, each saying that a box of a foreign tensor is
a box of one of ours.  It is read in both directions, so importing and exporting cannot disagree,
and it is checked to cover both sides exactly.  The models' correspondences are made by the code
that knows the models; here they are only used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from krzem.errors import CheckpointError
from krzem.train.checkpoint.manifest import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A box of ``theirs`` that is a box of ``ours``.

    ``shape`` is the box in ours. In theirs it is the same, less leading dimensions of size one
    where theirs has fewer dimensions, and with the last two exchanged where ``transpose``.
    """

    theirs: str
    ours: str
    shape: Shape
    theirs_at: Shape
    ours_at: Shape
    transpose: bool = False

    def __post_init__(self) -> None:
        dropped = len(self.shape) - len(self.theirs_at)
        if (
            len(self.ours_at) != len(self.shape)
            or dropped < 0
            or any(n != 1 for n in self.shape[:dropped])
            or (self.transpose and len(self.theirs_at) < 2)
        ):
            raise AssertionError(f"not a copy: {self}")

    @property
    def theirs_shape(self) -> Shape:
        """The box in theirs."""
        shape = self.shape[len(self.shape) - len(self.theirs_at) :]
        return (*shape[:-2], shape[-1], shape[-2]) if self.transpose else shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Correspondence:
    """All copies between a model's tensors and theirs, and the full shapes on both sides."""

    ours: Mapping[str, Shape]
    theirs: Mapping[str, Shape]
    copies: tuple[Copy, ...]
    ignored: tuple[str, ...] = ()
    """Patterns of their names that have no counterpart here (such as ``*.inv_freq``)."""
    theirs_dtype: Mapping[str, str] = field(default_factory=dict)
    """Types that their tensors keep whatever an export is asked for."""
    ours_dtype: Mapping[str, str] = field(default_factory=dict)
    """Types that our tensors keep whatever an import is asked for."""
    zeros: frozenset[str] = frozenset()
    """Their tensors that may be missing from a folder, and then are zero."""
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Parts of ours that a folder may lack whole (MTP modules), each with the names of theirs."""
    twice: Mapping[str, str] = field(default_factory=dict)
    """Their names that hold another tensor of theirs once more, which has to be equal to it."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """Numbers that theirs holds as tensors without dimensions: written, and passed over."""
    stateless: frozenset[str] = frozenset()
    """Names of ours that no optimizer updates (router biases): they have no moments."""

    def __post_init__(self) -> None:
        _covers("ours", self.ours, ((c.ours, c.ours_at, c.shape) for c in self.copies))
        _covers(
            "theirs", self.theirs, ((c.theirs, c.theirs_at, c.theirs_shape) for c in self.copies)
        )

    def compare(self, where: str, found: Mapping[str, Shape]) -> tuple[str, ...]:
        """The parts of ours (``groups``) that ``found``, names and shapes at ``where``, lacks.

        Raises:
            CheckpointError: it is not theirs, or holds such a part by half.
        """
        absent = tuple(name for name, theirs in self.groups.items() if not theirs & found.keys())
        optional = self.zeros.union(*(self.groups[name] for name in absent))
        missing = [n for n in self.theirs if n not in found and n not in optional]
        unknown = [n for n in found if n not in self.theirs and not self._passed_over(n)]
        wrong = [
            f"{n} is {list(found[n])} there, {list(s)} by the config"
            for n, s in self.theirs.items()
            if n in found and found[n] != s
        ]
        faults = [
            _named("missing", missing),
            _named("not known in this model", unknown),
            _named("of another shape", wrong),
        ]
        if any(faults):
            raise CheckpointError(
                f"{where} does not fit the model of its config: " + "; ".join(filter(None, faults))
            )
        return absent

    def _passed_over(self, name: str) -> bool:
        return (
            name in self.twice
            or name in self.constants
            or any(fnmatchcase(name, p) for p in self.ignored)
        )

    def of_moments(self) -> Correspondence:
        """The same for optimizer state, which has the shapes of what is trained."""
        kept = tuple(c for c in self.copies if c.ours not in self.stateless)
        theirs, ours = {c.theirs for c in kept}, {c.ours for c in kept}
        return Correspondence(
            ours={n: s for n, s in self.ours.items() if n in ours},
            theirs={n: s for n, s in self.theirs.items() if n in theirs},
            copies=kept,
            ignored=(*self.ignored, *(n for n in self.theirs if n not in theirs)),
            groups={name: names & theirs for name, names in self.groups.items()},
        )

    def of_theirs(self) -> dict[str, list[Copy]]:
        """Copies by their tensor."""
        return _grouped((c.theirs, c) for c in self.copies)

    def of_ours(self) -> dict[str, list[Copy]]:
        """Copies by our tensor."""
        return _grouped((c.ours, c) for c in self.copies)


def identity(shapes: Mapping[str, Shape]) -> Correspondence:
    """Same names and shapes on both sides."""
    copies = (
        Copy(theirs=n, ours=n, shape=s, theirs_at=(0,) * len(s), ours_at=(0,) * len(s))
        for n, s in shapes.items()
    )
    return Correspondence(ours=shapes, theirs=shapes, copies=tuple(copies))


def _grouped(pairs: Iterable[tuple[str, Copy]]) -> dict[str, list[Copy]]:
    groups: dict[str, list[Copy]] = {}
    for name, copy in pairs:
        groups.setdefault(name, []).append(copy)
    return groups


def _covers(
    side: str, tensors: Mapping[str, Shape], boxes: Iterable[tuple[str, Shape, Shape]]
) -> None:
    held = dict.fromkeys(tensors, 0)
    for name, at, shape in boxes:
        whole = tensors[name]
        if any(a + n > w for a, n, w in zip(at, shape, whole, strict=True)):
            raise AssertionError(f"{side}: {name} {list(whole)} has no box {shape} at {at}")
        held[name] += math.prod(shape)
    for name, elements in held.items():
        if elements != math.prod(tensors[name]):
            raise AssertionError(f"{side}: copies cover {elements} of {name} {list(tensors[name])}")


def _named(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{what}: {', '.join(sorted(names)[:4])}{more}"
