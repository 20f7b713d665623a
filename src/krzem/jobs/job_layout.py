"""The cluster and the layout that a job states; the usual where nothing is said, and said."""

from __future__ import annotations

import re
from dataclasses import replace

from krzem.engine.description import Engine
from krzem.errors import GoalError, InputError, KrzemError, LayoutError, shorten
from krzem.hardware.catalogue import find_id, load_device
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import cluster_of, read_cluster
from krzem.jobs.job import Job, Value, show
from krzem.layout.layout import (
    ContextParallel,
    Layout,
    Optimizer,
    Precision,
    Recompute,
    Schedule,
)
from krzem.model.architecture import Architecture
from krzem.plan.emit.megatron_run import rank_layers


class Values:
    """Reads fields of a job, and keeps account of what is missing or assumed."""

    def __init__(
        self, job: Job, engine: Engine, arch: Architecture | None, assumed: list[str],
        missing: list[tuple[str, str]],
    ) -> None:  # fmt: skip
        self.job, self.engine, self.arch = job, engine, arch
        self.assumed, self.missing = assumed, missing
        self.notes: list[str] = []

    def need(self, name: str) -> int:
        """A count that the price depends on; 1 stands in for what will be asked for."""
        value = self.job.get(name)
        if isinstance(value, int) and value >= 1:
            return value
        self.missing.append((name, ""))
        return 1

    def usual(self, name: str, value: int, when: bool = True) -> int:
        """A count, or what is usual; said where it matters."""
        found = self.job.get(name)
        if isinstance(found, int) and (found >= 1 or name == "zero"):
            return int(found)
        if when:
            self.assumed.append(f"{name}={value}: nothing says otherwise (--set {name}=…)")
        return value

    def degrees(self) -> Layout:
        """Degrees and micro-batch, the data-parallel degree left at 1."""
        runs, moe = self.engine.runs, self.arch is not None and self.arch.is_moe
        tp = 1 if runs.max_tp == 1 and self.job.get("tp") is None else self.need("tp")
        pp = 1 if runs.max_pp == 1 and self.job.get("pp") is None else self.need("pp")
        cp = self.usual("cp", 1, when=bool(runs.contexts))
        ep = etp = 1
        if moe:
            ep = self.usual("ep", 1) if runs.max_ep == 1 else self.need("ep")
            etp = self.usual("etp", tp if runs.etp_default == "tp" else 1, when=tp > 1)
        plain = Layout(tp=tp, cp=cp, pp=pp, ep=ep, etp=etp, micro_batch=self.need("mbs"))
        return plain if pp == 1 else self.pipeline(plain)

    def pipeline(self, layout: Layout) -> Layout:
        """The layout with chunks, schedule and end stages."""
        vpp = self.usual("vpp", 1)
        stated = self.job.get("schedule")
        schedule = Schedule(str(stated)) if stated else Schedule.ONE_F_ONE_B
        if schedule in (Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED):
            schedule = Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
        found = replace(layout, vpp=vpp, schedule=schedule)
        first, last = self.job.get("first"), self.job.get("last")
        ends = (first if isinstance(first, int) else None, last if isinstance(last, int) else None)
        return found if self.arch is None else with_ends(found, self.arch.layers, *ends)

    def precision(self) -> Precision:
        """Arithmetic of the products."""
        word = self.job.get("precision")
        if word is None:
            self.missing.append(("precision", ""))
            return Precision.BF16
        if word not in tuple(Precision):
            raise GoalError(
                f"precision {word} is not priced; --set precision= one of"
                f" {', '.join(p.value for p in Precision)}"
            )
        return Precision(str(word))

    def optimizer(self) -> Optimizer:
        """The optimizer whose time is modelled."""
        word = str(self.job.get("optimizer") or "adamw")
        if word in tuple(Optimizer):
            return Optimizer(word)
        self.notes.append(f"optimizer {word}: priced as adamw with the bytes that it keeps")
        return Optimizer.ADAMW


def with_ends(layout: Layout, layers: int, first: int | None, last: int | None) -> Layout:
    """The layout with these end stages, unsaid where stages are so anyway."""
    tries = [replace(layout, first_stage_layers=f, last_stage_layers=e)
             for f, e in ((None, None), (None, last), (first, None), (first, last))]  # fmt: skip
    try:
        wanted = rank_layers(layers, tries[-1])
        return next(x for x in tries if rank_layers(layers, x) == wanted)
    except LayoutError:
        return tries[-1]


def replicas(job: Job, layout: Layout, devices: int) -> int:
    product = layout.tp * layout.cp * layout.pp
    if devices % product:
        raise LayoutError(
            f"tp * cp * pp = {layout.tp} * {layout.cp} * {layout.pp} = {product:,} does not divide"
            f" the {devices:,} devices: correct --on, or --set devices=…"
        )
    return devices // product


