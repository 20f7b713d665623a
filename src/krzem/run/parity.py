"""The witness inside a move: recorded where the run comes from, checked where it is to go on.

Both are jobs under the launcher of the pool, on all its ranks, in the layout planned for it.  The
batches are the very samples that come next, so the check also sees that the data are the same.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from krzem.hardware import CPU
from krzem.layout.layout import parse_layout
from krzem.run.attempts import job_name, surroundings
from krzem.run.contract import ENV_RUN_DIR
from krzem.run.errand import run_errand
from krzem.run.launch.job import Job, JobLauncher, read_json
from krzem.run.launch.words import shell_words
from krzem.run.own import is_own
from krzem.run.settings import Pool, RunSettings
from krzem.run.verdict import Agreement, Recorded, Verdict
from krzem.train.checkpoint.manifest import Manifest, read_manifest
from krzem.train.config import TRAINABLE
from krzem.witness.witness import ATTACHMENT, read_witness

PARITY = "parity"
VERDICT, PAGE = "verdict.json", "parity.html"
_TRIES = 2
"""A check that breaks off says nothing about the numbers: it is tried again once."""


def record(
    settings: RunSettings,
    pool: Pool,
    launcher: JobLauncher,
    token: int,
    *,
    checkpoint: Path,
    layouts: Sequence[str | None],
) -> Recorded | None:
    """A :class:`~krzem.run.verdict.WitnessRecord`: for the arithmetic of every pool to come.

    Raises LaunchError where the launcher cannot say what became of the job.
    """
    manifest = read_manifest(checkpoint)
    if not _is_buildable(manifest) or ATTACHMENT in manifest.attachments:
        return None
    w = settings.witness
    sequences = _sequences(settings, (pool, *settings.after(pool.name)), layouts)
    words = ["record", checkpoint, "--sequences", sequences, "--batches", w.batches,
             *_data(settings, pool, manifest, first=True),
             *(x for dtype in _arithmetics(settings, pool) for x in ("--also", dtype))]  # fmt: skip
    job = _job(settings, pool, token, words, _for_witness(layouts[0], sequences))
    ended = run_errand(settings, job, launcher, seconds=w.limit_seconds, queued=True)
    done = ended.code == 0 and ATTACHMENT in read_manifest(checkpoint).attachments
    why = f"no witness of {checkpoint.name} could be recorded on {pool.name}: {ended.said}"
    told = f"of {sequences * w.batches} samples from {manifest.meta.get('sample', 0):,} on"
    return Recorded(recorded=done, message=told if done else why)


def check(
    settings: RunSettings,
    pool: Pool,
    launcher: JobLauncher,
    token: int,
    *,
    checkpoint: Path,
    layout: str | None,
) -> Verdict:
    """A :class:`~krzem.run.verdict.WitnessCheck`.

    Raises LaunchError where the launcher cannot say what became of the job.
    """
    manifest = read_manifest(checkpoint)
    if not _is_buildable(manifest) or ATTACHMENT not in manifest.attachments:
        buildable = _is_buildable(manifest)
        why = "has no witness" if buildable else "holds no model that krzem's trainer builds"
        return Verdict(
            agreement=Agreement.NOT_CHECKED,
            message=f"{checkpoint.name} {why}: it is not compared on {pool.name}",
        )
    recorded = read_witness(checkpoint).batches[0].tokens.shape[0]
    if recorded % _unit(layout):
        return Verdict(
            agreement=Agreement.NOT_CHECKED,
            message=(
                f"the witness of {checkpoint.name} has {recorded} sequences, which do not divide "
                f"by the {_unit(layout)} that layout {layout} of {pool.name} takes at once"
            ),
        )
    layout = _for_witness(layout, recorded)
    said = ""
    for _ in range(_TRIES):
        job = _check_job(settings, pool, token, manifest, checkpoint, layout)
        ended = run_errand(settings, job, launcher, seconds=settings.witness.limit_seconds)
        found = read_json(job.folder / VERDICT)
        if found is not None:
            return _verdict(found, job.folder)
        said = ended.said
    return Verdict(
        agreement=Agreement.FAILED,
        message=f"{checkpoint.name} could not be checked on {pool.name}: {said}",
    )


def _check_job(
    settings: RunSettings,
    pool: Pool,
    token: int,
    manifest: Manifest,
    checkpoint: Path,
    layout: str | None,
) -> Job:
    folder = _folder(settings, pool, token)
    words = ["check", checkpoint, "--dtype", _dtype(settings, pool), "--out", folder / VERDICT,
             *_data(settings, pool, manifest, first=False)]  # fmt: skip
    if all(importlib.util.find_spec(name) for name in ("jinja2", "matplotlib")):
        words += ["--html", folder / PAGE]
    return _job(settings, pool, token, words, layout)


def _verdict(found: dict[str, Any], folder: Path) -> Verdict:
    kept = {k: found[k] for k in ("first_departure", "signals_judged", "departures_found",
                                  "whole_model", "layers", "source", "destination", "dtype",
                                  "notes")}  # fmt: skip
    page = folder / PAGE
    return Verdict(
        agreement=Agreement.PASSED if found["passed"] else Agreement.FAILED,
        message=str(found["message"]),
        departs=tuple(found["departs"]),
        evidence={
            **kept,
            "file": str(folder / VERDICT),
            "page": str(page) if page.exists() else None,
        },
    )


def _is_buildable(manifest: Manifest) -> bool:
    return (manifest.config or {}).get("model_type") in TRAINABLE


def _sequences(settings: RunSettings, pools: Sequence[Pool], layouts: Sequence[str | None]) -> int:
    """So many that every layout can share them out; a step's batch can always be shared out.

    A pool that was not measured has no layout yet: all its ranks may become stages.
    """
    units = (
        _unit(f"pp={pool.count}" if layout is None else layout)
        for pool, layout in zip(pools, layouts, strict=True)
    )
    unit = math.lcm(*units)
    return min(unit * -(-settings.witness.sequences // unit), settings.goal.global_batch)


def _unit(layout: str | None) -> int:
    """Sequences that a layout takes at least: one a rank, and all its stages busy."""
    if layout is None:
        return 1
    x = parse_layout(layout)
    return x.dp * (2 * x.pp if x.pp > 1 else 1)


def _for_witness(layout: str | None, sequences: int) -> str | None:
    """``layout`` with a micro-batch that divides so few sequences."""
    if layout is None:
        return None
    x = parse_layout(layout)
    most = sequences // _unit(layout)
    return str(replace(x, micro_batch=math.gcd(x.micro_batch, max(most, 1))))


def _arithmetics(settings: RunSettings, pool: Pool) -> list[str]:
    """Those of the pools that may go on, where it is not the float32 that is recorded anyway."""
    found = (_dtype(settings, other) for other in settings.after(pool.name))
    return [name for name in dict.fromkeys(found) if name != "float32"]


def _dtype(settings: RunSettings, pool: Pool) -> str:
    precision = pool.precision or settings.goal.precision
    return "float32" if precision == "fp32" else "bfloat16"


def _data(settings: RunSettings, pool: Pool, manifest: Manifest, *, first: bool) -> list[object]:
    """The run's own constants and samples; another trainer's are not known."""
    if not is_own(settings, pool):
        return []
    given: list[object] = ["--run-file", settings.path]
    return [*given, "--first", int(manifest.meta.get("sample", 0))] if first else given


def _folder(settings: RunSettings, pool: Pool, token: int) -> Path:
    return settings.folder / PARITY / f"{pool.name}-{token}"


def _job(
    settings: RunSettings, pool: Pool, token: int, words: Sequence[object], layout: str | None
) -> Job:
    folder = _folder(settings, pool, token)
    shutil.rmtree(folder, ignore_errors=True)
    words = [*words, "--device", "cpu" if pool.accelerator == CPU else "auto"]
    if layout:
        words = [*words, "--layout", layout]
    plain = [str(word).replace("{", "{{").replace("}", "}}") for word in words]
    return Job(
        name=job_name(settings, f"{words[0]}-{token}"),
        folder=folder,
        run_dir=settings.folder,
        token=token,
        command=shell_words(
            ["{torchrun}", "-m", "krzem", "witness", *plain], pool, {"token": token}
        ),
        variables={ENV_RUN_DIR: str(settings.folder), **surroundings(pool)},
        environment=pool.environment,
        slurm=pool.slurm,
    )
