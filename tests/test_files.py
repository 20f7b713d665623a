"""Files that a user names: bounded reading, and targets that nothing may be renamed over."""

import os
from pathlib import Path

import pytest

from krzem.errors import DataError, InputError
from krzem.files import check_target, parse_toml, read_text, read_toml


def refused(path: Path, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_text(path, most=1000, hint="give another")
    assert str(caught.value).endswith("give another.")
    assert "\n" not in str(caught.value)


def test_only_regular_files_of_text_within_bounds_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(b"x" * 1001)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    refused(tmp_path / "none", "does not exist")
    refused(tmp_path, "is not a file")
    refused(tmp_path / "pipe", "is not a file")
    refused(Path("/dev/zero"), "is not a file")
    refused(tmp_path / "a", "symbolic links")
    refused(tmp_path / "big", "1,001 bytes; at most 1,000")
    refused(tmp_path / "binary", "not UTF-8")
    refused(tmp_path / ("x" * 5000), "name too long")
    refused(Path("a\0b"), "not the name of a file")


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes("\ufeffx = 1\n".encode())
    assert read_toml(file, hint="") == {"x": 1}


def test_keys_in_text_are_no_deep_keys() -> None:
    text = 'source = "' + "see www.example.org/a.b.c.d, chapter 1. " * 100 + '"'
    assert parse_toml(text, "it")["source"].startswith("see www")
    assert parse_toml(".".join("a" * 30) + " = 1", "it")


@pytest.mark.parametrize("key", ["a", '"a b"', "'a'", "a "])
def test_deep_keys_are_refused_at_once(key: str) -> None:
    with pytest.raises(DataError, match="more than 40 parts"):
        parse_toml(".".join([key] * 100_000) + "=1", "it")


def test_long_words_are_read_in_linear_time() -> None:
    assert len(parse_toml(f'a = "{"x" * 900_000}"', "it")["a"]) == 900_000


def test_targets(tmp_path: Path) -> None:
    existing = tmp_path / "old.html"
    existing.write_text("old")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for fine in (existing, tmp_path / "new.html"):
        check_target(fine)
    assert existing.read_text() == "old"
    assert not (tmp_path / "new.html").exists()
    for bad, says in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "x", "folder that does not exist"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "dangling", "not a regular file"),
        (Path("/dev/null"), "not a regular file"),
        (tmp_path / ("x" * 300), "200 bytes|too long"),
        ("", "no name"),
        ("a\0b", "no name"),
    ):
        with pytest.raises(InputError, match=says):
            check_target(bad)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="may not be written to"):
        check_target(tmp_path / "x.html")
