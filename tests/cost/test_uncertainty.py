"""The spread of predictions."""

from __future__ import annotations

import time

import numpy as np
import pytest
from machines import built, gpt, step

from krzem.cost.coefficients import Z80, Standing, combination, log_sigma, shipped, spread
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
        combination=[combination(engine, layout or Layout())],
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


def test_a_combination_that_nobody_published_is_wider() -> None:
    strange = Layout(cp=8, pp=2, zero=3)
    assert combination("megatron-core", strange) not in spread().combinations
    assert spread().weights["unseen-combination"] >= 0.0


def test_guesses_widen() -> None:
    assert sigma(guesses=3) > sigma(guesses=1) > sigma()


def test_bubbles_widen() -> None:
    assert sigma(layout=Layout(pp=16)) > sigma(layout=Layout(pp=2))


def test_intervals_were_calibrated_on_held_back_rows() -> None:
    figures = shipped()["summary"]
    for left_out in ("organisation", "accelerator", "engine"):
        assert 0.75 <= figures[f"without_{left_out}"]["coverage80"] <= 0.86
    assert figures["without_organisation"]["median_ape"] < 0.16
    assert figures["without_accelerator"]["median_ape"] < 0.13


@pytest.mark.parametrize("left_out", ["organisation", "accelerator"])
def test_mixtures_are_covered_as_often_as_dense_models(left_out: str) -> None:
    rows = [row for row in read_table("held_back.csv") if row["model"] == "moe"]
    size = np.array([abs(float(row[f"{left_out}_error"])) for row in rows])
    width = np.array([float(row[f"{left_out}_sigma"]) for row in rows])
    assert len(rows) > 100
    assert 0.72 <= np.mean(size <= Z80 * width) <= 0.88


def test_every_organisation_is_left_out_whole() -> None:
    """Sister pages of a vendor are one: no row of it is predicted with the others of it known."""
    rows = read_table("held_back.csv")
    assert len({row["organisation"] for row in rows}) > 30
    assert all(row["organisation"] for row in rows)


def test_a_card_never_seen_narrows_no_interval() -> None:
    weights = spread().weights
    for name in ("device", "family", "engine", "combination"):
        assert weights[f"unseen-{name}"] >= 0.0
    assert weights["experts-unseen"] >= 0.0
    assert weights["guesses"] >= 0.0


def test_loading_is_quick() -> None:
    shipped.cache_clear()
    spread.cache_clear()
    start = time.perf_counter()
    spread()
    assert time.perf_counter() - start < 0.05
