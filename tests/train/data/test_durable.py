"""Files are whole or not there, and a disk's refusal is one sentence."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from krzem.errors import RunError, StorageError
from krzem.train.durable import canonical_json, check_folder, storing, write_atomic

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
).filter(lambda value: "\\ud" not in json.dumps(value) and "Infinity" not in json.dumps(value))


@given(json_values)
def test_canonical_json_depends_on_the_value_alone(value: object) -> None:
    raw = canonical_json(value)
    assert json.loads(raw) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == raw


def test_what_is_not_json_is_refused() -> None:
    for value in (float("nan"), float("inf"), {1, 2}, object()):
        with pytest.raises((ValueError, TypeError)):
            canonical_json(value)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    seen = []
    write_atomic(path, b"new", lambda: seen.append(path.read_bytes()))
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, refuse)
        with pytest.raises(StorageError, match=r"the disk is full \(.* GB free\)"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_guard_that_refuses_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def guard() -> None:
        raise PermissionError("not yours")  # not the disk's error: it must pass through

    with pytest.raises(PermissionError, match="not yours"):
        write_atomic(path, b"new", guard)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full .* make room"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EFBIG, "file-size limit here"),
        (errno.EACCES, "choose a folder you may write to"),
        (errno.EROFS, "choose a folder you may write to"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_every_refusal_has_its_sentence(tmp_path: Path, number: int, says: str) -> None:
    with pytest.raises(StorageError, match=says) as caught, storing(tmp_path / "deep" / "file"):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path / "deep" / "file") in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("below", "who"), [("", "it is a file"), ("/deep/er", r"/notes is a file")], ids=["it", "above"]
)
def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path, below: str, who: str) -> None:
    (tmp_path / "notes").write_text("")
    folder = Path(f"{tmp_path}/notes{below}")
    needed = f"{who}, and a folder is needed there"
    with pytest.raises(StorageError, match=needed) as caught, storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    assert "Errno" not in str(caught.value)
    with pytest.raises(RunError, match=rf"{who}.*name another folder with \[run\] folder"):
        check_folder(folder)
    assert (tmp_path / "notes").read_text() == ""
