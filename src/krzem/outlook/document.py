"""The outlook as plain values for ``--json`` (schema ``krzem.outlook/1``)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from krzem.outlook.assumptions import Assumptions
from krzem.outlook.backtest import LEVELS, BackTest
from krzem.outlook.simulate import QUANTILES, Forecast
from krzem.outlook.whole import Outlook

SCHEMA = "krzem.outlook/1"


def document(result: Outlook) -> dict[str, Any]:
    """Everything, the assumptions included; odds between 0 and 1, unknown as null."""
    return {
        "schema": SCHEMA,
        "assumptions": assumptions(result.forecast.assumptions),
        "forecast": _forecast(result.forecast),
        "definitions": plain(result.definitions),
        "levers": plain(result.levers),
        "beliefs": plain(result.beliefs),
        "statements": [
            {**plain(c), "agrees": c.agrees, "overlaps": c.overlaps} for c in result.comparisons
        ],
        "back_test": back_test_document(result.back_test),
        "reproduced": plain(result.reproduced),
        "nats": plain(result.nats),
    }


def back_test_document(test: BackTest) -> dict[str, Any]:
    """Targets with both scores, verdicts by family and coverage (model, trend, targets)."""
    return {
        "targets": [
            {**plain(t), "inside": {str(p): t.model.inside(p) for p in LEVELS}}
            for t in test.targets
        ],
        "verdicts": [{**plain(v), "better": v.better} for v in test.verdicts],
        "covered": {str(p): list(test.covered(p)) for p in LEVELS},
        "covered_by_cutoff": {
            str(day): {str(p): list(test.covered(p, day)) for p in LEVELS} for day in test.cutoffs
        },
    }


def assumptions(a: Assumptions) -> dict[str, Any]:
    """Every assumption with its source."""
    return {**plain(a), "origin": a.origin.isoformat()}


def plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as JSON values; NaN and infinities as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if not isinstance(value, str | int | bool | None) else value


def _forecast(f: Forecast) -> dict[str, Any]:
    return {
        "paths": f.paths,
        "effective_draws": f.effective,
        "years": f.years.tolist(),
        "ever_ahead": f.ever.tolist(),
        "ahead_in_trend": f.ahead.tolist(),
        "larger_run": f.larger_run.tolist(),
        "by_option": [
            {"scenario": name, "option": option, "ever_ahead": plain(curve.tolist())}
            for (name, option), curve in f.by_option.items()
        ],
        "quantiles": list(QUANTILES),
        "fans": {name: np.round(fan, 6).tolist() for name, fan in f.fans.items()},
    }
