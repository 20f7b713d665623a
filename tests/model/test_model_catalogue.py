"""The built-in models: every one loads, quickly, by the names people type."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from model_configs import small

from krzem.errors import DataError, ModelError, UnknownNameError
from krzem.model import catalogue, load_model, model_fact, model_ids, read_config

FOLDER = files("krzem.facts").joinpath("models")


def test_every_config_has_a_source_and_every_source_a_config() -> None:
    stored = {Path(str(f)).stem for f in FOLDER.iterdir() if f.name.endswith(".json")}
    assert stored == set(model_ids())
    assert len(model_ids()) == len(set(model_ids()))
    for name in model_ids():
        fact = model_fact(name)
        assert fact.source.startswith("https://")
        assert len(fact.date) == 10
        assert name == name.lower()


@pytest.mark.parametrize("name", model_ids())
def test_a_built_in_reads_under_its_id(name: str) -> None:
    arch = load_model(name)
    assert arch.name == name
    assert arch.source == model_fact(name).source
    raw = json.loads(FOLDER.joinpath(f"{name}.json").read_text())
    assert read_config(raw, name).runs == arch.runs


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("deepseek-v3", "deepseek-v3"),
        ("DeepSeek-V3", "deepseek-v3"),
        ("deepseek_v3", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
        ("llama3-405b", "llama-3.1-405b"),
        ("Llama-3.1-70B", "llama-3.1-70b"),
        ("llama-3-8b", "llama-3.1-8b"),
        ("gpt3", "gpt3-175b"),
        ("Qwen/Qwen3-235B-A22B", "qwen3-235b-a22b"),
        ("mt-nlg-530b", "megatron-530b"),
        ("kimi", "kimi-k2"),
        ("pangu-ultra-moe", "pangu-ultra-moe-718b"),
        ("pangu-ultra", "pangu-ultra-135b"),
    ],
)
def test_names_people_type(typed: str, meant: str) -> None:
    assert load_model(typed).name == meant
    assert model_fact(typed).id == meant


@pytest.mark.parametrize(
    "typed", ["deepseek-v4", "llama", "qwen3", "gpt-5", "gpt-53", "", "x" * 200, "é"]
)
def test_an_ambiguous_or_unknown_name_is_refused(typed: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown model") as caught:
        load_model(typed)
    assert len(str(caught.value)) < 300
    with pytest.raises(UnknownNameError):
        model_fact(typed)


def test_no_two_spellings_collide() -> None:
    spellings = [s for name in model_ids() for s in (name, *model_fact(name).aliases)]
    squeezed = {catalogue._squeeze(catalogue._words(spelling)) for spelling in spellings}
    assert len(squeezed) >= len(model_ids())
    for spelling in spellings:
        assert spelling in {model_fact(spelling).id, *model_fact(spelling).aliases}


def test_the_nearest_names_are_offered() -> None:
    with pytest.raises(UnknownNameError, match="deepseek-v4-flash") as caught:
        load_model("deepseek-v4")
    assert "deepseek-v4-pro" in caught.value.nearest


def test_a_path_is_read_even_where_it_resembles_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "deepseek-v3"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(small("llama-biases")))
    monkeypatch.chdir(tmp_path / "runs")
    assert load_model(folder).layers == 4
    assert load_model("./deepseek-v3").layers == 4
    assert load_model("../runs/deepseek-v3").layers == 4
    assert load_model("deepseek-v3").layers == 61
    (folder.parent / "mine").mkdir()
    with pytest.raises(DataError, match="folder"):
        load_model("mine")


@pytest.mark.parametrize("path", ["./nothing", "/no/such/config.json", "nothing.json", "a/b/c"])
def test_a_path_that_is_not_there_says_so(path: str) -> None:
    with pytest.raises(DataError, match="cannot open"):
        load_model(path)


def test_a_broken_config_at_a_path_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="is missing"):
        load_model(tmp_path)


def test_published_counts_keep_their_rounding() -> None:
    total = model_fact("deepseek-v3").total
    assert (total.text, total.value, total.rounding) == ("671B", 671e9, 0.5e9)
    assert model_fact("gpt-oss-20b").total.rounding == pytest.approx(5e6)
    assert total.agrees(671e9 + 0.5e9 + 0.0049 * 671e9)
    assert not total.agrees(671e9 + 0.5e9 + 0.0051 * 671e9)
    assert model_fact("llama-3.1-8b").active is None
