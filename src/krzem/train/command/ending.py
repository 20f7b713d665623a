"""How a run ended: for people, for programs and as a page."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from krzem.errors import RunError, shorten
from krzem.files import check_target
from krzem.model import count
from krzem.report.selfcontained import need_extra, write_text
from krzem.train.checkpoint import latest_good, step_folder
from krzem.train.loop import RunEnd, Trainer
from krzem.train.summary import summarise


def check_page(path: Path | None) -> None:
    """Refuse before the run a page that could not be written after it.

    Raises:
        InputError: nothing can be written at ``path``.
        KrzemError: the extra ``report`` is missing.
    """
    if path is not None:
        check_target(path)
        need_extra()


def end_value(trainer: Trainer, end: RunEnd) -> dict[str, Any]:
    """For ``--json``; the loss None where this start took no step."""
    return {
        "step": end.step,
        "steps": end.step + trainer.steps_left,
        "tokens": trainer.settings.tokens_at(trainer.sample),
        "loss": None if end.loss != end.loss else end.loss,
        "stopped": end.stopped,
        "folder": str(trainer.settings.folder),
        "checkpoint": str(step_folder(trainer.root, end.step)),
    }


def end_sentence(trainer: Trainer, end: RunEnd) -> str:
    """For people: what is done, where the weights are, what comes next."""
    value = end_value(trainer, end)
    if end.stopped:
        return (
            f"stopped at step {end.step:,} of {value['steps']:,}: the same command resumes from "
            f"{value['checkpoint']}"
        )
    if value["loss"] is None:
        return (
            f"nothing is left to train: step {end.step:,} is the last, saved in "
            f"{value['checkpoint']}; raise tokens in [goal] to go on from there"
        )
    return (
        f"done: {end.step:,} steps, {value['tokens']:,} tokens, loss {end.loss:.4f}, saved in "
        f"{value['checkpoint']}"
    )


def crashed(trainer: Trainer, error: Exception) -> RunError:
    """One sentence for an ``error`` that nobody foresaw; its traceback goes into the run."""
    file = trainer.settings.folder / f"crash-rank-{trainer.rank}.txt"
    with contextlib.suppress(OSError):
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    said = shorten((str(error).strip().splitlines() or ["no message"])[0], 200)
    return RunError(
        f"step {trainer.step + 1} under layout {trainer.layout} broke on rank {trainer.rank}: "
        f"{type(error).__name__}: {said}; the traceback is in {file}"
    )


def what_is_left(root: Path) -> str:
    """Which checkpoint in ``root`` the next start goes on from, by manifests and sizes."""
    found = latest_good(root, deep=False) if root.is_dir() else None
    return "no checkpoint is there yet" if found is None else f"the last good checkpoint is {found}"


def write_page(trainer: Trainer, path: Path) -> None:
    """Write the page of the run to ``path``.

    Raises:
        RunError: the run has no step yet.
        StorageError: the disk does not take it.
    """
    from krzem.train.page import run_page

    settings = trainer.settings
    goal = settings.goal
    summary = summarise(settings.folder, full_tokens=goal.global_batch * goal.sequence)
    text = run_page(settings.name, goal.tokens, facts(trainer), trainer.forecast, summary)
    write_text(path, text)
    click.echo(f"wrote {path}", err=True)


def facts(trainer: Trainer) -> dict[str, str]:
    """What was run, by name."""
    settings, arch, layout = trainer.settings, trainer.spec.arch, trainer.layout
    goal, counted = settings.goal, count(arch)
    mtp = f" + {counted.mtp:,} (MTP)" if counted.mtp else ""
    data = settings.data.path
    return {
        "model": arch.name,
        "parameters": f"{counted.total:,}{mtp}, {counted.active:,} active",
        "layout": str(layout),
        "ranks": f"{layout.devices:,}",
        "device": trainer.info.name,
        "arithmetic": f"{goal.precision}, {goal.optimizer}",
        "a step": f"{goal.global_batch:,} sequences x {goal.sequence:,} tokens",
        "data": ", ".join(map(str, data)) if isinstance(data, Mapping) else str(data),
        "folder": str(settings.folder),
    }
