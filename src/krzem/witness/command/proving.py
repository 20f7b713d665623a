"""``krzem witness verify`` and ``krzem witness runs``: what a check leaves behind, and what stands
in for it where bits cannot agree."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from krzem.errors import InputError
from krzem.train.durable import write_atomic

REJECTED, UNDECIDED = 1, 3
"""Exit codes of ``krzem witness runs``; 2 is bad input."""
FILE = click.Path(path_type=Path, dir_okay=False)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.command("verify")
@click.argument("certificate", type=FILE)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="It has to be of this one.")
@click.option("--signers", type=FILE, help="Allowed signers, as ssh-keygen(1) describes them.")
@click.option("--identity", default="", help="Who has to have signed, as --signers names them.")
@AS_JSON
def verify_command(
    certificate: Path, checkpoint: Path | None, signers: Path | None, identity: str, as_json: bool
) -> None:
    """Check a CERTIFICATE, those before it in its folder, and their signatures.

    \b
    krzem witness verify RUN/certificates/step-000012000-ascend.json
    krzem witness verify CERTIFICATE --signers allowed_signers --identity me@site

    Exit code 0: unaltered, and every check in the chain passed; 1: one of them did not; 2: altered,
    not signed, or of another checkpoint.
    """
    from krzem.witness.certificate import verify_certificate

    if (signers is None) != (not identity):
        raise InputError("--signers and --identity go together: who is allowed to have signed")
    found = verify_certificate(
        certificate, checkpoint=checkpoint, signers=signers, identity=identity
    )
    if as_json:
        click.echo(json.dumps(
            {"schema": "krzem.certificate.verified/1", "passed": found.passed,
             "complete": found.complete, "signer": found.signer,
             "chain": [{k: c[k] for k in ("sha256", "passed", "message", "created")}
                       for c in found.chain]},
            indent=2,
        ))  # fmt: skip
    else:
        for c in found.chain:
            step = (c["checkpoint"] or {}).get("name", "no checkpoint")
            click.echo(f"{'PASS' if c['passed'] else 'FAIL'}  {step}  {c['message']}")
            for line in c["not_compared"]:
                click.echo(f"      not compared: {line}")
        whole = "back to the first" if found.complete else "the one before is not in this folder"
        signed = f", signed by {found.signer}" if found.signer else ", signatures not asked for"
        click.echo(f"{len(found.chain)} unaltered, {whole}{signed}")
    if not found.passed:
        raise click.exceptions.Exit(1)


@click.command("runs")
@click.option("--on-a", multiple=True, required=True, type=click.Path(path_type=Path),
              help="A short run on A: its folder or metrics.jsonl; one for each seed.")  # fmt: skip
@click.option("--on-b", multiple=True, required=True, type=click.Path(path_type=Path),
              help="A short run on B, of the same length.")  # fmt: skip
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1),
              help="Last steps of a run whose mean loss stands for it.")  # fmt: skip
@click.option("--alpha", default=0.05, show_default=True, help="False-alarm rate.")
@click.option("--shift", default=0.01, show_default=True, help="Relative difference to be found.")
@click.option("--out", type=FILE, help="Also write the result as JSON, for --statistical.")
@AS_JSON
def runs_command(
    on_a: Sequence[Path],
    on_b: Sequence[Path],
    steps: int,
    alpha: float,
    shift: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Do short seeded runs on B train as those on A do?

    For a change of precision or of an algorithm, where bits cannot agree: Student's t-test as
    MLPerf's reference convergence points use it, with its power stated.

    \b
    krzem witness runs --on-a runs/a1 --on-a runs/a2 --on-a runs/a3 --on-b runs/b1

    Exit code 0: accepted; 1: rejected; 3: too few runs to tell; 2: bad input.
    """
    from krzem.witness.statistical import compare, last_loss

    found = compare(
        [last_loss(path, steps) for path in on_a],
        [last_loss(path, steps) for path in on_b],
        alpha=alpha,
        shift=shift,
    )
    value: dict[str, Any] = {"schema": "krzem.witness.runs/1", **asdict(found), "steps": steps,
                             "message": found.message}  # fmt: skip
    if out is not None:
        write_atomic(out, json.dumps(value, indent=1).encode() + b"\n")
    click.echo(json.dumps(value, indent=2) if as_json else found.message)
    if not found.accepted:
        raise click.exceptions.Exit(REJECTED if found.rejected else UNDECIDED)


@click.command("overlap")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--run", "--run-file", "run_file", type=FILE, required=True, help="The run's file.")
@click.option("--metrics", type=FILE, required=True,
              help="metrics.jsonl with the steps that the other machine did.")  # fmt: skip
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1), help="At most.")
@click.option("--folder", type=click.Path(path_type=Path), help="Of these steps. [a temporary one]")
@click.option("--out", type=FILE, help="Also write the result as JSON to this file.")
@AS_JSON
def overlap_command(
    checkpoint: Path,
    run_file: Path,
    metrics: Path,
    steps: int,
    folder: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Train the steps after CHECKPOINT again here, and compare each with what it was there.

    \b
    krzem witness overlap RUN/checkpoints/step-000011000 --run-file run.toml \\
      --metrics RUN/metrics.jsonl

    Shows what one step cannot: a drift, a schedule, collectives that are rare. Nothing is saved.
    Exit code 0: the same; 1: it departs; 2: bad input.
    """
    from krzem.witness.checkpoint import first_rank
    from krzem.witness.overlap import compare_steps, read_steps, train_again

    old = read_steps(metrics)
    with tempfile.TemporaryDirectory(prefix="krzem-overlap-") as temporary:
        new = train_again(run_file, checkpoint, steps, folder or Path(temporary))
    if not first_rank():
        return
    found = compare_steps(old, new)
    if out is not None:
        write_atomic(out, json.dumps(found.as_dict()).encode() + b"\n")
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.message)
    for sentence in found.departs[1:10] if not as_json else ():
        click.echo(f"  {sentence}")
    if not found.passed:
        raise click.exceptions.Exit(1)
