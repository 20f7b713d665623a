"""Dispatch by model type, names, and random damage to real configs."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_configs import small

from krzem.errors import DataError, KrzemError, ModelError
from krzem.model import Architecture, count, flops_per_token, model_ids, read_config
from krzem.model import supported_types as types

REAL = {
    name: json.loads(files("krzem.facts").joinpath("models", f"{name}.json").read_text())
    for name in model_ids()
}


def test_a_config_reads_from_file_folder_and_object(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    file = folder / "config.json"
    file.write_text(json.dumps(small("llama-biases")))
    (tmp_path / "other.json").write_text(file.read_text())
    from_file, from_folder = read_config(file), read_config(str(folder))
    assert from_file == from_folder
    assert (from_file.name, from_file.source) == ("my-model", str(file))
    assert read_config(tmp_path / "other.json").name == "other"
    named = read_config(small("llama-biases"), "tiny", source="a paper")
    assert (named.name, named.source, named.model_type) == ("tiny", "a paper", "llama")
    assert named.runs == from_file.runs


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({}, "'model_type' is missing"),
        ({"model_type": "lama"}, "llama4_text?"),
        ({"model_type": "deepseek"}, "deepseek_v3"),
        ({"model_type": ["llama"]}, "unknown model_type ['llama']"),
        ({"model_type": "mistral3", "text_config": {}}, "'model_type' is missing"),
    ],
)
def test_an_unknown_type_names_what_is_supported(raw: dict[str, object], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_config(raw, "mine")
    assert says in str(caught.value)
    assert "docs/models.md" in str(caught.value)


def test_a_config_that_is_no_object_is_a_data_error(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("[]")
    with pytest.raises(DataError, match="array"):
        read_config(file)


HOSTILE = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2, 3, 2**31, 2**63, 10**5000, "", "4096", "NaN", [], [[]], {}])
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(-2, 200) | st.text(max_size=4) | st.none(), max_size=80)
    | st.dictionaries(st.text(max_size=4), st.integers(), max_size=3)
)


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, object]:
    """A real config with a few fields dropped, replaced, or swapped between families."""
    config = dict(REAL[draw(st.sampled_from(sorted(REAL)))])
    keys = sorted(config)
    for _ in range(draw(st.integers(1, 4))):
        key = draw(st.sampled_from(keys))
        if draw(st.booleans()):
            config[key] = draw(HOSTILE)
        else:
            config.pop(key, None)
    if draw(st.integers(0, 4)) == 0:
        config["model_type"] = draw(st.sampled_from(types()))
    return config


@given(damaged())
@settings(max_examples=600, deadline=None)
def test_a_damaged_config_gives_a_model_or_a_clear_error(config: dict[str, object]) -> None:
    try:
        arch = read_config(config, "fuzzed")
    except KrzemError as error:
        check_message(str(error))
    else:
        check_sound(arch)


@given(st.dictionaries(st.text(max_size=12), HOSTILE, max_size=6), st.sampled_from(types()))
@settings(deadline=None)
def test_an_arbitrary_object_gives_a_model_error(raw: dict[str, object], model_type: str) -> None:
    with pytest.raises(ModelError, match="fuzzed"):
        read_config(raw | {"model_type": model_type}, "fuzzed")


def check_message(message: str) -> None:
    assert len(message) < 1200
    assert "\n" not in message


def check_sound(arch: Architecture) -> None:
    assert isinstance(arch, Architecture)
    assert arch.layers == len(arch.expanded()) > 0
    counted = count(arch)
    assert 0 < counted.active <= counted.total
    assert flops_per_token(arch, 64) > 0
