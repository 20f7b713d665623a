"""Is it the same run on that other hardware?  A small record, and the check against it.

Looking at a witness works without torch; recording and checking import it when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from krzem.witness.batches import WitnessBatch, batches_from, batches_of
    from krzem.witness.checking import check
    from krzem.witness.checkpoint import check_checkpoint, open_checkpoint, record_checkpoint
    from krzem.witness.hugging_face import HfSubject, load_folder
    from krzem.witness.judge import Tolerance
    from krzem.witness.recording import record
    from krzem.witness.rule import TorchRule, TrainerRule
    from krzem.witness.subject import Setting
    from krzem.witness.trainer import TrainerSubject
    from krzem.witness.verdict import Departure, Finding, Verdict
    from krzem.witness.witness import Witness, read_witness, write_witness

_WHERE = {
    "Departure": "verdict",
    "Finding": "verdict",
    "HfSubject": "hugging_face",
    "Setting": "setting",
    "Tolerance": "tolerance",
    "TorchRule": "rule",
    "TrainerRule": "rule",
    "TrainerSubject": "trainer",
    "Verdict": "verdict",
    "Witness": "witness",
    "WitnessBatch": "batches",
    "batches_from": "batches",
    "batches_of": "batches",
    "check": "checking",
    "check_checkpoint": "checkpoint",
    "load_folder": "hugging_face",
    "open_checkpoint": "checkpoint",
    "read_witness": "witness",
    "record": "recording",
    "record_checkpoint": "checkpoint",
    "write_witness": "witness",
}

__all__ = [
    "Departure",
    "Finding",
    "HfSubject",
    "Setting",
    "Tolerance",
    "TorchRule",
    "TrainerRule",
    "TrainerSubject",
    "Verdict",
    "Witness",
    "WitnessBatch",
    "batches_from",
    "batches_of",
    "check",
    "check_checkpoint",
    "load_folder",
    "open_checkpoint",
    "read_witness",
    "record",
    "record_checkpoint",
    "write_witness",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
