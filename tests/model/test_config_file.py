"""Files that are no config end in one sentence, whatever they hold."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import DataError
from krzem.model.config_file import MAX_BYTES, load_config, parse_config


def test_reads_a_file_and_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama"}')
    assert load_config(file) == ({"model_type": "llama"}, file)
    assert load_config(str(tmp_path)) == ({"model_type": "llama"}, file)


def test_a_byte_order_mark_is_accepted() -> None:
    assert parse_config(b'\xef\xbb\xbf{"a": 1}', "x") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "line 1, column 2"),
        (b"[1]", "holds a JSON array"),
        (b"null", "holds a JSON null"),
        (b"true", "holds a JSON boolean"),
        (b'"x"', "holds a JSON string"),
        (b"3", "holds a JSON number"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' appears twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not a usable config"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deeply"),
    ],
)
def test_refuses_what_is_no_config(text: bytes, says: str) -> None:
    with pytest.raises(DataError, match="config") as caught:
        parse_config(text, "config.json")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("path", ["missing.json", "a\0b", "x" * 5000, "/no/such/place"])
def test_refuses_a_path_that_is_not_there(path: str) -> None:
    with pytest.raises(DataError, match="cannot open"):
        load_config(path)


def test_refuses_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder"):
        load_config(tmp_path)


def test_refuses_a_file_too_large_to_be_a_config(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match="more than 16 MiB"):
        load_config(file)


def test_refuses_pipes_and_devices(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="not a regular file"):
        load_config(pipe)
    with pytest.raises(DataError, match="not a regular file"):
        load_config("/dev/zero")


@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_a_data_error(text: bytes) -> None:
    with contextlib.suppress(DataError):
        assert isinstance(parse_config(text, "x"), dict)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=9))
def test_any_json_value_gives_an_object_or_a_data_error(value: object) -> None:
    with pytest.raises(DataError, match="holds a JSON"):
        parse_config(json.dumps(value).encode(), "x")
    assert parse_config(json.dumps({"key": value}).encode(), "x") == {"key": value}
