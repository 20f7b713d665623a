"""Which layers sit on which pipeline stage, in the order the forward pass meets them."""

from __future__ import annotations

from krzem.errors import LayoutError
from krzem.layout.layout import Layout, Schedule

V_SHAPED = frozenset({Schedule.ZB_V, Schedule.DUALPIPE_V})
"""Schedules whose second chunk runs through the ranks backwards."""


def rank_layers(layers: int, layout: Layout) -> tuple[int, ...]:
    """Layers per pipeline rank, shape (pp,).

    Without wishes as even as whole layers allow: the ranks that get one less are the last (it
    holds the output matrix), the first, then the middle ones from the end.

    Raises LayoutError where the wishes for the first and last rank do not add up.
    """
    pp = layout.pp
    if pp == 1:
        return (layers,)
    even, spare = -(-layers // pp), -layers % pp
    if layout.first_stage_layers is None and layout.last_stage_layers is None:
        short = [pp - 1, 0, *range(pp - 2, 0, -1)][:spare]
        return tuple(even - (rank in short) for rank in range(pp))
    first, last = layout.first_stage_layers, layout.last_stage_layers
    if first is None:
        first = layers - (last or 0) if pp == 2 else even - (spare >= 2)
    if last is None:
        last = layers - first if pp == 2 else even - (spare >= 1)
    rest, ranks = layers - first - last, pp - 2
    if rest < 0 or (rest > 0) != (ranks > 0):
        raise LayoutError(
            f"{first} layers on the first and {last} on the last of pp = {pp} ranks leave"
            f" {layers} - {first} - {last} = {rest} layers for {ranks} ranks between"
        )
    middle = [rest // ranks + (rank < rest % ranks) for rank in range(ranks)]
    return (first, *middle, last)


def stage_layers(layers: int, layout: Layout) -> tuple[int, ...]:
    """Layers per stage, shape (pp * chunks,), in forward order.

    A rank splits its layers over its chunks as evenly as it can.  Earlier chunks get more, but on
    the first rank of a looped schedule the later ones do: the very first stage has the embedding,
    the very last the output matrix, and either may hold nothing else.
    """
    ranks = rank_layers(layers, layout)
    chunks = chunks_per_rank(layout)
    folded = layout.schedule in V_SHAPED
    stages: list[int] = []
    for chunk in range(chunks):
        share = [n // chunks + (chunk < n % chunks) for n in ranks]
        if not folded:
            share[0] = ranks[0] // chunks + (chunks - 1 - chunk < ranks[0] % chunks)
        stages += reversed(share) if chunk % 2 and folded else share
    return tuple(stages)


def check_filled(layers: int, stages: tuple[int, ...], engine: str) -> None:
    """Only the first and the last stage may do without layers.

    Raises LayoutError with the number of layers that are missing.
    """
    empty = sum(count < 1 for count in stages[1:-1])
    if len(stages) > 1 and empty:
        raise LayoutError(
            f"{engine} cannot run this layout: {layers} layers on {len(stages)} stages leave"
            f" {empty} of the stages between the first and the last empty; plan with fewer chunks"
            " or pipeline ranks"
        )


def chunks_per_rank(layout: Layout) -> int:
    """Model chunks a rank holds: ``vpp``, 2 for the V-shaped schedules."""
    return 2 if layout.schedule in V_SHAPED else layout.vpp
