"""``krzem train``: one run from a run file."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krzem.errors import InputError, KrzemError, RunError, StorageError
from krzem.quantity import format_bytes
from krzem.run.contract import (
    ENV_LAYOUT,
    EXIT_CHECKPOINT,
    EXIT_DONE,
    EXIT_FENCED,
    EXIT_NONFINITE,
    EXIT_STOPPED,
    EXIT_STORAGE,
    FencedError,
    TrainerContract,
)

if TYPE_CHECKING:
    from krzem.train.loop import RunEnd, Trainer


@click.command("train")
@click.argument("run_file", type=click.Path(path_type=Path))
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, say what would be run and with what memory and time; write nothing.",
)
@click.option(
    "--layout", metavar="LAYOUT", help='Instead of the file\'s, such as "dp=2,ep=2,mbs=4".'
)
@click.option(
    "--phase",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Add the phases in FILE (the keys of one, or [[phase]] tables) to the run, from where "
    "it stands.",
)
@click.option(
    "--rehearse",
    is_flag=True,
    help="Run a step as one rank of each stage on tensors without values: memory, collectives, "
    "whether all ranks meet; needs neither devices nor data.",
)
@click.option(
    "--devices",
    metavar="DEVICE:N",
    help="Of a rehearsal, instead of the file's cluster, such as h800:2048.",
)
@click.option("--rank", type=int, metavar="R", help="Rehearse this rank alone.")
@click.option("--stages", is_flag=True, help="Rehearse the first rank of every stage (usual).")
@click.option(
    "--routing",
    default="even",
    metavar="even|TIMES",
    help="Of a rehearsal: rows that a rank's experts get, as a multiple of an even share.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the rehearsed step as a trace for ui.perfetto.dev or chrome://tracing.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the rehearsal, dry run or end as JSON."
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page when the run ends or fails: loss, speed, plan and actual.",
)
def train_command(
    run_file: Path,
    dry_run: bool,
    layout: str | None,
    phase: Path | None,
    rehearse: bool,
    devices: str | None,
    rank: int | None,
    stages: bool,
    routing: str,
    trace: Path | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Train the run that RUN_FILE describes, in its folder; a second start resumes it.

    \b
    krzem train run.toml --dry-run                       parameters, layout, memory, time
    krzem train run.toml --rehearse --devices h800:2048  each stage's memory and collectives
    krzem train run.toml                                 on one device
    torchrun --nproc-per-node 8 -m krzem.train run.toml  on many
    krzem train run.toml --html run.html                 also of a run that has ended
    krzem train run.toml --phase longer.toml             continue with other data, length or rate

    Ctrl-C saves and stops, with exit code 75; the same command resumes. The folder gets
    metrics.jsonl (a line per step), events.jsonl (warnings, held-out losses) and checkpoints/.

    The shortest RUN_FILE, all else having a default (docs/trainer.md):

    \b
    model = "config.json"        # Hugging Face's, or a name of `krzem models`
    [goal]
    tokens = "10M"
    sequence = 1024
    global_batch = 8             # sequences in a step
    [data]
    path = "tokens"              # from `krzem data build TEXT --out tokens`
    [run]
    folder = "runs/a"            # for its outcome; else runs/ and the file's name
    """
    if layout is not None:
        os.environ[ENV_LAYOUT] = layout
    only = {"--devices": devices, "--rank": rank, "--stages": stages or None, "--trace": trace}
    if rehearse:
        if stages and rank is not None:
            raise click.UsageError("--rank rehearses one rank, --stages the first of every stage")
        sys.exit(
            _rehearse(
                run_file,
                devices=devices,
                rank=rank,
                routing=routing,
                as_json=as_json,
                html=html,
                trace=trace,
            )
        )
    given = [name for name, value in only.items() if value is not None]
    if given:
        raise click.UsageError(f"{given[0]} is of a rehearsal: add --rehearse")
    code = main(run_file, dry_run=dry_run, as_json=as_json, html=html, phase=phase)
    contract = TrainerContract.from_environment(int(os.environ.get("RANK", "0")))
    sys.exit(code if contract is None else contract.leave(code))


def main(
    run_file: Path,
    *,
    dry_run: bool = False,
    as_json: bool = False,
    html: Path | None = None,
    phase: Path | None = None,
) -> int:
    """Train; returns the exit code that the controller understands."""
    try:
        importlib.import_module("krzem.train.start")
    except ImportError as error:
        return _fail(RunError(_torch_missing(error)))
    try:
        if phase is not None:
            from krzem.train.phases import add_phases

            add_phases(run_file, phase)
        if dry_run:
            return _describe(run_file, as_json=as_json, html=html)
        return _train(run_file, as_json=as_json, html=html)
    except (KrzemError, FencedError) as error:
        return _fail(error)
    except RuntimeError as error:
        said = lost_rank(error)
        if not said:
            raise
        return _fail(
            RunError(f"another rank is gone ({said}): what it said, or its signal, is the cause")
        )


