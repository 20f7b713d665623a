"""Building: every format, bad records, restarts, refusals."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krzem.errors import DataError, StorageError
from krzem.train.data import BuildRequest, BuildResult, Options, TokenDataset, build, read_manifest
from krzem.train.data.build import run_jobs
from krzem.train.data.command import data_command
from krzem.train.data.part import _split
from krzem.train.data.sources import Source, scan

TEXTS = ["first text", "second\nwith two lines", "third: żółć 漢字 🙂", "x" * 500]


def run(tmp_path: Path, *sources: Path, **changes: object) -> BuildResult:
    options = changes.pop("options", Options())
    return build(
        BuildRequest(sources=sources, out=tmp_path / "out", options=options, **changes)  # type: ignore[arg-type]
    )


def documents(folder: Path, split: str = "train") -> list[str]:
    """All documents of a byte-level build, as text."""
    dataset = TokenDataset.open(folder, split)
    dataset.verify()
    tokens = dataset.read(0, dataset.tokens)
    ends = dataset.document_ends(0, dataset.tokens)
    assert np.array_equal(tokens[ends - 1], np.full(ends.size, 256))
    pieces = np.split(tokens, ends)
    return [p[p < 256].astype(np.uint8).tobytes().decode() for p in pieces if p.size]


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def compress(path: Path, kind: str) -> Path:
    out = path.with_name(path.name + kind)
    if kind == ".gz":
        out.write_bytes(gzip.compress(path.read_bytes()))
    else:
        zstandard = pytest.importorskip("zstandard")
        half = len(path.read_bytes()) // 2
        parts = (path.read_bytes()[:half], path.read_bytes()[half:])
        out.write_bytes(b"".join(zstandard.compress(p) for p in parts))
    return out


@pytest.mark.parametrize("kind", ["", ".gz", ".zst"])
def test_jsonl_keeps_every_text(tmp_path: Path, kind: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", TEXTS)
    result = run(tmp_path, compress(source, kind) if kind else source)
    assert documents(tmp_path / "out") == TEXTS
    assert result.text_bytes == sum(len(t.encode()) for t in TEXTS)
    assert not result.bad


def test_parquet_keeps_every_text_and_reports_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pyarrow.table({"body": [*TEXTS, None, "", "last"], "n": list(range(7))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    result = run(
        tmp_path,
        tmp_path / "a.parquet",
        options=Options(field="body"),
        part_bytes=1,
        max_bad=0.5,
    )
    assert documents(tmp_path / "out") == [*TEXTS, "last"]
    assert [b.line for b in result.bad] == [5, 6]
    assert result.parts == 4


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("file", ["one\ntwo\n\n\nthree\nfour"]),
        ("line", ["one", "two", "three", "four"]),
        ("blank-line", ["one\ntwo", "three\nfour"]),
    ],
)
def test_text_documents(tmp_path: Path, how: str, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n\n\nthree\nfour")
    run(tmp_path, tmp_path / "a.txt", options=Options(documents=how))  # type: ignore[arg-type]
    assert documents(tmp_path / "out") == expected


def test_a_large_text_file_is_one_document_in_pieces(tmp_path: Path) -> None:
    text = "".join(f"line {n} of some length\n" for n in range(150_000))
    (tmp_path / "a.txt").write_text(text)
    run(tmp_path, tmp_path / "a.txt")
    assert documents(tmp_path / "out") == [text]


def test_folders_take_known_files_in_order_and_tell_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "z.txt").write_text("z")
    (folder / "a.txt").write_text("a")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.txt").write_text("no")
    jsonl(folder / "b.jsonl", ["j"])
    result = run(tmp_path, folder)
    assert documents(tmp_path / "out") == ["a", "z", "j"]
    assert [Path(p).name for p in result.manifest.skipped_files] == ["picture.png"]


@given(
    texts=st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=40),
    part=st.integers(1, 400),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_parts_never_change_the_tokens(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], part: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    texts = [t for t in texts if t.encode("utf-8", "ignore").decode() == t] or ["a"]
    source = jsonl(folder / "a.jsonl", texts)
    run(folder, source, part_bytes=part)
    assert documents(folder / "out") == texts


BAD_LINES = {
    b'{"text": "fine"}': "",
    b"{broken": "not JSON",
    b"[1, 2]": "a JSON list",
    b'{"body": "x"}': "no field 'text'; fields: body",
    b'{"text": 7}': "holds a int",
    b'{"text": ""}': "is empty",
    b'{"text": "\\ud800"}': "surrogate",
    b'{"text": "\xff"}': "not UTF-8: byte 0xff",
    b"[" * 100_000: "not JSON",
}


def test_bad_records_are_told_with_file_and_line(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(b"\n".join([*BAD_LINES, b"", b'{"text": "also fine"}']))
    result = run(tmp_path, source, max_bad=1, part_bytes=20)
    assert documents(tmp_path / "out") == ["fine", "also fine"]
    assert [b.line for b in result.bad] == list(range(2, len(BAD_LINES) + 1))
    for bad, reason in zip(result.bad, list(BAD_LINES.values())[1:], strict=True):
        assert bad.file == str(source)
        assert reason in bad.reason
    listed = (tmp_path / "out" / "bad-records.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in listed] == [b.line for b in result.bad]
    assert result.manifest.bad_records == {str(source): len(result.bad)}


def test_too_many_bad_records_are_refused_and_then_accepted(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"text": "fine"}\nnonsense\n{"text": "good"}\n')
    with pytest.raises(DataError, match=r"1 of 3 records are bad .*a\.jsonl:2: not JSON"):
        run(tmp_path, source)
    result = run(tmp_path, source, max_bad=0.4)
    assert result.kept_parts == 1


def test_text_that_is_not_utf8_is_repaired_and_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\nbad \xe9 byte\ngood\n")
    result = run(tmp_path, tmp_path / "a.txt", max_bad=1)
    assert documents(tmp_path / "out") == ["good\nbad � byte\ngood\n"]
    assert (result.bad[0].line, "0xe9" in result.bad[0].reason) == (2, True)


@pytest.mark.parametrize("kind", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.67, 0.999])
@pytest.mark.parametrize("form", ["jsonl", "txt"])
def test_a_compressed_file_cut_short_is_refused(
    tmp_path: Path, kind: str, share: float, form: str
) -> None:
    """Wherever it breaks off, however many bad records are accepted, and nothing is committed."""
    texts = [os.urandom(600).hex() for _ in range(100)]
    plain = jsonl(tmp_path / "a.jsonl", texts)
    if form == "txt":
        plain = plain.rename(tmp_path / "a.txt")
        plain.write_text("\n".join(texts))
    whole = compress(plain, kind)
    size = max(8, int(whole.stat().st_size * share))
    whole.write_bytes(whole.read_bytes()[:size])
    with pytest.raises(DataError, match=rf"a\.{form}{kind} breaks off at line \d+") as told:
        run(tmp_path, whole, max_bad=1, options=Options(documents="line"))
    assert "head -n" in str(told.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


MAGICS = {
    "gzip": gzip.compress(b"text"),
    "Zstandard": bytes.fromhex("28b52ffd") + b"rest",
    "Parquet": b"PAR1....PAR1",
    "UTF-16": "text".encode("utf-16"),
    "ZIP": b"PK\x03\x04....",
    "PDF": b"%PDF-1.7 ...",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.md"])
@pytest.mark.parametrize("kind", sorted(MAGICS))
def test_what_contradicts_its_name_is_asked_about(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(MAGICS[kind])
    with pytest.raises(DataError, match=kind):
        run(tmp_path, tmp_path / name, max_bad=1)


@pytest.mark.parametrize("kind", [".gz", ".zst"])
def test_an_ending_that_says_compressed_is_believed_no_further(tmp_path: Path, kind: str) -> None:
    plain = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    named = plain.rename(tmp_path / f"a.jsonl{kind}")
    with pytest.raises(DataError, match=f"is named {kind} and holds nothing compressed"):
        run(tmp_path, named)


@pytest.mark.parametrize("kind", ["", ".gz"])
def test_records_named_as_text_are_asked_about_and_the_answer_is_taken(
    tmp_path: Path, kind: str
) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["one", "two", "three"]).rename(tmp_path / "a.txt")
    source = compress(source, kind) if kind else source
    with pytest.raises(DataError, match="named as text and holds JSON lines"):
        run(tmp_path, source)
    run(tmp_path, source, format="jsonl")
    assert documents(tmp_path / "out") == ["one", "two", "three"]
    run(tmp_path / "again", source, format="text")
    assert documents(tmp_path / "again" / "out")[0].startswith('{"text": "one"}')


def test_a_list_named_as_lines_is_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=1))
    with pytest.raises(DataError, match="holds one JSON list"):
        run(tmp_path, tmp_path / "a.jsonl")


def test_that_nothing_is_held_out_is_said(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ["a single document"])
    command = ["build", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(data_command, [*command, "--held-out", "0.01"])
    assert (
        "nothing is held out: --held-out 0.01 chose none of 1 document, 0.01 being" in done.output
    )
    told = CliRunner().invoke(data_command, [*command, "--held-out", "0.01", "--json"])
    assert len(json.loads(told.output)["warnings"]) == 1
    command[-1] = str(tmp_path / "other")
    assert "nothing is held out" not in CliRunner().invoke(data_command, command).output


def test_held_out_documents_are_apart_and_a_matter_of_text_alone(tmp_path: Path) -> None:
    texts = [f"document number {n}" for n in range(2000)]
    source = jsonl(tmp_path / "a.jsonl", texts + texts)
    run(tmp_path, source, options=Options(held_out=0.1), part_bytes=5000)
    train, held = documents(tmp_path / "out"), documents(tmp_path / "out", "held_out")
    assert not set(train) & set(held)
    assert sorted(train + held) == sorted(texts + texts)
    assert 0.07 < len(held) / len(train + held) < 0.13
    assert all(_split(t, 0.1) == "held_out" for t in held)


def test_a_second_run_keeps_what_is_done_and_mends_what_is_damaged(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [f"text {n} {'y' * 50}" for n in range(100)])
    first = run(tmp_path, source, part_bytes=1500)
    assert (first.parts, first.kept_parts) == (5, 0)
    shard = first.manifest.splits["train"].shards[2]
    with (tmp_path / "out" / shard.tokens_file).open("r+b") as file:
        file.write(b"\x01\x02")
    (tmp_path / "out" / "manifest.json").unlink()
    second = run(tmp_path, source, part_bytes=1500)
    assert (second.parts, second.kept_parts) == (5, 4)
    assert second.manifest.order_sha256("train") == first.manifest.order_sha256("train")


def test_a_folder_with_another_build_is_refused(tmp_path: Path) -> None:
    run(tmp_path, jsonl(tmp_path / "a.jsonl", TEXTS))
    with pytest.raises(DataError, match="holds a build of other text"):
        run(tmp_path, jsonl(tmp_path / "b.jsonl", ["other"]))
    with pytest.raises(DataError, match="holds a build of other text"):
        run(tmp_path, tmp_path / "a.jsonl", options=Options(held_out=0.5))


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [f"text {n} {'y' * 50}" for n in range(60)])
    reports: list[tuple[str, int, int]] = []
    alone = run(tmp_path / "one", source, part_bytes=2000)
    many = build(
        BuildRequest(sources=(source,), out=tmp_path / "two", part_bytes=2000, workers=2),
        lambda *report: reports.append(report),
    )
    assert alone.manifest.splits == many.manifest.splits
    assert reports[-1] == ("tokenising", source.stat().st_size, source.stat().st_size)


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [f"{n} " + "y" * 2000 for n in range(3000)])
    script = (
        "from pathlib import Path; from krzem.train.data import *; "
        f"build(BuildRequest(sources=(Path({str(source)!r}),), out=Path({str(tmp_path / 'out')!r}),"
        " part_bytes=60000))"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    while len(list((tmp_path / "out").glob("part-*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match="was not finished"):
        read_manifest(tmp_path / "out")
    result = run(tmp_path, source, part_bytes=60_000)
    assert result.kept_parts >= 3
    assert len(documents(tmp_path / "out")) == 3000


def test_two_builds_at_once_are_refused(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another build is writing"):
            run(tmp_path, jsonl(tmp_path / "a.jsonl", TEXTS))


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*: the disk is full .*GB free"):
        run(tmp_path, jsonl(tmp_path / "a.jsonl", TEXTS))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "nope.txt", "no such file"),
        (lambda p: p, "no text found"),
        (lambda p: _touch(p / "a.xyz"), "cannot tell what"),
        (lambda p: _touch(p / "a.txt"), "no document in the text"),
        (lambda p: _touch(p / "a.parquet", "not parquet"), "not a readable Parquet|needs pyarrow"),
    ],
)
def test_unusable_sources_teach(tmp_path: Path, make: object, says: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(DataError, match=says):
        run(tmp_path, make(folder))  # type: ignore[operator]


def _touch(path: Path, text: str = "") -> Path:
    path.write_text(text)
    return path


def test_a_build_states_its_sources(tmp_path: Path) -> None:
    import hashlib

    source = jsonl(tmp_path / "a.jsonl", TEXTS)
    run(tmp_path, source)
    (record,) = read_manifest(tmp_path / "out").sources
    assert record.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert record.bytes == source.stat().st_size


def test_cuts_know_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{n:03d} {'z' * (n % 50)}\n" for n in range(500)))
    raw = path.read_bytes()
    spans = scan(Source(path=path, format="jsonl"), "file", 333).spans
    assert spans[0].start == 0
    assert spans[-1].stop == len(raw)
    for before, after in itertools.pairwise(spans):
        assert before.stop == after.start
        assert raw[after.start - 1 : after.start] == b"\n"
        assert after.first_line == raw[: after.start].count(b"\n") + 1


def test_a_damaged_parquet_page_is_told(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [os.urandom(40).hex() for _ in range(300)]})
    parquet.write_table(table, path, row_group_size=100, use_dictionary=False)
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle - 3000 : middle + 3000] = b"\xff" * 6000
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a\.parquet cannot be read from row \d+ on"):
        run(tmp_path, path, part_bytes=1, max_bad=1)


def test_a_missing_column_or_library_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet:1: no column 'text'; columns: body"):
        run(tmp_path, tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'krzem\[data\]'"):
        run(tmp_path, tmp_path / "a.parquet")


def test_a_build_of_nothing_does_not_stand_in_the_way_of_the_mended_command(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "hello"}\n')
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"no document .*\(1 bad record; .* no field 'body'"):
        run(out, source, options=Options(field="body"))
    assert run(out, source).manifest.splits["train"].documents == 1


def test_a_worker_that_dies_is_one_sentence() -> None:
    with pytest.raises(DataError, match=r"ended suddenly.*fewer --workers"):
        run_jobs(os._exit, [3, 3], 2, lambda number: None)


@pytest.mark.parametrize(
    "changes",
    [{"workers": 0}, {"part_bytes": 0}, {"max_bad": 2.0}, {"options": Options(held_out=1.0)}],
)
def test_requests_that_make_no_sense_are_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(DataError, match="got"):
        run(tmp_path, tmp_path, **changes)
