"""Input that can be read and can hardly be meant is refused, or said."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from krzem.errors import GoalError
from krzem.hardware.catalogue import device_ids, having, lacks_format, load_device
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import read_cluster
from krzem.layout.layout import Precision
from krzem.plan.goal import AHEAD, MANY_TOKENS, MOST_TOKENS, check_batch, check_software_date
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.plan.sweep import QUANTITIES, parse_sweep

TODAY = datetime.date(2026, 11, 30)


def ask(**more: Any) -> Any:
    given = {"model": "llama-3.1-8b", "on": "nvidia-h100-sxm:8", "tokens": "1T", "global_batch": 64}
    return settle(Question(**given | more))


@pytest.mark.parametrize("days", [-3000, 0, AHEAD.days])
def test_software_of_yesterday_and_of_half_a_year_is_planned(days: int) -> None:
    day = TODAY + datetime.timedelta(days=days)
    assert check_software_date(day, TODAY) == day


@pytest.mark.parametrize("days", [AHEAD.days + 1, 1000, 26_000])
def test_software_of_the_future_is_refused(days: int) -> None:
    with pytest.raises(GoalError, match=r"nobody knows.*--start"):
        check_software_date(TODAY + datetime.timedelta(days=days), TODAY)


def test_the_date_of_a_question_is_checked() -> None:
    with pytest.raises(GoalError, match="2099-01-01"):
        ask(date="2099-01")
    assert ask(start="2099-01-01").start.year == 2099


@pytest.mark.parametrize("batch", ["4M", 4_000_000, "4e6"])
def test_tokens_written_as_sequences_are_refused_with_the_arithmetic(batch: Any) -> None:
    with pytest.raises(GoalError) as caught:
        ask(global_batch=batch)
    said = str(caught.value)
    assert "4,000,000 sequences x 8,192 tokens = 32,768,000,000 tokens a step" in said
    assert "--batch-tokens 4000000 (488 sequences)" in said


@pytest.mark.parametrize("sequence", [1024, 4096, 131_072])
def test_a_batch_is_fine_said_or_refused_by_its_tokens(sequence: int) -> None:
    assert check_batch(MANY_TOKENS // sequence, sequence, False) is None
    large = check_batch(MANY_TOKENS // sequence + 1, sequence, False)
    assert large is not None
    assert "tokens a step" in large
    assert check_batch(2 * MOST_TOKENS // sequence, sequence, True) is not None
    with pytest.raises(GoalError, match="--batch-tokens"):
        check_batch(MOST_TOKENS // sequence + 1, sequence, False)


@pytest.mark.parametrize("name", device_ids())
def test_formats_that_a_chip_lacks_are_refused_before_anything_is_searched(name: str) -> None:
    device = load_device(name)
    has = bool(set(having("mxfp8")) & {device.id, device.family})
    assert lacks_format(device, "mxfp8") != has
    assert not any(lacks_format(device, p.value) for p in Precision if p is not Precision.MXFP8)
    if has or "fp8" not in device.peak_flops or "bf16" not in device.peak_flops:
        return
    with pytest.raises(GoalError, match=rf"mxfp8 on {name}: its matrix units") as caught:
        ask(on=f"{name}:8", precision="mxfp8")
    assert "nvidia-blackwell" in str(caught.value)
    assert "fp8-block" in str(caught.value)


def test_a_recipe_in_a_format_that_the_chip_lacks_is_planned_in_another() -> None:
    """Of a chip that a file describes nothing is known: what it is given is what it has."""
    own = {"device": "mine", "devices": 8, "memory": "80 GiB", "memory_bandwidth": "3 TB/s",
           "peak": {"bf16": "500 TFLOP/s", "fp8": "1 PFLOP/s"}}  # fmt: skip
    from krzem.hardware.cluster_reader import cluster_of

    assert ask(on=cluster_of(own), precision="mxfp8").task.goal.precision is Precision.MXFP8


def test_devices_count_alike_on_a_cluster_and_in_a_sweep() -> None:
    assert parse_sweep("devices=1k|2k") == ("devices", (1024.0, 2048.0))
    assert read_cluster("nvidia-h100-sxm:2k").devices == 2048


def test_a_cluster_of_a_sweep_is_called_by_its_own_count() -> None:
    for given, name in (("h100:64", "nvidia-h100-sxm:16"), ("leonardo:64", "Leonardo Booster")):
        question = Question(model="llama-3.1-8b", on=given)
        swept = QUANTITIES["devices"].put(question, read_cluster(given), 16.0)
        assert isinstance(swept.on, Cluster)
        assert (swept.on.name, swept.on.devices) == (name, 16)


@pytest.mark.parametrize("verb", ["plan", "explain"])
def test_one_cluster_is_planned_for(krzem: Callable[..., Any], verb: str) -> None:
    more = ["--layout", "tp=1"] if verb == "explain" else []
    said = krzem(verb, "llama-3.1-8b", "--on", "h100:8", "--on", "h800:8", *more)
    assert said.code == 2
    assert "--on is given 2 times (h100:8, h800:8)" in said.err
    assert "krzem compare" in said.err


@pytest.mark.parametrize("verb", ["plan", "explain", "compare"])
def test_help_says_what_k_is(krzem: Callable[..., Any], verb: str) -> None:
    text = " ".join(krzem(verb, "--help").out.split())
    assert "1k is 1,000" in text
    assert "4k is 4,096" in text
    assert "2k is 2,000" in text
    assert "16M is 16,000,000" in text
    assert verb == "compare" or "h100:2k is 2,048" in text
