"""``krzem train --rehearse``: what is asked, and how the answer is shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from krzem.errors import InputError, RunError
from krzem.files import check_target
from krzem.hardware import CPU, Cluster, cluster_of, read_cluster
from krzem.keys import listed
from krzem.layout.layout import Layout, Precision, parse_layout
from krzem.model.catalogue import load_model_config
from krzem.quantity import format_bytes
from krzem.report.selfcontained import need_extra, write_text
from krzem.train.command.planning import (
    best_layout,
    is_near,
    planned_peaks,
    rehearsed_peak,
    say,
    step_of,
)
from krzem.train.config import ModelSpec, model_spec
from krzem.train.forecast import Forecast
from krzem.train.rehearsal.clock import Rates, trace
from krzem.train.rehearsal.stages import Rehearsal, as_document, rehearse, stage_rank, summary_of
from krzem.train.settings import TrainSettings, layout_text, read_settings
from krzem.train.setup import why_not
from krzem.train.start import LAYOUT_VARIABLE, on_this_pool

_KINDS = ("weights", "gradients", "states", "activations", "transient")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for."""

    devices: str | None = None
    """Instead of the run file's cluster, such as ``h800:2048``."""
    rank: int | None = None
    """One rank alone; None: the first of every stage."""
    routing: str = "even"
    """``even``, or how many times its even share of rows the rank's experts get."""
    as_json: bool = False
    html: Path | None = None
    trace: Path | None = None


def rehearse_run(run_file: Path, wish: Wish) -> int:
    """Rehearse the run's step and show it; 0, or 1 where it would hang or does not fit.

    Raises:
        RunError: the run file, the model or the layout has faults.
        InputError: an option has.
    """
    for target in (wish.html, wish.trace):
        if target is not None:
            check_target(target)
    if wish.html is not None:
        need_extra()
    settings = on_this_pool(read_settings(run_file))
    cluster = _cluster(settings, wish.devices)
    spec = _model(settings)
    layout = _layout(run_file, settings, spec, cluster)
    step = step_of(settings, spec, layout, crowding=crowding_of(wish.routing))
    found = rehearse(step, ranks_of(wish.rank, layout), one=summary_of, progress=say)
    document = as_document(found) | {"model": spec.arch.name}
    if cluster is not None:
        document["capacity_bytes"] = cluster.memory_bytes
        even = step.crowding == 1.0
        _put_planned(document, planned_peaks(settings, spec, layout, cluster) if even else None)
    write_files(found, document, wish, rates_of(cluster, settings.goal.precision))
    click.echo(json.dumps(document, indent=2) if wish.as_json else text(document))
    too_much = cluster is not None and found.fullest.peak.total > cluster.memory_bytes
    return 1 if found.faults or too_much else 0


def _put_planned(document: dict[str, Any], planned: Callable[[int], float] | None) -> None:
    for rank in document["ranks"]:
        rank["planned_bytes"] = None if planned is None else round(planned(rank["stage"]))


def near_the_edge(run_file: Path, forecast: Forecast | None) -> int | None:
    """The rehearsed peak of a dry run whose planned memory leaves its fit open; None elsewhere."""
    if forecast is None or not is_near(forecast.memory_bytes.mid, forecast.capacity_bytes):
        return None
    settings = on_this_pool(read_settings(run_file))
    cluster = _cluster(settings, None)
    if cluster is None or cluster.device.id == CPU:
        return None
    say("the planned memory is near the device's: rehearsing")
    return rehearsed_peak(settings, _model(settings), forecast.layout)


def _model(settings: TrainSettings) -> ModelSpec:
    config, name = load_model_config(settings.model)
    return model_spec(config, name=name)


def _cluster(settings: TrainSettings, devices: str | None) -> Cluster | None:
    given: Any = devices or settings.cluster
    if given is None:
        return None
    if isinstance(given, str):
        path = settings.base / given
        return read_cluster(path if devices is None and given.endswith(".toml") else given)
    return cluster_of(given, "cluster")


