"""Is this MFU normal: the verdict follows the figure, and both ways to say it agree."""

from __future__ import annotations

import pytest

from krzem.accuracy.normal import FAR, Normal, normal
from krzem.errors import GoalError, InputError, QuantityError
from krzem.jobs.command import question_of, read_share
from krzem.plan.question import Question

ASKED = Question(
    model="llama-3.1-8b", on="nvidia-h100-sxm:64", sequence=8192, global_batch=512,
    limits="tp=1,pp=1,mbs=1",
)  # fmt: skip


def judge(mfu: float) -> Normal:
    return normal(ASKED, mfu=mfu)


def test_the_verdict_rises_with_the_figure() -> None:
    low, high = (getattr(judge(0.4).expected, end) for end in ("low", "high"))
    figures = (FAR * low * 0.5, low * 0.99, low * 1.01, high * 0.99, high * 1.01, 1.2)
    verdicts = [judge(figure).verdict for figure in figures]
    assert verdicts == ["very low", "low", "normal", "normal", "high", "impossible"]


def test_a_rate_and_its_mfu_are_one_figure() -> None:
    one = judge(0.4)
    other = normal(ASKED, tokens_per_s=one.tokens_per_s_per_device)
    assert other.mfu == pytest.approx(0.4)
    assert other.verdict == one.verdict
    assert one.counted_full > one.mfu


def test_peers_are_published_runs_of_like_chips() -> None:
    few, many = judge(0.2).peers, judge(0.5).peers
    assert few is not None
    assert many is not None
    assert few.runs == many.runs >= 8
    assert few.organisations >= 3
    assert few.below < many.below
    assert few.low < few.median < few.high < 1.0


def test_what_is_not_said_is_usual_and_needs_no_tokens() -> None:
    found = normal(Question(model="smollm3-3b", on="nvidia-h100-sxm:8"), mfu=0.4)
    assert found.asked.task.goal.tokens_per_step >= 1_000_000
    assert found.plan.best.mfu.mid > 0.1


SHARES = {"38%": 0.38, "38": 0.38, "0.38": 0.38, "38 %": 0.38, "1.2%": 0.012, "0.5%": 0.005}


@pytest.mark.parametrize(("text", "share"), SHARES.items())
def test_shares_as_people_write_them(text: str, share: float) -> None:
    assert read_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "x", "-3%", "0", "nan", "inf", "1.2", "%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(QuantityError, match="38%"):
        read_share(text)


def test_neither_and_both_figures_are_refused() -> None:
    for more in ({}, {"mfu": 0.4, "tokens_per_s": 1.0}, {"mfu": 0.0}):
        with pytest.raises(GoalError):
            normal(ASKED, **more)


def test_fields_that_a_question_lacks_are_refused_with_those_it_has() -> None:
    assert question_of("m", "h100:8", None, None, ("seq=4k", "batch=64")).sequence == "4k"
    with pytest.raises(InputError, match="batch-tokens"):
        question_of("m", "h100:8", None, None, ("devices=64",))
