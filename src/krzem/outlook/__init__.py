"""How far one group of labs is behind another, and the odds that it catches up.

Reading order: ``facts/outlook.toml`` (the assumptions), ``assumptions`` and ``quantity`` (the same
as values), ``model`` (the equations), ``draws`` (evidence), ``simulate`` (odds), then what puts
them in their place: ``sensitivity``, ``statements``, ``backtest``, ``reproduce``.
"""

from __future__ import annotations

from krzem.outlook.assumptions import Assumptions, Quantity, Shape, changed, load, shipped
from krzem.outlook.backtest import BackTest, back_test
from krzem.outlook.sensitivity import Levers, beliefs, levers
from krzem.outlook.simulate import Forecast, forecast
from krzem.outlook.whole import Outlook, outlook

__all__ = [
    "Assumptions",
    "BackTest",
    "Forecast",
    "Levers",
    "Outlook",
    "Quantity",
    "Shape",
    "back_test",
    "beliefs",
    "changed",
    "forecast",
    "levers",
    "load",
    "outlook",
    "shipped",
]
