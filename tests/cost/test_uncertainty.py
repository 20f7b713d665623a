"""The spread of predictions."""

from __future__ import annotations

import time

import numpy as np
import pytest
from machines import built, gpt, step

from krzem.cost.shipped import shipped
from krzem.cost.uncertainty import Z80, Standing, log_sigma, spread
from krzem.facts.table import read_table
from krzem.layout.layout import Layout


def sigma(
    device: str = "nvidia-a100-sxm-80",
    family: str = "nvidia-ampere",
    engine: str = "megatron-core",
    guesses: int = 0,
    layout: Layout | None = None,
) -> float:
    found = step(gpt(4096, 32, 32), layout or Layout(), built(), 64.0)
    standing = Standing(
        device=[device], family=[family], engine=[engine], guesses=np.array([guesses]),
        experts=np.array([0.0]), low_precision=np.array([0.0]),
    )  # fmt: skip
    return float(log_sigma(found, standing)[0])


def test_known_ground_is_a_tenth_or_so() -> None:
    assert 0.05 < sigma() < 0.2


@pytest.mark.parametrize(
    "unknown", [{"device": "nobody-x1"}, {"device": "nobody-x1", "family": "nobody"}]
)
def test_what_was_never_fitted_is_wider(unknown: dict[str, str]) -> None:
    assert sigma(**unknown) > sigma()


def test_guesses_widen() -> None:
    assert sigma(guesses=3) > sigma(guesses=1) > sigma()


def test_bubbles_widen() -> None:
    assert sigma(layout=Layout(pp=16)) > sigma(layout=Layout(pp=2))


def test_intervals_were_calibrated_on_held_back_rows() -> None:
    figures = shipped()["summary"]
    for left_out in ("without_source", "without_accelerator"):
        assert 0.75 <= figures[left_out]["coverage80"] <= 0.85
    assert figures["without_source"]["median_ape"] < 0.10
    assert figures["without_source"]["mape"] < 0.15
    assert figures["without_accelerator"]["median_ape"] < 0.18


@pytest.mark.parametrize("left_out", ["source", "accelerator"])
def test_mixtures_are_covered_as_often_as_dense_models(left_out: str) -> None:
    mixtures = {row["id"] for row in read_table("runs.csv") if row["family"] == "moe"}
    rows = [row for row in read_table("held_back.csv") if row["id"] in mixtures]
    size = np.array([abs(float(row[f"{left_out}_error"])) for row in rows])
    width = np.array([float(row[f"{left_out}_sigma"]) for row in rows])
    assert len(rows) > 100
    assert 0.75 <= np.mean(size <= Z80 * width) <= 0.85


def test_a_card_never_seen_narrows_no_interval() -> None:
    weights = spread().weights
    assert weights["unseen-device"] >= 0.0
    assert weights["unseen-device"] + weights["experts-unseen"] >= 0.0


def test_loading_is_quick() -> None:
    shipped.cache_clear()
    spread.cache_clear()
    start = time.perf_counter()
    spread()
    assert time.perf_counter() - start < 0.05
