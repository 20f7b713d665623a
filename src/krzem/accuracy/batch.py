"""All cases of a table evaluated at once.

What a row does not say of its engine's switches is a mixture: the likeliest setting is priced, and
one deviation from it for each other choice that the engine had (:mod:`krzem.engine.setup`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from krzem.accuracy.case import Case
from krzem.cost.assemble import Situation, machine
from krzem.cost.coefficients import Coefficients
from krzem.cost.layers import layer_seconds
from krzem.cost.machine import stack as stack_machines
from krzem.cost.memory import (
    MemoryBytes,
    RankBytes,
    low_bytes,
    memory_bytes,
)
from krzem.cost.memory_error import MemoryStanding, memory_spread, student_cdf
from krzem.cost.sizes import Kept, StateSizes, sizes_of
from krzem.cost.stages import StepSeconds
from krzem.cost.step import Optim, step_seconds
from krzem.engine.description import engines
from krzem.engine.setup import Choices, Setup, mixture
from krzem.engine.switches import layout_values, problem_values, switches
from krzem.errors import UnknownFactError
from krzem.hardware.catalogue import Device, domain_in_node
from krzem.hardware.cluster import assumed_of
from krzem.layout.layout import Layout, Layouts, Recompute, cells, pack
from krzem.layout.rules import Problem
from krzem.model.table import ModelTable, stack, tabulate

IMPOSSIBLE = 0.05
"""Chance of fitting under which a layout counts as impossible."""
STEPS = (
    (Recompute.NONE, 1.0), (Recompute.MODULES, 1.0), (Recompute.FULL, 0.5), (Recompute.FULL, 1.0)
)  # fmt: skip
"""What is recomputed, and in which share of the layers, one after the other until it fits."""
UNLIKELY = 0.02
"""Chance below which a way to recompute is left out."""
OTHER_ETP = 0.3
"""Chance that experts are cut over tensor ranks where the usual of the date is that they are not,
or the other way round."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way in which a case may have been run."""

    case: int
    layout: Layout
    choices: Choices
    share: float
    """How likely this deviation is; the likeliest setting itself has 0 here."""
    of: str
    """The switch that deviates; empty for the likeliest setting."""


@dataclass(frozen=True, slots=True)
class Batch:
    """N cases as arrays over their V variants."""

    cases: tuple[Case, ...]
    variants: tuple[Variant, ...]
    table: ModelTable
    layouts: Layouts
    situations: tuple[Situation, ...]
    """Of the likeliest setting of every case."""
    kinds: tuple[Situation, ...]
    """The different ones among those of all variants."""
    kind: np.ndarray
    """[V] which of ``kinds`` each variant is in."""
    global_batch: np.ndarray
    case: np.ndarray
    """[V] which case each variant is of."""
    base: np.ndarray
    """[N] the variant with the likeliest setting."""
    share: np.ndarray
    """[V]"""


