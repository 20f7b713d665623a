"""What hardware trained a model whose hardware is not published: tested, then applied."""

from __future__ import annotations

from collections.abc import Sequence

from krzem.supply import text
from krzem.supply.document import infer_document, judge_document
from krzem.supply.infer import Evidence, Inference, infer
from krzem.supply.judge import Judged, every
from krzem.supply.known import known_runs

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
