"""``krzem witness``: record what a run must reproduce, and check it elsewhere."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krzem.errors import InputError
from krzem.train.durable import write_atomic
from krzem.witness.command.proving import overlap_command, runs_command, verify_command

if TYPE_CHECKING:
    from krzem.witness.batches import WitnessBatch
    from krzem.witness.checkpoint import RunConstants
    from krzem.witness.judge import Tolerance
    from krzem.witness.recording import Progress
    from krzem.witness.subject import Subject
    from krzem.witness.verdict import Verdict
    from krzem.witness.witness import Witness

FAILED = 1
"""Exit code of a check that failed; 2 is bad input."""

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
CHECKPOINT = click.argument("checkpoint", required=False, type=PATH)
HF = click.option("--hf", type=PATH, help="A Hugging Face model folder in place of a checkpoint.")
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, npu ..."
)
LAYOUT = click.option(
    "--layout", default="", help="As in `krzem explain`; without it data parallel over all ranks."
)
RUN = click.option(
    "--run",
    "--run-file",
    "run_file",
    type=FILE,
    help="The run's file: optimizer, loss weights and data. Under torchrun write --run-file.",
)
DATA = click.option("--data", type=PATH, help="Tokenised data in place of that of --run.")
SEED = click.option("--seed", default=0, show_default=True, help="Of the order of --data.")


@click.group("witness")
def witness_command() -> None:
    """Is it the same run on that other hardware?

    \b
    krzem witness record RUN/checkpoints/step-000012000 --run run.toml     where the run is
    krzem witness check RUN/checkpoints/step-000012000 --html parity.html  where it is to go on
    krzem witness record --hf MODEL --out witness.json                     another trainer's model
    krzem witness check --hf MODEL --witness witness.json
    krzem witness verify RUN/certificates/step-000012000-there.json
    krzem witness overlap RUN/checkpoints/step-000011000 --run-file run.toml --metrics M.jsonl
    krzem witness runs --on-a A1 --on-a A2 --on-a A3 --on-b B1            bits cannot agree

    A witness holds loss, gradients, activations, parameters and the optimizer's rule on a few fixed
    batches, with the noise floor of the machine that recorded it. Under torchrun or srun all ranks
    take part. Exit code 0: the same; 1: it departs; 2: it could not be checked.
    """


witness_command.add_command(verify_command)
witness_command.add_command(runs_command)
witness_command.add_command(overlap_command)


@witness_command.command("record")
@CHECKPOINT
@HF
@click.option("--out", type=FILE, help="Write a file instead of attaching to the checkpoint.")
@RUN
@DATA
@SEED
@click.option("--tokens", type=FILE, help="Token ids from a text or .npy file.")
@click.option("--first", default=0, show_default=True, help="First global sample index.")
@click.option("--sequences", default=4, show_default=True, type=click.IntRange(1, 4096))
@click.option("--batches", default=2, show_default=True, type=click.IntRange(1, 64))
@click.option("--length", type=click.IntRange(2, 1 << 20), help="Of a sequence. [run's, or 128]")
@DEVICE
@click.option(
    "--dtype", default="float32", show_default=True, help="Arithmetic: float32 sees the most."
)
@click.option("--also", multiple=True, help="Arithmetic that a destination may use instead.")
@LAYOUT
@click.option("--other-layout", multiple=True, help="Another layout of these ranks, for the floor.")
@AS_JSON
def record_command(**given: Any) -> None:
    """Record the witness of CHECKPOINT, or of a Hugging Face folder (--hf).

    Batches come from --run or --data (by global sample index), from --tokens, or else from built-in
    text as bytes.
    """
    from krzem.witness.text import format_witness, witness_document

    checkpoint, hf = _one_model(given["checkpoint"], given["hf"])
    if hf is not None and given["out"] is None:
        raise InputError("--hf needs --out FILE: there is no checkpoint to attach the witness to")
    with _progress() as progress:
        recorded = (
            _record_checkpoint(checkpoint, given, progress)
            if checkpoint is not None
            else _record_hf(hf, given, progress)
        )
    if _speaks():
        _show(witness_document(recorded), format_witness(recorded), given["as_json"])


@witness_command.command("check")
@CHECKPOINT
@HF
@click.option("--witness", "file", type=PATH, help="A file, or a checkpoint that has one attached.")
@RUN
@DATA
@SEED
@DEVICE
@click.option(
    "--dtype",
    multiple=True,
    help="Arithmetic to check in, finest first. [all that was recorded]",
)
@LAYOUT
@click.option("--loss", default=0.005, show_default=True, help="Relative tolerance of the loss.")
@click.option(
    "--gradient-norm", default=0.10, show_default=True, help="Relative tolerance of its norm."
)
@click.option("--floors", default=10.0, show_default=True, help="Multiple of the noise floor.")
@click.option("--allow", multiple=True, metavar="PATTERN=REL", help="Declares a known difference.")
@AS_JSON
@click.option("--out", type=FILE, help="Also write the result as JSON to this file.")
@click.option("--html", type=FILE, help="Write a page to this file.")
@click.option(
    "--certificate", type=FILE, help="Write a certificate, chained to the newest in its folder."
)
@click.option("--statistical", multiple=True, type=FILE, help="Result of `krzem witness runs`.")
@click.option("--key", type=FILE, help="Sign the certificate with this SSH key.")
def check_command(**given: Any) -> None:
    """Recompute on this machine and judge CHECKPOINT, or a folder (--hf), against its witness.

    With --run or --data the data at hand must also hold the recorded tokens at the recorded
    indices.
    """
    from krzem.witness.text import document, format_verdict

    checkpoint, hf = _one_model(given["checkpoint"], given["hf"])
    with _progress() as progress:
        verdict = _verdict(checkpoint, hf, given, progress)
    if not _speaks():
        return
    if given["out"] is not None:
        write_atomic(given["out"], json.dumps(document(verdict), allow_nan=False).encode())
    if given["html"] is not None:
        from krzem.report.selfcontained import write_text
        from krzem.witness.page import verdict_page

        write_text(given["html"], verdict_page(verdict))
        click.echo(f"wrote {given['html']}", err=True)
    if given["certificate"] is not None:
        _certify(verdict, checkpoint, given)
    _show(document(verdict), format_verdict(verdict), given["as_json"])
    if not verdict.passed:
        raise click.exceptions.Exit(FAILED)


@witness_command.command("show")
@click.argument("path", type=PATH)
@AS_JSON
def show_command(path: Path, as_json: bool) -> None:
    """What the witness at PATH (a file, or a checkpoint's folder) holds."""
    from krzem.witness.text import format_witness, witness_document
    from krzem.witness.witness import read_witness

    found = read_witness(path)
    _show(witness_document(found), format_witness(found), as_json)


def _certify(verdict: Verdict, checkpoint: Path | None, given: dict[str, Any]) -> None:
    """Write the certificate of a check, and its page beside it where pages can be made."""
    from krzem.witness import certificate as c

    target: Path = given["certificate"]
    runs = []
    for file in given["statistical"]:
        try:
            runs.append({k: v for k, v in json.loads(file.read_bytes()).items() if k != "schema"})
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{file} is no result of `krzem witness runs`: {error}") from None
    value = c.certify(
        verdict,
        checkpoint=checkpoint,
        previous=c.newest_certificate(target.parent),
        statistical=runs,
    )
    c.write_certificate(value, target, key=given["key"])
    if all(importlib.util.find_spec(name) for name in ("jinja2", "matplotlib")):
        from krzem.report.selfcontained import write_text
        from krzem.witness.page import certificate_page

        write_text(target.with_suffix(".html"), certificate_page(value))
    click.echo(f"wrote {target}", err=True)


def _one_model(checkpoint: Path | None, hf: Path | None) -> tuple[Path | None, Path | None]:
    if (checkpoint is None) == (hf is None):
        raise InputError("give either a CHECKPOINT folder or --hf FOLDER")
    return checkpoint, hf


def _record_checkpoint(folder: Path, given: dict[str, Any], progress: Progress) -> Witness:
    from krzem.train.checkpoint import read_manifest
    from krzem.witness.checkpoint import RunConstants, record_checkpoint

    constants = _constants(given, folder) or RunConstants()
    config = read_manifest(folder).config or {}
    return record_checkpoint(
        folder,
        _batches(given, int(config.get("vocab_size", 256))),
        device=given["device"],
        dtype=given["dtype"],
        layout=given["layout"],
        constants=constants,
        also=given["also"],
        layouts=given["other_layout"],
        out=given["out"],
        progress=progress,
    )


def _record_hf(folder: Path | None, given: dict[str, Any], progress: Progress) -> Witness:
    from krzem.witness.recording import record
    from krzem.witness.witness import write_witness

    model = _hf(folder, given["dtype"], given["device"])
    batches = _batches(given, int(model.identity.config.get("vocab_size", 256)))
    found = record(model, batches, also=given["also"], progress=progress)
    write_witness(found, given["out"])
    return found


def _hf(folder: Path | None, dtype: str, device: str) -> Subject:
    from krzem.train.device import find_device
    from krzem.witness.hugging_face import load_folder

    assert folder is not None
    return load_folder(folder, dtype=dtype, device=str(find_device(device).device))


def _batches(given: dict[str, Any], vocabulary: int) -> tuple[WitnessBatch, ...]:
    from krzem.witness import batches as b

    shape = {"sequences": given["sequences"], "batches": given["batches"]}
    source = _source(given, given["length"])
    if source is not None:
        masks = given["run_file"] is not None and given["data"] is None and _documents(given)
        return b.batches_from(source, first=given["first"], documents=masks, **shape)
    length = given["length"] or 128
    if given["tokens"] is not None:
        return b.batches_of(b.tokens_of_file(given["tokens"], vocabulary), length=length, **shape)
    return b.batches_of(b.tokens_of_text(b.BUILT_IN, vocabulary), length=length, **shape)


def _source(given: dict[str, Any], length: int | None) -> Any:
    """The order of samples of --data or --run; None where neither is given."""
    if given["data"] is not None:
        from krzem.witness.run_file import data_stream

        return data_stream(given["data"], length=length or 128, seed=given["seed"])
    if given["run_file"] is not None:
        from krzem.witness.run_file import run_stream, settings_at

        return run_stream(settings_at(given["run_file"], given["checkpoint"]), length)
    return None


def _verdict(
    checkpoint: Path | None, hf: Path | None, given: dict[str, Any], progress: Progress
) -> Verdict:
    from krzem.train.device import find_device
    from krzem.witness.checking import check
    from krzem.witness.checkpoint import arithmetic_of, check_checkpoint
    from krzem.witness.witness import read_witness

    where = given["file"] or checkpoint
    if where is None:
        raise InputError("--hf needs --witness FILE: the record to check against")
    witness = read_witness(where)
    common: dict[str, Any] = {
        "tolerance": _tolerance(given),
        "source": _source(given, witness.batches[0].shape[1]),
        "progress": progress,
        "dtypes": given["dtype"],
    }
    if checkpoint is None:
        first = next((t for t in given["dtype"] or (witness.dtype,) if t != "tf32"), "float32")
        model = _hf(hf, first, given["device"])
        if "tf32" in witness.floors:
            device = find_device(given["device"]).device
            common["dtypes"] = arithmetic_of(witness, device, given["dtype"])
        return check(witness, model, **common)
    return check_checkpoint(
        checkpoint,
        witness=witness,
        device=given["device"],
        layout=given["layout"],
        constants=_constants(given, checkpoint),
        **common,
    )


def _constants(given: dict[str, Any], folder: Path) -> RunConstants | None:
    """What the run file says of the step after the checkpoint; None without one."""
    if given["run_file"] is None:
        return None
    from krzem.witness.run_file import run_constants

    return run_constants(given["run_file"], folder)[0]


def _documents(given: dict[str, Any]) -> bool:
    """Whether the run keeps attention within documents."""
    from krzem.witness.run_file import settings_at

    return settings_at(given["run_file"], given["checkpoint"]).data.documents


def _tolerance(given: dict[str, Any]) -> Tolerance:
    from krzem.witness.judge import Tolerance

    allow = {}
    for text in given["allow"]:
        pattern, sign, value = text.rpartition("=")
        try:
            allow[pattern] = float(value)
        except ValueError:
            sign = ""
        if not sign or not pattern:
            raise InputError(f"--allow {text!r}: write PATTERN=REL, such as 'layers.3.*=0.05'")
    return Tolerance(
        loss=given["loss"],
        gradient_norm=given["gradient_norm"],
        floors=given["floors"],
        allow=allow,
    )


def _show(value: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False) + "\n" if as_json else text, nl=False)


def _speaks() -> bool:
    from krzem.witness.checkpoint import first_rank

    return first_rank()


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        task = bars.add_task("steps")

        def advance(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield advance
