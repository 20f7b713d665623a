"""Object stores: text, tokens and checkpoints by URL, every file verified, the manifest last."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from krzem.cli.main import run
from krzem.errors import DataError
from krzem.train.data import TokenDataset
from krzem.train.data.dataset import folder_of, mirror
from krzem.train.data.manifest import MANIFEST, read_manifest
from krzem.train.stores import copy_verified, located

pytest.importorskip("upath")
LINES = [json.dumps({"text": f"line {n} of the text"}) for n in range(40)]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """An empty store in memory; the cache of copies is a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = located("memory://bucket")
    if place.exists():
        place.fs.rm("/bucket", recursive=True)
    return place


def tokens(folder: Path) -> Path:
    """A small folder of tokens."""
    folder.mkdir(exist_ok=True)
    (folder / "text.jsonl").write_text("\n".join(LINES))
    out = folder / "tokens"
    assert run(["data", "build", str(folder / "text.jsonl"), "--out", str(out)]) == 0
    return out


def build(source: str, out: Path, *more: str) -> TokenDataset:
    assert run(["data", "build", source, "--out", str(out), "--workers", "1", *more]) == 0
    return TokenDataset.open(out)


def test_text_is_read_from_a_store(store: Any, tmp_path: Path) -> None:
    local = tokens(tmp_path)
    (store / "corpus" / "deep").mkdir(parents=True)
    half = "\n".join(LINES[:20]).encode(), "\n".join(LINES[20:]).encode()
    (store / "corpus" / "a.jsonl").write_bytes(half[0])
    (store / "corpus" / "deep" / "b.jsonl.gz").write_bytes(gzip.compress(half[1]))
    (store / "corpus" / "image.png").write_bytes(b"no text")
    found = build("memory://bucket/corpus", tmp_path / "out")
    expected = TokenDataset.open(local)
    assert found.tokens == expected.tokens
    assert [s.path for s in found.manifest.sources] == [
        "memory://bucket/corpus/a.jsonl", "memory://bucket/corpus/deep/b.jsonl.gz",
    ]  # fmt: skip
    whole = (a.read(0, a.tokens).tolist() for a in (found, expected))
    assert next(whole) == next(whole)


def test_columns_are_read_from_a_store(store: Any, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": [json.loads(line)["text"] for line in LINES]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    with (
        arrow.OSFile(str(tmp_path / "rows.arrow"), "wb") as file,
        arrow.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    expected = TokenDataset.open(tokens(tmp_path))
    for name in ("rows.parquet", "rows.arrow"):
        (store / name).write_bytes((tmp_path / name).read_bytes())
        assert build(f"memory://bucket/{name}", tmp_path / f"of-{name}").sha256 == expected.sha256


def test_what_breaks_off_in_a_store_is_refused(
    store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "cut.jsonl.gz").write_bytes(gzip.compress("\n".join(LINES).encode())[:-20])
    command = ["data", "build", "memory://bucket/cut.jsonl.gz", "--out", str(tmp_path / "o")]
    assert run([*command, "--workers", "1"]) == 2
    assert "cut.jsonl.gz breaks off" in capsys.readouterr().err
    assert run(["data", "build", "memory://bucket/none", "--out", str(tmp_path / "o")]) == 2
    assert "no such file or folder: memory://bucket/none" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["nonsense://bucket/x", "s3://bucket/x"])
