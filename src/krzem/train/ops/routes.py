"""What the host reads of how rows are routed: the one place where it waits for the device.

A rehearsal has shapes and no values: below :func:`assumed_routes` it says what would be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

Reader = Callable[[Tensor, list[int], bool], list[int]]
"""From the counts, an even split of the same rows, and whether other ranks sent them."""
# A variable of the module: autograd recomputes layers in threads of its own.
_reader: Reader | None = None


@contextmanager
def assumed_routes(reader: Reader) -> Iterator[None]:
    """Below, ``reader`` answers for :func:`host_counts`."""
    global _reader
    before, _reader = _reader, reader
    try:
        yield
    finally:
        _reader = before


def host_counts(counts: Tensor, rows: int, *, align: int = 1, incoming: bool = False) -> list[int]:
    """``counts [n]`` on the host: how ``rows`` rows are divided, each part a multiple of ``align``.

    ``incoming`` rows come from other ranks, so that their number is not known here either.
    """
    if _reader is None:
        return [int(count) for count in counts.tolist()]
    return _reader(counts, even_parts(rows, len(counts), align), incoming)


def even_parts(rows: int, parts: int, align: int = 1) -> list[int]:
    """``rows`` divided as evenly as whole rows allow, each part rounded up to ``align``."""
    each, more = divmod(rows, parts)
    return [-(-(each + (i < more)) // align) * align for i in range(parts)]
