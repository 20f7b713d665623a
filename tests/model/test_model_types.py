"""Every causal type of transformers 5.23: read to the last parameter, or refused with a reason.

``torch_counts.jsonl.gz`` holds what torch counts on the meta device for each type, with the default
config and with changed ones; ``scripts/model-types reference`` writes it.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from krzem.errors import ModelError
from krzem.model import count, read_config, supported_types
from krzem.model.description import describe, described_types

ALLOCATED = {"longcat_flash"}
"""Types whose class allocates matrices that nothing uses; these do not count here."""
EVERY = 3
"""One changed config in so many is tried here; the script's page tries them all."""


@cache
def rows() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    path = Path(__file__).parent / "torch_counts.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            found.setdefault(row["type"], []).append(row)
    return found


def built(model_type: str) -> list[dict[str, Any]]:
    return [row for row in rows()[model_type] if "parameters" in row]


def test_every_causal_type_has_a_description() -> None:
    assert set(rows()) <= set(described_types())


@pytest.mark.parametrize("model_type", sorted(set(rows()) & set(supported_types()) - ALLOCATED))
def test_parameters_are_those_of_torch(model_type: str) -> None:
    for row in built(model_type)[::EVERY]:
        try:
            found = count(read_config(row["config"], model_type)).total
        except ModelError as error:
            assert not row["default"], error  # noqa: PT017
        else:
            assert found == row["parameters"], row["config"]


def test_at_least_125_types_are_exact_with_default_and_changed_configs() -> None:
    read = [t for t in rows() if t in supported_types() and t not in ALLOCATED]
    assert sum(len(built(t)) > 2 for t in read) >= 125


@pytest.mark.parametrize(
    "model_type", [t for t in described_types() if describe(t).structure], ids=str
)
def test_refused_types_say_why(model_type: str) -> None:
    with pytest.raises(ModelError, match="models of this type are not read: "):
        read_config({"model_type": model_type})


def test_matrices_that_a_class_allocates_for_nothing_do_not_count() -> None:
    # LongCat-Flash is published as 560B; its class holds gate and up matrices of zero experts too.
    for row in built("longcat_flash"):
        c = row["config"]
        idle = c["num_layers"] * c["zero_expert_num"] * 2
        idle *= c["expert_ffn_hidden_size"] * c["hidden_size"]
        assert count(read_config(c)).total == row["parameters"] - idle


def test_the_page_lists_every_type_with_the_count_of_torch() -> None:
    page = (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {row[0].strip("`"): row for row in cells}
    assert set(told) == set(described_types())
    for name, tried in rows().items():
        default = next((row for row in tried if row.get("default")), {})
        if "parameters" in default:
            assert told[name][1] == f"{default['parameters']:,}"
    assert sum(row[-1] == "exact" for row in cells) >= 125
