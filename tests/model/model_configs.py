"""Small complete configs, one per model type, that tests change one field of."""

from __future__ import annotations

import json
from pathlib import Path

Config = dict[str, object]

TRANSFORMERS: list[dict[str, object]] = [
    json.loads(line)
    for line in (Path(__file__).parent / "transformers_counts.jsonl").read_text().splitlines()
]
"""Parameters and forward FLOPs of 32 tokens, as counted on the classes of transformers 5.23.0.

``parameters`` is the size of all ``parameters()`` of the causal model; ``forward_flops`` is what
``torch.utils.flop_counter`` (torch 2.13.0) counts with eager attention, which computes the whole
square of scores and the logits of every position.
"""


def small(name: str, **changes: object) -> Config:
    """The config of that name with ``changes``; a change to ``...`` drops the field."""
    config = next(row["config"] for row in TRANSFORMERS if row["name"] == name)
    assert isinstance(config, dict)
    return {key: value for key, value in (config | changes).items() if value is not ...}