def test_a_store_without_a_driver_says_what_is_missing(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if url.startswith("s3"):
        with pytest.raises(ImportError):  # with it, the test would look for a bucket
            __import__("s3fs")
    assert run(["data", "build", url, "--out", str(tmp_path / "o")]) == 2
    told = capsys.readouterr().err
    assert url in told
    assert "Traceback" not in told


def test_tokens_go_there_and_are_trained_on_from_there(store: Any, tmp_path: Path) -> None:
    local, url = tokens(tmp_path), "memory://bucket/tokens"
    assert run(["data", "push", str(local), url]) == 0
    assert {p.name for p in (store / "tokens").iterdir()} >= {MANIFEST, "part-00000.train.tokens"}
    opened = TokenDataset.open(url)
    assert opened.sha256 == TokenDataset.open(local).sha256
    assert opened.folder == folder_of(Path("elsewhere"), url)
    assert opened.folder.is_relative_to(tmp_path / "cache")
    assert run(["data", "pull", url, str(tmp_path / "back")]) == 0
    for file in local.iterdir():
        if not file.name.startswith("."):
            assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    assert mirror(local, located(url), read_manifest(local)) == 0  # all is there


def test_damage_on_the_way_is_found_and_nothing_is_committed(store: Any, tmp_path: Path) -> None:
    local = tokens(tmp_path)
    mirror(local, located("memory://bucket/t"), read_manifest(local))
    shard = store / "t" / "part-00000.train.tokens"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"part-00000\.train\.tokens is not what the manifest says"):
        folder_of(Path(), "memory://bucket/t")
    assert not list((tmp_path / "cache").rglob(MANIFEST))
    assert not list((tmp_path / "cache").rglob("*.part"))
    mirror(local, located("memory://bucket/t"), read_manifest(local))  # mends what is there
    assert folder_of(Path(), "memory://bucket/t").is_dir()
    (local / "part-00000.train.tokens").write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match="is not what the manifest says"):
        mirror(local, located("memory://bucket/u"), read_manifest(local))
    assert not (store / "u" / MANIFEST).exists()


def test_an_interrupted_copy_is_taken_up(store: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "from", located("memory://bucket/t")
    source.mkdir()
    files = {n: hashlib.sha256(n.encode()).hexdigest() for n in ("a", "b", "c")}
    for name in files:
        (source / name).write_text(name)
    (source / "m").write_text("{}")
    lost = source / "c"
    lost.rename(tmp_path / "aside")
    lost.write_text("x")
    with pytest.raises(DataError, match="nothing was committed"):
        copy_verified(source, target, files, "m")
    assert not (target / "m").exists()
    shutil.move(tmp_path / "aside", lost)
    assert copy_verified(source, target, files, "m") == 1  # c alone
    assert (target / "m").read_text() == "{}"
    (source / "m").write_text("[]")
    with pytest.raises(DataError, match="holds another m"):
        copy_verified(source, target, files, "m")


def test_files_of_this_machine_by_url(store: Any, tmp_path: Path) -> None:
    local = tokens(tmp_path)
    url = (tmp_path / "elsewhere").as_uri()
    assert run(["data", "push", str(local), url]) == 0
    assert TokenDataset.open(url).sha256 == TokenDataset.open(local).sha256
    source = (tmp_path / "text.jsonl").as_uri()
    found = build(source, tmp_path / "two", "--workers", "2", "--part-mb", "0.001")
    assert found.tokens == TokenDataset.open(local).tokens


def test_checkpoints_go_there_and_a_run_goes_on_from_them(store: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.train.loop.folder import tokenised, write

    from krzem.train.checkpoint.store import attach, committed, latest_good
    from krzem.train.command import main

    (tmp_path / "a").mkdir()
    tokenised(tmp_path / "a")
    run_file = write(tmp_path / "a", "qwen3", tokens=2048, save=4)
    assert main(run_file) == 0
    url = "memory://bucket/runs/a"
    for _, folder in committed(tmp_path / "a" / "out" / "checkpoints"):
        assert run(["checkpoint", "push", str(folder), url]) == 0
    last = latest_good(tmp_path / "a" / "out" / "checkpoints")
    assert last is not None
    attach(last, "witness", b"seen")  # changes the manifest of the same save
    assert run(["checkpoint", "push", str(tmp_path / "a" / "out"), url]) == 0
    (store / "runs" / "a" / "step-000000999").mkdir(parents=True)
    (store / "runs" / "a" / "step-000000999" / "data").write_bytes(b"no manifest yet")
    assert run(["checkpoint", "pull", url, str(tmp_path / "b")]) == 0
    pulled = latest_good(tmp_path / "b" / "checkpoints")
    assert pulled is not None
    assert pulled.name == last.name
    assert (pulled / MANIFEST).read_bytes() == (last / MANIFEST).read_bytes()
    first = json.loads((last / MANIFEST).read_text())["files"]
    assert {f.name for f in pulled.iterdir()} == {*first, MANIFEST}


def test_a_checkpoint_of_another_save_is_not_overwritten(
    store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["checkpoint", "pull", "memory://bucket/none", str(tmp_path / "b")]) == 2
    assert "no checkpoint at memory://bucket/none" in capsys.readouterr().err
