"""A price changes where it is meant to: a spread of layouts against what was written down."""

from __future__ import annotations

import json

import pytest
from priced import ASKED, PRICES, label, price

KEPT = json.loads(PRICES.read_text(encoding="utf-8"))


def test_every_configuration_has_a_price() -> None:
    assert set(KEPT) == {label(*asked) for asked in ASKED}
    assert not [name for name, terms in KEPT.items() if "refused" in terms]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: label(*asked))
def test_a_price_is_as_it_was(asked: tuple[str, str, str, dict[str, str]]) -> None:
    """Meant to change? Run priced.py beside this file, and read the difference."""
    assert price(*asked) == pytest.approx(KEPT[label(*asked)], rel=2e-5, abs=1e-9)
