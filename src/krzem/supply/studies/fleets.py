"""A fleet study: the portfolios of one goal, and what would change them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from krzem.quantity import format_count
from krzem.supply import text
from krzem.supply.chance import odds
from krzem.supply.document import fleet_document, infer_document, judge_document
from krzem.supply.fleet import Fleet, fleet
from krzem.supply.goal import FleetGoal
from krzem.supply.goal_file import read_goal
from krzem.supply.infer import Evidence, Inference, infer
from krzem.supply.judge import Judged, every
from krzem.supply.known import known_runs
from krzem.supply.optimum import cheapest
from krzem.supply.speed import Slot
from krzem.supply.stages import Schedule

SLOWER = 1.25
"""How much slower a pool is made to see what hangs on it."""


def fleet_study(folder: Path, name: str, title: str) -> str:
    """The Markdown of the study whose goal is ``folder/name.toml``."""
    goal = read_goal(folder / f"{name}.toml")
    answer = fleet(goal)
    document = fleet_document(answer)
    parts = [
        f"# {title}",
        "",
        f"Goal: [`{name}.toml`]({name}.toml). This page is written by"
        " `python -m krzem.supply.studies docs/studies`; every number is computed. Intervals are"
        " 80 %.",
        "",
        *_question(answer),
        "",
        "## Every pool alone",
        "",
        text.speeds_table(document),
        "",
    ]
    for left, why in document["left_out"].items():
        parts.append(f"- Left out, {left}: {why}")
    parts += ["", *_answers(document), "", "## What would change the answer", ""]
    parts += _changes(answer)
    parts += ["", "## Caveats", "", *_caveats(answer)]
    return "\n".join(parts) + "\n"


def _question(answer: Fleet) -> Iterator[str]:
    goal = answer.goal
    tokens = answer.slots[0].speed.tokens
    yield (
        f"{format_count(tokens, 3)} tokens from {goal.start} to {goal.deadline}"
        + (f", {text.percent(goal.domestic_share)} of them on domestic devices" * bool(
            goal.domestic_share))
        + (", on what is lawful for the buyer" * goal.lawful_only)
        + "."
    )  # fmt: skip
    for pool, standing in answer.standings.items():
        yield f"- {pool}: {standing.words}"


def _answers(document: dict[str, object]) -> Iterator[str]:
    d = document
    if not d["feasible"]:
        yield "## No plan keeps every limit"
        yield ""
        for relaxation in d["relaxations"]:  # type: ignore[attr-defined]
            yield f"- {relaxation['limit']}: {relaxation['words']}"
        return
    for key, title in text.TITLES.items():
        point: dict[str, Any] = d[key]  # type: ignore[assignment]
        if not point:
            continue
        yield f"## {title or point['label'].capitalize()}"
        yield ""
        yield text.headline(point)[:1].upper() + text.headline(point)[1:] + "."
        yield ""
        yield text.stages_table(point)
        yield ""
    yield "## Date against cost and chance"
    yield ""
    yield text.front_table(d)


def _changes(answer: Fleet) -> list[str]:
    """The cheapest plan again with one thing changed each time."""
    goal, slots = answer.goal, answer.slots
    if not answer.feasible:
        return ["Nothing is asked about plans that do not exist: relax a limit first."]
    rows = [_row("as stated", goal, slots)]
    if goal.domestic_share:
        rows.append(_row("no domestic share", replace(goal, domestic_share=0.0), slots))
    for p, pool in enumerate(goal.pools):
        rest = [slot for slot in slots if slot.pool != p]
        if rest:
            rows.append(_row(f"without {pool.name}", goal, rest))
    for p, pool in enumerate(goal.pools):
        slow = [_slower(slot) if slot.pool == p else slot for slot in slots]
        rows.append(_row(f"{pool.name} {SLOWER - 1:.0%} slower", goal, slow))
    moves = replace(goal.moves, other_stack=min(2 * goal.moves.other_stack, 28.0))
    rows.append(_row("moves between stacks twice as long", replace(goal, moves=moves), slots))
    head = ("change", "cheapest plan done", "cost", "node-hours", "in time", "tokens by pool")
    return [text.table(head, rows)]


def _slower(slot: Slot) -> Slot:
    return replace(slot, speed=replace(slot.speed, days=slot.speed.days.scaled(SLOWER)))


def _row(label: str, goal: FleetGoal, slots: Sequence[Slot]) -> list[str]:
    schedule = cheapest(goal, slots)
    if schedule is None:
        return [label, "no plan keeps every limit", "", "", "", ""]
    hours = sum(stage.node_hours for stage in schedule.stages)
    return [
        label,
        schedule.finish.isoformat(),
        text.dollars(schedule.usd),
        f"{hours:,.0f}",
        text.percent(odds(goal, schedule).meets_date),
        _shares(goal, schedule),
    ]


def _shares(goal: FleetGoal, schedule: Schedule) -> str:
    shares = schedule.token_shares().items()
    return " + ".join(f"{text.percent(share)} {goal.pools[p].name}" for p, share in shares)


def _caveats(answer: Fleet) -> list[str]:
    goal = answer.goal
    unsure = [f"{pool.name} {text.percent(pool.chance)}" for pool in goal.pools if pool.chance < 1]
    lines = [f"- {note}." if not note.endswith(".") else f"- {note}" for note in answer.notes]
    if unsure:
        named = ", ".join(unsure)
        lines.append(f"- Chances that a pool becomes available are assumptions: {named}.")
    lines.append(
        f"- A move between software stacks is taken to cost {goal.moves.other_stack:g} days at the"
        " destination; nobody has published a distribution of it."
    )
    lines.append(
        "- Published coefficients cover each device family unequally: the interval of a pool in the"
        " first table says how well."
    )
    gaps = [p.schedule.gap for p in (answer.cheapest, answer.fastest) if p is not None]
    if gaps:
        lines.append(
            f"- The solver proves the cheapest plan to within {gaps[0]:.1%} of the best possible:"
            " a plan better by that much is not excluded."
        )
    return lines


# What hardware trained a model whose hardware is not published: tested, then applied
# -----------------------------------------------------------------------------------

WINDOW = (45.0, 75.0)
"""Days that the run may have lasted."""
INTERRUPTIONS = {"device_days_between_interruptions": 1155}
"""Assumed where nobody has published them: the figure of the Ascend 910C."""
STOCK = {
    "nvidia-h800-sxm": 10_000,
    "nvidia-h100-sxm": 10_000,
    "nvidia-h20-sxm-96": 30_000,
    "nvidia-h200-sxm": 2_000,
    "nvidia-b200-sxm": 5_000,
    "huawei-ascend-910c": 10_000,
}
"""Cards: SemiAnalysis, January 2025, disputed (Hopper); The Information, December 2025 (several
thousand Blackwell); the rest is assumed."""


def infer_study(found: Sequence[Judged] = (), answer: Inference | None = None) -> str:
    """The Markdown of the study; what was asked before need not be asked again."""
    answer = answer or infer(_unknown(WINDOW))
    parts = [
        "# What must DeepSeek-V4-Pro have been trained on?",
        "",
        "The report of DeepSeek-V4-Pro (arXiv 2606.19348) gives the model, 33T tokens, the batch"
        " and FP8, and neither hardware nor hours. krzem turns the planner round: which kinds and"
        " numbers of devices are consistent with what is published, by the planner's own step times"
        " and their uncertainty. Written by `python -m krzem.supply.studies docs/studies`; every"
        " number is computed, intervals are 80 %.",
        "",
        "## Does it work? Runs whose hardware is known",
        "",
        *_tests(found or list(every())),
        "",
        "## DeepSeek-V4-Pro",
        "",
    ]
    parts += [f"If the run lasted {WINDOW[0]:.0f} to {WINDOW[1]:.0f} days:", ""]
    parts += [text.kinds_table(infer_document(answer)), "", _families(answer), ""]
    parts += [f"- Left out, {device}: {why}" for device, why in answer.left_out.items()]
    parts += ["", "## How to read it", "", *_reading()]
    return "\n".join(parts) + "\n"


def _unknown(days: tuple[float, float]) -> Evidence:
    return Evidence(
        model="deepseek-v4-pro",
        days=days,
        done="2026-04",
        lab="DeepSeek",
        country="CN",
        candidates=tuple(STOCK),
        stock=STOCK,
        assumed=INTERRUPTIONS,
    )


def _families(answer: Inference) -> str:
    return "By family: " + ", ".join(
        f"{family} {text.percent(p)}" for family, p in answer.families.items()
    )


def _tests(found: Sequence[Judged]) -> list[str]:
    return [
        text.judge_text(judge_document(found)),
        f"Asked were {len(found)} of the {len(known_runs())} known runs, none left out for its"
        " outcome.",
        "Given are model, tokens, precision, month, laboratory, country, card-hours and (where they"
        " are published) days; the hardware is held back, and so is the run's own shortfall"
        " (`krzem infer --judge`). Variants of one chip (H100, H800, H200; A100 of 40 and 80 GB,"
        " A800) do nearly the same hours on one model and are told apart by country and date alone."
        " The weights of vendors and ages (`krzem.supply.kinds`) were written down with these runs"
        " in mind, so that the table flatters the method.",
    ]


def _reading() -> list[str]:
    return [
        "- Without published hours, the dates fix **how many** of each kind were needed, and only"
        " what the owner could have had speaks about **which** kind. The odds above are those of"
        " market, date and country times the stocks below; they are no evidence that a kind was"
        " used.",
        "- Kinds asked about are those whose stock is stated. Stocks (cards, each with a factor of"
        " e^0.5 either way): "
        + ", ".join(f"{device} {count:,}" for device, count in STOCK.items())
        + ". Sources: SemiAnalysis of January 2025, disputed, for Hopper; The Information of"
        " December 2025 (several thousand smuggled Blackwell, via the-decoder.com); H200 and Ascend"
        " are assumptions.",
        "- Over twice as many days half as many cards do: the odds hardly move with the window,"
        " because the card-hours of a kind do not.",
        "- The window of days is an assumption: the preview came out on 24 April 2026, and the"
        " press of January 2026 had DeepSeek trying chips during 2025 and a launch near.",
        "- Every kind is given its best layout and the software of the run's start; how far real"
        " runs fall short of that is measured on the runs above. FP8 on Ascend 910C has no"
        " published peak, so that it is planned in BF16.",
        "- A run on several kinds one after the other is not covered; the press has DeepSeek trying"
        " Ascend first and finishing part of the training on NVIDIA.",
        "- Published card-hours, or a published number of devices, would settle the family: see the"
        " table of tests.",
    ]
