"""Which layers krzem's own trainer puts on which pipeline stage."""

from __future__ import annotations

from krzem.errors import LayoutError
from krzem.layout.layout import V_SHAPED, Layout, chunks_per_rank


def rank_layers(layers: int, layout: Layout, mtp: int = 0) -> tuple[int, ...]:
    """Layers on each pipeline rank.

    Without wishes as even as whole layers allow: the last rank (it holds the output matrix), then
    the first, then middle ones from the end get one less.  With ``mtp`` prediction modules, which
    lie on the last rank, that one gets all that is less (as the planner counts: cost/stages.py).

    Raises:
        LayoutError: the wishes for the first and the last rank do not add up.
    """
    pp = layout.pp
    even, spare = -(-layers // pp), -layers % pp
    wishes = (layout.first_stage_layers, layout.last_stage_layers)
    if pp == 1 or wishes == (None, None):
        heavy = mtp and spare and pp > 1 and layout.schedule not in V_SHAPED
        if heavy and even - spare >= chunks_per_rank(layout):
            return (*[even] * (pp - 1), even - spare)
        short = [pp - 1, 0, *range(pp - 2, 0, -1)][:spare]
        return tuple(even - (rank in short) for rank in range(pp))
    first = even - (spare >= 2) if wishes[0] is None else wishes[0]
    last = even - (spare >= 1) if wishes[1] is None else wishes[1]
    left, ranks = layers - first - last, pp - 2
    if left < ranks or (left > 0) != (ranks > 0):
        raise LayoutError(
            f"first={first} and last={last} of {layers} layers leave {layers}-{first}-{last} = "
            f"{left} layers for the {ranks} ranks between; each rank needs at least one"
        )
    middle = [left // ranks + (rank < left % ranks) for rank in range(ranks)]
    return (first, *middle, last)


def stage_layers(layers: int, layout: Layout, mtp: int = 0) -> tuple[range, ...]:
    """The layers of each stage, in forward order; ``mtp`` modules follow the last.

    Raises:
        LayoutError: a stage would have no layer.
    """
    chunks, ranks = chunks_per_rank(layout), rank_layers(layers, layout, mtp)
    sizes: list[int] = []
    for chunk in range(chunks):
        share = [n // chunks + (chunk < n % chunks) for n in ranks]
        sizes += share[::-1] if chunk % 2 and layout.schedule in V_SHAPED else share
    if min(sizes) < 1:
        raise LayoutError(
            f"{layers} layers on pp*chunks = {layout.pp}*{chunks} stages give {sizes}; every "
            "stage needs at least one layer"
        )
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(range(stop - n, stop) for stop, n in zip(stops, sizes, strict=True))
