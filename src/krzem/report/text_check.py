"""A judged job as terminal text of at most 100 columns, made from its JSON document."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from krzem.accuracy.normal import Normal
from krzem.report.document import cleaned, plan_document
from krzem.report.text import Document, joined, memory_part, run_part, setting_part, step_part
from krzem.report.text_table import interval, paragraph, percent, plain, shortened, table


def format_check(document: Document) -> str:
    """The whole report: the verdict first, then what to change, then what it rests on."""
    return joined(
        _answer(document),
        _measured(document),
        _suggestions(document),
        _job(document),
        setting_part(document),
        step_part(document["layout_plan"]),
        memory_part(document, document["layout_plan"]),
        run_part(document),
        _calibration(document),
        _assumed(document),
        _rest(document),
    )


def format_check_sentence(document: Document) -> str:
    """The verdict alone."""
    return "\n".join(paragraph(f"{document['sentence']}.")) + "\n"


def _answer(document: Document) -> Iterator[str]:
    yield from paragraph(f"{document['sentence']}.")
    yield from paragraph(f"What it means: {document['meaning']}.")
    for doubt in document["doubts"]:
        yield from paragraph(f"It may not run: {doubt}", "! ")
    for why in document["impossible"]:
        yield from paragraph(f"the log is of another job: {why}", "! ")
    for conflict in document["conflicts"]:
        yield from paragraph(conflict["text"], "! ")
    if document["explanations"]:
        told = "; ".join(document["explanations"])
        yield from paragraph(f"What would explain it: {told}.")


def _measured(document: Document) -> Iterator[str]:
    for line in measured_lines(document):
        yield from paragraph(line)


def measured_lines(document: Document) -> list[str]:
    """What was measured, sentence by sentence; empty without a log."""
    return list(_measured_lines(document))


def _measured_lines(document: Document) -> Iterator[str]:
    found = document["measured"]
    if found is None:
        return
    if found["step_time_s"] is None:
        for name in ("seconds", "tokens"):
            if found[name] is not None and found[name]["refused"]:
                yield f"Measured: no steady {name}: {found[name]['refused']}."
        return
    steady = found["seconds"] or found["tokens"]
    error = f" ± {found['step_error_s']:.2g}" if found["step_error_s"] else ""
    predicted = interval(document["layout_plan"]["mfu"], percent)
    yield (
        f"Measured {plain(found['step_time_s'])}{error} s a step ({found['by']};"
        f" {steady['used']} of {steady['seen']} lines),"
        f" {plain(found['tokens_per_s_per_device'])} tokens/s per device,"
        f" MFU {percent(found['mfu'])}; predicted {predicted}."
    )
    yield from _counting(found["counting"])
    yield from _peak(found["memory"])


def _counting(counting: Document | None) -> Iterator[str]:
    if counting is None:
        return
    printed = f"The engine prints {plain(counting['printed_tflops'])} TFLOP/s per device"
    model = f"as model FLOP/s {plain(counting['printed_tflops'] / counting['printed_over_model'])}"
    if counting["counts"]:
        yield f"{printed}, with {counting['counts']}; {model} TFLOP/s."
    else:
        times = f"{counting['printed_over_model']:.2f} times the model's own FLOPs"
        yield f"{printed}: {times}, which no usual way of counting gives; {model} TFLOP/s."


def _peak(memory: Document | None) -> Iterator[str]:
    if memory is None:
        return
    predicted, measured = memory["predicted_gib"], memory["measured_gib"]
    inside = predicted["low"] <= measured <= predicted["high"]
    word = "as expected" if inside else "more" if measured > predicted["high"] else "less"
    yield f"Memory {memory['kind']} {plain(measured)} GiB, predicted {interval(predicted)}: {word}."


def gain(document: Document) -> str:
    """``+12 % (+8 to +16)``."""
    low, mid, high = (100 * document["gain"][key] for key in ("low", "mid", "high"))
    return f"{mid:+.1f} % ({low:+.0f} to {high:+.0f})"


def _suggestions(document: Document) -> Iterator[str]:
    rows = document["suggestions"]
    if not rows:
        yield from paragraph(
            "What to change: of no other switch, degree, micro-batch or recomputation on these"
            " devices a gain of 1 % or more is likely."
        )
        return
    proved = [s for s in rows if s["proved"]]
    if proved:
        yield "What to change, each by itself: more tokens per second, 80 % interval"
        yield from _list(proved)
    if len(proved) < len(rows):
        yield "Further changes in the engine's words: no edit of these files was proved for them"
        yield from _list([s for s in rows if not s["proved"]])


def _list(rows: list[Document]) -> Iterator[str]:
    for i, s in enumerate(rows, 1):
        fits = f"{plain(s['memory_gib'])} GiB, {percent(s['fits_probability'])} chance of fitting"
        yield from paragraph(f"{gain(s)}  {s['change']}  ({fits})", f"  {i}. ", "     ")
        yield from _edits(s)


_WIDTH = 88
"""Columns of a line of a file."""


def _edits(s: Document) -> Iterator[str]:
    if not s["edits"]:
        if s["flags"]:
            where = f" (at {s['place']})" if s["place"] else ""
            yield from paragraph(f"{s['flags']}{where}", "       flags: ", "              ")
        return
    for edit in s["edits"]:
        where = f"{shortened(edit['file'].rsplit('/', 1)[-1], 40)}:{edit['line']}"
        yield f"       {where}"
        old = edit["old"].strip()
        new = edit["new"].splitlines() or [""]
        inserted = new[0] == edit["old"]
        kept = new[1:] if inserted else new
        lines = [line.strip() for line in kept if line.strip()]
        same = min((_alike(old, line) for line in lines), default=0)
        if old:
            yield f"       {' ' if inserted else '-'} {_from(old, same)}"
        for line in lines:
            yield f"       + {_from(line, same)}"


def _alike(a: str, b: str) -> int:
    """Characters that two lines begin with in common."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _from(line: str, same: int) -> str:
    """A line of at most :data:`_WIDTH` columns that shows what follows its first ``same``."""
    start = max(0, min(same - 24, len(line) - _WIDTH + 2))
    if start:
        start = line.rfind(" ", 0, start + 1) + 1 or start
    return shortened(f"… {line[start:]}" if start else line, _WIDTH)