def values_of(case: Case, layout: Layout) -> dict[str, Any]:
    """What conditions of an engine may ask of a case, one value each."""
    problem = Problem(
        architecture=case.architecture,
        devices=case.devices,
        sequence=case.sequence,
        global_batch=max(1, round(case.global_batch)),
    )
    words = layout_values(pack([layout]), problem)
    single = {
        name: value if isinstance(value, bool) else _first(value) for name, value in words.items()
    }
    node = case.devices_per_node or case.device.devices_per_node or 8
    return {
        **problem_values(problem),
        **single,
        "family": case.device.family,
        "node": node,
        "nodes": -(-case.devices // node),
        "domain": domain_in_node(case.device, node) or node,
    }


def _first(value: Any) -> Any:
    if hasattr(value, "words"):
        return value.words[int(np.ravel(value.codes)[0])]
    return np.ravel(value)[0].item()


def setup_of(case: Case) -> Setup:
    """The setup of a case, as far as its row states it."""
    return Setup(
        engine=case.engine,
        year=case.date,
        stack=case.device.software,
        precision=case.precision,
        stated=tuple((name, case.switches[name]) for name in switches() if name in case.switches),
        finetune=case.finetune,
    )


def variants_of(case: Case, index: int = 0) -> list[Variant]:
    """The likeliest setting of a case first, then each deviation that it leaves open."""
    found = mixture(setup_of(case), values_of(case, case.layout))
    out = [Variant(index, case.layout, found.likeliest, 0.0, "")]
    out += [Variant(index, case.layout, d.choices, d.share, d.switch) for d in found.deviations]
    x = case.layout
    other = x.tp if x.etp == 1 else 1
    if "etp" in case.unknown and x.tp > 1 and (x.tp * x.cp * x.dp) % (x.ep * other) == 0:
        out.append(Variant(index, replace(x, etp=other), found.likeliest, OTHER_ETP, "etp"))
    out += [Variant(index, y, found.likeliest, p, "recomputation") for y, p in case.alternatives]
    return out


def situation(case: Case, choices: Choices | None = None) -> Situation:
    """The situation of a case; raises UnknownFactError where a needed quantity is not known."""
    d = case.device
    needed = {
        "memory bandwidth": d.memory_bytes_per_s,
        "memory capacity": d.memory_bytes,
        "scale-up bandwidth": d.scale_up_bytes_per_s or (1.0 if case.devices == 1 else None),
    }
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise UnknownFactError(f"{d.id}: not published: {', '.join(missing)}")
    node = case.devices_per_node or d.devices_per_node or 8
    domain = domain_in_node(d, node) or node
    up = d.scale_up_bytes_per_s or 1.0
    out = case.network_bytes_per_s or d.scale_out_bytes_per_s or _assumed_network(d) or up
    return Situation(
        device=d,
        devices_per_node=node,
        memory_bytes=d.memory_bytes or 0.0,
        memory_bytes_per_s=d.memory_bytes_per_s or 0.0,
        scale_up_domain=domain,
        scale_up_bytes_per_s=up,
        scale_out_bytes_per_s=out,
        precision=case.precision,
        design=setup_of(case).design(choices or (), case.layout.zero),
        year=case.date,
        finetune=case.finetune,
    )


def _assumed_network(device: Device) -> float | None:
    """Network of a chip of which nobody published it, as a plan assumes it."""
    found = assumed_of(device, {}, ["scale_out_bandwidth"])
    return found[0].mid if found else None


def prepare(cases: Sequence[Case]) -> Batch:
    """Arrays for ``cases`` (every situation must be known).

    Where a row does not say what is recomputed, it is the least that fits into memory: nothing,
    what is cheap, half of the layers or all, in the order in which engines are tuned.  What fits is
    known by chance only, so each of them is as likely as that it is the first to fit.
    """
    found = list(cases)
    open_ = [i for i, case in enumerate(found) if not case.recompute_known]
    if not open_:
        return packed(found)
    ways = [[_with_recompute(found[i], *step) for i in open_] for step in STEPS]
    chance = first_to_fit(np.array([_fits(packed(way)) for way in ways]))
    for k, i in enumerate(open_):
        best = int(np.argmax(chance[:, k]))
        others = [(ways[j][k].layout, float(chance[j, k])) for j in range(len(STEPS)) if j != best]
        found[i] = replace(
            ways[best][k], alternatives=tuple((x, p) for x, p in others if p >= UNLIKELY)
        )
    return packed(found)


def first_to_fit(fits: np.ndarray) -> np.ndarray:
    """[ways, ...] chance that each way is the first that fits; the last is taken if none does.

    ``fits`` [ways, ...] is the chance that each of them fits, in the order in which they are tried.
    """
    enough = np.maximum.accumulate(fits)
    enough[-1] = 1.0
    return np.diff(enough, axis=0, prepend=0.0)


def _fits(batch: Batch) -> np.ndarray:
    """[N] chance that each case fits, recomputation as it stands."""
    capacity = np.array([s.memory_bytes for s in batch.situations])
    known = replace(standing_of(batch.cases), recompute=np.zeros(len(batch.cases)))
    return np.asarray(memory_spread().fits(memory(batch), capacity, known))


def _with_recompute(case: Case, mode: Recompute, share: float) -> Case:
    layers = None
    if share < 1.0:
        layers = round(share * case.architecture.layers / case.layout.pp)
    return replace(case, layout=replace(case.layout, recompute=mode, recompute_layers=layers))


def packed(cases: Sequence[Case]) -> Batch:
    """Arrays for ``cases`` as they are."""
    variants = [v for i, c in enumerate(cases) for v in variants_of(c, i)]
    situations = [situation(cases[v.case], v.choices) for v in variants]
    first: dict[tuple[object, ...], int] = {}
    kind = np.array([first.setdefault(_key(s), len(first)) for s in situations], dtype=int)
    tables = [tabulate(c.architecture, c.sequence) for c in cases]
    case = np.array([v.case for v in variants], dtype=int)
    base = np.flatnonzero([not v.of for v in variants])
    return Batch(
        cases=tuple(cases),
        variants=tuple(variants),
        table=stack([tables[v.case] for v in variants]),
        layouts=pack([v.layout for v in variants]),
        situations=tuple(situations[i] for i in base),
        kinds=tuple(situations[i] for i in np.unique(kind, return_index=True)[1]),
        kind=kind,
        global_batch=np.array([cases[v.case].global_batch for v in variants], dtype=float),
        case=case,
        base=base,
        share=np.array([v.share for v in variants], dtype=float),
    )


def _key(s: Situation) -> tuple[object, ...]:
    return (
        s.device.id, s.device.fraction, s.devices_per_node, s.scale_up_domain,
        s.scale_out_bytes_per_s, s.precision, s.design, s.year, s.finetune,
    )  # fmt: skip


def predict(batch: Batch, coefficients: Coefficients) -> StepSeconds:
    """Step time of every case, the mean over what it leaves open; arrays ``[N]``."""
    return predict_open(batch, coefficients)[0]


def predict_open(batch: Batch, coefficients: Coefficients) -> tuple[StepSeconds, np.ndarray]:
    """Step time of every case, and the variance of its logarithm that open switches leave."""
    mc = stack_machines([machine(s, coefficients) for s in batch.kinds], batch.kind)
    parts = layer_seconds(batch.table, cells(batch.layouts), mc)
    optim = Optim(weight_bytes=2.0, state_bytes=12.0, muon=0.0)
    step = step_seconds(batch.table, batch.layouts, parts, mc, batch.global_batch, optim)
    step = _paced(step, _flags(c.by_maker for c in batch.cases)[batch.case], coefficients)
    return _averaged(batch, step), _variance(batch, step)


def _paced(step: StepSeconds, by_maker: np.ndarray, coefficients: Coefficients) -> StepSeconds:
    """The step at the pace of a chip's maker where ``by_maker`` is 1."""
    pace = coefficients.common("maker") ** by_maker
    names = [f.name for f in fields(StepSeconds) if f.name != "micro_batches"]
    return replace(step, **{name: getattr(step, name) * pace for name in names})


def _moved(batch: Batch, values: np.ndarray) -> np.ndarray:
    """[N] the likeliest value, moved by each deviation as far as it is likely."""
    values = np.broadcast_to(values, batch.case.shape)
    from_base = values - values[batch.base][batch.case]
    return np.asarray(
        values[batch.base] + np.bincount(batch.case, batch.share * from_base, len(batch.cases))
    )


def _averaged(batch: Batch, step: StepSeconds) -> StepSeconds:
    names = [f.name for f in fields(StepSeconds) if f.name != "micro_batches"]
    terms = {name: np.maximum(_moved(batch, getattr(step, name)), 0.0) for name in names}
    total = np.exp(_moved(batch, np.log(step.total)))
    scale = total / np.maximum(sum(terms.values()), 1e-300)
    micro = np.broadcast_to(step.micro_batches, batch.case.shape)[batch.base]
    return StepSeconds(**{n: t * scale for n, t in terms.items()}, micro_batches=micro)


def _variance(batch: Batch, step: StepSeconds) -> np.ndarray:
    log = np.log(np.broadcast_to(step.total, batch.case.shape))
    away = log - log[batch.base][batch.case]
    square = np.bincount(batch.case, batch.share * away**2, len(batch.cases))
    names = {name: i for i, name in enumerate(dict.fromkeys(v.of for v in batch.variants))}
    key = batch.case * len(names) + np.array([names[v.of] for v in batch.variants])
    means = np.bincount(key, batch.share * away, len(batch.cases) * len(names))
    return np.asarray(square - (means.reshape(-1, len(names)) ** 2).sum(1))


def sizes(batch: Batch) -> StateSizes:
    """What every variant keeps, as arrays ``[V]``."""
    found = [
        sizes_of(batch.kinds[k].design, case.precision, kept_of(case))
        for k, case in zip(batch.kind, (batch.cases[i] for i in batch.case), strict=True)
    ]
    return StateSizes(
        **{f.name: np.array([getattr(s, f.name) for s in found]) for f in fields(StateSizes)}
    )


def kept_of(case: Case) -> Kept:
    """What a row says of its states."""
    return Kept(
        states=case.states,
        finetune=case.finetune,
        optimizer=case.optimizer,
        rank=None if case.lora_rank is None else float(case.lora_rank),
        trained_ends=case.trained_ends,
        in_backward=case.step_in_backward,
        offload=case.offload,
        sharded=case.layout.zero == 3 and case.layout.dp * case.layout.cp > 1,
    )


def standing_of(cases: Sequence[Case], seen: frozenset[str] | None = None) -> MemoryStanding:
    """What is known of each case."""
    kinds = [case.memory_kind for case in cases]
    return MemoryStanding(
        unseen_engine=_flags(seen is not None and c.engine not in seen for c in cases),
        states=_flags(c.states is None for c in cases),
        loss=_flags("loss" not in c.switches for c in cases),
        recompute=_flags(not c.recompute_known for c in cases),
        experts=_flags(c.architecture.is_moe for c in cases),
        adapters=_flags(c.finetune in ("lora", "qlora") for c in cases),
        guesses=np.array([float(len(c.guesses)) for c in cases]),
        reserved=_flags(kind != "allocated" for kind in kinds),
        shown=_flags(kind == "shown" for kind in kinds),
    )


def _flags(values: Iterable[bool]) -> np.ndarray:
    return np.array([float(value) for value in values])


def memory(batch: Batch) -> MemoryBytes:
    """Peak memory of every case, the mean over what it leaves open; arrays ``[N]``."""
    return averaged(batch, memory_open(batch))


def memory_open(batch: Batch) -> MemoryBytes:
    """Peak memory of every variant; arrays ``[V]``."""
    low = np.array([low_bytes(batch.cases[i].precision) for i in batch.case])
    eager = np.array([batch.kinds[k].design.unfused_attention for k in batch.kind])
    return memory_bytes(batch.table, batch.layouts, sizes(batch), low, batch.global_batch, eager)


def averaged(batch: Batch, found: MemoryBytes) -> MemoryBytes:
    """Bytes of variants as the mean over what each case leaves open."""
    return MemoryBytes(
        **{
            name: RankBytes(
                **{
                    f.name: np.maximum(_moved(batch, getattr(getattr(found, name), f.name)), 0.0)
                    for f in fields(RankBytes)
                }
            )
            for name in ("first", "middle", "last")
        },
        pools=np.maximum(_moved(batch, np.asarray(found.pools)), 0.0),
    )


def chance_of(batch: Batch, scaled: np.ndarray) -> np.ndarray:
    """[N] chance of fitting, given the room of each variant in scales: a mixture of all."""
    return np.asarray(np.clip(_moved(batch, student_cdf(scaled)), 0.0, 1.0))


__all__ = ["IMPOSSIBLE", "Batch", "engines", "memory", "predict", "predict_open", "prepare"]
