"""``krzem sample``: what a checkpoint writes."""

from __future__ import annotations

import json
from pathlib import Path

import click

from krzem.cli.common import Amount
from krzem.errors import DataError
from krzem.train.checkpoint.store import chosen_checkpoint
from krzem.train.data.tokenizer import Tokenizer, kept_tokenizer, load_tokenizer


@click.command("sample")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--prompt", "-p", "prompts", multiple=True, help="Text to go on from; may be repeated."
)
@click.option(
    "--prompts",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A prompt a line.",
)
@click.option(
    "--tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Most tokens."
)
@click.option(
    "--temperature",
    type=Amount(min=0),
    default=0.8,
    show_default=True,
    help="0 takes the likeliest token each time.",
)
@click.option(
    "--top-p",
    type=Amount(min=0.001, max=1),
    default=0.95,
    show_default=True,
    help="Draw from the likeliest tokens that together have this probability.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="A tokenizer.json, its folder, or `bytes`.  [default: the run's]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or npu.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Arithmetic.",
)
@click.option("--json", "as_json", is_flag=True, help="Print prompts and texts as JSON.")
def sample_command(
    checkpoint: Path,
    prompts: tuple[str, ...],
    file: Path | None,
    tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    tokenizer: Path | None,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Write on from each prompt with the model of CHECKPOINT, or of a run's last good one.

    \b
    krzem sample runs/a --prompt "Once upon a time"
    krzem sample runs/a/checkpoints/step-000001000 --prompts prompts.txt --temperature 0 --json

    The whole model lies on one device. Prompts of equal length go through it together.
    """
    from krzem.train.sample import Sampling, continue_texts, load_model

    wanted = [*prompts, *(_lines(file) if file is not None else ())]
    if not wanted:
        raise click.UsageError("give text to go on from: --prompt TEXT, or --prompts FILE")
    folder = chosen_checkpoint(checkpoint)
    words = _tokenizer(folder, tokenizer)
    how = Sampling(tokens=tokens, temperature=temperature, top_p=top_p, seed=seed)
    texts = continue_texts(load_model(folder, device, dtype), words, wanted, how)
    if as_json:
        rows = [{"prompt": p, "text": t} for p, t in zip(wanted, texts, strict=True)]
        click.echo(json.dumps({"checkpoint": str(folder), "samples": rows}, ensure_ascii=False))
        return
    click.echo("\n\n".join(f"{p}{t}" for p, t in zip(wanted, texts, strict=True)))


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the prompts in {file}: {error}") from error


def _tokenizer(checkpoint: Path, named: Path | None) -> Tokenizer:
    if named is not None:
        return load_tokenizer(named)
    return kept_tokenizer(checkpoint.parent.parent)
