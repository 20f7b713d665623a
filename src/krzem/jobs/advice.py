"""What to change in a job: one switch, one degree or one policy at a time, and the best layout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from types import MappingProxyType

from krzem.cost.coefficients import Z80
from krzem.engine.conditions import holds
from krzem.engine.legal import layout_judge
from krzem.engine.setup import Setup
from krzem.engine.switches import switches
from krzem.errors import KrzemError
from krzem.estimate import Basis, Estimate
from krzem.jobs.check import Check
from krzem.jobs.job import Value
from krzem.jobs.priced import Priced, difference_sigma, price_all, single_values
from krzem.jobs.question import Posed
from krzem.jobs.spellings import MEGATRON, targets
from krzem.layout.layout import Layout, Recompute, Schedule, pack
from krzem.layout.rules import legal
from krzem.layout.space import Space
from krzem.plan.goal import SURE
from krzem.plan.price import Pricer
from krzem.plan.search import search

WORTH = 0.01
"""Gain below which a change is not offered."""
SURE_OF_GAIN = 0.6
"""Chance of any gain below which a change is not offered."""
LIKELY = 0.5
"""Chance of fitting below which a change is not offered (unless it fits better than the job)."""
NOT_OFFERED = frozenset({"routing", "attention=eager"})
"""What changes the training itself, or is never better."""
NEAR = 1.03
"""Layouts so near to the fastest are not told apart: the one that changes least is offered."""
MOST_NEAR = 64
SEARCHED = 4096
"""Devices up to which the best layout is searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A variation of a job."""

    words: str
    kind: str
    """switch, micro-batch, recomputation, zero, degrees or best."""
    fields: Mapping[str, Value]
    """Fields of the job that change, and what they become."""
    layout: Layout
    setup: Setup


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A change, priced."""

    change: Change
    priced: Priced
    gain: Estimate
    """Tokens per second relative to the job as it is (0.1: ten per cent more)."""
    sigma: float
    """Standard deviation of the logarithm of the ratio."""
    fits: float
    notes: tuple[str, ...] = field(default=())

    @property
    def chance(self) -> float:
        """Chance that it gains anything."""
        if self.sigma <= 0.0:
            return float(self.gain.mid > 0.0)
        return NormalDist().cdf(math.log1p(self.gain.mid) / self.sigma)

    @property
    def memory_gib(self) -> float:
        """Peak on the fullest rank, the median."""
        return float(self.priced.memory.peak) / 2.0**30


def advise(found: Check, pricer: Pricer, most: int = 8) -> tuple[Suggestion, ...]:
    """Changes that gain, best first; where the job hardly fits, those that make it fit first."""
    said = (change for change in _changes(found.posed) if spelled(change, found.posed))
    changes = list(_legal(found.posed, pricer, said))
    made = _priced(found, pricer, changes)
    best = _best_layout(found, pricer)
    kept = [s for s in (*made, *best) if _worth(s, found)]
    kept.sort(key=lambda s: -s.gain.mid)
    if found.priced.fits < LIKELY:
        kept.sort(key=lambda s: s.fits < LIKELY)
    return tuple(_distinct(kept))[:most]


def spelled(change: Change, posed: Posed) -> bool:
    """Whether the engine has words for the change: flags or keys, or a number to replace."""
    engine, job = posed.job.spelling, posed.job
    context = {"layers": posed.task.architecture.layers, "pp": change.layout.pp, "vpp": 1}
    part = change.layout.recompute_layers is not None and change.layout != posed.layout
    whole_layers = {"recompute": change.layout.recompute.value} if part else {}
    for name, value in {**whole_layers, **change.fields}.items():
        follows = name == "schedule" and value in ("1f1b", "interleaved")
        if follows or name in ("rlayers", "cpkind", "shard"):
            continue
        setting = job.settings.get(name)
        number = setting is not None and setting.line > 0 and isinstance(value, int)
        number = number and name != "zero"  # a stage often follows from words
        if not (number or targets(engine, name, value, context)):
            return False
    some = change.fields.get("rlayers") is not None
    return not some or engine in MEGATRON


def _worth(s: Suggestion, found: Check) -> bool:
    if found.priced.fits < LIKELY <= s.fits:
        return True
    gains = s.gain.mid >= WORTH and s.chance >= SURE_OF_GAIN
    return gains and s.fits >= min(LIKELY, found.priced.fits)


