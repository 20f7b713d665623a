"""``krzem probe``: what a machine showed, for people, programs and the planner."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from krzem.errors import RunError
from krzem.hardware import CPU
from krzem.run.clock import iso
from krzem.run.command.common import AS_JSON
from krzem.run.measure import probe_here
from krzem.run.probe.judge import Probed
from krzem.run.profile import Profile, profile_text
from krzem.train.durable import write_atomic


@click.command("probe")
@click.option("--seconds", type=float, default=25.0, show_default=True,
              help="About how long to measure; a soak test is a fifth of it.")  # fmt: skip
@click.option("--processes", type=int,
              help="Devices to measure at once.  [default: all; 2 on CPUs]")  # fmt: skip
@click.option("--device", "use", type=click.Choice(["auto", "cpu", "numpy"]), default="auto",
              show_default=True, help="numpy needs no torch, and measures no links.")  # fmt: skip
@click.option("--name", default=CPU, show_default=True,
              help="Catalogue id of the accelerator, for the profile.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write the device profile here.")
@AS_JSON
def probe_command(
    seconds: float, processes: int | None, use: str, name: str, out: Path | None, as_json: bool
) -> None:
    """Measure this machine: how fast it is, and whether it computes rightly.

    Matrix products and attention by precision, memory, collectives by size (with torch), a soak
    under load, repeated identical work, operators against float64. The profile is a cluster file
    whose [measured] numbers replace those of the data sheet in a plan.

    \b
    krzem probe
    krzem probe --out profile.toml           then, in run.toml:  profile = "profile.toml"
    """
    if seconds <= 0 or (processes is not None and processes < 1):
        shown = "" if processes is None else f" --processes {processes}"
        raise RunError(f"--seconds {seconds:g}{shown}: it must be above 0")
    with _bar(quiet=as_json) as progress:
        probed = probe_here(seconds=seconds, processes=processes, use=use, progress=progress)
    text = profile_text(
        Profile(device=name, devices=len(probed.ranks), measured=probed.measured),
        verdict=probed.verdict,
        when=iso(time.time()),
        evidence={"ranks": list(probed.ranks)},
    )
    if out is not None:
        write_atomic(out, text.encode())
    click.echo(json.dumps(_probed(probed), indent=1) if as_json else format_probe(probed, text))
    raise SystemExit(0 if probed.passed else 1)


def _probed(probed: Probed) -> dict[str, Any]:
    return {
        "passed": probed.passed,
        "verdict": probed.verdict,
        "faults": list(probed.faults),
        "warnings": list(probed.warnings),
        "measured": dict(probed.measured),
        "ranks": list(probed.ranks),
    }


def format_probe(probed: Probed, profile: str) -> str:
    """A probe as text for people: verdict, numbers, profile."""
    first = probed.ranks[0]
    shown = [
        ("verdict", probed.verdict),
        ("with", f"{first['backend']} on {first['device']}, {first['threads'] or 'all'} threads"),
        *probe_lines(first),
    ]
    if not any(rank["collectives"] for rank in probed.ranks):
        why = "one process" if len(probed.ranks) == 1 else "they need torch"
        shown.append(("links", f"not measured: {why}"))
    shown += [("note", warning) for warning in probed.warnings]
    lines = [f"{what:<9}  {value}" for what, value in shown]
    return "\n".join([*lines, "", profile])


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Callable[[float, str], None]]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda share, part: None
        return
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=1.0)
        yield lambda share, part: bars.update(task, completed=share, description=part)


def probe_lines(rank: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, values) of one device; collectives where there was somebody to talk to."""
    found = [
        ("products", _by_precision(rank["matmul"], "side")),
        ("attention", _by_precision(rank["attention"], "tokens")),
        ("memory", f"{rank['memory']['value'] / 1e9:,.3g} GB/s read and written"),
        ("launch", f"{rank['launch']['value'] * 1e6:,.3g} µs for a small operation"),
        ("soak", _soak(rank["soak"])),
        ("numerics", _numerics(rank["numerics"])),
    ]
    if (true := rank.get("true_float32")) is not None:
        kept = "keep float32" if true else "keep fewer bits (TF32 or the like)"
        found.append(("float32", f"its products {kept}"))
    if rank["collectives"]:
        found.append(("links", _links(rank["collectives"])))
    return found


def _by_precision(rates: Sequence[Mapping[str, Any]], size: str) -> str:
    """The best rate of each precision, and at which size it was reached."""
    best: dict[str, Mapping[str, Any]] = {}
    for rate in rates:
        if rate["value"] > best.get(rate["precision"], {"value": 0.0})["value"]:
            best[rate["precision"]] = rate
    return ", ".join(
        f"{name} {r['value'] / 1e12:,.3g} TFLOP/s ({size} {r['size']:,})"
        for name, r in best.items()
    )


def _soak(soak: Mapping[str, Any]) -> str:
    bits = f"{soak['different']} with other bits" if soak["different"] else "all with the same bits"
    kept = soak["last_rate"] / soak["first_rate"]
    return (
        f"{soak['products']:,} equal products in {soak['seconds']:.0f} s, {bits}; "
        f"{kept:.0%} of the first speed at the end"
    )


def _numerics(checked: Sequence[Mapping[str, Any]]) -> str:
    worse = [f"{n['operator']} in {n['precision']} ({n['grade']})"
             for n in checked if n["grade"] != "pass"]  # fmt: skip
    told = f"; {', '.join(worse)}" if worse else ""
    return f"{len(checked) - len(worse)} of {len(checked)} operators as float64 gives them{told}"


def _links(collectives: Sequence[Mapping[str, Any]]) -> str:
    """The largest size of each collective."""
    largest = {c["what"]: c for c in sorted(collectives, key=lambda c: int(c["bytes"]))}
    return ", ".join(
        f"{name.replace('_', '-')} {c['bus_bytes_per_s'] / 1e9:,.3g} GB/s"
        f" ({c['bytes'] / 2**20:,.3g} MiB)"
        for name, c in largest.items()
    )