def _layout(
    run_file: Path, settings: TrainSettings, spec: ModelSpec, cluster: Cluster | None
) -> Layout:
    """The stated layout, or the planner's for the cluster, checked as a start would check it."""
    given = os.environ.get(LAYOUT_VARIABLE)
    stated = settings.layout if not given else layout_text(given, Path())
    layout = _planned(settings, spec, cluster) if stated == "auto" else parse_layout(stated)
    faults = why_not(spec, settings, layout)
    if cluster is not None and layout.devices != cluster.devices:
        faults.append(
            f"the layout needs tp*cp*pp*dp = {layout.tp}*{layout.cp}*{layout.pp}*{layout.dp} = "
            f"{layout.devices} devices, and {cluster.devices} are asked about: change dp, or "
            f"--devices {cluster.device.id}:{layout.devices}"
        )
    if faults:
        raise RunError(listed(run_file, faults))
    return layout


def _planned(settings: TrainSettings, spec: ModelSpec, cluster: Cluster | None) -> Layout:
    if cluster is None:
        raise RunError(
            'layout = "auto" is planned for a cluster, and none is named: add '
            '--devices h800:2048, or write cluster = "h800:2048" into the run file, or state a '
            "layout with --layout"
        )
    return best_layout(settings, spec, cluster)


def ranks_of(rank: int | None, layout: Layout) -> list[int] | None:
    if rank is None:
        return None
    if not 0 <= rank < layout.devices:
        raise InputError(
            f"--rank {rank}: the layout has tp*cp*pp*dp = {layout.tp}*{layout.cp}*{layout.pp}*"
            f"{layout.dp} = {layout.devices} ranks, 0 to {layout.devices - 1}; the first of stage "
            f"s is s*{stage_rank(layout, 1)}"
        )
    return [rank]


def crowding_of(routing: str) -> float:
    if routing == "even":
        return 1.0
    try:
        times = float(routing.removesuffix("x"))
    except ValueError:
        times = 0.0
    if not 1.0 <= times <= 64.0:
        raise InputError(
            f"--routing {routing!r}: it is 'even', or how many times an even share of rows the "
            "rank's experts get, from 1 to 64, such as 1.5"
        )
    return times


def write_files(
    found: Rehearsal, document: dict[str, Any], wish: Wish, rates: Rates | None
) -> None:
    """The trace and the page, where they are wished for."""
    if wish.trace is not None:
        write_text(wish.trace, json.dumps(trace(found, rates)))
        say(f"wrote {wish.trace}: open it at https://ui.perfetto.dev")
    if wish.html is not None:
        from krzem.train.rehearsal.page import rehearsal_page

        write_text(wish.html, rehearsal_page(document))
        say(f"wrote {wish.html}")


def rates_of(cluster: Cluster | None, precision: str) -> Rates | None:
    """How fast a device multiplies and reads; None where that is not published."""
    if cluster is None:
        return None
    kind = Precision(precision).arithmetic
    peak = cluster.device.peak_flops.get("tf32" if kind == "fp32" else kind)
    if not peak or not cluster.memory_bytes_per_s:
        return None
    return Rates(flops=peak, bytes=cluster.memory_bytes_per_s)


def text(document: dict[str, Any]) -> str:
    """The rehearsal for people."""
    ranks, room = document["ranks"], document.get("capacity_bytes")
    fullest = max(ranks, key=lambda rank: rank["peak_bytes"])
    lines = [
        f"{document['model']} under {document['layout']}: {document['ranks_in_all']:,} ranks, "
        f"{document['micro_batches']} micro-batches of a rank, {document['sequence']:,} tokens a "
        f"sequence, {document['precision']}, {document['optimizer']}",
        "",
        *_table(ranks),
        *_beside(ranks),
        "",
        _fits(fullest, room),
        *_at_the_peak(fullest),
        "",
        *_collectives(fullest),
        "",
        f"the host waits for the device {fullest['host_reads_per_micro_batch']:.0f} times a "
        f"micro-batch; {fullest['flops'] / 1e12:,.0f} TFLOP a step and rank",
        "",
        *(_faults(document["faults"], len(ranks))),
        *(f"note: {note}" for note in document.get("notes", ())),
    ]
    return "\n".join(lines)