def _distinct(found: Sequence[Suggestion]) -> Iterator[Suggestion]:
    seen: set[tuple[object, ...]] = set()
    for s in found:
        key = tuple(sorted((k, str(v)) for k, v in s.change.fields.items()))
        if key not in seen:
            seen.add(key)
            yield s


def _priced(found: Check, pricer: Pricer, changes: Sequence[Change]) -> list[Suggestion]:
    priced = price_all(pricer, [(c.layout, c.setup) for c in changes])
    return [
        _suggestion(found.priced, change, new) for change, new in zip(changes, priced, strict=True)
    ]


def _suggestion(old: Priced, change: Change, new: Priced) -> Suggestion:
    sigma = difference_sigma(old, new)
    gain, spread = old.seconds / new.seconds, math.exp(Z80 * sigma)
    return Suggestion(
        change=change, priced=new, sigma=sigma, fits=new.fits,
        gain=Estimate(gain / spread - 1.0, gain - 1.0, gain * spread - 1.0, Basis.CALIBRATED),
    )  # fmt: skip


# -- what may be changed


def _changes(posed: Posed) -> Iterator[Change]:
    yield from switch_changes(posed)
    yield from _layout_changes(posed)


def switch_changes(posed: Posed, *, all_choices: bool = False) -> Iterator[Change]:
    """Each other legal choice of each switch; ``all_choices``: also those that are never advice."""
    setup, own = posed.task.setup, posed.task.description.switches
    values = single_values(posed.pricer(), posed.layout) | setup.values
    stated = dict(setup.stated)
    for name, switch in switches().items():
        values[switch.word] = stated.get(name) or (
            own[name].default if name in own else switch.choices[0]
        )
    for name, engine_switch in own.items():
        if not bool(holds(switches()[name].matters, values)):
            continue
        for choice in engine_switch.at(setup.year):
            unwanted = {name, f"{name}={choice}"} & NOT_OFFERED
            if stated.get(name) == choice or (unwanted and not all_choices):
                continue
            with_it = {**values, switches()[name].word: choice}
            needs = [when for c, when, _ in engine_switch.needs if c == choice]
            if not all(bool(holds(when, with_it)) for when in needs):
                continue
            yield Change(
                words=f"{name}={choice}", kind="switch",
                fields=MappingProxyType({f"switch.{name}": choice}), layout=posed.layout,
                setup=replace(setup, stated=_restated(setup, name, choice)),
            )  # fmt: skip


def _restated(setup: Setup, name: str, choice: str) -> tuple[tuple[str, str], ...]:
    stated = {**dict(setup.stated), name: choice}
    return tuple((n, stated[n]) for n in switches() if n in stated)


