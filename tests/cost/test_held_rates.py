"""Cards whose products a limiter holds to half of what their matrix units could do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.cost.machines import built

from krzem.cost.assemble import HALVED
from krzem.cost.machine import grouped, matmul
from krzem.hardware.catalogue import load_device

SHAPES = np.array([[64, 64, 64], [4096, 768, 768], [8192, 4096, 14336], [8192, 8192, 8192]]).T


@pytest.mark.parametrize("device", sorted(HALVED))
def test_products_reach_more_of_a_held_rate_and_never_pass_it(device: str) -> None:
    card = built(device=device, engine="fsdp", year=2026.0)
    peak = load_device(device).peak_flops["bf16"]
    m, n, k = SHAPES.astype(float)
    held = matmul(m, n, k, card, card.matmul_flops, np.asarray(2.0))
    assert (2.0 * m * n * k / held <= 0.97 * peak).all()
    assert card.attention_flops <= 0.97 * peak
    # The same share of the same peak without a limiter: no product is faster.
    whole = replace(card, slack=1.0, matmul_flops=card.matmul_flops * 0.8)
    assert (held <= matmul(m, n, k, whole, whole.matmul_flops, np.asarray(2.0)) * 1.0001).all()


@pytest.mark.parametrize("device", ["nvidia-rtx-4090", "nvidia-rtx-5090"])
def test_a_large_product_takes_what_the_limiter_lets_through(device: str) -> None:
    card = built(device=device, engine="fsdp", year=2026.0)
    size = 16384.0
    seconds = float(matmul(*[np.asarray(size)] * 3, card, card.matmul_flops, np.asarray(2.0)))
    reached = 2.0 * size**3 / seconds / load_device(device).peak_flops["bf16"]
    assert 0.9 < reached <= 0.97


@pytest.mark.parametrize("device", ["nvidia-a100-sxm-80", "nvidia-l40s", "nvidia-rtx-pro-6000"])
def test_cards_that_hold_nothing_back_are_priced_by_shape(device: str) -> None:
    card = built(device=device, engine="fsdp", year=2026.0)
    assert card.slack == 1.0
    small, large = (np.asarray(v) for v in (256.0, 8192.0))
    rows = [grouped(np.asarray(1.0), x, x, x, card, np.asarray(2.0)) for x in (small, large)]
    rate = [2.0 * float(x) ** 3 / float(t) for x, t in zip((small, large), rows, strict=True)]
    assert rate[0] < 0.5 * rate[1]
