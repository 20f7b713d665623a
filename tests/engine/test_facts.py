"""Engine descriptions: each file says what it may say, in the form it has to, with a source."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import krzem.facts
from krzem.engine.switches import PARTS
from krzem.layout.layout import ContextParallel, Optimizer, Precision, Recompute, Schedule

FACTS = Path(krzem.facts.__file__).parent
FILES = sorted(p for p in (FACTS / "engines").glob("*.toml") if p.stem != "support")
SUPPORT = tomllib.loads((FACTS / "engines" / "support.toml").read_text(encoding="utf-8"))
SWITCHES = tomllib.loads((FACTS / "switches.toml").read_text(encoding="utf-8"))

TEXTS = {"name", "title", "repository", "read", "emitter", "fits"}
TABLES = {
    "aliases", "stacks", "release", "design", "runs", "habits", "refuses", "switch", "without",
}  # fmt: skip
DESIGN = {
    "elementwise", "host_us", "gap_us", "turn_ms", "cut_turn_ms", "tp_overlap", "tp_backward",
    "dp_overlap", "gradient_bytes", "state_gradient_bytes", "logit_bytes", "bucket_bytes",
    "accumulate_bytes", "flash2_until", "pp_scatter",
}  # fmt: skip
"""What every engine has to say; what else a design may hold, its loader knows."""
WORDS: dict[str, set[Any]] = {
    "schedules": {*Schedule},
    "contexts": {*ContextParallel},
    "recompute": {*Recompute},
    "optimizers": {*Optimizer, "adam8bit", "adafactor", "sgd", "lion"},
    "precisions": {*Precision, "int8"},
    "zero": {0, 1, 2, 3},
    "models": {*PARTS},
}
FLAGS = {"offload", "uneven_stages", "empty_end_chunks"}
DATE = re.compile(r"2[01]\d\d-(0[1-9]|1[0-2])")


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def engine(request: pytest.FixtureRequest) -> dict[str, Any]:
    path: Path = request.param
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    assert found["name"] == path.stem
    return found


def rows(name: str) -> list[dict[str, str]]:
    lines = (FACTS / name).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_the_head_is_whole(engine: dict[str, Any]) -> None:
    assert not set(engine) - TEXTS - TABLES
    assert set(engine) >= TEXTS | {"aliases", "stacks", "release", "design", "runs", "switch"}
    assert all(isinstance(engine[key], str) for key in TEXTS)
    assert all(engine[key] for key in TEXTS - {"emitter", "repository"})
    assert all(isinstance(word, str) for word in engine["aliases"])
    known = {row["framework_device"] for row in rows("accelerators.csv")}
    assert engine["stacks"]
    assert set(engine["stacks"]) <= known | {"cpu"}


def test_its_factor_is_calibrated(engine: dict[str, Any]) -> None:
    # Of DeepSeek's own engine no run is among those that are fitted.
    logs = json.loads((FACTS / "coefficients.json").read_text(encoding="utf-8"))["logs"]
    for part in (engine, *engine["design"].get("change", [])):
        fits = part.get("fits", engine["fits"])
        assert f"engine/{fits}" in logs or fits == "deepseek"


def test_releases_are_in_order(engine: dict[str, Any]) -> None:
    dates = []
    for release in engine["release"]:
        assert set(release) == {"version", "date"}
        assert release["version"]
        assert DATE.fullmatch(release["date"])
        dates.append(release["date"])
    assert dates == sorted(dates)


def test_a_design_is_numbers(engine: dict[str, Any]) -> None:
    design = dict(engine["design"])
    changes = design.pop("change", [])
    assert set(design) >= DESIGN
    assert all(isinstance(value, int | float) for value in design.values())
    for change in changes:
        assert DATE.fullmatch(change["until"])
        rest = {k: v for k, v in change.items() if k not in ("until", "when", "fits")}
        assert all(isinstance(value, int | float) for value in rest.values())
        assert rest or "fits" in change


def test_what_it_runs_is_in_known_words(engine: dict[str, Any]) -> None:
    runs = engine["runs"]
    limits = {"max_tp", "max_pp", "max_ep"}
    texts = {"etp_default", "selective", "lacks_source"}
    assert not set(runs) - set(WORDS) - FLAGS - limits - texts - {"finetune", "own_families"}
    assert set(runs.get("finetune", [])) <= {"none", "full", "lora", "qlora"}
    assert set(runs) >= set(WORDS) | FLAGS | {"etp_default", "selective"}
    for name, words in WORDS.items():
        assert set(runs[name]) <= words, name
        assert runs[name] or name == "contexts", name
        assert len(set(runs[name])) == len(runs[name]), name
    assert all(isinstance(runs[name], bool) for name in FLAGS)
    assert all(runs[name] >= 1 for name in limits & set(runs))
    assert runs["etp_default"] in ("tp", "1")
    assert runs["selective"] in ("modules", "half-layers", "attention")
    assert not set(engine.get("habits", {})) - {"interleaves", "shards_weights", "etp"}


def test_every_refusal_has_its_reason_and_source(engine: dict[str, Any]) -> None:
    seen = Counter(refusal["when"] for refusal in engine.get("refuses", []))
    assert not [when for when, times in seen.items() if times > 1]
    for refusal in engine.get("refuses", []):
        assert set(refusal) <= {"when", "why", "source", "since", "until"}
        assert all(refusal[key].strip() for key in ("when", "why", "source"))
        assert all(DATE.fullmatch(refusal[k]) for k in ("since", "until") if k in refusal)


def test_what_it_trains_without_has_its_reason_and_source(engine: dict[str, Any]) -> None:
    for row in engine.get("without", []):
        assert set(row) == {"part", "when", "why", "source"}
        assert row["part"] in PARTS
        assert all(text.strip() for text in row.values())


def test_switches_have_known_names_and_choices(engine: dict[str, Any]) -> None:
    known = {
        "choices", "default", "needs", "since", "usual", "flags", "effect", "memory", "log",
    }  # fmt: skip
    for name, switch in engine["switch"].items():
        assert not set(switch) - known, name
        choices = switch["choices"]
        assert set(choices) <= set(SWITCHES[name]["choices"]), name
        assert len(set(choices)) == len(choices) > 0, name
        assert switch["default"] in choices, name
        assert isinstance(switch.get("log", ""), str), name
        for key in ("needs", "since", "usual", "flags", "effect", "memory"):
            assert {row[0] for row in switch.get(key, [])} <= set(choices), (name, key)


def test_switches_say_when_why_and_how_often(engine: dict[str, Any]) -> None:
    for name, switch in engine["switch"].items():
        for choice, when, why in switch.get("needs", []):
            assert when, (name, choice)
            assert len(why) > 15, (name, choice)
            assert "as above" not in why, (name, choice)
        assert all(DATE.fullmatch(date) for _, date in switch.get("since", [])), name
        shares = [share for _, share in switch.get("usual", [])]
        assert all(0 <= share <= 1 for share in shares), name
        assert not shares or sum(shares) == pytest.approx(1.0, abs=0.011), name
        for key in ("since", "usual", "flags", "memory"):
            once = Counter(row[0] for row in switch.get(key, []))
            assert all(times == 1 for times in once.values()), (name, key)
        assert all(isinstance(flags, str) for _, flags in switch.get("flags", [])), name
        assert all(len(row) == 3 and row[2] for row in switch.get("memory", [])), name


def test_no_two_engines_share_a_name() -> None:
    found: Counter[str] = Counter()
    for path in FILES:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        found.update({raw["name"], *raw["aliases"]})
    assert not [word for word, times in found.items() if times > 1]


def test_support_is_about_known_engines_and_families() -> None:
    engines = {path.stem for path in FILES}
    families = {row["family"] for row in rows("accelerators.csv")}
    assert set(SUPPORT) == {"support"}
    pairs = []
    for row in SUPPORT["support"]:
        assert set(row) <= {"engine", "family", "since", "until", "why", "source"}
        assert row["engine"] in engines
        assert row["family"] in families
        assert row["why"].strip()
        assert row["source"].strip()
        dates = [row[key] for key in ("since", "until") if key in row]
        assert dates
        assert all(DATE.fullmatch(date) for date in dates)
        assert dates == sorted(dates)
        pairs.append((row["engine"], row["family"]))
    assert len(set(pairs)) == len(pairs)
