"""Which layouts are legal: the rules of Megatron-Core and of PyTorch FSDP2, in one place.

Each rule judges arrays of layouts at once and explains itself for one layout with the arithmetic.
Sources: Megatron-Core ``parallel_state`` and ``arguments`` checks; PyTorch FSDP2 and
``torch.distributed.pipelining``; DualPipe (arXiv 2412.19437) for its own conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from krzem.errors import LayoutError
from krzem.layout.layout import (
    CONTEXTS,
    SCHEDULES,
    ContextParallel,
    Layout,
    Layouts,
    Schedule,
    pack,
)
from krzem.model.architecture import Architecture, RecurrenceKind

Array = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a layout is judged against."""

    architecture: Architecture
    devices: int
    sequence: int
    global_batch: int
    empty_end_chunks: bool = False
    """Whether a chunk may hold only the embedding, the loss or prediction modules."""

    @property
    def ends(self) -> int:
        """Chunks that may hold no decoder layer: one with the embedding, one with the loss."""
        return 2 if self.empty_end_chunks else 0

    @property
    def heads(self) -> tuple[int, ...]:
        """Distinct numbers of query heads."""
        return tuple({r.layer.attention.heads for r in self.architecture.runs} - {0})

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """Distinct numbers of key-value heads that tensor parallelism cuts."""
        kinds = [r.layer.attention for r in self.architecture.runs]
        return tuple({a.kv_heads for a in kinds if a.kv_lora_rank is None and a.kv_heads > 1})

    @property
    def states(self) -> tuple[tuple[int, int], ...]:
        """Heads and groups of keys of recurrent mixers, whose states lie on one rank each."""
        found = self.architecture.recurrences
        return tuple(
            (r.heads, r.key_heads) for r in found if r.kind is not RecurrenceKind.CONVOLUTION
        )

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """Distinct inner widths that tensor parallelism cuts."""
        ffs = [r.layer.feed_forward for r in self.architecture.runs]
        widths = {f.shared_width if f.is_moe else f.width for f in ffs}
        return tuple(w for w in widths if w)

    @property
    def experts(self) -> int:
        """Routed experts per layer, 0 for a dense model."""
        return max((r.layer.feed_forward.experts for r in self.architecture.runs), default=0)

    @property
    def expert_width(self) -> int:
        """Inner width of one routed expert."""
        ffs = [r.layer.feed_forward for r in self.architecture.runs]
        return max((f.width for f in ffs if f.is_moe), default=0)


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition: ``holds`` gives a mask, ``explain`` says for one layout what it violates."""

    name: str
    holds: Callable[[Problem, Layouts], Array]
    explain: Callable[[Problem, Layout], str]


def _schedule(x: Layouts, *schedules: Schedule) -> Array:
    return np.isin(x.schedule, [SCHEDULES.index(s) for s in schedules])


def _micro_batches(p: Problem, x: Layouts) -> Array:
    return p.global_batch // np.maximum(x.dp * x.micro_batch, 1)


def _heads(p: Problem, x: Layouts) -> Array:
    ok = np.ones(np.shape(x.tp), dtype=bool)
    for heads in p.heads:
        ok &= heads % x.tp == 0
    for kv in p.kv_heads:
        ok &= (kv % x.tp == 0) | (x.tp % kv == 0)
    return ok


def _states(p: Problem, x: Layouts) -> Array:
    """Ranks of tensor and context parallelism hold whole states over the whole sequence."""
    ok = np.ones(np.shape(x.tp), dtype=bool)
    for heads, groups in p.states:
        ranks = x.tp * x.cp
        ok &= (heads % ranks == 0) & ((groups % ranks == 0) | (ranks % groups == 0))
    return ok


def _widths(p: Problem, x: Layouts) -> Array:
    ok = np.ones(np.shape(x.tp), dtype=bool)
    for width in p.dense_widths:
        ok &= width % x.tp == 0
    return ok


def _sequence(p: Problem, x: Layouts) -> Array:
    halves = np.where((x.cp > 1) & (x.context_parallel == 0), 2, 1)
    parts = x.cp * halves * np.where(x.sequence_parallel > 0, x.tp, 1)
    return p.sequence % parts == 0


def _turned_heads(p: Problem, x: Layouts) -> Array:
    turned = (x.context_parallel == CONTEXTS.index(ContextParallel.ALL_TO_ALL)) & (x.cp > 1)
    ok = np.ones(np.shape(x.tp), dtype=bool)
    for heads in p.heads:
        ok &= heads % (x.tp * x.cp) == 0
    return ok | ~turned


def _stages(p: Problem, x: Layouts) -> Array:
    empty = np.where(x.vpp > 1, p.ends, 0)
    least = x.vpp - empty // 2
    first = np.where(x.first_stage_layers >= 0, x.first_stage_layers, least)
    last = np.where(x.last_stage_layers >= 0, x.last_stage_layers, least)
    left = p.architecture.layers - first - last
    spread = (p.architecture.layers + empty >= x.pp * x.vpp) & (np.minimum(first, last) >= least)
    return spread & ((x.pp <= 2) | (left >= (x.pp - 2) * x.vpp))


def _chunks(p: Problem, x: Layouts) -> Array:
    several = _schedule(x, Schedule.INTERLEAVED)
    two = _schedule(x, Schedule.ZB_V, Schedule.DUALPIPE_V)
    one = ~several & ~two
    return (several & (x.vpp >= 2) & (x.pp > 1)) | (two & (x.vpp == 2)) | (one & (x.vpp == 1))


def _enough(p: Problem, x: Layouts) -> Array:
    m = _micro_batches(p, x)
    interleaved = _schedule(x, Schedule.INTERLEAVED)
    dual = _schedule(x, Schedule.DUALPIPE, Schedule.DUALPIPE_V)
    zero = _schedule(x, Schedule.ZB_H1, Schedule.ZB_V)
    ok = ~interleaved | (m % np.maximum(x.pp, 1) == 0)
    ok &= ~zero | ((x.pp > 1) & (m >= x.pp))
    return ok & (~dual | ((x.pp > 1) & (m >= 2 * x.pp)))


def _even(p: Problem, x: Layouts) -> Array:
    dual = _schedule(x, Schedule.DUALPIPE)
    return ~dual | ((x.pp % 2 == 0) & (_micro_batches(p, x) % 2 == 0))


def _experts(p: Problem, x: Layouts) -> Array:
    if not p.experts:
        return (x.ep == 1) & (x.etp == 1)
    return p.experts % x.ep == 0


def _expert_ranks(p: Problem, x: Layouts) -> Array:
    return (x.tp * x.cp * x.dp) % (x.ep * x.etp) == 0


def _expert_width(p: Problem, x: Layouts) -> Array:
    return (x.etp == 1) | (max(p.expert_width, 1) % x.etp == 0)


def _moe_needs_sequence(p: Problem, x: Layouts) -> Array:
    return (x.tp == 1) | (x.sequence_parallel > 0) | (p.experts == 0)


def _zero_two(p: Problem, x: Layouts) -> Array:
    return (x.zero != 2) | (x.pp == 1)


def _shards(p: Problem, x: Layouts) -> Array:
    whole = x.dp * x.cp
    return (x.shard == 0) | ((x.zero == 3) & (whole % np.maximum(x.shard, 1) == 0))


def _recompute_layers(p: Problem, x: Layouts) -> Array:
    most = -(-p.architecture.layers // x.pp)
    return (x.recompute_layers < 0) | ((x.recompute == 3) & (x.recompute_layers <= most))


RULES: tuple[Rule, ...] = (
    Rule(
        "devices",
        lambda p, x: x.tp * x.cp * x.pp * x.dp == p.devices,
        lambda p, x: (
            f"tp*cp*pp*dp = {x.tp}*{x.cp}*{x.pp}*{x.dp} = {x.devices}, but the cluster "
            f"has {p.devices} devices"
        ),
    ),
    Rule(
        "batch",
        lambda p, x: p.global_batch % (x.dp * x.micro_batch) == 0,
        lambda p, x: (
            f"the global batch of {p.global_batch} sequences is not a multiple of "
            f"dp*micro_batch = {x.dp}*{x.micro_batch} = {x.dp * x.micro_batch}"
        ),
    ),
    Rule(
        "heads",
        _heads,
        lambda p, x: (
            f"tp={x.tp} does not divide the attention heads {_list(p.heads)} (and divide, "
            f"or be a multiple of, the key-value heads {_list(p.kv_heads)})"
        ),
    ),
    Rule(
        "states",
        _states,
        lambda p, x: (
            f"tp*cp = {x.tp * x.cp} ranks do not divide the states of the recurrent layers: "
            f"(heads, groups of keys) = {_list(tuple(pair[0] for pair in p.states))} and "
            f"{_list(tuple(pair[1] for pair in p.states))}"
        ),
    ),
    Rule(
        "widths",
        _widths,
        lambda p, x: f"tp={x.tp} does not divide the feed-forward widths {_list(p.dense_widths)}",
    ),
    Rule(
        "sequence",
        _sequence,
        lambda p, x: (
            f"the sequence of {p.sequence} tokens is not a multiple of what it is cut "
            f"into: cp={x.cp}{' x 2 balanced halves' if x.cp > 1 else ''} x tp={x.tp}"
        ),
    ),
    Rule(
        "context heads",
        _turned_heads,
        lambda p, x: (
            f"all-to-all context parallelism needs heads {_list(p.heads)} to be a multiple"
            f" of tp*cp = {x.tp * x.cp}"
        ),
    ),
    Rule(
        "stages",
        _stages,
        lambda p, x: (
            f"{p.architecture.layers} layers{_ends(x)} cannot fill pp*vpp = {x.pp}*{x.vpp} = "
            f"{x.pp * x.vpp} chunks with at least one layer each"
            + (" (embedding and loss may have a chunk of their own)" if p.ends else "")
        ),
    ),
    Rule(
        "chunks",
        _chunks,
        lambda p, x: (
            f"schedule {x.schedule} with vpp={x.vpp}, pp={x.pp}: interleaved needs "
            "vpp >= 2 and pp >= 2, the V-shaped schedules vpp = 2, the others vpp = 1"
        ),
    ),
    Rule(
        "micro-batches",
        _enough,
        lambda p, x: (
            f"{_m(p, x)} micro-batches per step: interleaved needs a multiple of "
            f"pp={x.pp}, zero-bubble schedules pp > 1 and at least pp, DualPipe at least 2*pp"
        ),
    ),
    Rule(
        "dualpipe",
        _even,
        lambda p, x: (
            f"DualPipe feeds both ends: pp={x.pp} and {_m(p, x)} micro-batches must be even"
        ),
    ),
    Rule(
        "experts",
        _experts,
        lambda p, x: (
            f"ep={x.ep} does not divide the {p.experts} experts"
            if p.experts
            else f"the model is dense: ep={x.ep} and etp={x.etp} must be 1"
        ),
    ),
    Rule(
        "expert ranks",
        _expert_ranks,
        lambda p, x: (
            f"ep*etp = {x.ep}*{x.etp} = {x.ep * x.etp} does not divide tp*cp*dp = "
            f"{x.tp}*{x.cp}*{x.dp} = {x.tp * x.cp * x.dp}"
        ),
    ),
    Rule(
        "expert width",
        _expert_width,
        lambda p, x: f"etp={x.etp} does not divide the expert width {p.expert_width}",
    ),
    Rule(
        "expert sequence",
        _moe_needs_sequence,
        lambda p, x: "experts with tensor parallelism need sequence parallelism (sp=1)",
    ),
    Rule(
        "zero 2",
        _zero_two,
        lambda p, x: (
            f"ZeRO-2 shards gradients each micro-batch, which a pipeline (pp={x.pp}) "
            "accumulates: use zero=1 or zero=3"
        ),
    ),
    Rule(
        "shard",
        _shards,
        lambda p, x: f"shard={x.shard} needs zero=3 and must divide dp*cp = {x.dp * x.cp}",
    ),
    Rule(
        "recompute layers",
        _recompute_layers,
        lambda p, x: (
            f"rlayers={x.recompute_layers} needs recompute=full and at most "
            f"{-(-p.architecture.layers // x.pp)} layers per pipeline rank"
        ),
    ),
)


def _list(values: tuple[int, ...]) -> str:
    return ", ".join(str(v) for v in sorted(values)) or "(none)"


def _ends(x: Layout) -> str:
    """What is asked of the ends of a pipe."""
    wishes = {"first": x.first_stage_layers, "last": x.last_stage_layers}
    said = " and ".join(f"{name}={n}" for name, n in wishes.items() if n is not None)
    return f" with {said}" if said else ""


def _m(p: Problem, x: Layout) -> str:
    return f"{p.global_batch / (x.dp * x.micro_batch):g}"


def legal(problem: Problem, layouts: Layouts) -> np.ndarray:
    """Mask of the layouts that obey every rule."""
    ok = np.ones(len(layouts), dtype=bool)
    for rule in RULES:
        ok &= rule.holds(problem, layouts)
    return ok


def check(problem: Problem, layout: Layout) -> None:
    """Raise LayoutError with the arithmetic of every rule that ``layout`` breaks."""
    packed = pack([layout])
    broken = [r for r in RULES if not bool(np.all(r.holds(problem, packed)))]
    if broken:
        reasons = "; ".join(r.explain(problem, layout) for r in broken)
        raise LayoutError(f"layout {layout} is not legal: {reasons}.")