def _layout_changes(posed: Posed) -> Iterator[Change]:
    x = posed.layout
    yield from _micro_batches(posed)
    yield from _policies(posed)
    for words, fields in _degrees(posed):
        ranks = x.tp * x.cp * x.pp * x.dp
        new = {n: fields.get(n, getattr(x, n)) for n in ("tp", "cp", "pp")}
        product = new["tp"] * new["cp"] * new["pp"]
        if product < 1 or ranks % product:
            continue
        yield moved(posed, words, "degrees", fields, dp=ranks // product)


def moved(
    posed: Posed, words: str, kind: str, fields: Mapping[str, Value], **more: object
) -> Change:
    """The change of layout that ``fields`` make."""
    names = {"mbs": "micro_batch", "rlayers": "recompute_layers"}
    x = posed.layout
    values: dict[str, object] = {names.get(n, n): v for n, v in fields.items()} | more
    if "recompute" in values:
        values["recompute"] = Recompute(str(values["recompute"]))
        values.setdefault("recompute_layers", None)
    if "schedule" in values:
        values["schedule"] = Schedule(str(values["schedule"]))
    tp = int(str(values.get("tp", x.tp)))
    if "tp" in values:
        cut = x.sequence_parallel or x.tp == 1
        values["sequence_parallel"] = tp > 1 and cut
    if x.recompute_layers is not None and "recompute" not in values:
        share = x.recompute_layers * x.pp
        pp = int(str(values.get("pp", x.pp)))
        values["recompute_layers"] = max(1, round(share / pp))
    layout = replace(x, **values)  # type: ignore[arg-type]
    return Change(
        words=words, kind=kind, fields=MappingProxyType(dict(fields)), layout=layout,
        setup=posed.task.setup,
    )  # fmt: skip


def _micro_batches(posed: Posed) -> Iterator[Change]:
    x = posed.layout
    local = posed.task.goal.global_batch // x.dp
    for size in (x.micro_batch // 4, x.micro_batch // 2, x.micro_batch * 2, x.micro_batch * 4):
        if size >= 1 and local % size == 0 and size <= local:
            yield moved(posed, f"micro-batch {size}", "micro-batch", {"mbs": size})


def _policies(posed: Posed) -> Iterator[Change]:
    """Recomputation and ZeRO."""
    x, runs = posed.layout, posed.task.description.runs
    per_rank = -(-posed.task.architecture.layers // x.pp)
    half_layers = runs.selective == "half-layers"
    for word in runs.recompute:
        fields: dict[str, Value] = {"recompute": word}
        if word == "modules" and half_layers:
            made = moved(posed, "recompute=modules", "recomputation", fields)
            half = replace(made.layout, recompute=Recompute.FULL,
                           recompute_layers=max(1, round(per_rank / 2)))  # fmt: skip
            if half != x:
                yield replace(made, layout=half)
        elif word != x.recompute.value or (word == "full" and x.recompute_layers is not None):
            yield moved(posed, f"recompute={word}", "recomputation", fields)
    if x.dp * x.cp > 1:
        for stage in runs.zero:
            if stage != x.zero:
                shard = x.shard if stage == 3 else 0
                made = moved(posed, f"zero={stage}", "zero", {"zero": stage}, shard=shard)
                yield replace(made, setup=_unfused(posed) if stage >= 2 else made.setup)


def _unfused(posed: Posed) -> Setup:
    """Megatron's FSDP, which sharded gradients take there, adds gradients up in a kernel apart."""
    setup = posed.task.setup
    if posed.job.spelling not in MEGATRON:
        return setup
    return replace(setup, stated=_restated(setup, "fused-accumulation", "off"))


def _degrees(posed: Posed) -> Iterator[tuple[str, dict[str, Value]]]:
    """Neighbours of the degrees, on the same devices with the same batch."""
    x, runs = posed.layout, posed.task.description.runs
    found: list[dict[str, Value]] = []
    if runs.max_tp != 1:
        found += [{"tp": x.tp * 2}, {"tp": x.tp // 2}]
    if runs.max_pp != 1 and x.vpp == 1:
        found += [{"pp": x.pp * 2}, {"pp": x.pp // 2}]
        found += [{"tp": x.tp * 2, "pp": x.pp // 2}, {"tp": x.tp // 2, "pp": x.pp * 2}]
    if runs.contexts:
        found += [{"cp": x.cp * 2}, {"cp": x.cp // 2}]
        found += [{"tp": x.tp // 2, "cp": x.cp * 2}, {"tp": x.tp * 2, "cp": x.cp // 2}]
    if posed.task.architecture.is_moe and runs.max_ep != 1:
        found += [{"ep": x.ep * 2}, {"ep": x.ep // 2}]
    if x.pp > 1 and "interleaved" in runs.schedules and x.schedule in (
        Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED,
    ):  # fmt: skip
        per_rank = posed.task.architecture.layers // x.pp
        for vpp in sorted({1, 2, 3, 4, per_rank}):
            even = posed.task.architecture.layers % (x.pp * vpp) == 0
            if vpp != x.vpp and even and vpp <= per_rank:
                schedule = "interleaved" if vpp > 1 else "1f1b"
                found.append({"vpp": vpp, "schedule": schedule})
    for fields in found:
        if all(not isinstance(v, int) or v >= 1 for v in fields.values()):
            words = ", ".join(f"{n}={v}" for n, v in fields.items() if n != "schedule")
            yield words, fields


def _legal(posed: Posed, pricer: Pricer, changes: Iterator[Change]) -> Iterator[Change]:
    """Those that break no rule and that the engine's own code does not refuse."""
    problem = posed.task.problem
    before = set(pricer.judge.reasons(posed.layout))
    fine_before = bool(legal(problem, pack([posed.layout]))[0])
    for change in changes:
        if fine_before and not bool(legal(problem, pack([change.layout]))[0]):
            continue
        judge = pricer.judge
        if change.setup is not posed.task.setup:
            judge = layout_judge(change.setup, pricer.values, problem)
        if not set(judge.reasons(change.layout)) - before and _allowed(change, pricer):
            yield change


def _allowed(change: Change, pricer: Pricer) -> bool:
    """Whether the switches that are stated stay legal in a changed layout."""
    values = single_values(pricer, change.layout) | change.setup.values
    own, stated = change.setup.description.switches, dict(change.setup.stated)
    for name, switch in switches().items():
        values[switch.word] = stated.get(name) or (
            own[name].default if name in own else switch.choices[0]
        )
    for name, choice in stated.items():
        if name not in own or not bool(holds(switches()[name].matters, values)):
            continue
        needs = [when for c, when, _ in own[name].needs if c == choice]
        if not all(bool(holds(when, values)) for when in needs):
            return False
    return True


# -- the best layout


def _best_layout(found: Check, pricer: Pricer) -> list[Suggestion]:
    """The best layout on the same devices, with the switches that the job has."""
    posed = found.posed
    if posed.task.cluster.devices > SEARCHED:
        return []
    try:
        hits = search(pricer, _space(posed))
    except KrzemError:
        return []
    order = [int(i) for i in hits.best(SURE)]
    fast = [i for i in order if hits.seconds[i] <= hits.seconds[order[0]] * NEAR]
    changes = [_as_change(posed, hits.layouts.at(i)) for i in fast[:MOST_NEAR]]
    changes = [c for c in changes if c.fields and spelled(c, posed)]
    needed = found.priced.fits < LIKELY
    made = [s for s in _priced(found, pricer, changes) if needed or s.gain.mid > WORTH]
    if not made:
        return []
    most = max(s.gain.mid for s in made)
    near = [s for s in made if (1.0 + s.gain.mid) * NEAR >= 1.0 + most]
    return [min(near, key=lambda s: (len(s.change.fields), -s.gain.mid))]


def _space(posed: Posed) -> Space:
    """What is searched; where selective means half of the layers, it is priced as that."""
    space = posed.task.space
    own = posed.layout.context_parallel
    if own in space.contexts and not targets(posed.job.spelling, "cpkind", own.value, {}):
        space = replace(space, contexts=(own,))
    if posed.task.description.runs.selective != "half-layers":
        return space
    kept = tuple(r for r in space.recompute if r is not Recompute.MODULES)
    return replace(space, recompute=kept)


_FIELDS = {
    "tp": "tp", "cp": "cp", "pp": "pp", "vpp": "vpp", "ep": "ep", "etp": "etp",
    "micro_batch": "mbs", "zero": "zero", "shard": "shard", "schedule": "schedule",
    "recompute": "recompute", "recompute_layers": "rlayers", "first_stage_layers": "first",
    "last_stage_layers": "last", "context_parallel": "cpkind", "sequence_parallel": "sp",
    "offload_optimizer": "offload",
}  # fmt: skip


def _as_change(posed: Posed, layout: Layout) -> Change:
    fields: dict[str, Value] = {}
    per_rank = -(-posed.task.architecture.layers // layout.pp)
    if layout.recompute is Recompute.FULL and layout.recompute_layers == per_rank:
        layout = replace(layout, recompute_layers=None)
    for name, short in _FIELDS.items():
        value = getattr(layout, name)
        same = value == getattr(posed.layout, name)
        idle = (name == "context_parallel" and layout.cp == 1) or (
            name == "sequence_parallel" and layout.tp == 1
        )
        if same or idle or value is None:
            continue
        fields[short] = value if isinstance(value, bool | int) else str(value)
    all_layers = layout.recompute is Recompute.FULL and layout.recompute_layers is None
    if all_layers and posed.layout.recompute_layers is not None:
        fields["recompute"] = "full"
    half = posed.task.description.runs.selective == "half-layers"
    if half and fields.get("rlayers") == max(1, round(per_rank / 2)):
        fields.pop("rlayers")
        fields["recompute"] = "modules"
    cut = layout.zero >= 2 and layout.zero != posed.layout.zero
    words = "the best layout: " + ", ".join(f"{n}={v}" for n, v in fields.items())
    return Change(
        words=words, kind="best", fields=MappingProxyType(fields), layout=layout,
        setup=_unfused(posed) if cut else posed.task.setup,
    )  # fmt: skip
