"""The price of layouts under what a job states, the rest a mixture of what its engine could do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np

from krzem.cost.memory import MemoryBytes, RankBytes
from krzem.cost.stages import StepSeconds
from krzem.engine.setup import Choices, Chosen, Setup, mixture
from krzem.engine.switches import layout_values
from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.tree import (
    KEPT,
    Entry,
    Read,
    Tree,
    UnclearError,
    count,
    positive,
    real,
    settle,
    size_of,
    some,
    truth_of,
    unset,
    yes_no,
)
from krzem.layout.layout import Layout, pack
from krzem.plan.price import Pricer

TERMS = tuple(f.name for f in fields(StepSeconds) if f.name != "micro_batches")
RANKS = ("first", "middle", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """One layout under one statement of switches."""

    layout: Layout
    choices: Choices
    """The likeliest setting."""
    unknown: tuple[str, ...]
    """Switches that matter and that nobody stated."""
    seconds: float
    """Of a step, moved from the likeliest setting as far as the others are likely."""
    variance: float
    """Of its logarithm, by what is open."""
    away: Mapping[tuple[str, str], tuple[float, float]]
    """Of each deviation: how likely it is, and by how much it moves the logarithm."""
    step: StepSeconds
    """Terms that add up to ``seconds``."""
    memory: MemoryBytes
    memory_variance: float
    """Of the logarithm of the peak, by what is open."""
    fits: float

    @property
    def terms(self) -> Mapping[str, float]:
        """Seconds by cause."""
        return MappingProxyType({name: float(getattr(self.step, name)) for name in TERMS})


def single_values(pricer: Pricer, layout: Layout) -> dict[str, Any]:
    """What conditions of an engine may ask of one layout, one value each."""
    words = layout_values(pack([layout]), pricer.task.problem)
    return {**pricer.values, **{name: _first(value) for name, value in words.items()}}


def _first(value: Any) -> Any:
    if hasattr(value, "words"):
        return value.words[int(np.ravel(value.codes)[0])]
    return value if isinstance(value, bool) else np.ravel(value)[0].item()


@dataclass(frozen=True, slots=True)
class _Row:
    item: int
    layout: Layout
    choices: Choices
    share: float
    of: tuple[str, str] | None


def price_all(pricer: Pricer, items: Sequence[tuple[Layout, Setup]]) -> list[Priced]:
    """Each layout under its setup; all are priced at once."""
    if not items:
        return []
    rows: list[_Row] = []
    unknown = []
    for index, (layout, setup) in enumerate(items):
        found = mixture(setup, single_values(pricer, layout))
        unknown.append(found.unknown)
        rows.append(_Row(index, layout, found.likeliest, 0.0, None))
        for d in found.deviations:
            choice = dict(d.choices)[d.switch]
            rows.append(_Row(index, layout, d.choices, d.share, (d.switch, choice)))
    settings = list(dict.fromkeys(row.choices for row in rows))
    at = {choices: i for i, choices in enumerate(settings)}
    which = np.array([at[row.choices] for row in rows]) if len(settings) > 1 else 0
    chosen = Chosen(tuple(settings), which, True)
    x = pack([row.layout for row in rows])
    with np.errstate(all="ignore"):
        step, memory = pricer.step(x, chosen), pricer.memory(x, chosen)
    return _collected(pricer, rows, unknown, step, memory)


def _collected(
    pricer: Pricer, rows: Sequence[_Row], unknown: Sequence[tuple[str, ...]], step: StepSeconds,
    memory: MemoryBytes,
) -> list[Priced]:  # fmt: skip
    count = len(rows)
    total = np.log(np.broadcast_to(step.total, count))
    item = np.array([row.item for row in rows])
    base = np.flatnonzero([row.of is None for row in rows])
    share = np.array([row.share for row in rows])
    away = total - total[base][item]

    def moved(values: Any) -> np.ndarray:
        flat = np.broadcast_to(values, count)
        found = flat[base] + np.bincount(item, share * (flat - flat[base][item]), len(base))
        return np.asarray(np.maximum(found, 0.0))

    seconds = np.exp(total[base] + np.bincount(item, share * away, len(base)))
    terms = {name: moved(getattr(step, name)) for name in TERMS}
    scale = seconds / np.maximum(sum(terms.values()), 1e-300)
    ranks = {
        rank: {f.name: moved(getattr(getattr(memory, rank), f.name)) for f in fields(RankBytes)}
        for rank in RANKS
    }
    micro = np.broadcast_to(step.micro_batches, count)[base]
    pools = moved(memory.pools)
    fits = np.clip(moved(pricer.fits(memory)), 0.0, 1.0)
    peak = np.log(np.broadcast_to(memory.peak, count))
    wider = peak - peak[base][item]
    out = []
    for i, unknown_of in enumerate(unknown):
        mine = [j for j in range(count) if rows[j].item == i and rows[j].of is not None]
        found = {rows[j].of: (rows[j].share, float(away[j])) for j in mine}
        bytes_of = {rows[j].of: (rows[j].share, float(wider[j])) for j in mine}
        of_rank = {r: RankBytes(**{n: float(v[i]) for n, v in ranks[r].items()}) for r in RANKS}
        bytes_ = MemoryBytes(**of_rank, pools=float(pools[i]))
        out.append(Priced(
            layout=rows[base[i]].layout, choices=rows[base[i]].choices, unknown=unknown_of,
            seconds=float(seconds[i]), variance=_variance(found),
            away=MappingProxyType({k: v for k, v in found.items() if k is not None}),
            step=StepSeconds(
                **{n: float(t[i] * scale[i]) for n, t in terms.items()},
                micro_batches=float(micro[i]),
            ),
            memory=bytes_, memory_variance=_variance(bytes_of), fits=float(fits[i]),
        ))  # fmt: skip
    return out


def _variance(away: Mapping[Any, tuple[float, float]]) -> float:
    """Of the logarithm: each switch is one draw among its choices, apart from the others."""
    square, means = 0.0, dict[str, float]()
    for (switch, _), (share, moved) in away.items():
        square += share * moved**2
        means[switch] = means.get(switch, 0.0) + share * moved
    return max(square - sum(mean**2 for mean in means.values()), 0.0)


TOGETHER: Mapping[str, float] = MappingProxyType({
    "compute": 0.15, "recompute": 0.18, "tensor_parallel": 0.50, "expert_parallel": 0.60,
    "pipeline_transfer": 0.75, "bubble": 0.35, "data_parallel": 0.65, "optimizer": 0.60,
    "overhead": 0.35,
})  # fmt: skip
"""Standard deviation of the logarithm of each term, the same for all layouts of one job: what is
known of a difference is better than what is known of either step, as far as terms are alike.
These, and the three below, are set so that intervals of the ratios of published pairs of runs hold
(``benchmarks/differences.py``)."""
APART = 0.10
"""What is left of the difference of two layouts whose terms are alike."""
ALIKE = 0.03
"""The same where the layout is one and a switch differs."""
SIZE = 0.3
"""Share of the logarithm of a ratio that is its own standard deviation."""


def difference_sigma(old: Priced, new: Priced) -> float:
    """Standard deviation of the logarithm of the ratio of two step times of one job."""
    parts = [
        TOGETHER[name] * (new.terms[name] / new.seconds - old.terms[name] / old.seconds)
        for name in TERMS
    ]
    same = set(old.away) & set(new.away)
    apart = {key: (old.away[key][0], new.away[key][1] - old.away[key][1]) for key in same}
    alone = {
        key: row for away in (old.away, new.away) for key, row in away.items() if key not in same
    }
    if old.layout == new.layout and old.choices == new.choices:
        return 0.0
    size = SIZE * math.log(new.seconds / old.seconds)
    known = APART if old.layout != new.layout else ALIKE
    model = known**2 + size**2 + sum(p**2 for p in parts)
    return math.sqrt(model + _variance(apart) + _variance(alone))


# Shapes of models as code of the Llama family names them
# -------------------------------------------------------

LLAMA: dict[str, Read] = {
    "dim": count("model.hidden"),
    "n_layers": count("model.layers"),
    "n_heads": count("model.heads"),
    "n_kv_heads": positive("model.kv_heads"),
    "head_dim": positive("model.head_dim"),
    "vocab_size": positive("model.vocab"),
    "hidden_dim": positive("model.ffn"),
    "ffn_hidden_dim": positive("model.ffn"),
    "inter_dim": positive("model.ffn"),
    "moe_inter_dim": positive("model.moe_ffn"),
    "moe_args.num_experts": some("model.experts", 2),
    "moe_args.num_shared_experts": some("model.shared_experts"),
    "moe_args.top_k": positive("model.top_k"),
    "num_experts": some("model.experts", 2),
    "moe_top_k": KEPT,
    "n_dense_layers": some("model.dense_layers"),
    "q_lora_rank": positive("model.q_lora_rank"),
    "kv_lora_rank": positive("model.kv_lora_rank"),
    "qk_nope_head_dim": positive("model.qk_nope"),
    "qk_rope_head_dim": positive("model.qk_rope"),
    "v_head_dim": positive("model.v_head"),
    "qk_norm": yes_no("model.qk_norm"),
    "enable_weight_tying": yes_no("model.tied"),
    "tie_embeddings": yes_no("model.tied"),
    "weight_tying": yes_no("model.tied"),
    "ffn_dim_multiplier": KEPT,
    "multiple_of": KEPT,
    "moe_enabled": KEPT,
}
"""Keys of a table of model arguments."""


def read_shape(tree: Tree, job: JobBuilder, *, llama: bool = True) -> None:
    """Settle a model's shape from a table; ``llama``: gated, rotary, widths by multiplier."""
    for key, entry in tree.entries.items():
        read = LLAMA.get(key)
        if read is not None and not _dense(tree, key):
            settle(entry, read, job)
    place = tree.place("dim", "n_layers")
    heads, hidden = job.number("model.heads"), job.number("model.hidden")
    if heads is None or hidden is None:
        return
    if llama:
        job.default("model.kv_heads", heads, "every head has its own keys and values")
        job.default("model.gated", True, "SwiGLU")
        job.default("model.positions", "rope", "rotary positions")
    if hidden % heads == 0 and job.number("model.kv_lora_rank") is None:
        job.derive("model.head_dim", hidden // heads, f"{hidden} / {heads}", place)
    if job.number("model.kv_lora_rank"):
        job.derive("model.attention", "mla", "keys and values have a latent rank", place)
    if llama and job.number("model.ffn") is None:
        _inner_width(tree, job, hidden)
    _experts(job)


def _dense(tree: Tree, key: str) -> bool:
    """Experts of a model that says it has none."""
    return key.startswith("moe") and truth_of(tree, "moe_enabled") is False


def _inner_width(tree: Tree, job: JobBuilder, hidden: int) -> None:
    """2/3 of 4h, times the multiplier, up to a multiple of 256."""
    value = tree.value("ffn_dim_multiplier")
    width, factor = int(2 * 4 * hidden / 3), 1.0
    if not unset(value):
        try:
            factor = real(value)
        except UnclearError:
            return
    width = int(factor * width) if not unset(value) else width
    step = size_of(tree, "multiple_of") or 256
    job.derive("model.ffn", step * -(-width // step),
               f"8/3 * {hidden} * {factor:g} up to a multiple of {step}",
               tree.place("ffn_dim_multiplier", "multiple_of", "dim"))  # fmt: skip


def _experts(job: JobBuilder) -> None:
    if job.number("model.experts") is None:
        return
    job.default("model.dense_layers", 0, "every layer has experts")
    shared, width = job.number("model.shared_experts"), job.number("model.moe_ffn")
    if shared is not None and width is not None:
        job.derive("model.shared_ffn", shared * width, f"{shared} * {width}")


def table_of(arguments: object, place: Place, prefix: str = "") -> Tree:
    """The leaves of a table that stands inside a value (a mapping of plain values)."""
    tree = Tree()
    if isinstance(arguments, dict):
        for key, value in arguments.items():
            tree.put(Entry(key=f"{prefix}{key}", value=value, place=place))
    return tree
