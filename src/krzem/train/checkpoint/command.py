"""``krzem checkpoint``: look at, check and exchange checkpoints."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from krzem.cli.common import Amount
from krzem.errors import CheckpointError, DataError
from krzem.train.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from krzem.train.checkpoint.store import (
    checkpoints,
    chosen_checkpoint,
    pull,
    push,
    quick_check,
    root_of,
    verify,
)
from krzem.train.stores import Location

if TYPE_CHECKING:
    from krzem.train.checkpoint.correspondence import Correspondence

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@click.group("checkpoint")
def checkpoint_command() -> None:
    """Look at, check, export and import checkpoints.

    \b
    krzem checkpoint show runs/a                           all checkpoints of a run
    krzem checkpoint show runs/a/checkpoints/step-000001000
    krzem checkpoint verify runs/a                         the last good one, and what is wrong
    krzem checkpoint export runs/a hf                      its weights as a Hugging Face folder
    krzem checkpoint import DeepSeek-V3-Base runs/b        a run that begins from these weights
    """


@checkpoint_command.command("show")
@FOLDER
@click.option("--tensors", is_flag=True, help="List every tensor with its type and shape.")
@AS_JSON
def show_command(folder: Path, tensors: bool, as_json: bool) -> None:
    """Say what the checkpoint FOLDER holds, or list the checkpoints of a run.

    Looks at the manifest and the sizes of files; `verify` reads them.
    """
    found = _of_run(folder)
    if found:
        rows = [_row(path) for _, path in found]
        _print({"checkpoints": rows}, format_rows(rows), as_json)
        return
    manifest = quick_check(folder)
    _print(manifest_value(manifest), format_manifest(manifest, tensors=tensors), as_json)


@checkpoint_command.command("verify")
@FOLDER
@AS_JSON
def verify_command(folder: Path, as_json: bool) -> None:
    """Read all of the checkpoint FOLDER and compare it with its checksums.

    For the folder of a run: find the last good checkpoint, and say what is wrong with later ones.
    """
    rejected: dict[str, str] = {}
    if _of_run(folder):
        folder = chosen_checkpoint(folder, rejected)
        manifest = read_manifest(folder)
    else:
        manifest = verify(folder)
    lines = [f"bad    {why}" for why in rejected.values()]
    lines.append(
        f"good   {folder}: step {manifest.step:,}, {len(manifest.files)} files, "
        f"{manifest.bytes / 1e6:,.1f} MB, all as written"
    )
    value = {"good": str(folder), "step": manifest.step, "rejected": rejected}
    _print(value, "\n".join(lines), as_json)


@checkpoint_command.command("export")
@FOLDER
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Type of the weights.",
)
@click.option(
    "--file-gb",
    type=Amount(min=0.001),
    default=5,
    show_default=True,
    help="Size of a file in GB.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="Copy this tokenizer beside them: its folder, or the one that `krzem data build` made.  "
    "[default: the run's]",
)
@AS_JSON
def export_command(
    folder: Path, out: Path, dtype: str, file_gb: float, tokenizer: Path | None, as_json: bool
) -> None:
    """Write the weights of the checkpoint FOLDER as a Hugging Face folder OUT.

    For the folder of a run: those of its last good checkpoint. vLLM, SGLang and transformers load
    OUT; they want a tokenizer in it to read and write text, and get the run's.

    Memory does not grow with the model. The checkpoint is verified first.
    """
    _need_torch()
    from krzem.train.checkpoint.transfer import copy_tokenizer, export_huggingface
    from krzem.train.data.tokenizer import KEPT

    folder = chosen_checkpoint(folder)
    manifest = verify(folder)
    if manifest.config is None:
        raise CheckpointError(f"{folder} holds no model config, so its names are not known")
    with _progress("exporting", quiet=as_json) as progress:
        size = export_huggingface(
            folder,
            manifest,
            _correspondence(manifest.config),
            out,
            dtype=dtype,
            file_bytes=int(file_gb * 1e9),
            progress=progress,
        )
    if tokenizer is None and (kept := folder.parent.parent / KEPT / "tokenizer.json").is_file():
        tokenizer = kept
    copied = [] if tokenizer is None else copy_tokenizer(tokenizer, out)
    value = {"out": str(out), "bytes": size, "tokenizer": copied}
    _print(value, f"{out}: {size / 1e6:,.1f} MB of {dtype}", as_json)


@checkpoint_command.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "kind",
    type=click.Choice(["huggingface", "megatron", "torchtitan"]),
    default="huggingface",
    show_default=True,
    help="Safetensors (weights), or a torch distributed checkpoint (weights and moments): "
    "Megatron-Core's torch_dist, NeMo's, or torchtitan's.",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The model's Hugging Face config.  [default: SOURCE/config.json]",
)
@click.option(
    "--step",
    type=click.IntRange(min=0),
    help="Step to give it.  [default: the optimizer's, or 0]",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Tokens seen in training.",
)
@click.option(
    "--weights-only", is_flag=True, help="Pass over the optimizer of a Megatron checkpoint."
)
@AS_JSON
def import_command(
    source: Path,
    run: Path,
    kind: str,
    config_path: Path | None,
    step: int | None,
    tokens: int,
    weights_only: bool,
    as_json: bool,
) -> None:
    """Make a checkpoint in the folder RUN from SOURCE, which another trainer or publisher wrote.

    `krzem train` with RUN as its folder begins from it, at the step and tokens given here.

    Nothing in SOURCE is run: safetensors are plain data, and of torch's files only tensors are
    read, by a reader that knows no other names.
    """
    _need_torch()
    from krzem.train.checkpoint.published import SafetensorsFolder
    from krzem.train.checkpoint.transfer import WEIGHT, import_tensors

    if not source.exists():
        raise DataError(f"no such file or folder: {source}")
    config = read_config(config_path or (source if source.is_dir() else source.parent))
    sources: Mapping[str, Any] = {}
    notes: Mapping[str, Any] = {}
    if kind == "huggingface":
        sources = {WEIGHT: SafetensorsFolder(source, config)}
    if kind == "torchtitan":
        from krzem.train.checkpoint.titan import titan_sources, titan_step

        sources = titan_sources(source, config)
        step = titan_step(source) if step is None else step
    if kind == "megatron":
        from krzem.train.checkpoint.megatron import megatron_tensors

        found = megatron_tensors(source, config, step, weights_only=weights_only)
        sources, notes, step = found.sources, found.notes, found.step
    with _progress("importing", quiet=as_json) as progress:
        folder = import_tensors(
            sources,
            _correspondence(config, sources[WEIGHT].tensors()),
            root_of(run),
            config=config,
            meta={"imported_from": f"{kind} {source.name}", "tokens": tokens, **notes},
            step=step or 0,
            progress=progress,
            std=float(config.get("initializer_range") or 0.02),
        )
    manifest = read_manifest(folder)
    text = f"{folder}\n{format_manifest(manifest)}"
    if "initialised" in manifest.meta:
        parts = ", ".join(manifest.meta["initialised"])
        text += f"\nnote         {source} has no {parts}: initial values were drawn (seed 0)"
    _print(manifest_value(manifest), text, as_json)


@checkpoint_command.command("push")
@FOLDER
@click.argument("url", type=Location())
@AS_JSON
def push_command(folder: Path, url: Path, as_json: bool) -> None:
    """Copy the checkpoint FOLDER (or a run's last good one) below URL, in an object store.

    Every file is read back and compared; the manifest comes last.
    """
    with _progress("copying", quiet=as_json) as progress:
        _told(*push(chosen_checkpoint(folder), url, progress), as_json)


@checkpoint_command.command("pull")
@click.argument("url", type=Location())
@click.argument("run", type=click.Path(path_type=Path))
@AS_JSON
def pull_command(url: Path, run: Path, as_json: bool) -> None:
    """Copy the checkpoint at URL, or the last one below it, into the folder RUN, verified.

    `krzem train` with RUN as its folder goes on from it.
    """
    with _progress("copying", quiet=as_json) as progress:
        _told(*pull(url, run, progress), as_json)


def _told(place: Path, copied: int, as_json: bool) -> None:
    text = f"{place}: whole and as its manifest says, {copied / 1e6:,.1f} MB copied now"
    _print({"place": str(place), "copied_bytes": copied}, text, as_json)


def _of_run(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of the run in ``folder``; none where ``folder`` is a checkpoint itself."""
    return [] if (folder / MANIFEST).exists() else checkpoints(root_of(folder))


def read_config(path: Path) -> dict[str, Any]:
    """A Hugging Face ``config.json`` (the file or its folder)."""
    file = path / "config.json" if path.is_dir() else path
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read the model's config {file}: {getattr(error, 'strerror', None) or error}; "
            "name it with --config"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{file} is not a model's config: it holds a {type(value).__name__}")
    return value


def manifest_value(manifest: Manifest) -> dict[str, Any]:
    """A checkpoint as JSON for programs."""
    return {
        "step": manifest.step,
        "bytes": manifest.bytes,
        "created": manifest.created,
        "written_by": dict(manifest.written_by),
        "config_sha256": manifest.config_sha256,
        "meta": dict(manifest.meta),
        "attachments": sorted(manifest.attachments),
        "files": {n: {"bytes": f.bytes, "sha256": f.sha256} for n, f in manifest.files.items()},
        "tensors": {
            n: {"dtype": t.dtype, "shape": list(t.shape)} for n, t in manifest.tensors.items()
        },
    }


def format_manifest(manifest: Manifest, *, tensors: bool = False) -> str:
    """A checkpoint as text for people."""
    tokens = manifest.meta.get("tokens")
    lines = [
        f"step         {manifest.step:,}",
        f"tokens       {_tokens(tokens)}",
        f"written      {manifest.created}, by {manifest.written_by.get('ranks', '?')} ranks, "
        f"krzem {manifest.written_by.get('krzem')}, torch {manifest.written_by.get('torch')}",
        f"config       {manifest.config_sha256 or 'none'}",
        f"data files   {len(manifest.files) - len(manifest.attachments)}",
    ]
    for kind, names in _kinds(manifest).items():
        size = sum(manifest.tensors[n].bytes for n in names)
        lines.append(f"{kind:<12} {len(names):,} tensors, {size / 1e6:,.1f} MB")
    if manifest.attachments:
        lines.append(f"attached     {', '.join(sorted(manifest.attachments))}")
    others = {k: v for k, v in manifest.meta.items() if k != "tokens"}
    lines += [f"{key:<12} {json.dumps(value)[:80]}" for key, value in others.items()]
    if tensors:
        lines += [
            f"  {name:<60} {t.dtype:<10} {list(t.shape)}"
            for name, t in sorted(manifest.tensors.items())
        ]
    return "\n".join(lines)


def _tokens(stated: object) -> str:
    return f"{stated:,}" if isinstance(stated, int) else "not stated"


def _kinds(manifest: Manifest) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for name in sorted(manifest.tensors):
        kind, slash, _ = name.partition("/")
        kinds.setdefault(kind if slash else "tensors", []).append(name)
    return kinds


def _row(folder: Path) -> dict[str, Any]:
    try:
        manifest = quick_check(folder)
    except CheckpointError as error:
        return {"folder": str(folder), "problem": str(error)}
    return {
        "folder": str(folder),
        "step": manifest.step,
        "tokens": manifest.meta.get("tokens"),
        "bytes": manifest.bytes,
        "problem": None,
    }


def format_rows(rows: list[dict[str, Any]]) -> str:
    """The checkpoints of a run, one a line."""
    return "\n".join(
        f"{Path(row['folder']).name}  "
        + (row["problem"] or f"{row['bytes'] / 1e6:>12,.1f} MB  tokens {_tokens(row['tokens'])}")
        for row in rows
    )


def _correspondence(config: Mapping[str, Any], found: Collection[str] = ()) -> Correspondence:
    from krzem.train.checkpoint.names import correspondence

    return correspondence(config, found)


def _need_torch() -> None:
    try:
        importlib.import_module("torch")
    except (ImportError, RuntimeError) as error:  # a broken vendor plug-in raises the second
        raise CheckpointError(
            f"exchanging checkpoints needs torch, which cannot be imported ({error}); install it "
            "with: pip install 'krzem[train]'"
        ) from error


def _print(value: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False) if as_json else text)


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on the error stream; none for JSON output or where nobody watches."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
