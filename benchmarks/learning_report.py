"""Tables and curves of ``benchmarks/learning.py``, from the files that its runs have left."""

from __future__ import annotations

import json
import statistics
from math import log
from pathlib import Path
from typing import Any

from krzem.report.selfcontained import inline_svg, new_figure, page, save_svg, write_text

COLOURS = {"v3": "#1b6ca8", "v4": "#b5472f", "v3-no-bias": "#7a7a7a", "v3-no-mtp": "#3d8b5f"}
TITLE = "Learning: held-out loss beside counting"
PAGE = """<h1>{{ heading }}</h1>
<pre>{{ text }}</pre>
<figure>{{ figure }}<figcaption>Held-out loss on a part of the held-out samples during training,
with the losses of counting; load of the fullest expert over the mean load, worst layer of each
step, mean of ten steps (not V4, whose first layer routes by a table).</figcaption></figure>
"""


def write_report(out: Path, counted: dict[str, Any]) -> None:
    """``learning.md``, ``learning.svg`` and ``learning.html`` in ``out``."""
    results = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(out.glob("*/result.json"))
    }
    text = "\n".join([*_losses(results, counted), "", *_ablations(out, results)]) + "\n"
    figure = _figure(out, results, counted)
    write_text(out / "learning.md", text)
    write_text(out / "learning.svg", save_svg(figure))
    html = page(TITLE, PAGE, heading=TITLE, text=text, figure=inline_svg(figure))
    write_text(out / "learning.html", html)
    print(text)


def _losses(results: dict[str, Any], counted: dict[str, Any]) -> list[str]:
    targets = counted["held_out"] - 1
    per_byte = targets / counted["bytes"] / log(2)
    lines = [
        f"{counted['origin']}; {counted['train']:,} training tokens, {targets:,} held-out targets "
        f"of {counted['bytes'] / targets:.2f} bytes",
        "",
        "| model | parameters (active, + MTP) | tokens seen | minutes of processor, wall "
        "| nats/token | bits/byte |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {order}-gram, modified Kneser-Ney | | {counted['train']:,} | | "
        f"{loss:.4f} | {loss * per_byte:.3f} |"
        for order, loss in counted["losses"].items()
    ]
    for name in ("v3", "v4"):
        if name in results:
            r = results[name]
            lines.append(
                f"| {name.upper()} class | {r['parameters'] / 1e6:.1f} M "
                f"({r['active'] / 1e6:.1f} M, + {r['mtp_parameters'] / 1e6:.1f} M) | "
                f"{r['tokens']:,} | {r['cpu_seconds'] / 60:.1f}, {r['seconds'] / 60:.1f} | "
                f"{r['held_out']:.4f} | {r['held_out'] * per_byte:.3f} |"
            )
    return lines


def _ablations(out: Path, results: dict[str, Any]) -> list[str]:
    short = [n for n in ("v3-no-bias", "v3-no-mtp") if n in results]
    if not short or "v3" not in results:
        return []
    at = results[short[0]]["steps"]
    lines = [
        f"At step {at}, same rate, same data; held-out loss on the part measured during training; "
        "load of the fullest expert over the mean, in the worst layer of each step:",
        "",
        "| run | held-out nats/token | steps | load, median | load, 95 % of steps below |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in ("v3", *short):
        loss = dict(_held_out(out / name)).get(at)
        for first, last in ((0, 25), (at - 50, at)):
            peaks = _loads(out / name)[first:last]
            shown = "" if first == 0 or loss is None else f"{loss:.4f}"
            lines.append(
                f"| {name} | {shown} | {first + 1}–{last} | {statistics.median(peaks):.2f} | "
                f"{statistics.quantiles(peaks, n=20)[-1]:.2f} |"
            )
    return lines


def _held_out(folder: Path) -> list[tuple[int, float]]:
    file = folder / "run" / "events.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    events = [json.loads(line) for line in lines]
    return [(e["step"], e["value"]) for e in events if e["kind"] == "held_out_loss"]


def _loads(folder: Path) -> list[float]:
    """By step, the load of the fullest expert over the mean, in the worst layer."""
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["peak_load"] for line in lines]


def _figure(out: Path, results: dict[str, Any], counted: dict[str, Any]) -> Any:
    figure = new_figure(9.0, 4.2)
    losses, loads = figure.subplots(1, 2)
    for name, result in results.items():
        colour = COLOURS.get(name, "#444444")
        per_step = result["tokens"] / result["steps"] / 1e6
        points = _held_out(out / name)
        losses.plot([s * per_step for s, _ in points], [v for _, v in points], color=colour,
                    label=name, linestyle="--" if "-" in name else "-")  # fmt: skip
        if name == "v4":
            continue  # the hash table of its first layer is as uneven as the text
        worst = _loads(out / name)
        smooth = [statistics.fmean(worst[i : i + 10]) for i in range(0, len(worst) - 9, 10)]
        loads.plot([(i * 10 + 5) * per_step for i in range(len(smooth))], smooth, color=colour,
                   label=name, linestyle="--" if "-" in name else "-")  # fmt: skip
    for order in ("1", "2", "3", "5"):
        losses.axhline(counted["losses"][order], color="#999999", linewidth=0.8)
        losses.annotate(f"{order}-gram", (1.0, counted["losses"][order]), ha="right", va="bottom",
                        xycoords=("axes fraction", "data"), fontsize=8)  # fmt: skip
    losses.set(xlabel="million tokens seen", ylabel="held-out loss, nats per token")
    loads.set(xlabel="million tokens seen", ylabel="fullest expert over mean, worst layer")
    if results:
        losses.legend(frameon=False, fontsize=8)
    return figure
