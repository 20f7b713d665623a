"""Reference pages and JSON Schemas are what the code says, and hold for every file shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "src" / "krzem" / "schemas"


def test_pages_and_schemas_are_current() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "reference"), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", ["cluster", "goal", "outlook", "run"])
def test_schemas_are_schemas(name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert all("description" in value or "properties" in value or "items" in value
               for value in schema["properties"].values())  # fmt: skip


def files() -> list[tuple[str, Path]]:
    """The TOML files of this repository and the kind of each."""
    found = [("goal", path) for path in sorted((ROOT / "docs" / "studies").glob("*.toml"))]
    found += [("run", path) for path in sorted((ROOT / "examples").rglob("run*.toml"))]
    return found


@pytest.mark.parametrize(("kind", "path"), files(), ids=lambda value: getattr(value, "name", value))
def test_files_that_krzem_reads_keep_to_the_schema(kind: str, path: Path) -> None:
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text(encoding="utf-8"))
    # Dates have no type in JSON: as text they may be anything.
    document = json.loads(json.dumps(tomllib.loads(path.read_text(encoding="utf-8")), default=str))
    jsonschema.Draft202012Validator(schema).validate(document)


def test_a_slip_in_a_cluster_file_is_seen() -> None:
    schema = json.loads((SCHEMAS / "cluster.json").read_text(encoding="utf-8"))
    checker = jsonschema.Draft202012Validator(schema)
    checker.validate({"device": "h100", "devices": 64, "launch": {"modules": ["cuda"]}})
    for slip in ({"devices": True}, {"launch": {"moduls": []}}, {"device": ["h100"]}):
        assert list(checker.iter_errors(slip))


def test_blocks_of_toml_on_pages_are_toml() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            tomllib.loads(block)
