"""``krzem check``: the run that the user has, confronted with what its silicon allows."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from krzem.cli.common import OUTPUT, check_files, options, show, write_page
from krzem.errors import GoalError, InputError, QuantityError, RunError, shorten
from krzem.plan.question import Question, read
from krzem.quantity import parse_count

FILE = click.Path(path_type=Path)


@click.command("check")
@click.argument("files", metavar="[FILE...]", nargs=-1, type=FILE)
@click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="FILE",
    type=FILE,
    help="What the run printed (gzip too); once for each rank or restart.",
)
@click.option(
    "--on",
    metavar="CLUSTER",
    help="The cluster, where the files do not say it: h100, h100:64, or a TOML file.",
)
@click.option(
    "--model",
    metavar="MODEL",
    help="The model, where the files do not say its shape: a built-in name or a config.json.",
)
@click.option("--engine", metavar="NAME", help="The engine, where the files do not show it.")
@click.option(
    "--set",
    "given",
    multiple=True,
    metavar="FIELD=VALUE",
    help="A field that the files leave open, or to be taken otherwise: devices=64, seq=4096,"
    " switch.loss=fused (docs/check.md lists all of them).",
)
@click.option(
    "--mfu",
    metavar="P",
    help="Judge a figure instead of files: whether 38% is normal for --model on --on.",
)
@click.option(
    "--tokens-per-s", metavar="N", help="The same for tokens per second and device: 9.8k."
)
@click.option(
    "--calibration", type=FILE, metavar="FILE", help="Use the local factors in this file."
)
@click.option(
    "--calibrate",
    type=FILE,
    metavar="FILE",
    help="Add this measured run to a file of local factors, and fit them again.",
)
@click.option(
    "--top",
    type=click.IntRange(0, 50),
    default=6,
    show_default=True,
    metavar="N",
    help="Changes to suggest.",
)
@click.option(
    "--rehearse",
    is_flag=True,
    help="Of a torchtitan job: run its recipe and a step of its trainer on tensors without values,"
    " as the first rank of every stage; memory, collectives, whether all ranks meet.",
)
@click.option("--rank", type=int, metavar="R", help="Of a rehearsal: this rank alone.")
@click.option(
    "--routing",
    default="even",
    metavar="even|TIMES",
    help="Of a rehearsal: rows that a rank's experts get, as a multiple of an even share.",
)
@click.option(
    "--trace", type=FILE, metavar="FILE", help="Of a rehearsal: the step for ui.perfetto.dev."
)
@options(OUTPUT)
def check_command(
    files: tuple[Path, ...], logs: tuple[Path, ...], on: str | None, model: str | None,
    engine: str | None, given: tuple[str, ...], mfu: str | None,
    tokens_per_s: str | None, calibration: Path | None, calibrate: Path | None,
    top: int, rehearse: bool, rank: int | None, routing: str, trace: Path | None,
    as_json: bool, html: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Check a training job: as fast as its silicon allows, and what to change.

    FILE... are the job's launch script and the configurations it names, of any engine that krzem
    knows (Megatron-LM, Megatron-Bridge, NeMo, MindSpeed-LLM, torchtitan, DeepSpeed, Accelerate,
    Primus, MaxText, MindFormers, ...). They are read and never run, but for
    --rehearse. With --log the measured speed is judged against the prediction; without, the
    prediction stands alone.

    \b
    krzem check run.sh --on h100:64
    krzem check run.sh --log train.log --on cluster.toml
    krzem check llama3_70b.toml --set devices=256 --set device=b200 --json
    krzem check ds_config.json run.sh --log out.txt --html check.html
    krzem check run.sh --log train.log --on h100:64 --calibrate mycluster.toml
    krzem check run.sh --on h100:256 --rehearse --html rehearsal.html
    krzem check --model llama-3.1-8b --on h100:256 --mfu 38%
    krzem check --model qwen3-32b --on mi300x:64 --tokens-per-s 1.1k --set seq=4k --set batch=512
    """
    from krzem.jobs.answer import Asking, answer
    from krzem.report.document_check import check_document
    from krzem.report.text_check import format_check, format_check_sentence

    if mfu is not None or tokens_per_s is not None:
        refused = {"FILE": files, "--log": logs, "--html": html, "--calibrate": calibrate}
        _judge(refused, model, on, engine, calibration, given, mfu, tokens_per_s, as_json, quiet)
        return
    asking = Asking(
        files=files, logs=logs, on=on, model=model, engine=engine, given=given,
        calibration=calibration, calibrate=calibrate, most=top,
    )  # fmt: skip
    if rehearse:
        sys.exit(_rehearse(asking, rank, routing, as_json, html, trace))
    if rank is not None or trace is not None:
        raise InputError("--rank and --trace are of a rehearsal: add --rehearse")
    one_sentence = quiet and not (as_json or html)
    check_files(html, None if calibrate is None else str(calibrate))
    found = answer(replace(asking, most=0) if one_sentence else asking)
    document = check_document(found)
    show(document, format_check_sentence(document) if quiet else format_check(document), as_json)
    write_page(document, html)
    _keep(found.calibration, calibrate)