def memory_policy(values: Values, layout: Layout, engine: Engine) -> Layout:
    """ZeRO, recomputation and what else decides memory."""
    job, ranks = values.job, layout.dp * layout.cp
    usual = 3 if engine.habits.shards_weights and layout.tp == 1 else 1
    zero = values.usual("zero", usual, when=ranks > 1)
    shard = job.get("shard")
    kind = job.get("cpkind")
    sp = job.get("sp")
    found = replace(
        layout, zero=min(zero, 3),
        shard=int(shard) if isinstance(shard, int) and zero == 3 and 1 < shard < ranks else 0,
        sequence_parallel=layout.tp > 1 and (bool(sp) if sp is not None else True),
        context_parallel=ContextParallel(str(kind)) if kind else _context(engine),
        offload_optimizer=bool(job.get("offload")),
    )  # fmt: skip
    if sp is None and layout.tp > 1:
        values.assumed.append("sp=yes: nothing says whether sequences are cut over tensor ranks")
    return _recomputed(values, found, engine)


def _context(engine: Engine) -> ContextParallel:
    contexts = engine.runs.contexts
    return ContextParallel(contexts[0]) if contexts else ContextParallel.RING


def _recomputed(values: Values, layout: Layout, engine: Engine) -> Layout:
    word = values.job.get("recompute")
    if word is None:
        return layout
    mode, layers = Recompute(str(word)), values.job.get("rlayers")
    most = -(-(values.arch.layers if values.arch else 1) // layout.pp)
    if mode is Recompute.MODULES and engine.runs.selective == "half-layers":
        values.notes.append(
            "selective recomputation runs every second product again: priced as half of the layers"
        )
        return replace(layout, recompute=Recompute.FULL, recompute_layers=max(1, round(most / 2)))
    if mode is Recompute.FULL and isinstance(layers, int) and layers < most:
        if layers == 0:
            return replace(layout, recompute=Recompute.NONE)
        return replace(layout, recompute=mode, recompute_layers=layers)
    return replace(layout, recompute=mode)


def cluster_given(on: str | None, given: dict[str, Value]) -> Cluster | None:
    """The cluster of ``--on`` where it is a whole one; its size is then that of the job."""
    if on is None or not (":" in on or on.lower().endswith(".toml")):
        return None
    cluster = read_cluster(on)
    given.setdefault("devices", cluster.devices)
    if given["devices"] != cluster.devices:
        raise InputError(
            f"--on {shorten(on, 60)} has {cluster.devices:,} devices and --set devices="
            f"{show(given['devices'])} says another number: keep one of them"
        )
    return cluster


def cluster_of_job(
    job: Job, on: str | None, missing: list[tuple[str, str]], notes: list[str]
) -> Cluster | None:
    """The cluster that the files name: a chip and how many."""
    name, devices = on or job.get("device"), job.get("devices")
    if name is None:
        missing.append(("device", ""))
    if devices is None:
        missing.append(("devices", ""))
    if name is None or not isinstance(devices, int):
        return None
    device = device_id(str(name))
    if re.sub(r"[\s_/]+", "-", str(name).lower()) != device:
        notes.append(f"device {shorten(str(name), 40)} is taken for {device} (--on corrects it)")
    settings: dict[str, Value] = {"device": device, "devices": devices}
    node = job.get("devices_per_node")
    usual = load_device(device).devices_per_node
    if isinstance(node, int) and node >= 1 and node != usual and not (usual and node > usual):
        settings["devices_per_node"] = node
    return cluster_of(settings, f"{device}:{devices}")


_DEVICE_WORDS = (
    (re.compile(r"\s*(\(.*\)|\d+\s*g(i?b)?)$", re.I), ""),
    (re.compile(r"^(nvidia|amd|huawei|intel|google|aws)[\s_-]+", re.I), ""),
    (re.compile(r"ascend[\s_-]*(?=9)", re.I), "ascend-"),
    (re.compile(r"^dgx[\s_-]*|[\s_-]*(gpu|hbm\d?e?|sxm\d?)$", re.I), ""),
)


def device_id(name: str) -> str:
    """The catalogue's id of a chip as a job writes it; raises UnknownNameError."""
    words = [name]
    for pattern, put in (*_DEVICE_WORDS, *_DEVICE_WORDS):
        words += [pattern.sub(put, word).strip() for word in words]
    for word in dict.fromkeys(w for w in words if w):
        try:
            return find_id(word)
        except KrzemError:
            continue
    return find_id(name)