_SHOWN = ("tp", "cp", "pp", "vpp", "ep", "dp", "zero", "mbs", "recompute")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _job(document: Document) -> Iterator[str]:
    job = document["job"]
    version = f" {job['engine_version']}" if job["engine_version"] else ""
    fields = job["fields"]
    said = {basis: sum(f["basis"] == basis for f in fields.values())
            for basis in ("stated", "derived", "default")}  # fmt: skip
    yield from paragraph(
        f"Job      {job['engine']}{version} from {_files(len(job['files']))}:"
        f" {said['stated']} fields stated, {said['derived']} derived,"
        f" {said['default']} by the engine's defaults;"
        f" {len(job['not_understood'])} lines not understood"
    )
    yield from paragraph(f"--layout {document['layout_plan']['layout_text']}", "         ")
    places = [
        f"{name} {fields[name]['file'].rsplit('/', 1)[-1]}:{fields[name]['line']}"
        for name in _SHOWN if name in fields and fields[name]["line"]
    ]  # fmt: skip
    if places:
        yield from paragraph(", ".join(places), "         ")


def _calibration(document: Document) -> Iterator[str]:
    found = document["calibration"]
    if found is None:
        return
    yield (
        f"Calibrated on {len(found['runs'])} runs of {found['cluster']} under {found['engine']}:"
        f" intervals {percent(found['narrowed'])} as wide"
    )
    rows = [
        (f"  {name}", f"{percent(math.expm1(f['log']))}", f"± {percent(f['sigma'])}")
        for name, f in found["factors"].items()
    ]
    yield from table(("  factor", "over shipped", ""), rows, "lrl")
    runs = [
        (f"  {shortened(run['name'], 40)}", plain(run["step_time_s"]),
         *(f"{100 * (run[key] - 1):+.1f} %" for key in ("as_shipped", "calibrated", "left_out")))
        for run in found["runs"]
    ]  # fmt: skip
    head = ("  run: predicted against measured", "s", "as shipped", "calibrated", "left out")
    yield from table(head, runs, "lrrrr")


