"""Several plans as one answer: phases of a run, and the fewest devices for a date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from krzem.errors import GoalError, KrzemError, QuantityError
from krzem.plan.answer import plan_of
from krzem.plan.phases import SUMMED, parse_phase, phases_of, spelled
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.plan.size import Fewest, fewest

SMALL: dict[str, Any] = {"model": "llama-3.1-8b", "on": "nvidia-h100-sxm:64",
                         "limits": "tp<=2,pp=1,mbs=1,recompute=none|full"}  # fmt: skip
TEXTS = ["tokens=1T,seq=4k,batch=512", "tokens=50B,seq=32k,batch=64"]


def test_the_whole_is_the_sum_of_its_phases() -> None:
    found = phases_of(Question(**SMALL), TEXTS)
    for name in SUMMED:
        total = found.totals[name]
        parts = [getattr(p.plan.whole_run, name) for p in found.phases]
        assert total is not None
        assert total.mid == pytest.approx(sum(part.mid for part in parts))
        assert total.low == pytest.approx(sum(part.low for part in parts))
    assert found.footprint is not None
    each = [p.plan.footprint for p in found.phases]
    assert found.footprint.flop == pytest.approx(sum(f.flop for f in each if f))


def test_a_phase_is_the_plan_of_its_own_question() -> None:
    found = phases_of(Question(**SMALL), TEXTS)
    alone = plan_of(settle(Question(**SMALL, tokens="50B", sequence="32k", global_batch=64)))
    assert found.phases[1].plan.best.layout == alone.best.layout
    assert found.phases[1].plan.whole_run.days == alone.whole_run.days
    fits = [p.plan.best.fits_probability for p in found.phases]
    assert fits[found.worst] == min(fits)


def test_a_growing_batch_takes_longer_than_the_largest() -> None:
    steady, growing = (
        phases_of(Question(**SMALL), [f"tokens=100B,seq=8k,batch={batch}"])
        for batch in ("512", "64..512")
    )
    assert growing.phases[0].plan.whole_run.steps > steady.phases[0].plan.whole_run.steps
    assert growing.totals["days"].mid >= steady.totals["days"].mid  # type: ignore[union-attr]
    ramp = growing.phases[0].asked.task.goal.ramp
    assert sum(stage.tokens for stage in ramp) == pytest.approx(1e11)
    assert [stage.global_batch for stage in ramp] == sorted(s.global_batch for s in ramp)


def test_a_deadline_is_for_all_phases() -> None:
    days = phases_of(Question(**SMALL), TEXTS).totals["days"]
    assert days is not None
    for limit, chance in ((days.low, 0.1), (days.mid, 0.5), (days.high, 0.9)):
        found = phases_of(Question(**SMALL, deadline=f"{limit:.9f} d"), TEXTS)
        assert found.deadline_probability == pytest.approx(chance, abs=0.01)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seq=4k", "Add tokens"),
        ("tokens=1T,length=4k", "tokens, seq, batch"),
        ("tokens=1T,sequence=4k", "seq"),
        ("tokens=1T,tokens=2T", "at most once"),
        ("tokens", "is not a part"),
        ("", "how many tokens"),
    ],
)
def test_what_is_no_phase_is_refused_with_what_is_one(text: str, says: str) -> None:
    with pytest.raises(QuantityError) as caught:
        parse_phase(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "more", "says"),
    [
        (["tokens=1T,batch=512..64"], {}, "from the smaller to the larger"),
        (["tokens=1T,batch=64"], {"tokens": "2T"}, "leave it out"),
        (["tokens=1T,batch=64"] * 17, {}, "at most 16"),
        (["tokens=1T,batch=64", "tokens=1T,seq=1k,batch=1M"], {}, "--phase"),
    ],
)
def test_phases_that_make_no_run_are_refused(
    texts: list[str], more: dict[str, Any], says: str
) -> None:
    with pytest.raises(KrzemError) as caught:
        phases_of(Question(**SMALL, **more), texts)
    assert says in str(caught.value)


def ask(deadline: str, most: int = 256, chance: float = 0.8) -> Fewest:
    question = Question(**{**SMALL, "on": f"nvidia-h100-sxm:{most}"}, tokens="300B",
                        global_batch=512, deadline=deadline)  # fmt: skip
    return fewest(question, chance=chance)


def test_the_fewest_meet_the_date_and_fewer_that_were_tried_do_not() -> None:
    found = ask("10d")
    for point in found.tried:
        kept = point.plan.whole_run.deadline_probability if point.plan else 0.0
        assert (kept is not None and kept >= 0.8) == (point.value >= found.best.value)


@pytest.mark.long
def test_a_later_date_and_a_lower_chance_never_take_more() -> None:
    assert ask("20d").best.value <= ask("10d").best.value <= ask("5d").best.value
    assert ask("10d", chance=0.5).best.value <= ask("10d", chance=0.95).best.value


def test_a_date_that_all_devices_miss_says_by_how_much() -> None:
    with pytest.raises(GoalError, match=r"all 16 devices have a .* the run takes .* days"):
        ask("5d", most=16)


def test_no_deadline_and_no_chance_are_refused() -> None:
    question = Question(**SMALL, tokens="300B", global_batch=512)
    with pytest.raises(GoalError, match="give --deadline"):
        fewest(question)
    with pytest.raises(GoalError, match="between 0 and 1"):
        ask("10d", chance=1.0)


def test_a_file_says_the_phases_as_the_command_line_does(tmp_path: Path) -> None:
    file = tmp_path / "phases.toml"
    file.write_text(
        '[[phase]]\ntokens = "1T"\nseq = "4k"\nbatch = "256..512"\n'
        "[[phase]]\ntokens = 50_000_000_000\nsequence = 32768\nglobal_batch = 64\nrate = 1e-4\n"
    )
    assert spelled([str(file), "tokens=1B"]) == [
        "tokens=1T,seq=4k,batch=256..512",
        "tokens=50000000000,seq=32768,batch=64",
        "tokens=1B",
    ]


def test_the_phases_of_a_run_file_begin_where_it_says(tmp_path: Path) -> None:
    """What a phase does not state stays as it was, as the trainer takes it."""
    file = tmp_path / "run.toml"
    file.write_text(
        '[goal]\ntokens = "3T"\nsequence = "4k"\nglobal_batch = 512\ndeadline = "60d"\n'
        '[[phase]]\nat = "2T"\nsequence = "32k"\n[[phase]]\nat = "2.5T"\nglobal_batch = 64\n'
    )
    found = [parse_phase(text) for text in spelled([str(file)])]
    assert [int(phase["tokens"]) for phase in found] == [2 * 10**12, 5 * 10**11, 5 * 10**11]
    assert [phase["seq"] for phase in found] == ["4k", "32k", "32k"]
    assert [phase["batch"] for phase in found] == ["512", "512", "64"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[phase]]\nlayout = 'tp=8'\ntokens = 1\n", "layout"),
        ("[goal]\ntokens = 1\n[[phase]]\nsequence = 4\n", "at ="),
        ("tokens = 1\n", r"no \[\[phase\]\]"),
        ("phase = 3\n", r"no \[\[phase\]\]"),
        ("phase = []\n", r"no \[\[phase\]\]"),
    ],
)
def test_bad_files_of_phases(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text)
    with pytest.raises(QuantityError, match=words):
        spelled([str(file)])