def _table(ranks: Sequence[dict[str, Any]]) -> list[str]:
    shown = any(r.get("planned_bytes") for r in ranks)
    head = ["stage", "rank", "layers", "GiB", *(["planned"] if shown else []), *_KINDS]
    rows = [
        [
            str(r["stage"]),
            str(r["rank"]),
            _span(r["layers"]),
            f"{r['peak_bytes'] / 2**30:.1f}",
            *([f"{r['planned_bytes'] / 2**30:.1f}"] if shown else []),
            *(f"{r['peak'][kind] / 2**30:.1f}" for kind in _KINDS),
        ]
        for r in ranks
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [head, *rows]
    ]


def _beside(ranks: Sequence[dict[str, Any]]) -> list[str]:
    """The planner's bytes by kind, where they are known, and how far they are off."""
    known = [rank for rank in ranks if rank.get("planned")]
    if not known:
        return []
    lines = ["", "planned GiB by kind (over what was rehearsed):"]
    for rank in known:
        plan, real = rank["planned"], rank["peak"]
        cells = (f"{kind} {plan[kind] / 2**30:.1f} ({_over(plan, real, kind)})" for kind in _KINDS)
        lines.append(f"  stage {rank['stage']}: {', '.join(cells)}")
    return lines


def _over(plan: dict[str, float], real: dict[str, float], kind: str) -> str:
    """The difference, in GiB."""
    return f"{(plan[kind] - real[kind]) / 2**30:+.1f}"


def _span(layers: Sequence[int]) -> str:
    """``0-3``, or both pieces of a rank that holds several stages."""
    pieces: list[list[int]] = []
    for layer in layers:
        if pieces and layer == pieces[-1][-1] + 1:
            pieces[-1].append(layer)
        else:
            pieces.append([layer])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in pieces)


def _fits(fullest: dict[str, Any], room: float | None) -> str:
    need = fullest["peak_bytes"]
    where = fullest["peak_in"]
    at = f"{where['pass']} of micro-batch {where['micro_batch']}"
    said = f"rank {fullest['rank']} is the fullest: {format_bytes(need)} of tensors, in the {at}"
    if room is None:
        return f"{said} (add --devices h800:2048 to compare with a device's memory)"
    fits = "fits" if need <= room else "does not fit"
    return (
        f"{said}; it {fits} in {format_bytes(room)}, before what the driver, the collective "
        "library and fragmentation take"
    )


def _at_the_peak(fullest: dict[str, Any]) -> list[str]:
    return ["largest at that moment:"] + [
        f"  {format_bytes(p['bytes']):>10}  {p['kind']:<11}  {p['count']:>5} x {p['shape']} by "
        f"{p['operator']}"
        for p in fullest["largest"][:8]
    ]


def _collectives(fullest: dict[str, Any]) -> list[str]:
    return [f"collectives of rank {fullest['rank']} in a step:"] + [
        f"  {c['operation']:<14}  {c['group']:<14}  {c['ranks']:>5} ranks  {c['count']:>7,} times  "
        f"{format_bytes(c['bytes']):>10}"
        for c in fullest["collectives"]
    ]


def _faults(faults: Sequence[dict[str, Any]], ranks: int) -> list[str]:
    if not faults:
        return [f"the {ranks} ranks meet in every collective and message: nothing hangs"]
    return ["THE STEP WOULD FAIL:", *(f"  {f['kind']}: {f['said']}" for f in faults)]