def _rehearse(
    asking: Any, rank: int | None, routing: str, as_json: bool, html: str | None, trace: Path | None
) -> int:
    """Rehearse a step; the exit code.  Raises RunError where torch is missing."""
    try:
        from krzem.train.command.rehearsing import Wish
        from krzem.train.command.titan import rehearse_job
    except ImportError as error:
        raise RunError(f"a rehearsal needs torch ({error}): pip install krzem[train]") from error
    page = None if html is None else Path(html)
    wish = Wish(rank=rank, routing=routing, as_json=as_json, html=page, trace=trace)
    return rehearse_job(asking, wish)


def _judge(
    refused: dict[str, Any], model: str | None, on: str | None, engine: str | None,
    calibration: Path | None, given: tuple[str, ...], mfu: str | None, tokens_per_s: str | None,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Answer whether a figure is normal; raises InputError for what only files answer."""
    from krzem.accuracy.normal import normal
    from krzem.cli.common import search_progress
    from krzem.report.text_check import format_normal, normal_document

    named = [name for name, value in refused.items() if value]
    if named or model is None or on is None:
        raise InputError(
            "--mfu and --tokens-per-s judge one figure: give --model and --on with it"
            + (f", and leave out {' and '.join(named)}" if named else "")
        )
    question = question_of(model, on, engine, calibration, given)
    with search_progress("searching", quiet or as_json) as progress:
        found = normal(question, **read_figure(mfu, tokens_per_s), progress=progress)
    document = normal_document(found)
    show(document, format_normal(document, quiet), as_json)


def _keep(calibration: Any, path: Path | None) -> None:
    """Write the local factors, all or nothing."""
    if calibration is None or path is None:
        return
    from krzem.jobs.calibrate import file_text
    from krzem.report.selfcontained import write_text

    write_text(path, file_text(calibration))
    click.echo(f"wrote {path}", err=True)


FIELDS = {
    "seq": "sequence", "batch": "global_batch", "batch-tokens": "batch_tokens",
    "precision": "precision", "date": "date", "optimizer": "optimizer", "layout": "limits",
}  # fmt: skip
"""Fields of ``--set`` with a figure, and those of a question."""


def read_figure(mfu: str | None, tokens_per_s: str | None) -> dict[str, float | None]:
    """Keywords of :func:`krzem.accuracy.normal.normal`; raises QuantityError, GoalError."""
    if mfu is not None and tokens_per_s is not None:
        raise GoalError("--mfu and --tokens-per-s say the same: keep one of them")
    rate = (
        None if tokens_per_s is None else float(read("--tokens-per-s", parse_count, tokens_per_s))
    )
    return {"mfu": None if mfu is None else read_share(mfu), "tokens_per_s": rate}


def read_share(text: str) -> float:
    """``38%``, ``38`` and ``0.38`` as a fraction; raises QuantityError.

    Between 1 and 1.5 a bare number might be either: it is refused.
    """
    bare = text.strip().removesuffix("%").strip()
    try:
        value = float(bare)
    except ValueError:
        value = -1.0
    marked = bare != text.strip()
    if not 0 < value <= 1000 or (not marked and 1 < value < 1.5):
        raise QuantityError(f"--mfu {shorten(text, 20)!r}: write a percentage such as 38%")
    return value / 100 if marked or value >= 1.5 else value


def question_of(
    model: str, on: str, engine: str | None, calibration: Path | None, given: tuple[str, ...]
) -> Question:
    """The question that a figure answers; raises InputError for fields that it does not have."""
    fields: dict[str, str] = {}
    for text in given:
        key, equals, value = (part.strip() for part in text.partition("="))
        name = key.lower().replace("_", "-")
        if name not in FIELDS or not equals or not value:
            raise InputError(
                f"--set {shorten(text, 40)!r}: with --mfu and --tokens-per-s write"
                f" {', '.join(f'{known}=…' for known in FIELDS)}"
            )
        fields[FIELDS[name]] = value
    return Question(
        model=model, on=on, engine=engine, calibration=calibration,
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip
