"""The services of a real run: pools are planned, measured and asked by the witness."""

from __future__ import annotations

from typing import Any

from krzem.run.launch.known import launcher_of
from krzem.run.parity import check, record
from krzem.run.preflight import plan_pool
from krzem.run.qualify import qualify_pool
from krzem.run.services import Services


def real_services(**others: Any) -> Services:
    """Every service as it is, but for those that are given by name."""
    real = {
        "launcher": launcher_of,
        "plan": plan_pool,
        "qualify": qualify_pool,
        "witness": check,
        "record_witness": record,
    }
    return Services(**{**real, **others})