def _assumed(document: Document) -> Iterator[str]:
    if document["assumed"]:
        yield "Assumed, because no file says it"
    for text in document["assumed"]:
        yield from paragraph(text, "  - ")
    if document["open_switches"]:
        told = ", ".join(document["open_switches"])
        yield from paragraph(
            f"switches left open, priced as a mixture that widens the interval: {told}"
            f" (--set switch.{document['open_switches'][0]}=…)",
            "  - ",
        )


def _rest(document: Document) -> Iterator[str]:
    lines = document["job"]["not_understood"]
    if document["notes"] or lines:
        yield "Notes"
    for note in document["notes"]:
        yield from paragraph(note, "  - ")
    for line in lines[:5]:
        where = f"{line['file'].rsplit('/', 1)[-1]}:{line['line']}"
        yield from paragraph(f"not understood: {where}: {shortened(line['text'], 60)}", "  - ")
    if len(lines) > 5:
        yield f"  - and {len(lines) - 5} more lines (--json has them all)"


# Whether a figure is normal, as plain data and as text
# -----------------------------------------------------

NORMAL = "krzem.normal/1"


def normal_document(found: Normal) -> Document:
    """The verdict as JSON-ready data, schema ``krzem.normal/1``."""
    return cleaned(
        {
            "schema": NORMAL,
            "verdict": found.verdict,
            "meaning": found.meaning,
            "mfu": found.mfu,
            "mfu_counted_full": found.counted_full,
            "tokens_per_s_per_device": found.tokens_per_s_per_device,
            "expected_mfu": found.expected,
            "peers": found.peers,
            "plan": plan_document(found.plan, found.asked),
        }
    )


def format_normal(document: Document, sentence_alone: bool = False) -> str:
    """The verdict in one sentence, then what it rests on."""
    if sentence_alone:
        return joined(_verdict(document))
    parts = (_verdict, _expected, _peers, _normal_counting, _notes)
    return joined(*(part(document) for part in parts))


def _verdict(document: Document) -> Iterator[str]:
    plan = document["plan"]
    yield from paragraph(
        f"An MFU of {percent(document['mfu'])} is {document['verdict']} for"
        f" {plan['model']['name']} on {plan['cluster']['devices']:,} {plan['cluster']['device']}:"
        f" {document['meaning']}."
    )


def _expected(document: Document) -> Iterator[str]:
    plan = document["plan"]
    goal, best = plan["goal"], plan["best"]
    yield from paragraph(
        f"Expected of the best layout {interval(document['expected_mfu'], percent)}"
        f" ({best['layout_text']}; {goal['global_batch']:,} sequences of {goal['sequence']:,},"
        f" {goal['precision']}, {plan['engine']['title']}); measured"
        f" {document['tokens_per_s_per_device']:,.0f} tokens/s per device, expected"
        f" {interval(best['tokens_per_s_per_device'])}."
    )


def _peers(document: Document) -> Iterator[str]:
    peers: dict[str, Any] | None = document["peers"]
    if peers is None:
        yield "Nothing is published of this chip family."
        return
    yield from paragraph(
        f"Published: {peers['runs']} best runs {peers['who']} ({peers['organisations']}"
        f" organisations) reach {percent(peers['low'])} to {percent(peers['high'])}, median"
        f" {percent(peers['median'])}; this figure is above {percent(peers['below'])} of them."
    )


def _normal_counting(document: Document) -> Iterator[str]:
    yield from paragraph(
        "MFU here counts causal attention once, no recomputation, against the dense peak; with the"
        f" whole square of attention this run is called {percent(document['mfu_counted_full'])}."
    )


def _notes(document: Document) -> Iterator[str]:
    yield "Notes"
    for note in document["plan"]["notes"]:
        yield from paragraph(note, "  - ")