def _rehearse(run_file: Path, **wish: Any) -> int:
    """Rehearse a step; the exit code."""
    try:
        from krzem.train.command.rehearsing import Wish, rehearse_run
    except ImportError as error:
        return _fail(RunError(_torch_missing(error)))
    try:
        return rehearse_run(run_file, Wish(**wish))
    except KrzemError as error:
        return _fail(error)


def _describe(run_file: Path, *, as_json: bool, html: Path | None) -> int:
    from krzem.train.command.planning import forecast, needed
    from krzem.train.command.rehearsing import near_the_edge
    from krzem.train.describe import describe, rows

    if html is not None:
        raise InputError("--html shows the steps of a run, and a dry run takes none")
    told = describe(run_file, forecast)
    peak = near_the_edge(run_file, told.forecast)
    value, shown = told.as_dict() | {"rehearsed_bytes": peak}, told.as_text()
    if peak is not None and told.forecast is not None:
        room = told.forecast.capacity_bytes
        need = needed(peak)
        much = "it fits" if need <= room else "it does not fit"
        shown["rehearsed"] = (
            f"{format_bytes(peak, 3)} of tensors, which need {format_bytes(need, 3)} of "
            f"{format_bytes(room, 3)}: {much} (krzem train --rehearse shows which)"
        )
    click.echo(json.dumps(value, indent=2) if as_json else rows(shown))
    return EXIT_DONE


def _train(run_file: Path, *, as_json: bool, html: Path | None) -> int:
    from krzem.train.command.ending import (
        check_page,
        end_sentence,
        end_value,
        what_is_left,
        write_page,
    )
    from krzem.train.command.planning import forecast
    from krzem.train.start import prepare

    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        check_page(html)
    contract = TrainerContract.from_environment(rank)
    resume_from = None if contract is None else contract.resume_from
    page = html if rank == 0 else None
    while True:
        trainer = prepare(run_file, contract, forecast, resume_from)
        try:
            end = _through(trainer, resume_from)
        except (KrzemError, FencedError) as error:
            if page is not None:
                with contextlib.suppress(KrzemError):  # the cause is told in any case
                    write_page(trainer, page)
            if isinstance(error, StorageError):
                raise StorageError(f"{error}; {what_is_left(trainer.root)}") from error
            raise
        if end.stopped or trainer.last:
            break
        resume_from = None  # the next phase goes on from where this one ended
        del trainer
    if rank == 0:
        value, sentence = end_value(trainer, end), end_sentence(trainer, end)
        click.echo(json.dumps(value) if as_json else sentence)
    if page is not None:
        write_page(trainer, page)
    return EXIT_STOPPED if end.stopped else EXIT_DONE


def _through(trainer: Trainer, resume_from: Path | None) -> RunEnd:
    """Resume, and train the phase to its end; what breaks on the way becomes one sentence."""
    from krzem.train.command.ending import crashed

    try:
        resumed = trainer.resume(resume_from)
        if resumed is not None and trainer.steps_left and trainer.rank == 0:
            trainer.reporter.event(trainer.step, "resumed", f"resumed from {resumed}")
        return trainer.run()
    except (KrzemError, FencedError):
        raise
    except Exception as error:
        if lost_rank(error):
            raise
        raise crashed(trainer, error) from error


def _fail(error: Exception) -> int:
    """Print the error for people; the exit code says which kind it was."""
    rank = os.environ.get("RANK")
    click.echo(f"krzem train{f' (rank {rank})' if rank else ''}: {error}", err=True)
    codes = {
        "NotFiniteError": EXIT_NONFINITE,
        "CheckpointError": EXIT_CHECKPOINT,
        "StorageError": EXIT_STORAGE,
        "FencedError": EXIT_FENCED,
    }
    return codes.get(type(error).__name__, getattr(error, "exit_code", 2))


def _torch_missing(error: ImportError) -> str:
    if "torch_npu" in str(error) or "backend extension" in str(error):
        return (
            f"torch does not load because a vendor's plug-in is half installed ({error}); set "
            "TORCH_DEVICE_BACKEND_AUTOLOAD=0 to do without it, or complete its installation"
        )
    return f"training needs torch ({error}): pip install krzem[train]"


_SIGNS = re.compile(
    r"connection closed by peer|connection reset|connection refused|broken pipe"
    r"|remote process exited|timed out waiting|communicator was aborted",
    re.IGNORECASE,
)
"""What Gloo, NCCL and the store of torch say of a peer that does not answer any more."""


def lost_rank(error: BaseException) -> str:
    """What the library said of the rank that is gone; nothing where ``error`` is another one."""
    found = next((m for e in _chain(error) if (m := _SIGNS.search(str(e)))), None)
    return "" if found is None else found[0].lower()


def _chain(error: BaseException) -> Iterator[RuntimeError]:
    """``error`` and what it came of, as far as these are errors of a library in C++."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError):
            yield seen
        seen = seen.__cause__ or seen.__context__
